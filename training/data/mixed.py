"""Real clips and rendered ones in one data set."""
from __future__ import annotations

import math
import zlib

from tsm_edge.training.gestures.cache import VERSION, prerender
from tsm_edge.training.gestures.clips import Setting
from tsm_edge.training.gestures.labels import CLASSES, left_out, slug

RENDERED = 8  # clips a class that are mixed in


def rendered_names(classes):
    """{index: label of the rendered gestures} of the classes that they know, by slug."""
    known = {slug(name): name for name in CLASSES}
    return {i: known[slug(name)] for i, name in enumerate(classes) if slug(name) in known}


class Mixed:
    """Real clips, each `repeat` times an epoch, and rendered ones, as one data set for training.

    real : data set with `load` (epoch, index). rendered : data set of (clip, label). rows : class of each rendered label.
    """

    def __init__(self, real, rendered, rows, repeat):
        self.real, self.rendered, self.rows, self.repeat = real, rendered, rows, repeat
        self.items = real.items

    def __len__(self):
        return len(self.real) * self.repeat + len(self.rendered)

    def load(self, index, epoch=0):
        times, real = divmod(index, len(self.real))
        if times < self.repeat:
            return self.real[epoch * self.repeat + times, real]
        clip, label = self.rendered[index - len(self.real) * self.repeat]
        return clip, self.rows[label]

    def __getitem__(self, index):
        epoch, index = index if isinstance(index, tuple) else (0, index)
        return self.load(index, epoch)

    def report(self):
        return self.real.report()


def mix_in(real, classes, options, folder):
    """`Mixed` of the clips and rendered ones of the classes that can be rendered, kept in a folder."""
    names = rendered_names(classes)
    size = tuple(round(side * 256 / 224) for side in options.input_size)
    setting = Setting(cameras=options.resize == "squash", others=left_out(list(names.values())))
    rate = options.fps or 8.0
    path = folder / f"mixed-{VERSION}-{len(names)}-{options.frames}-{size[0]}x{size[1]}-{rate:g}-{options.resize}-{_hash_of(names)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    clips = prerender(path, "train", RENDERED, tuple(names.values()), options.frames, size, options.frames / rate, seed=90, workers=1,
                      setting=setting)
    repeat = max(1, math.ceil(len(clips) / (options.mix * max(1, len(real)))))
    return Mixed(real, clips, list(names), repeat)


def _hash_of(names):
    """A short number that tells one choice of names from another."""
    return zlib.crc32("\n".join(names.values()).encode())
