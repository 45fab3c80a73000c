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

    checkpoint = load_checkpoint(path)
    return create_model(checkpoint.arch, checkpoint=path, shift=checkpoint.info.get("shift", "online")).eval()
