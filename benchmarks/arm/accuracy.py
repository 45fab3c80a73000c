"""How far a bundle's library drifts from the network in float32 on an ARM CPU, frame after frame, beside MNN.

    python -m tsm_edge.benchmarks.arm.accuracy dist/pi5-half
    python -m tsm_edge.benchmarks.arm.accuracy dist/pi5-half --against mnn --frames 200 --json

Both run under QEMU on the same frames, each carrying its own caches on. MNN is the AArch64 wheel of PyPI in an AArch64
Python made of Debian's packages; both are fetched once, into --arm-python. A frame takes MNN about 10 s, ours 2 to 10 s.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tsm_edge import cli
from tsm_edge.benchmarks.cli import prints_to_stderr
from tsm_edge.errors import CheckFailedError, MissingComponentError

from .count import open_arm_bundle
from .userland import arm_python

_NO_MORE = 1.25  # times another engine's drift: a few frames of another network may round either way
PACKAGES = ("python3", "libstdc++6", "libgomp1")  # of Debian; their dependencies come with them
WHEELS = ("MNN==3.6.1", "numpy<2.3")


def parser():
    p = argparse.ArgumentParser(prog="python -m tsm_edge.benchmarks.arm.accuracy", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle", metavar="BUNDLE", help="a bundle with a library for AArch64 Linux")
    p.add_argument("--against", choices=("mnn",), metavar="NAMES", help="also run another engine in this precision: mnn")
    p.add_argument("--frames", type=int, default=40, metavar="N", help="frames to chain (default: 40)")
    p.add_argument("--arm-python", type=Path, default=Path.home() / ".cache" / "tsm-edge" / "arm-python", metavar="DIR",
                   help="where the AArch64 Python with MNN is, or is made (default: ~/.cache/tsm-edge/arm-python)")
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return p


def errors(reference, got):
    """Differences of two traces as plain values: for logits, and for all caches together, the largest and the root mean square.

    Parameters
    ----------
    reference, got : verify.Trace
        Of the same frames.

    Returns
    -------
    dict
        logits_max, logits_rms, caches_max, caches_rms. Where a value of `got` is not finite: infinity.
    """
    def of(pairs):
        off = np.concatenate([(np.asarray(b, np.float64) - a).ravel() for a, b in pairs])
        return (float(np.abs(off).max()), float(np.sqrt(np.mean(off ** 2)))) if np.isfinite(off).all() else (np.inf, np.inf)

    logits = of([(reference.logits, got.logits)])
    caches = of([(value, got.caches[name]) for name, value in reference.caches.items()]) if reference.caches else (0.0, 0.0)
    return {"logits_max": logits[0], "logits_rms": logits[1], "caches_max": caches[0], "caches_rms": caches[1]}


def library_trace(bundle, target, inputs, work):
    """Chain the bundle's library over inputs (float32 [T, 3, H, W]) under the emulator. Returns (verify.Trace, how it was run)."""
    from tsm_edge.export.proof import on_target

    prefix, how = on_target.emulator(target)
    if prefix is None:
        raise MissingComponentError("the library cannot be run here", found=how, expected="qemu-aarch64", do="apt install qemu-user")
    folder = on_target.sysroot(target)
    if prefix and folder is None:
        raise MissingComponentError("there is no C library for the emulator", found="no AArch64 glibc",
                                    expected="/usr/aarch64-linux-gnu", do="apt install libc6-dev-arm64-cross")
    command = on_target.build_replay(SimpleNamespace(path=Path(bundle.file("libtsm_model.so"))), target, work, False)
    trace, _, _ = on_target.run_frames([*prefix, "-L", folder] if prefix else [], command, inputs, bundle.manifest, work, 1)
    return trace, how


def mnn_trace(bundle, target, inputs, folder, work):
    """Chain MNN over inputs under the same emulator, in the bundle's precision. Returns a verify.Trace."""
    from tsm_edge.benchmarks.peers import mnn_file
    from tsm_edge.export.proof import on_target
    from tsm_edge.export.proof.traces import Trace

    model = mnn_file(bundle.file("model.onnx"), work)
    arm = arm_python(folder, PACKAGES, WHEELS)
    caches = {cache["name"]: tuple(cache["shape"]) for cache in bundle.manifest["caches"]}
    np.savez(work / "frames.npz", inputs=inputs, **{name: np.array(shape) for name, shape in caches.items()})
    prefix, _ = on_target.emulator(target)
    precision = "low" if bundle.manifest["precision"] == "fp16" else "high"
    worker = subprocess.Popen(
        [str(part) for part in (*arm.command(prefix), Path(__file__).with_name("mnn_worker.py"), model, work / "frames.npz",
                                work / "mnn.npz", precision)],
        stdout=subprocess.PIPE, stderr=(work / "mnn.err").open("w", encoding="utf-8"), encoding="utf-8")
    done = 0
    for line in worker.stdout:
        if line.strip() == "frame":
            done += 1
            print(f"\rMNN: frame {done} of {len(inputs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    if worker.wait() != 0:
        said = (work / "mnn.err").read_text(encoding="utf-8").strip().splitlines()
        raise CheckFailedError("MNN did not run under the emulator", found=said[-1] if said else f"exit code {worker.returncode}",
                               expected=f"{len(inputs)} frames", do=f"remove {folder} to fetch it anew, or leave --against out")
    got = np.load(work / "mnn.npz")
    return Trace(got["logits"], {name: got[name] for name in caches})


def _main(argv):
    from tsm_edge.export.bundle.golden import network_inputs, verification_frames
    from tsm_edge.export.proof import tolerances, traces
    from tsm_edge.export.targets.boards import get_target

    args = parser().parse_args(argv)
    cli.check_ranges(args, {"frames": (2, None)})
    bundle = open_arm_bundle(args.bundle)
    target = get_target(bundle.manifest["target"]["name"])
    cli.echo({"bundle": args.bundle, "frames": args.frames, "against": args.against or "nobody"})
    inputs = network_inputs(verification_frames(bundle.manifest, args.frames), bundle.manifest)
    with tempfile.TemporaryDirectory(prefix="tsm-edge-accuracy-") as work, prints_to_stderr():
        if args.against:
            arm_python(args.arm_python, PACKAGES, WHEELS)  # first: it may be refused
        reference = traces.onnx_trace(bundle.file("model.onnx"), inputs)
        trace, how = library_trace(bundle, target, inputs, Path(work))
        rows = [{"engine": "tsm-edge", **errors(reference, trace)}]
        if args.against:
            rows.append({"engine": "MNN", **errors(reference, mnn_trace(bundle, target, inputs, args.arm_python, Path(work)))})
    result = {"model": bundle.manifest["name"], "precision": bundle.manifest["precision"], "target": target.name, "run": how,
              "frames": args.frames, "reference": "onnxruntime, float32", "logits_std": float(reference.logits.std()),
              "engines": rows}
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)
    _require(result, tolerances.tolerance_for(reference.logits))
    cli.verdict(f"PASSED {args.frames} frames", args.json)
    return 0


def _require(result, tolerance):
    """Raise CheckFailedError if ours is off by more than rounding explains: in float32 the tolerance, else the other engine."""
    ours, others = result["engines"][0], result["engines"][1:]
    worse = []
    if result["precision"] == "fp32":
        worse += ["logits"] * (not ours["logits_max"] <= tolerance)
    else:
        worse += [name for other in others for name in ("logits_rms", "caches_rms") if not ours[name] <= _NO_MORE * other[name]]
    if worse or not np.isfinite(ours["logits_rms"]):
        wanted = f"at most {tolerance:.3g}" if result["precision"] == "fp32" else f"at most {_NO_MORE} times the others' (RMS)"
        raise CheckFailedError("the library drifts more than it should", found=", ".join(worse) or "values that are not finite",
                               expected=wanted, do="look at the figures above")


def _print(result):
    print(f"{result['model']}, {result['precision']}, {result['run']}: differences from {result['reference']}, "
          f"{result['frames']} chained frames (logits' standard deviation {result['logits_std']:.2f})")
    print("\n".join(cli.columns([("", "logits, largest", "logits, RMS", "caches, largest", "caches, RMS"), *(
        (row["engine"], *(f"{row[name]:.3g}" for name in ("logits_max", "logits_rms", "caches_max", "caches_rms")))
        for row in result["engines"])])))


def main(argv=None):
    cli.run(_main, argv)


if __name__ == "__main__":
    main()
