"""The data sets of tsm-train: rendered gestures, or clips of one's own."""
from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np

from tsm_edge.errors import InputError


class Changed:
    """A data set seen through a transform without chance (validation sees frames as the runtime will)."""

    def __init__(self, data, transform):
        self.data, self.transform = data, transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        """None where the data set has None: a clip that cannot be read."""
        item = self.data[index]
        return None if item is None else self.transform(*item)

    def report(self):
        return self.data.report() if hasattr(self.data, "report") else ""


def open_data(args, chief=True):
    """What tsm-train's options name.

    Parameters
    ----------
    args : namespace
        data, val_data, root, classes, sampling, sampling_stride, frames, fps, seconds, input_size (width, height),
        gesture_set, clips_per_class, clip_size, variety, mirror, mirror_pairs, output, seed.
    chief : bool
        Renders what is missing; the other processes wait.

    Returns
    -------
    data, val : training set and validation set (or None) of (clip uint8 [T, h, w, 3], label)
    classes : list of str
    transform : callable (clip, label, rng) -> (clip, label), for training
    fps : float
        Frame rate that a clip's frames amount to: what a camera should give the model.
    """
    from .augment import CentreCrop, ColourJitter, Compose, Mirror, MultiScaleCrop, mirror_map

    if args.data == "gestures" and args.val_data or args.val_data == "gestures":
        raise InputError("rendered gestures bring their own validation clips", found=f"--data {args.data} --val-data {args.val_data}",
                         expected="--val-data beside clips of your own", do="leave --val-data out; measure other clips with tsm-eval")
    if args.data == "gestures":
        data, val = _gestures(args, chief)
        classes, fps = list(data.classes), args.frames / args.seconds
    else:
        data, val, classes, fps = _clips(args)
    steps = [MultiScaleCrop(args.input_size, scales=(1.0, 0.9, 0.8), distort=1, fixed=False)]
    if args.mirror:
        pairs = [tuple(pair.split("=", 1)) if "=" in pair else (pair, pair) for pair in args.mirror_pairs]
        steps.append(Mirror(mirror_map(classes, pairs)))
    steps.append(ColourJitter())
    return data, val and Changed(val, CentreCrop(args.input_size)), classes, Compose(*steps), args.fps or fps


def _gestures(args, chief):
    import torch.distributed as dist

    from tsm_edge.training.gestures.cache import CachedClips, prerender
    from tsm_edge.training.gestures.labels import CLASSES, CORE_CLASSES

    from .listing import read_classes

    names, kind = CLASSES if args.gesture_set == "all" else CORE_CLASSES, args.gesture_set
    if args.classes:
        names = read_classes(args.classes)
        kind = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    size = (args.clip_size,) * 2 if args.clip_size else tuple(round(side * 256 / 224) for side in args.input_size)
    root = Path(args.output).parent / "gesture-clips"
    made = []
    for split, count in (("train", args.clips_per_class), ("val", max(8, args.clips_per_class // 16))):
        side = f"{size[0]}px" if size[0] == size[1] else f"{size[0]}x{size[1]}px"
        hard = "" if args.variety == 1 else f"-variety-{_exact(args.variety)}"
        path = root / f"{split}-{kind}-{count}x{args.frames}-{side}-{_exact(args.seconds)}s{hard}"
        if chief:
            path.parent.mkdir(parents=True, exist_ok=True)
            show = _rendering(split) if sys.stderr.isatty() else None
            prerender(path, split, count, names, args.frames, size, args.seconds, progress=show, variety=args.variety)
        made.append(path)
    if dist.is_initialized():
        dist.barrier()
    return CachedClips(made[0]), CachedClips(made[1])


def _exact(number):
    """A number in few digits where they say it exactly, else in all."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def _rendering(split):
    def show(done, total):
        print(f"\rrendering {split} clips {done}/{total}", end="\n" if done == total else "", file=sys.stderr)

    return show


def _clips(args):
    from .datasets import ClipDataset
    from .listing import find_items, labelled
    from .sampling import Sampler

    items, classes = find_items(args.data, args.root, args.classes)
    sampler = Sampler(args.sampling, args.frames, args.sampling_stride, args.fps or 12.0)
    labelled(items, args.data)
    if args.val_data:
        val_items, _ = find_items(args.val_data, args.root, classes)
        labelled(val_items, args.val_data)
    else:
        items, val_items = hold_out(items)
    data = ClipDataset(items, sampler, train=True, seed=args.seed)
    val = ClipDataset(val_items, sampler, train=False, unreadable="none") if val_items else None
    if val and all(val[i] is None for i in range(len(val))):  # ends at the first that can be read
        raise InputError("not one validation clip can be read", found=val.report(), expected="readable clips",
                         do="repair them, or name others with --val-data")
    return data, val, classes, clip_rate(items, sampler)


def hold_out(items):
    """(training items, validation items): every tenth clip of a class, of small classes (5 to 9 clips) every fifth."""
    counts = np.bincount([max(0, item.label) for item in items])
    seen, rest, held = np.zeros_like(counts), [], []
    for item in items:
        every = 10 if counts[item.label] >= 10 else 5
        seen[item.label] += 1
        (held if seen[item.label] % every == 0 else rest).append(item)
    return rest, held


def fingerprints(args, data, val):
    """What tells these clips from others: {"data": text, "val_data": text or None}, whatever their folder is called.

    The text has the number of clips and a digest of their paths within the data set, labels and files' sizes.
    """
    def text(source, items):
        base = source if os.path.isdir(source) else args.root or os.path.dirname(source)
        lines = [f"{os.path.relpath(item.path, base or '.')}\t{item.label}\t{_size(item.path)}\n" for item in items]
        return f"{len(items)} clips {hashlib.sha256(os.fsencode(''.join(lines))).hexdigest()[:12]}"

    if args.data == "gestures":  # follow from the other options
        return {"data": "gestures", "val_data": None}
    return {"data": text(args.data, data.items), "val_data": text(args.val_data or args.data, val.data.items) if val else None}


def _size(path):
    return os.path.getsize(path) if os.path.isfile(path) else -1  # that of a folder says nothing of its frames


def clip_rate(items, sampler, most=32):
    """Frames a second that a sampler takes from clips: the median over some of them; 0 where none can be read."""
    from .datasets import UnreadableClip, open_clip

    if sampler.kind == "rate":
        return float(sampler.fps)
    rates = []
    for item in items[:: max(1, len(items) // most)]:
        try:
            clip = open_clip(item.path)
        except UnreadableClip:
            continue
        fps = clip.fps or 12.0  # frame folders do not say theirs
        rates.append(fps / sampler.stride if sampler.kind == "dense" else sampler.n_segment * fps / clip.n_frames)
    return round(float(np.median(rates)), 3) if rates else 0.0
