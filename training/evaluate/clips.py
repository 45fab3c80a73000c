"""The clips of an evaluation, as the model at hand sees them."""
from __future__ import annotations

import os
import sys
from itertools import islice

import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.runtimes.sources import FOLDER_RATE, flip_frame, natural, open_source
from tsm_edge.training.data.listing import class_finder, find_items


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
        The clips in full, where they are files, those beside that show nothing which has a name among them.
    paths : list of str
        Of the files.
    """

    def __init__(self, read, labels, classes, fps, film=None, sampling="", films=None, paths=()):
        self.films, self.read, self.labels, self.classes, self.fps = films, read, np.asarray(labels), list(classes), fps
        self.film, self.sampling, self.paths = film or (lambda i, most: read(i)[:most]), sampling, list(paths)

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

    everything = _items(args, model)
    items, films = [item for item in everything if item.label >= 0], Films(everything, args.flip, args.input_rate)
    if films.assumed:
        print(f"folders of frames do not say their rate: {FOLDER_RATE:g} frames a second assumed (--input-rate FPS says another)",
              file=sys.stderr)
    if not items:
        return Clips(None, [], model.classes, fps or 12.0, films=films)
    fps = fps or 12.0
    sampler, sampling = _sampler(args, model, frames, fps)
    data = ClipDataset(items, lambda n, rng, rate: sampler(n, rng, args.input_rate or rate), train=False, unreadable="none",
                       clip_fps=FOLDER_RATE)
    good = [i for i in range(len(data)) if data[i] is not None]
    if data.report():
        print(data.report(), file=sys.stderr)
    if not good:
        raise InputError(f"no clip of {args.data} can be read", found=f"{len(data)} unreadable", expected="readable clips",
                         do="check the path")
    films.leave_out(data.skipped())
    items = [items[i] for i in good]
    return Clips(lambda i: flip_clip(data[good[i]][0], args.flip), [item.label for item in items], model.classes, fps,
                 lambda i, most: np.stack([frame for frame, _ in islice(films.film(items[i].path, fps), most)]), sampling, films,
                 [item.path for item in items])


class Film:
    """A clip in full, read as tsm-demo reads it; to be iterated over: (uint8 [h, w, 3] RGB, seconds from 0), one in memory at a time.

    rate : frames a second that the file really has, None: as it says. fps : as a camera of that rate gives it, frames left out or shown
    twice; None: the file's own frames. After the last frame `fps` is the rate of what came, `seconds` how long it was.

    Raises
    ------
    InputError
        While it is read.
    """

    def __init__(self, path, flip="none", rate=None, fps=None):
        self.path, self._flip, self._rate, self._camera, self.fps, self.seconds = path, flip, rate, fps, fps, 0.0

    def __iter__(self):
        frame, count, shown = None, 0, 0
        source = open_source(os.path.abspath(self.path), fps=self._rate, flip=self._flip)
        try:
            for picture, time in iter(source.read, None):
                while self._camera and count and shown / self._camera + 1e-3 < time:
                    yield frame, shown / self._camera  # still the one before
                    shown += 1
                frame, count, last = np.ascontiguousarray(picture[..., ::-1]), count + 1, time
                if not self._camera:
                    yield frame, time
        finally:
            source.close()
        if not count:
            raise InputError(f"{self.path} has no frames", found="none could be decoded", expected="at least one",
                             do="take it out of the data set")
        own = source.fps or ((count - 1) / last if last > 0 else FOLDER_RATE)
        self.seconds, self.fps = last + 1 / own, self._camera or own
        while self._camera and shown / self._camera + 1e-3 < self.seconds:
            yield frame, shown / self._camera
            shown += 1


class Films:
    """Clips in full.

    items : list of listing.Item; label -1: nothing that has a name. flip : one of sources.FLIPS. rate : frames a second of the files,
    None: what they say (12 for folders of frames; `assumed`: whether there are such). bad : {path: why} of what cannot be read.
    """

    def __init__(self, items, flip="none", rate=None):
        self.items, self.flip, self.rate, self.bad = items, flip, rate, {}
        self.assumed = not rate and any(os.path.isdir(item.path) for item in items)

    def leave_out(self, bad):
        """Never give these again: {path: why}."""
        self.bad.update(bad)
        self.items = [item for item in self.items if item.path not in self.bad]

    def film(self, path, fps=None):
        """The `Film` of a path."""
        return Film(path, self.flip, self.rate, fps)


def flip_clip(clip, flip):
    """A clip [T, h, w, 3] with every frame turned or mirrored; `flip` is one of sources.FLIPS."""
    return clip if flip == "none" else np.stack([flip_frame(np.ascontiguousarray(frame), flip) for frame in clip])


class Names:
    """Which class folders and labels stand for: as --map says, else by name. `names(name)` is the class's index, -1: nothing that has a
    name, None: it is left out. Remembers what it was asked.

    Raises
    ------
    InputError
        A pair that cannot be.
    """

    def __init__(self, classes, pairs=()):
        self._find, self._mapped, self._asked, self.strange = class_finder(classes), {}, set(), []
        for pair in pairs:
            name, equals, wanted = pair.partition("=")
            index = {"-": None, "none": -1}.get(wanted, self._find(wanted))
            if not equals or not name or index is None and wanted != "-" or self._mapped.get(name, index) != index:
                raise InputError("--map cannot be used", found=pair + " after another" * (name in self._mapped),
                                 expected="FOLDER=CLASS, FOLDER=none (nothing named happens) or FOLDER=- (left out), each folder once; "
                                 f"classes: {', '.join(classes)}", do="correct it")
            self._mapped[name] = index

    def __call__(self, name):
        self._asked.add(name)
        index = self._mapped[name] if name in self._mapped else self._find(name)
        if index is None and name not in self._mapped and name not in self.strange:
            self.strange.append(name)
        return index

    def check(self):
        """Say what was left out; refuse a mapped name that nothing is called by."""
        missing = [name for name in self._mapped if name not in self._asked]
        if missing:
            raise InputError("--map names what is not there", found=", ".join(missing),
                             expected=", ".join(sorted(self._asked, key=natural)) or "a folder, or a label in words", do="correct it")
        if self.strange:
            print(f"left out, no classes of the model: {', '.join(self.strange)} (--map '{self.strange[0]}=CLASS' says what it shows, "
                  "=none that nothing named happens)", file=sys.stderr)


def _items(args, model):
    """The clips that --data names, as --map has it; what is left out is said."""
    names = Names(model.classes, args.map)
    items, _ = find_items(args.data, args.root, list(model.classes), called=names)
    names.check()
    if not items:
        first = names.strange[0] if names.strange else "FOLDER"
        raise InputError(f"nothing in {args.data} is a class of the model", found=", ".join(names.strange[:8]) or "--map leaves all out",
                         expected=", ".join(model.classes), do=f"say what they are: --map '{first}={model.classes[0]}' ...")
    return items


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
