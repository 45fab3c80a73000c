"""How long a step takes on this machine: what a board measures where tsm-bench, with its peers, is not."""
import functools
import json
import platform
import sys
import time

import numpy as np

from tsm_edge import cli
from tsm_edge.errors import InputError

from . import load
from .verify import bundle_parser

WARMUP = 10


def times(model, steps):
    """Milliseconds of `steps` steps, one after the other: float64 [steps]; a few untimed ones come before them."""
    stream, taken = model.stream(), []
    x = np.random.RandomState(0).normal(size=model.input_shape).astype(np.float32)
    for _ in range(steps + WARMUP):
        begin = time.perf_counter()
        stream.step_tensor(x)
        taken.append((time.perf_counter() - begin) * 1e3)
    return np.array(taken[WARMUP:]), stream.threads


def _main(argv, prog="python -m tsm_edge.runtimes.bench"):
    parser = bundle_parser(prog, __doc__)
    parser.add_argument("--steps", type=int, default=200, metavar="N", help="timed steps (default: 200)")
    options = parser.parse_args(argv)
    if options.steps < 1:
        raise InputError("--steps cannot be used", found=options.steps, expected="1 or more", do="for example --steps 200")
    model = load(options.bundle, options.engine, options.threads)
    manifest, size = model.manifest, model.manifest["input"]
    print(f"{manifest['name']}: {len(model.classes)} classes, input {size['width']}x{size['height']}, {len(model.cache_shapes)} caches, "
          f"{manifest['precision']}, {model.engine}" + (f" ({model.note})" if model.note else "")
          + ("" if manifest["trained"] else "\nUNTRAINED: random weights; its labels mean nothing."), file=sys.stderr)
    taken, threads = times(model, options.steps)
    report = {"name": manifest["name"], "trained": manifest["trained"], "engine": model.engine, "machine": platform.machine(),
              "threads": threads, "steps": options.steps}
    report.update((f"p{at}_ms", float(np.percentile(taken, at))) for at in (50, 90, 99))
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print("step p50 {p50_ms:.2f} ms, p90 {p90_ms:.2f} ms, p99 {p99_ms:.2f} ms; {steps} steps, threads {threads}".format(**report))
    return 0


def main(argv=None, **named):
    """The command line; `named`: prog, where it has another name."""
    cli.run(functools.partial(_main, **named), argv)


if __name__ == "__main__":
    main()
