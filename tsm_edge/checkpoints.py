"""Reading checkpoints of several projects, strictly and safely, and writing our own.

A checkpoint is read with `weights_only=True`: it can hold tensors and plain values, never code.
"""
from __future__ import annotations

import contextlib
import os
import re
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from .backbones import NAMES
from .card import FIELDS, Card, amend, check
from .errors import CheckpointError, InputError
from .files import written_whole
from .jester import CLASSES
from .tensor_names import HEADS, UnknownLayout, differences, expected_weights, first_keys, measure, translate

FORMAT, VERSION = "tsm_edge.checkpoint", 1
KINDS = {
    "published": "the published online Jester layout", "reference": "a network trained with the reference repository",
    "mmaction2": "an MMAction2 checkpoint", "plain": "a plain state dict",
    "features": "features without a classifier", "own": "a tsm_edge checkpoint",
}
# What is known of weights whatever network they are loaded into.
_OF_WEIGHTS = ("classes", "mean", "std", "resize", "filter", "fps", "events", "model_name")
_LEGACY_MAGIC = (0x1950a86a20f9469cfc6c).to_bytes(10, "little")  # what torch.save wrote before it wrote zip archives


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    state_dict : tensors by our names, float32.
    card : what is known of the network. "shift" is in `card.said` only if the file tells how it was trained.
    kind : a key of KINDS.
    extra : what else was saved with it: training, metrics, ...
    """

    state_dict: dict
    card: Card
    kind: str
    extra: dict = field(default_factory=dict)


# --- reading ---------------------------------------------------------------------------------------------------------


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and recognise a checkpoint file.

    Parameters
    ----------
    path : path
        The published online Jester checkpoint, one of the reference repository or of MMAction2 (MobileNetV2, ResNet-50), a
        plain state dict with our, torchvision's or timm's (MobileNetV2) names, or one of ours. A classifier may be missing: the card
        has no num_classes then.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CheckpointError
        Missing, truncated, foreign or inconsistent files; says what was found and what was expected.
    """
    content = _read(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        return _own(content, path)
    weights = _tensors(content, path)
    try:
        layout, weights, shifted, facts = translate(weights)
        arch, num_classes, width, rounding = measure(weights)
        expected, convolutions, blocks = expected_weights(arch, num_classes, width, rounding)
    except UnknownLayout as error:
        problem, found, wanted, do = error.args
        raise CheckpointError(f"{path} cannot be used: {problem}", found=found, expected=wanted, do=do) from None
    wrong = differences(weights, expected)
    if wrong:
        raise CheckpointError(
            f"{path} does not fit {arch} with {num_classes} classes and width {width:g}",
            found=f"{'; '.join(wrong)}; first keys of the file: {first_keys(weights)}",
            expected=f"the {len(expected)} tensors {first_keys(expected)}", do="use an unchanged checkpoint of that network")
    info = {"name": arch, "width": width, "rounding": rounding, "fold_div": 8, "trained": True, **facts}
    if num_classes:
        info["num_classes"] = num_classes
    kind = "features" if not num_classes and layout == "flat" else layout if layout != "flat" else "plain"
    if kind == "features":
        info["trained"] = False  # for the classes that it will have
    elif layout == "flat" and (arch, num_classes, width) == ("mobilenet_v2", 27, 1.0):
        kind = "published"
        info.update(classes=CLASSES, shift="online", past=(0, 1))
    elif layout != "flat" and not shifted:
        info.update(shift=None)
    elif layout != "flat":
        wanted = blocks if facts.get("placement") == "inplace" else convolutions
        if shifted != wanted:
            odd = sorted(shifted ^ wanted)
            raise CheckpointError(f"{path} has its shifts in other places than {arch} here", found=f"differing: {first_keys(odd)}",
                                  expected=f"shifts of {first_keys(sorted(wanted))}",
                                  do="build the network yourself: tsm_edge.shift.insert_shifts(net, where)")
        # both projects train with both directions unless their code is changed, which the file would not show
        info.update(shift="offline", past=(1, 2), future=(0, 1))
    return Checkpoint(_clean(weights, expected, path), _card(info, path), kind)


def _tensors(content, path):
    """The tensors by name in a file's content."""
    weights = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights or not all(
            isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()):
        keys = first_keys(weights if isinstance(weights, dict) else [type(weights).__name__])
        raise CheckpointError(f"{path} is no checkpoint of a network", found=keys,
                              expected="tensors by name, alone or under 'state_dict'",
                              do="save the network's state_dict() with torch.save")
    return weights


def _card(info, path):
    """The card that a file holds."""
    try:
        return Card(info)
    except InputError as error:
        raise CheckpointError(f"{path} cannot be used: {error.problem}", found=error.found, expected=error.expected,
                              do="use another checkpoint, or save the network again with save_checkpoint") from None


def _own(content, path):
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise CheckpointError(f"{path} was written by another release", found=f"version {content.get('version')!r}",
                              expected=f"version {VERSION}", do="install the release of tsm-edge that wrote it")
    weights, info = content.get("state_dict"), content.get("info")
    if not isinstance(weights, dict) or not isinstance(info, dict) or not all(
            isinstance(v, torch.Tensor) for v in weights.values()):
        raise CheckpointError(f"{path} is damaged", found=first_keys(content), expected="'state_dict' and 'info'",
                              do="save the network again with save_checkpoint")
    card, expected = _card(info, path), None
    if card.name in NAMES and card.num_classes:
        expected, _, _ = expected_weights(card.name, card.num_classes, card.width, card.rounding)
        wrong = differences(weights, expected)
        if wrong:
            raise CheckpointError(f"{path} does not hold the network that it names", found="; ".join(wrong),
                                  expected=f"{card.name}, {card.num_classes} classes, width {card.width:g}", do="save the network again")
    return Checkpoint(_clean(weights, expected, path), card, "own", {key: info[key] for key in info if key not in FIELDS})


def _clean(weights, expected, path):
    """float32 tensors of their own, all finite; counters of batches filled in."""
    clean = {}
    for name, value in weights.items():
        if value.is_meta or value.layout is not torch.strided:
            found = f"{name} is {'meta' if value.is_meta else value.layout}"
            raise CheckpointError(f"{path} holds tensors without plain values", found=found, expected="dense tensors",
                                  do="save the network's weights themselves")
        if value.is_floating_point():
            value = value.detach().to(torch.float32)
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{path} holds values that are no numbers", found=f"NaN or infinity in {name}",
                                      expected="finite weights", do="use an earlier checkpoint of that training")
        clean[name] = value.detach().clone().contiguous()
    for name in expected or ():
        if name.endswith(".num_batches_tracked"):
            clean.setdefault(name, torch.tensor(0))
    return clean


def _read(path):
    """torch.load with every failure in words."""
    def refuse(problem, found, expected="a file written by torch.save", do="download or copy the file again"):
        return CheckpointError(f"{path} {problem}", found=found, expected=expected, do=do)

    path = os.fspath(path)
    if os.path.isdir(path):
        raise refuse("is a folder", "a folder", "a checkpoint file", "name the file in it")
    if not os.path.isfile(path):
        raise refuse("is not there", "no such file", "a checkpoint file", "check the path")
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(64)
    if size == 0:
        raise refuse("is empty", "0 bytes")
    if head.startswith(b"version https://git-lfs"):
        raise refuse("is a Git LFS pointer, not the file itself", f"{size} bytes of text", do="run git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise refuse("is a web page, not a checkpoint", head[:40].decode("latin-1").strip(),
                     do="download the file itself, not the page about it")
    archive, written = head.startswith(b"PK"), "tensors and plain values, written by torch.save"
    try:
        if archive:
            parts = _parts(path)
            if any(part.partition("/")[2] == "constants.pkl" for part in parts):
                raise refuse("is a TorchScript program, not a checkpoint", "code and constants", written,
                             "save the state_dict() of the network that it was made of")
            if not any(part.partition("/")[2] == "data.pkl" for part in parts):
                raise refuse("is an archive of something else", f"a zip file with {first_keys(parts)}", written, "check the path")
        with _plain_numpy():
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        text = str(error)
        unsafe = re.search(r"GLOBAL ([\w.]+)", text)
        if unsafe:
            raise refuse("holds Python objects, which are not loaded because they can run code", unsafe[1],
                         "tensors and plain values",
                         "where you trust the file, save its weights alone: "
                         "torch.save({'state_dict': checkpoint['state_dict']}, 'weights.pth')") from error
        lines = [line.strip() for line in text.splitlines() if line.strip() and "option" not in line and "http" not in line]
        reason = lines[-1] if "WeightsUnpickler" in text and lines else lines[0] if lines else ""
        if head.startswith(b"\x80") and _LEGACY_MAGIC not in head:
            raise refuse("was not written by torch.save", f"{size} bytes of pickled Python", written,
                         "torch.save(weights, 'weights.pth'), tensors by name") from error
        what = "is truncated or damaged" if archive or _LEGACY_MAGIC in head else "is no PyTorch checkpoint"
        raise refuse(what, f"{size} bytes, {type(error).__name__}: {reason[:160]}") from error


def _parts(path):
    """Names of the files in a zip archive; all are read, as torch.load does not look at their checksums.

    Raises
    ------
    zipfile.BadZipFile
        Bytes that are not those that were written, and much else that a damaged archive leads to.
    """
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            if part.CRC:  # 0: none was written, see torch.serialization.set_crc32_options
                with archive.open(part) as file:
                    while file.read(1 << 20):
                        pass
        return archive.namelist()


@contextlib.contextmanager
def _plain_numpy():
    """Allow numpy's scalars, which trainers store as their best score: numbers, not code."""
    scalar = np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    kinds = {type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")}
    with torch.serialization.safe_globals([*((scalar, name) for name in names), np.dtype, *kinds]):
        yield


# --- into a network --------------------------------------------------------------------------------------------------


def agree(loaded, path, name, num_classes, width, asked):
    """Does a checkpoint fit what `create_model` was asked for? Returns the card's notes.

    asked : dict with shift, past, future, fold_div, placement as the caller gave them (None: not given).

    Raises
    ------
    CheckpointError
    """
    def refuse(problem, found, expected, do):
        return CheckpointError(f"{path} {problem}", found=found, expected=expected, do=do)

    card, known, notes = loaded.card, loaded.card.said, []
    if card.name != name:
        raise refuse("holds another network", f"{card.name} ({KINDS[loaded.kind]}; {first_keys(loaded.state_dict)})", name,
                     f"create_model({card.name!r}, ...), or another file")
    if loaded.kind == "features":
        raise refuse("has no classifier", first_keys(loaded.state_dict), f"{HEADS[name]}.weight with shape (classes, channels)",
                     "use the checkpoint of a whole network, train one (tsm-train --init), or load_into(net, path, head=False)")
    if num_classes is not None and num_classes != card.num_classes:
        raise refuse("has another number of classes", f"{card.num_classes} ({HEADS[name]}.weight "
                     f"{tuple(loaded.state_dict[HEADS[name] + '.weight'].shape)})", f"{num_classes}, as num_classes says",
                     f"pass num_classes={card.num_classes}; to train for other classes start from "
                     "load_into(net, path, head=False)")
    if width is not None and check("width", width) != card.width:
        raise refuse("has another width", f"width {card.width:g}", f"{width:g}", "leave width out")
    if asked["shift"] is None:
        return notes
    given = {key: value for key, value in asked.items() if key != "shift" and value is not None}
    if "shift" in known and known["shift"] == asked["shift"]:
        for key, value in given.items():
            recorded = known.get(key)
            value = tuple(value) if key in ("past", "future") else value
            if recorded is not None and value != (tuple(recorded) if key in ("past", "future") else recorded):
                if loaded.kind in ("own", "published"):
                    raise refuse("was trained with other shifts", f"{key}={recorded}", f"{key}={value}, as asked for",
                                 f"leave {key} out: the checkpoint knows it")
                notes.append(f"{key}={value} as asked for; {KINDS[loaded.kind]} usually has {key}={recorded}")
        return notes
    trained = {"online": f"online, past={known.get('past')}", None: "without shifts",
               "offline": f"in both directions, future={known.get('future')}, past={known.get('past')}"}
    trained = trained[known["shift"]] if "shift" in known else "in a way that the file does not say"
    if "past" not in given:
        example = known.get("past") or (0, 1)
        raise refuse(
            f"was not trained with {asked['shift']} shifts", f"{KINDS[loaded.kind]}, trained {trained}",
            f"weights trained with {asked['shift']} shifts, or your word on the slice that comes from the past",
            f"if it is meant so, say which: past={tuple(example)} (tsm-export: --past {example[0]}:{example[1]}), and measure "
            "the accuracy" + ("; or shift='offline' for the network as trained" if known.get("shift") == "offline" else ""))
    notes.append(f"weights trained {trained}, run {asked['shift']} with past={tuple(given['past'])} as asked for")
    return notes


def copy_weights(net, loaded, path, head=True):
    """Copy a checkpoint's tensors into a network, all or nothing."""
    expected, weights = net.state_dict(), dict(loaded.state_dict)
    if not head:
        name = HEADS.get(loaded.card.name, "")
        weights = {k: v for k, v in weights.items() if not name or k.rpartition(".")[0] != name}
        weights.update({k: v for k, v in expected.items() if name and k.rpartition(".")[0] == name})
    wrong = differences(weights, expected)
    if wrong:
        raise CheckpointError(f"{path} does not fit the network", found=f"{'; '.join(wrong)}; {KINDS[loaded.kind]} with "
                              f"first keys {first_keys(weights)}",
                              expected=f"the network's {len(expected)} tensors: {first_keys(expected)}",
                              do="build the network that the checkpoint is of: see load_checkpoint(path)")
    net.load_state_dict(weights, strict=False)


def load_into(net: nn.Module, path: str | os.PathLike[str], *, head: bool = True) -> Checkpoint:
    """Load a checkpoint's weights into an existing network, strictly.

    Parameters
    ----------
    net : torch.nn.Module
        One of ours, or your own (then the file must have its names).
    path : path
    head : bool
        False leaves the classifier as it is, to train for other classes.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CheckpointError
    """
    loaded = load_checkpoint(path)
    copy_weights(net, loaded, path, head)
    if head:
        card, known = Card.of(net), loaded.card.said
        changes = {key: known[key] for key in _OF_WEIGHTS if key in known}
        trained = known.get("shift", "unknown")
        if "shift" in card.said and trained != card.shift:
            changes["notes"] = [*card.notes, f"weights trained with shifts {trained!r} ({KINDS[loaded.kind]}), run {card.shift!r}"]
        amend(net, trained=loaded.card.trained, **changes)
    return loaded


# --- writing ---------------------------------------------------------------------------------------------------------


def save_checkpoint(path: str | os.PathLike[str], net: nn.Module, *, half: bool = False, **meta: Any) -> None:
    """Write a network's weights and its description; the file appears whole or not at all.

    Parameters
    ----------
    path : path
    net : torch.nn.Module
        What its card says is stored.
    half : bool
        Weights in 16 bits: half the file; they are computed with in 32 bits all the same.
    **meta :
        Plain values that are stored beside it and override it, such as trained=True, classes=[...], accuracy=0.9.

    Raises
    ------
    InputError
        A value that cannot be read back with weights_only=True, weights that 16 bits cannot hold, or no room to write it.
    """
    info = {**Card.of(net).said, **meta}
    weights = {name: value.detach().cpu().clone() for name, value in net.state_dict().items()}
    if half:
        weights = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        beyond = [name for name, value in weights.items() if value.is_floating_point() and not torch.isfinite(value).all()]
        if beyond:
            raise InputError("weights do not fit into 16 bits", found=first_keys(beyond), expected="values below 65504",
                             do="leave half out")
    content = {"format": FORMAT, "version": VERSION, "info": _plain(info, "meta"), "state_dict": weights}
    save_whole(path, content)


def save_whole(path, content):
    """torch.save to `path`: the file appears whole or not at all, and nothing else is left.

    Raises
    ------
    InputError
        It cannot be written; the file that was there is as it was.
    """
    with written_whole(path) as part:
        try:
            torch.save(content, part)
        except RuntimeError as error:  # how torch says that a disk is full
            raise OSError(str(error).partition("\n")[0][:200]) from error


def _plain(value, where):
    if value is None or isinstance(value, (bool, int, float, str, torch.Tensor)):
        return value
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {key: _plain(v, f"{where}.{key}") for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v, where) for v in value) if type(value) in (list, tuple) else [_plain(v, where) for v in value]
    raise InputError("a value cannot be stored in a checkpoint", found=f"{where}: {type(value).__name__}",
                     expected="numbers, text, lists, dicts, tensors", do="turn it into plain values")
