"""One engine in a process of its own: time to the first result and peak memory.

    python -m tsm_edge.benchmarks.cold ENGINE BUNDLE THREADS

Prints one JSON object. The conversion a peer needs is done beforehand and not counted: its files are kept in the work
folder given as a fourth argument.
"""
from __future__ import annotations

import json
import sys
import time


def main(argv):
    name, path, threads, workdir = argv[0], argv[1], int(argv[2]), argv[3]
    import numpy as np

    start = time.perf_counter()
    from .engines import open_engine
    from .peers import reuse_conversions

    with reuse_conversions():
        from tsm_edge.runtimes.bundle import open_bundle

        bundle = open_bundle(path)
        size = bundle.manifest["input"]
        frame = np.zeros((1, 3, size["height"], size["width"]), np.float32)
        engine = open_engine(name, bundle, threads, workdir)
    engine.step(frame)
    first = time.perf_counter() - start
    for _ in range(20):
        engine.step(frame)
    print(json.dumps({"first_result_ms": first * 1e3, "peak_memory_mib": _peak_mib()}))


def _peak_mib():
    # not getrusage: its figure starts with that of the process we were forked from
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1:])
