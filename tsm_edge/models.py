"""A network by its name: backbone, shifts and weights in one call.

>>> net = create_model("mobilenet_v2", num_classes=27)
"""
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .backbones import NAMES, Backbone, build
from .card import Card
from .checkpoints import Checkpoint, agree, copy_weights, load_checkpoint
from .cli import choose
from .errors import InputError
from .shift import Slice, insert_shifts


def create_model(name: str, num_classes: int | None = None, *, width: float | None = None, input_size: int | tuple[int, int] | None = None,
                 shift: str | None = "online", fold_div: int | None = None, past: Slice = None, future: Slice = None,
                 n_segment: int | None = None, placement: str | None = None, dropout: float = 0.0, classes: Sequence[str] | None = None,
                 checkpoint: str | os.PathLike[str] | Checkpoint | None = None) -> Backbone:
    """Build a network with temporal shifts, with the weights of a checkpoint or freshly initialised ones.

    Parameters
    ----------
    name : "mobilenet_v2", "resnet18" or "resnet50"
    num_classes : int
        May be left out with a checkpoint.
    width : float
        Width multiplier of MobileNetV2; default 1, or the checkpoint's.
    input_size : int or (width, height)
        Pixels; default 224, or the checkpoint's.
    shift : "online", "offline" or None
        Channels from the past only; from past and future; no shifts.
    fold_div, past, future : see `tsm_edge.shift.temporal_shift`.
        Default: the checkpoint's; without one, past=(0, 1) online and future=(0, 1), past=(1, 2) offline, fold_div 8.
        Weights trained with other shifts than asked for are loaded only if `past` is given: that is how you say so.
    n_segment : int
        Frames of a clip, default 8; `tsm_edge.shift.set_segments` changes it later.
    placement : "residual" or "inplace"
    checkpoint : path, Checkpoint (of `load_checkpoint`) or None
    classes : class names, in the order of the outputs
    dropout : before the classifier, while training

    Returns
    -------
    torch.nn.Module
        [N * T, 3, H, W] -> [N * T, num_classes]. `net.card` says what it is, see `tsm_edge.card`.

    Raises
    ------
    InputError, CheckpointError
    """
    choose(name, NAMES, "network")
    _check_shift(shift, future)
    loaded, notes = None, []
    if checkpoint is not None:
        loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
        checkpoint = "the checkpoint" if loaded is checkpoint else checkpoint
        asked = {"shift": shift, "past": past, "future": future, "fold_div": fold_div, "placement": placement}
        notes = agree(loaded, checkpoint, name, num_classes, width, asked)
    elif num_classes is None:
        raise InputError("the number of classes is not given", found="num_classes=None and no checkpoint",
                         expected="a whole number", do="for example create_model('mobilenet_v2', 27)")
    known = loaded.card if loaded else Card()
    past, future = _folds(shift, past, future, known)
    card = known.but(name=name, num_classes=num_classes, classes=classes, width=width, input_size=input_size, fold_div=fold_div,
                     placement=placement, n_segment=n_segment)
    weights = loaded and {"kind": loaded.kind, "shift": known.shift, "past": known.past, "future": known.future}
    card = Card({**card, "shift": shift, "past": past, "future": future, "notes": notes, "checkpoint": weights,
                 "trained": loaded is not None and known.trained})
    net = build(name, card.num_classes, width=card.width, rounding=card.rounding, dropout=dropout)
    _shift(net, card)
    net.card = card
    if loaded:
        copy_weights(net, loaded, checkpoint)
    return net


def _check_shift(shift, future):
    if shift not in ("online", "offline", None):
        raise InputError("unknown kind of temporal shift", found=repr(shift), expected="'online', 'offline' or None",
                         do="'online' for video streams, 'offline' for whole clips")
    if shift != "offline" and future is not None:
        raise InputError("only an offline network looks into the future", found=f"shift={shift!r}, future={future!r}",
                         expected="future=None", do="use shift='offline', or leave future out")


def _folds(shift, past, future, known):
    """(past, future): as asked for, else as the checkpoint of the same kind of shift was trained, else the usual ones."""
    if shift is None:
        return None, None
    same = known.shift == shift
    return (past or (known.past if same else None) or ((0, 1) if shift == "online" else (1, 2)),
            future or (known.future if same else None) or (None if shift == "online" else (0, 1)))


def _shift(net, card):
    """Insert the shifts that a card describes, if any."""
    if card.shift is None:
        return
    where = net.shifted if card.placement == "residual" else lambda name, block: net.shifted(name, block) is not None
    insert_shifts(net, where, n_segment=card.n_segment, fold_div=card.fold_div, past=card.past, future=card.future,
                  placement=card.placement)


def mobilenet_v2(num_classes: int, width: float = 1.0, **options: Any) -> Backbone:
    """`create_model("mobilenet_v2", num_classes, width=width, ...)`."""
    return create_model("mobilenet_v2", num_classes, width=width, **options)


def resnet18(num_classes: int, **options: Any) -> Backbone:
    """`create_model("resnet18", num_classes, ...)`."""
    return create_model("resnet18", num_classes, **options)


def resnet50(num_classes: int, **options: Any) -> Backbone:
    """`create_model("resnet50", num_classes, ...)`."""
    return create_model("resnet50", num_classes, **options)
