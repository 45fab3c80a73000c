"""MNN chaining its caches over frames, run by an AArch64 Python under the emulator: needs numpy and MNN only.

    mnn_worker.py MODEL.mnn FRAMES.npz OUT.npz low|high

FRAMES.npz: `inputs` float32 [T, 3, H, W], and for every cache its shape [1, fold, h, w] under its name. OUT.npz: `logits`
[T, classes] and every cache [T, fold, h, w].
"""
import sys

import MNN
import MNN.nn
import numpy as np


def main(model, frames, out, precision):
    given = np.load(frames)
    names = [name for name in given.files if name.startswith("cache.")]
    shapes = [tuple(int(side) for side in given[name]) for name in names]
    manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": precision, "numThread": 1},))
    net = MNN.nn.load_module_from_file(model, ["frame", *names], ["logits", *("next_" + name for name in names)],
                                       runtime_manager=manager, shape_mutable=False)

    def variable(array):
        return MNN.expr.const(np.ascontiguousarray(array), list(array.shape), MNN.expr.data_format.NCHW)

    caches, logits, kept = [np.zeros(shape, np.float32) for shape in shapes], [], {name: [] for name in names}
    for frame in given["inputs"]:
        got = net.forward([variable(frame[None]), *map(variable, caches)])
        logits.append(np.array(got[0].read(), dtype=np.float32).reshape(-1))
        caches = [np.array(cache.read(), dtype=np.float32).reshape(shape) for cache, shape in zip(got[1:], shapes)]
        for name, cache in zip(names, caches):
            kept[name].append(cache[0])
        print("frame", flush=True)
    np.savez(out, logits=np.stack(logits), **{name: np.stack(values) for name, values in kept.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
