"""Opening a checkpoint as the clip-level network it was trained as."""
from __future__ import annotations


def open_network(path):
    """The network of a checkpoint with its own shifts (online, offline or none), in evaluation mode.

    Raises
    ------
    CheckpointError
    """
    from tsm_edge.checkpoints import load_checkpoint
    from tsm_edge.models import create_model

    card = load_checkpoint(path).card
    return create_model(card.name, checkpoint=path, shift=card.shift if "shift" in card.said else "online").eval()
