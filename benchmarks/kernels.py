"""One kernel at a time on this machine: time, share of the measured multiply-add peak, largest error.

    python benchmarks/kernels.py                          # the reference MobileNetV2's layers
    python benchmarks/kernels.py --network resnet50 --only conv
    python benchmarks/kernels.py --vector-bits 256        # as for a machine with AVX2 only

Each kernel runs over and over on the same data, so its weights are in the cache where they fit: the figures say what
the code can do, the whole step is slower by what memory costs.
"""
from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace

import numpy as np

os.environ.setdefault("TVM_NUM_THREADS", "1")


def conv_case(name, size, ic, oc, *, kernel=1, stride=1, clip=None, residual=False, fold=0, seed=0):
    """(op, shapes, tensors) of one convolution of a size x size image, random weights."""
    from tsm_edge.export.graph import ops

    rng = np.random.default_rng(seed)
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1
    shapes = {"x": (size, size, ic), "out": (out, out, oc)}
    splice = None
    if residual:
        shapes["residual"] = (out, out, oc)
    if fold:
        shapes["cache"] = shapes["next_cache"] = (size, size, fold)
        splice = ops.Splice("cache", "next_cache", 0, fold)
    weight = (rng.standard_normal((oc, ic, kernel, kernel)) / np.sqrt(ic * kernel * kernel)).astype("float32")
    op = ops.Conv(name, "x", "out", weight, rng.standard_normal(oc).astype("float32"), (stride, stride), (pad,) * 4,
                      1, clip, "residual" if residual else None, splice)
    return op, shapes


def mobilenet_v2(size=224):
    """The reference step's dense layers: (times it occurs, op, shapes)."""
    relu6 = (0.0, 6.0)
    yield 1, *conv_case("stem", size, 3, 32, kernel=3, stride=2, clip=relu6)
    at, ic = size // 2, 32
    for expand, oc, count, stride in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                      (6, 160, 3, 2), (6, 320, 1, 1)):
        for first in (True, False):
            times = 1 if first else count - 1
            if not times:
                continue
            step = stride if first else 1
            mid = ic * expand
            fold = 0 if first else ic // 8
            if expand > 1:
                yield times, *conv_case(f"{at} {ic}->{mid}", at, ic, mid, clip=relu6, fold=fold)
            at //= step
            yield times, *conv_case(f"{at} {mid}->{oc}", at, mid, oc, residual=not first)
            ic = oc
    yield 1, *conv_case(f"{at} 320->1280", at, 320, 1280, clip=relu6)


def resnet50(size=224):
    relu = (0.0, float("inf"))
    yield 1, *conv_case("stem 7x7", size, 3, 64, kernel=7, stride=2, clip=relu)
    at, ic = size // 4, 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        out = 4 * width
        yield 1, *conv_case(f"{at} {ic}->{width}", at, ic, width, clip=relu, fold=ic // 8)
        yield 1, *conv_case(f"{at} 3x3 {width} s{stride}", at, width, width, kernel=3, stride=stride, clip=relu)
        yield 1, *conv_case(f"{at} {ic}->{out} s{stride}", at, ic, out, stride=stride)
        at //= stride
        yield count, *conv_case(f"{at} {width}->{out}", at, width, out, clip=relu, residual=True)
        yield count - 1, *conv_case(f"{at} {out}->{width}", at, out, width, clip=relu, fold=out // 8)
        yield count - 1, *conv_case(f"{at} 3x3 {width}", at, width, width, kernel=3, clip=relu)
        ic = out


NETWORKS = {"mobilenet_v2": mobilenet_v2, "resnet50": resnet50}


def arguments(kernel, shapes, seed=0):
    """Arrays for the kernel's arguments; outputs and scratch are NaN, so that what is never written shows."""
    import tvm

    from tsm_edge.export.kernels.write.base import TensorArg, WeightArg

    rng = np.random.default_rng(seed)
    arrays = {}
    for index, arg in enumerate(kernel.args):
        if isinstance(arg, WeightArg):
            arrays[f"weights{index}"] = arg.array
        elif isinstance(arg, TensorArg) and arg.name not in ("out", "next_cache"):
            arrays[arg.name] = rng.standard_normal(arg.shape).astype(arg.dtype)
        else:
            name = arg.name if isinstance(arg, TensorArg) else f"scratch{index}"
            arrays[name] = np.full(arg.shape, np.nan, arg.dtype)
    return {name: tvm.runtime.tensor(array) for name, array in arrays.items()}


def seconds(function, arrays, repeats=12, least=0.01):
    """Best time of one call."""
    values = list(arrays.values())
    function(*values)
    number, best = 1, float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(number):
            function(*values)
        took = (time.perf_counter() - start)
        best = min(best, took / number)
        number = max(1, int(least / best))
    return best


def peak(target):
    """Multiply-adds a second of a loop that only multiplies and adds in registers."""
    import tvm

    from tsm_edge.export.kernels.write.base import Kernel, TensorArg
    from tsm_edge.export.kernels.write.emit import Emitter, fma

    from . import kernel_here

    turns, registers = 20000, 12
    e = Emitter()
    x, out = e.param("x", target.lanes), e.param("out", target.lanes * registers)
    value = e.bind(e.load(x, 0, target.lanes))
    acc = [e.vector(target.lanes) for _ in range(registers)]
    for register in acc:
        register.set(value)
    with e.loop(turns):
        for register in acc:
            register.set(fma(value, register.get(), value))
    for index, register in enumerate(acc):
        e.store(out, index * target.lanes, register.get())
    kernel = Kernel("peak", "peak", e.function("peak"), (TensorArg("x", (target.lanes,)),), 0)
    library = kernel_here.compile_kernel(kernel, target)
    arrays = {"x": tvm.runtime.tensor(np.full(target.lanes, 0.5, "float32")),
              "out": tvm.runtime.tensor(np.zeros(target.lanes * registers, "float32"))}
    return turns * registers * target.lanes / seconds(library["peak"], arrays, least=0.02)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="mobilenet_v2", help=", ".join(NETWORKS))
    parser.add_argument("--only", default="", help="only layers whose name or kernel kind has this in it")
    parser.add_argument("--vector-bits", type=int, default=0, help="128 or 256: narrower vectors than this machine has")
    args = parser.parse_args(argv)

    from tsm_edge.cli import choose
    from tsm_edge.export import kernels
    from tsm_edge.export.targets.boards import get_target

    from . import kernel_here

    target = get_target("host")
    if args.vector_bits:
        target = replace(target, vector_bits=args.vector_bits, vector_registers=16, cpu="x86-64-v3", features=())
    best = peak(target)
    print(f"peak {2 * best / 1e9:.1f} GFLOP/s, {target.title}")
    print(f"{'layer':22} {'x':>2} {'kernel':52} {'us':>8} {'GFLOP/s':>8} {'% peak':>6}")
    total_time = total_macs = 0
    for times, op, shapes in NETWORKS[choose(args.network, NETWORKS, "network")]():
        kernel = kernels.build(op, shapes, target)
        if args.only not in op.name and args.only not in kernel.kind:
            continue
        library = kernel_here.compile_kernel(kernel, target)
        took = seconds(library[kernel.symbol], arguments(kernel, shapes))
        total_time, total_macs = total_time + times * took, total_macs + times * kernel.macs
        rate = kernel.macs / took
        print(f"{op.name:22} {times:2} {kernel.symbol:52.52} {took * 1e6:8.1f} {2 * rate / 1e9:8.1f} "
              f"{100 * rate / best:6.1f}", flush=True)
    rate = total_macs / total_time
    print(f"sum {total_time * 1e3:.3f} ms, {total_macs / 1e6:.1f} M multiply-adds, {2 * rate / 1e9:.1f} GFLOP/s, "
          f"{100 * rate / best:.1f} % of peak")


if __name__ == "__main__":
    main()
