"""The network that tsm-export's options describe."""
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsm_edge.errors import InputError
from tsm_edge.export.proof.traces import one_thread

if TYPE_CHECKING:
    from torch import nn


def with_random_weights(arch: str = "mobilenet_v2", num_classes: int | None = None, *, classes: Sequence[str] | None = None,
                        width: float | None = None, input_size: tuple[int, int] | None = None, past: tuple[int, int] | None = None,
                        fold_div: int | None = None, seed: int = 0) -> nn.Module:
    """An untrained network whose outputs nevertheless move with its input, so that it can be verified and timed.

    Parameters
    ----------
    arch, num_classes, width : as in `tsm_edge.create_model`; num_classes defaults to len(classes), else 27.
    classes : list of str or None
    input_size : (width, height) or None for 224x224.
    past, fold_div : as in `tsm_edge.create_model`.
    seed : int

    Returns
    -------
    torch.nn.Module
        Its card says that it is not trained.
    """
    from tsm_edge.models import create_model
    from tsm_edge.sensitive import image_like_frames, make_sensitive

    if num_classes is not None and num_classes < 2:
        raise InputError("--num-classes cannot be used", found=str(num_classes), expected="at least 2",
                         do="for example --num-classes 27")
    count = num_classes or (len(classes) if classes else 27)
    net = create_model(arch, count, classes=classes, width=width, input_size=input_size, past=past, fold_div=fold_div)
    with one_thread():
        make_sensitive(net, seed, image_like_frames(16, net.card.input_size, seed))
    return net.eval()


def from_checkpoint(path: str | os.PathLike[str], *, arch: str | None = None, num_classes: int | None = None,
                    classes: Sequence[str] | None = None, width: float | None = None, input_size: tuple[int, int] | None = None,
                    past: tuple[int, int] | None = None, fold_div: int | None = None) -> nn.Module:
    """The network of a checkpoint; what is given besides must agree with what the file holds.

    Parameters
    ----------
    past : (start, stop) or None
        Which folds of channels come from the past, for files that do not say or were trained with both directions.
    Others : as for `with_random_weights`.

    Raises
    ------
    CheckpointError, InputError
        Unreadable, foreign or mismatching files and options.
    """
    from tsm_edge.checkpoints import load_checkpoint
    from tsm_edge.models import create_model

    card = load_checkpoint(path).card
    for option, given, found in (("--arch", arch, card.name), ("--width", width, card.width),
                                 ("--num-classes", num_classes, card.num_classes)):
        if given is not None and given != found:
            raise InputError(f"{option} does not fit the checkpoint {path}", found=f"{option} {given}",
                             expected=f"{found}, as the file has it", do=f"leave {option} out, or pick another file")
    return create_model(card.name, checkpoint=path, classes=classes, input_size=input_size, past=past, fold_div=fold_div).eval()
