"""The clips of an evaluation, as the model at hand sees them."""
from __future__ import annotations

import os
import sys

import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.runtimes.sources import FOLDER_RATE, flip_frame


class WholeClips:
    """A network that sees a clip at once (trained offline, or without shifts), with what `evaluate` asks of a model."""

    engine = "torch"

    def __init__(self, net):
        from tsm_edge.runtimes.engines.torch import describe

        self.net, self.shift, self.manifest = net, net.card.shift, describe(net)
        self.classes = self.manifest["classes"]


class Clips:
    """Clips in memory or read one by one.

    read : callable, `read(i)` -> uint8 [T, h, w, 3], the frames that the network is to judge
    labels : int64 [N]
    classes : list of str
    fps : float
        Rate at which a model runs on a stream of them.
    film : callable, `film(i, most)` -> uint8 [n, h, w, 3], the first `most` frames of the whole clip at `fps`; by default those of `read`
    sampling : str
        In words, how the frames were chosen.
    films : Films or None
        The clips in full, where they are files.
    """

    def __init__(self, read, labels, classes, fps, film=None, sampling="", films=None):
        self.films, self.read, self.labels, self.classes, self.fps = films, read, np.asarray(labels), list(classes), fps
        self.film, self.sampling = film or (lambda i, most: read(i)[:most]), sampling

    def __len__(self):
        return len(self.labels)


def open_clips(args, model):
    network, fps = model.manifest.get("network", {}), model.manifest.get("stream", {}).get("fps") or 0.0
    frames = args.frames or int(network.get("n_segment") or 8)
    if args.data == "gestures":
        from tsm_edge.training.gestures.clips import GestureDataset
        from tsm_edge.training.gestures.labels import CLASSES

        unknown = [c for c in model.classes if c not in CLASSES]
        if unknown:
            raise InputError("the rendered gestures do not know the model's classes", found=", ".join(unknown[:4]),
                             expected="Jester's labels", do="evaluate on clips of your own: --data FOLDER")
        seconds = frames / fps if fps else 3.0
        data = GestureDataset(args.split, args.clips_per_class, model.classes, frames, picture_size(args, model), seconds, args.seed)
        return Clips(lambda i: data[i][0], [i % len(model.classes) for i in range(len(data))], model.classes, frames / seconds,
                     sampling="rendered")
    from tsm_edge.training.data.datasets import ClipDataset

    items = _items(args, model)
    films, items = Films(items, args.flip, args.input_rate), [item for item in items if item.label >= 0]
    if not items:
        return Clips(None, [], model.classes, fps or 12.0, films=films)
    fps = fps or 12.0
    sampler, sampling = _sampler(args, model, frames, fps)
    data = ClipDataset(items, lambda n, rng, rate: sampler(n, rng, args.input_rate or rate), train=False, unreadable="none")
    good = [i for i in range(len(data)) if data[i] is not None]
    if data.report():
        print(data.report(), file=sys.stderr)
    if not good:
        raise InputError(f"no clip of {args.data} can be read", found=f"{len(data)} unreadable", expected="readable clips",
                         do="check the path")
    return Clips(lambda i: flip_clip(data[good[i]][0], args.flip), [items[i].label for i in good], model.classes, fps,
                 lambda i, most: films.read(items[good[i]].path, fps)[0][:most], sampling, films)


class Films:
    """Clips in full, as a camera would give them.

    items : list of listing.Item; label -1: nothing that has a name. flip : one of sources.FLIPS. rate : frames a second of the files,
    None: what they say (12 for folders of frames).
    """

    def __init__(self, items, flip="none", rate=None):
        self.items, self.flip, self.rate = items, flip, rate

    def read(self, path, fps=None):
        """(uint8 [n, h, w, 3] RGB, frames a second); `fps`: at that rate, frames left out or shown twice.

        Raises
        ------
        InputError
        """
        from tsm_edge.training.data.datasets import UnreadableClip, read_clip

        told = []

        def sample(count, rate):
            told.append(self.rate or rate or FOLDER_RATE)
            if not fps:
                return np.arange(count)
            return np.minimum(np.arange(max(1, round(count * fps / told[-1]))) * (told[-1] / fps) + 1e-6, count - 1).astype(np.int64)

        try:
            frames = read_clip(path, sample)
        except UnreadableClip as error:
            raise InputError(f"cannot read all of {path}", found=error, expected="a readable clip",
                             do="repair it or take it out of the data set") from error
        return flip_clip(frames, self.flip), float(fps or told[-1])


def flip_clip(clip, flip):
    """A clip [T, h, w, 3] with every frame turned or mirrored; `flip` is one of sources.FLIPS."""
    return clip if flip == "none" else np.stack([flip_frame(np.ascontiguousarray(frame), flip) for frame in clip])


def _items(args, model):
    """The clips that --data names, as --map has it; what is left out is said."""
    from tsm_edge.training.data.listing import class_finder, find_items, labelled, natural, read_folder

    find, mapped = class_finder(model.classes), {}
    for pair in args.map:
        folder, equals, name = pair.partition("=")
        if not equals or name not in ("-", "none") and find(name) is None:
            raise InputError("--map cannot be used", found=pair, expected="FOLDER=CLASS, FOLDER=none (nothing named happens) or FOLDER=- "
                             f"(left out); classes: {', '.join(model.classes)}", do="correct it")
        mapped[folder] = {"-": None, "none": -1}.get(name, find(name))
    if not os.path.isdir(args.data):
        if mapped:
            raise InputError("--map is for a folder of folders", found=f"--data {args.data}", expected="a folder per class",
                             do="name the classes in the list")
        items, _ = find_items(args.data, args.root, list(model.classes))
        labelled(items, args.data)
        return items
    there = sorted((e.name for e in os.scandir(args.data) if e.is_dir() and not e.name.startswith(".")), key=natural)
    missing = [folder for folder in mapped if folder not in there]
    if missing:
        raise InputError("--map names a folder that is not there", found=", ".join(missing), expected=", ".join(there) or "folders",
                         do="correct it")
    strange = [name for name in there if name not in mapped and find(name) is None]
    if strange:
        print(f"left out, no classes of the model: {', '.join(strange)} (--map {strange[0]}=CLASS, or =none where nothing named "
              "happens)", file=sys.stderr)
    if there and len(strange) == len(there):
        raise InputError(f"no folder of {args.data} is a class of the model", found=", ".join(strange[:8]),
                         expected=", ".join(model.classes), do=f"say what they are: --map '{strange[0]}={model.classes[0]}' ...")
    return read_folder(args.data, list(model.classes), lambda name: mapped[name] if name in mapped else find(name))[0]


def _sampler(args, model, frames, fps):
    """(Sampler, in words): as the options say, else as the model was trained, where its file tells."""
    from tsm_edge.training.data.sampling import Sampler

    trained = model.training.get("sampling")
    if model.training.get("data") == "gestures":  # rendered clips are taken as a camera would give them
        trained = "rate"
    kind = args.sampling or trained or "uniform"
    stride = args.sampling_stride or model.training.get("sampling_stride") or 8
    words = {"dense": f"dense, {stride} frames apart", "rate": f"{fps:g} frames a second"}.get(kind, kind)
    return Sampler(kind, frames, stride, fps), words


def picture_size(args, model):
    """(width, height) of rendered pictures: --clip-size on the shorter side, in the shape of the model's input."""
    w, h = model.manifest["input"]["width"], model.manifest["input"]["height"]
    return round(args.clip_size * max(1, w / h)), round(args.clip_size * max(1, h / w))
