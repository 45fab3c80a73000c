"""The data sets of tsm-train: rendered gestures, or clips of one's own."""
from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.runtimes.sources import FOLDER_RATE


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


@dataclass(frozen=True)
class ClipOptions:
    """Which clips a network is trained with, and what is taken of them.

    data, val_data : "gestures" (rendered), a folder or a list file. root : where a list's paths start. classes : file of names.
    frames : of a clip, chosen by `sampling` (`sampling_stride`, or at `fps`). input_size : (width, height).
    seconds, gesture_set, clips_per_class, clip_size, variety, photos, people, render_seed : of rendered gestures. resize : how the
    network's input is cut from a picture, "crop" or "squash". disguise, stutter : see augment. rate_jitter : see
    sampling.Sampler. mix : rendered clips for each of one's own. few : films longer
    than a clip count as several. mirror, mirror_pairs : see augment.Mirror.
    """

    data: str
    val_data: str | None = None
    root: str | None = None
    classes: str | tuple[str, ...] | None = None
    frames: int = 8
    sampling: str = "uniform"
    sampling_stride: int = 8
    fps: float = 0.0
    input_size: tuple[int, int] = (224, 224)
    seconds: float = 3.0
    gesture_set: str = "webcam"
    clips_per_class: int = 250
    clip_size: int | None = None
    variety: float = 1.0
    photos: tuple[str, ...] = ()
    people: str | None = None
    render_seed: int = 0
    resize: str = "crop"
    disguise: float = 0.0
    stutter: float = 0.0
    rate_jitter: float = 0.0
    mix: float = 0.0
    few: bool = False
    mirror: bool = False
    mirror_pairs: tuple[str, ...] = ()
    seed: int = 0


class Clips(NamedTuple):
    """What a training is fed with: data and val (or None) are data sets of (clip uint8 [T, h, w, 3], label)."""

    data: object
    val: object
    classes: list
    transform: object  # callable (clip, label, rng, hands) -> (clip, label), for training
    fps: float  # that a clip's frames amount to: what a camera should give the model


def open_data(options, rendered, chief=True):
    """The clips that the options name.

    Parameters
    ----------
    options : ClipOptions
    rendered : Path
        Folder in which rendered clips are kept.
    chief : bool
        Renders what is missing; the other processes wait.

    Returns
    -------
    Clips
    """
    from .augment import CentreCrop, ColourJitter, Compose, Disguise, Mirror, MultiScaleCrop, Stutter, mirror_map

    if options.data == "gestures" and options.val_data or options.val_data == "gestures":
        raise InputError("rendered gestures bring their own validation clips", found=f"--data {options.data} --val-data {options.val_data}",
                         expected="--val-data beside clips of your own", do="leave --val-data out; measure other clips with tsm-eval")
    if options.data == "gestures":
        data, val = _gestures(options, rendered, chief)
        classes, fps = list(data.classes), options.frames / options.seconds
    else:
        data, val, classes, fps = _clips(options)
        if options.mix:
            data = _mixed(data, classes, options, rendered, chief)
    steps = [MultiScaleCrop(options.input_size, scales=(1.0, 0.9, 0.8), distort=1, fixed=False,
                            squash=options.resize == "squash")]
    if options.mirror:
        pairs = [tuple(pair.split("=", 1)) if "=" in pair else (pair, pair) for pair in options.mirror_pairs]
        steps.append(Mirror(mirror_map(classes, pairs)))
    if options.stutter:
        steps.append(Stutter(options.stutter))
    steps.append(ColourJitter())
    if options.disguise:
        steps.append(Disguise(options.disguise))
    seen = val and Changed(val, CentreCrop(options.input_size, resize=options.resize))
    return Clips(data, seen, classes, Compose(*steps), options.fps or fps)


def _gestures(options, rendered, chief):
    import torch.distributed as dist

    from tsm_edge.training.gestures.cache import VERSION, CachedClips, prerender
    from tsm_edge.training.gestures.clips import Setting
    from tsm_edge.training.gestures.labels import SETS, left_out

    from .listing import read_classes

    names, kind = SETS[options.gesture_set], options.gesture_set
    if options.classes:
        names = read_classes(options.classes)
        kind = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    size = (options.clip_size,) * 2 if options.clip_size else tuple(round(side * 256 / 224) for side in options.input_size)
    made = []
    for split, count in (("train", options.clips_per_class), ("val", max(8, options.clips_per_class // 16))):
        side = f"{size[0]}px" if size[0] == size[1] else f"{size[0]}x{size[1]}px"
        hard = "" if options.variety == 1 else f"-variety-{_exact(options.variety)}"
        # photographs are for training alone: what is learnt is measured before backgrounds that were never seen
        setting = Setting(cameras=options.resize == "squash", others=left_out(names))
        if split == "train":
            setting = setting._replace(photos=tuple(options.photos), people=options.people or "")
        seed = options.render_seed if split == "train" else 0
        hard += f"-seed-{seed}" if seed else ""
        hard += "".join(f"-{word}" for word in ("photos", "people", "cameras") if getattr(setting, word))
        path = rendered / f"{split}-{VERSION}-{kind}-{count}x{options.frames}-{side}-{_exact(options.seconds)}s{hard}"
        if chief:
            path.parent.mkdir(parents=True, exist_ok=True)
            show = _rendering(split) if sys.stderr.isatty() else None
            prerender(path, split, count, names, options.frames, size, options.seconds, seed, progress=show, variety=options.variety,
                      setting=setting)
        made.append(path)
    if dist.is_initialized():
        dist.barrier()
    return CachedClips(made[0]), CachedClips(made[1])


def _mixed(real, classes, options, rendered, chief):
    import torch.distributed as dist

    from .mixed import mix_in

    if chief:
        mix_in(real, classes, options, rendered)
    if dist.is_initialized():
        dist.barrier()
    return mix_in(real, classes, options, rendered)  # what is there is opened


def _exact(number):
    """A number in few digits where they say it exactly, else in all."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def _rendering(split):
    def show(done, total):
        print(f"\rrendering {split} clips {done}/{total}", end="\n" if done == total else "", file=sys.stderr)

    return show


def _clips(options):
    from .datasets import ClipDataset
    from .listing import find_items, labelled
    from .sampling import Sampler

    given = list(options.classes) if isinstance(options.classes, tuple) else options.classes
    items, classes = find_items(options.data, options.root, given)
    kind = options.sampling, options.frames, options.sampling_stride, options.fps or 12.0
    sampler = Sampler(*kind)
    labelled(items, options.data)
    if options.val_data:
        val_items, _ = find_items(options.val_data, options.root, classes)
        labelled(val_items, options.val_data)
    else:
        items, val_items = hold_out(items)
    if options.few:
        items = long_ones_oftener(items, options.frames / (options.fps or 12.0))
    data = ClipDataset(items, Sampler(*kind, options.rate_jitter), train=True, seed=options.seed)
    val = ClipDataset(val_items, sampler, train=False, unreadable="none") if val_items else None
    if val and all(val[i] is None for i in range(len(val))):  # ends at the first that can be read
        raise InputError("not one validation clip can be read", found=val.report(), expected="readable clips",
                         do="repair them, or name others with --val-data")
    return data, val, classes, clip_rate(items, sampler)


def lengths(items):
    """Seconds of each clip that can be opened: {path: seconds}; folders of frames at FOLDER_RATE."""
    from .datasets import UnreadableClip, open_clip

    found = {}
    for item in items:
        try:
            clip = open_clip(item.path)
        except UnreadableClip:
            continue
        found[item.path] = clip.n_frames / (clip.fps or FOLDER_RATE)
    return found


def long_ones_oftener(items, seconds, most=20):
    """The items; those of films longer than two windows of `seconds` as often as they hold one, at most `most` times."""
    long = lengths(items)
    return [item for item in items for _ in range(min(most, max(1, int(long.get(item.path, 0) / seconds))))]


def hold_out(items):
    """(training items, validation items): every tenth clip of a class, of small classes (5 to 9 clips) every fifth."""
    counts = np.bincount([max(0, item.label) for item in items])
    seen, rest, held = np.zeros_like(counts), [], []
    for item in items:
        every = 10 if counts[item.label] >= 10 else 5
        seen[item.label] += 1
        (held if seen[item.label] % every == 0 else rest).append(item)
    return rest, held


def fingerprints(options, clips):
    """What tells these clips from others: {"data": text, "val_data": text or None}, whatever their folder is called.

    The text has the number of clips and a digest of their paths within the data set, labels and files' sizes.
    """
    def text(source, items):
        base = source if os.path.isdir(source) else options.root or os.path.dirname(source)
        lines = [f"{os.path.relpath(item.path, base or '.')}\t{item.label}\t{_size(item.path)}\n" for item in items]
        return f"{len(items)} clips {hashlib.sha256(os.fsencode(''.join(lines))).hexdigest()[:12]}"

    if options.data == "gestures":  # follow from the other options
        return {"data": "gestures", "val_data": None}
    return {"data": text(options.data, clips.data.items),
            "val_data": text(options.val_data or options.data, clips.val.data.items) if clips.val else None}


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
        fps = clip.fps or FOLDER_RATE
        rates.append(fps / sampler.stride if sampler.kind == "dense" else sampler.n_segment * fps / clip.n_frames)
    return round(float(np.median(rates)), 3) if rates else 0.0
