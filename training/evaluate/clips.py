"""The clips of an evaluation, as the model at hand sees them."""
from __future__ import annotations

import sys

import numpy as np

from tsm_edge.errors import InputError


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
    """

    def __init__(self, read, labels, classes, fps, film=None, sampling=""):
        self.read, self.labels, self.classes, self.fps = read, np.asarray(labels), list(classes), fps
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
    from tsm_edge.training.data.datasets import ClipDataset, UnreadableClip, read_clip
    from tsm_edge.training.data.listing import find_items, labelled
    from tsm_edge.training.data.sampling import uniform_segments

    items, classes = find_items(args.data, args.root, list(model.classes))
    labelled(items, args.data)
    fps = fps or 12.0
    sampler, sampling = _sampler(args, model, frames, fps)
    data = ClipDataset(items, sampler, train=False, unreadable="none")
    good = [i for i in range(len(data)) if data[i] is not None]
    if data.report():
        print(data.report(), file=sys.stderr)
    if not good:
        raise InputError(f"no clip of {args.data} can be read", found=f"{len(data)} unreadable", expected="readable clips",
                         do="check the path")

    def film(i, most):
        path = items[good[i]].path
        try:
            return read_clip(path, lambda n, rate: uniform_segments(n, max(1, round(n * fps / (rate or data.clip_fps))))[:most])
        except UnreadableClip as error:
            raise InputError(f"cannot read all of {path}", found=error, expected="a readable clip",
                             do="repair it or take it out of the data set") from error

    return Clips(lambda i: data[good[i]][0], [items[i].label for i in good], classes, fps, film, sampling)


def _sampler(args, model, frames, fps):
    """(Sampler, in words): as the options say, else as the model was trained, where its file tells."""
    from tsm_edge.training.data.sampling import Sampler

    kind = args.sampling or model.training.get("sampling") or "uniform"
    stride = args.sampling_stride or model.training.get("sampling_stride") or 8
    words = {"dense": f"dense, {stride} frames apart", "rate": f"{fps:g} frames a second"}.get(kind, kind)
    return Sampler(kind, frames, stride, fps), words


def picture_size(args, model):
    """(width, height) of rendered pictures: --clip-size on the shorter side, in the shape of the model's input."""
    w, h = model.manifest["input"]["width"], model.manifest["input"]["height"]
    return round(args.clip_size * max(1, w / h)), round(args.clip_size * max(1, h / w))
