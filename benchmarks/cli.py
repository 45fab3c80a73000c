"""tsm-bench: a bundle beside other engines on this machine."""
from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tsm_edge import cli
from tsm_edge.errors import CheckFailedError, InputError

from .engines import OURS, Ours, check_names, measured_peak, open_engine, with_tvm
from .environment import environment
from .measure import interleave
from .peers import PEERS

EXAMPLES = """examples:
  tsm-bench dist/host
  tsm-bench dist/host --against onnxruntime,openvino,ncnn,mnn,litert --threads 1
  tsm-bench dist/host --fps 30                 one step every 1/30 s, as a camera asks for them
  tsm-bench runs/gestures/final.pth            a checkpoint is compiled for this machine first
"""


def parser():
    p = argparse.ArgumentParser(prog="tsm-bench", description=__doc__, epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", metavar="MODEL", help="a bundle for this machine, or a checkpoint to compile for it")
    p.add_argument("--against", default="", metavar="NAMES", help=f"other engines, with commas: {', '.join(PEERS)}; or all")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="threads of a step, for every engine (default: 1)")
    p.add_argument("--fps", type=float, default=0.0, metavar="FPS", help="pace the steps at a camera's rate (default: 0, back to back)")
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    more = p.add_argument_group("what is measured")
    more.add_argument("--engines", default="", metavar="NAMES",
                      help="other engines of ours beside native, with commas: onnxruntime, tvm "
                      "(tvm by itself where the bundle holds a library for it)")
    more.add_argument("--rounds", type=int, default=12, metavar="N", help="rounds; every engine runs once in each (default: 12)")
    more.add_argument("--steps", type=int, default=25, metavar="N", help="timed steps of an engine in a round (default: 25)")
    more.add_argument("--warmup", type=int, default=5, metavar="N", help="untimed steps before them (default: 5)")
    more.add_argument("--no-kernels", action="store_true", help="leave out the table of kernels")
    return p


def main(argv=None):
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # temporary files go, whoever ends it
    cli.run(_main, argv)


def _main(argv):
    args = parser().parse_args(argv)
    cli.check_ranges(args, {"threads": (1, None), "rounds": (1, None), "steps": (1, None), "warmup": (0, None)})
    if args.fps != 0 and not 0.1 <= args.fps <= 1000:
        raise InputError("--fps cannot be used", found=args.fps, expected="0.1 to 1000, or 0 for back to back", do="for example --fps 30")
    names = _listed(args.against)
    names = list(PEERS) if "all" in names else check_names(names)
    cli.echo(vars(args))
    with tempfile.TemporaryDirectory() as folder, prints_to_stderr():
        result = bench(_bundle(args.model, Path(folder)), names, _listed(args.engines), args, Path(folder))
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)
    agree = "every engine gives the same logits; " if result["peers"] or result["engines"] else ""
    verdict = f"PASSED {agree}{OURS} p50 {result['ours']['p50_ms']:.3f} ms"
    cli.verdict(verdict, args.json)
    return 0


def _listed(text):
    """"a, b,a" -> ["a", "b"]."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


@contextmanager
def prints_to_stderr():
    """Within: what engines print to the process's stdout goes to stderr, so that --json stays JSON."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _bundle(path, folder):
    from tsm_edge.runtimes.bundle import open_bundle

    if Path(path).suffix == ".onnx":
        raise InputError(f"{path} cannot be timed alone", found="an ONNX file", expected="a bundle or a checkpoint",
                         do="give the bundle's folder, and --against onnxruntime")
    if Path(path).is_file() and Path(path).suffix != ".zip" and Path(path).name != "manifest.json":
        from tsm_edge.export import export_bundle
        from tsm_edge.export.networks import from_checkpoint

        export_bundle(from_checkpoint(path), target="host", output=folder / "bundle")
        path = folder / "bundle"
    return open_bundle(path)


def bench(bundle, peers, ours, args, folder):
    """Measure; returns a dict of plain values (what --json prints).

    Raises
    ------
    CheckFailedError
        An engine's logits differ from ours by more than 1e-3 x max(1, max |logit|): its time would mean nothing.
    """
    size = bundle.manifest["input"]
    frames = _frames(8, size["width"], size["height"])
    ours = with_tvm(bundle, ours)
    names = [OURS, *(f"{OURS}:{name}" for name in ours), *peers]
    engines = {}
    for name in names:
        print(f"opening {name} ...", file=sys.stderr)
        engines[name] = open_engine(name, bundle, args.threads, folder)
        note = getattr(getattr(engines[name], "model", None), "note", "")
        if note:
            print(f"  {note}", file=sys.stderr)
    differences = _agreement(engines, frames, 1e-2 if bundle.manifest["precision"] != "fp32" else 1e-3)
    print("timing ...", file=sys.stderr)
    period = 1 / args.fps if args.fps else 0.0
    timings = interleave({n: e.step for n, e in engines.items()}, frames, rounds=args.rounds, steps_per_round=args.steps,
                         warmup=args.warmup, period=period)
    rows = {}
    for name, timing in timings.items():
        rows[name] = {"name": name, "p50_ms": timing.percentile(50) * 1e3, "p90_ms": timing.percentile(90) * 1e3,
                      "p99_ms": timing.percentile(99) * 1e3, "best_ms": timing.best * 1e3,
                      "ratio": timings[OURS].ratio_to(timing), "max_abs_diff": differences[name],
                      **_cold(name, bundle, args.threads, folder)}
    rows[OURS]["library_bytes"] = bundle.files["libtsm_model.so"][0] if "libtsm_model.so" in bundle.files else None
    for peer in peers:
        rows[peer]["version"] = PEERS[peer].version()
    result = {"model": bundle.manifest["name"], "precision": bundle.manifest["precision"], "input": [size["width"], size["height"]],
              "threads": args.threads, "fps": args.fps, "rounds": args.rounds, "steps": args.steps,
              "environment": environment(["numpy", *(PEERS[p].package for p in peers)]),
              "ours": rows[OURS], "engines": [rows[f"{OURS}:{name}"] for name in ours], "peers": [rows[p] for p in peers]}
    if not args.no_kernels:
        result["peak_gflops"] = peak = measured_peak()
        result["kernels"] = _kernels(bundle, args.threads, frames, peak)
    return result


def _frames(count, width, height):
    """Smooth moving pictures, float32 [1, 3, h, w] as after normalisation."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    out = []
    for i in range(count):
        planes = [np.sin(x / (17 + 5 * c) + 0.7 * i) + np.cos(y / (23 - 4 * c) - 0.4 * i * (c + 1)) for c in range(3)]
        out.append(np.ascontiguousarray(np.stack(planes)[None], np.float32))
    return out


def _agreement(engines, frames, tolerance):
    """Largest |logit - ours| over chained frames, for each engine."""
    outputs = {}
    for name, engine in engines.items():
        engine.reset()
        outputs[name] = np.stack([np.asarray(engine.step(f)).reshape(-1) for f in frames])
    ours = outputs[OURS]
    worst = {name: float(np.abs(out - ours).max()) for name, out in outputs.items()}
    bound = tolerance * max(1.0, float(np.abs(ours).max()))
    for name, difference in worst.items():
        if not difference <= bound:
            raise CheckFailedError(f"{name} computes something else", found=f"logits differ by {difference:.3g}",
                                   expected=f"at most {bound:.3g}", do=f"run tsm-verify on the bundle; leave {name} out of --against")
    return worst


def _cold(name, bundle, threads, folder):
    command = [sys.executable, "-m", "tsm_edge.benchmarks.cold", name, str(bundle.folder), str(threads), str(folder)]
    run = subprocess.run(command, capture_output=True, encoding="utf-8")
    if run.returncode:
        return {"first_result_ms": None, "peak_memory_mib": None}
    return json.loads(run.stdout.strip().splitlines()[-1])


def _kernels(bundle, threads, frames, peak):
    engine = Ours(bundle, threads, profile=True)
    per_step = []
    for i in range(60):
        engine.step(frames[i % len(frames)])
        if i >= 10:
            per_step.append([k["last_ns"] for k in engine.stream.profile()])
    calls = engine.stream.profile()
    median = np.median(np.array(per_step), axis=0)
    table = []
    for call, ns in zip(calls, median):
        rate = 2 * call["macs"] / ns if ns else 0.0  # flop a nanosecond: GFLOP/s
        table.append({"name": call["name"], "kind": call["kind"], "ms": float(ns) / 1e6, "gflops": float(rate),
                      "peak_share": float(rate / (peak * threads)) if peak else None,
                      "bytes": int(call["bytes"]), "macs": int(call["macs"])})
    return table


def _print(result):
    env = result["environment"]
    print(f"{result['model']} {result['precision']} {result['input'][0]}x{result['input'][1]}, {result['threads']} thread(s)"
          + (f", paced at {result['fps']:g} fps" if result["fps"] else ""))
    print(f"{env['cpu']} ({' '.join(env['features'])}), {env['cores']} cores, governor {env['governor']}, load {env['load']}")
    table = [("engine", "p50 ms", "p90", "p99", "best", "ours/its", "first ms", "MiB", "max diff")]
    for row in [result["ours"], *result["engines"], *result["peers"]]:
        cold = [f"{row[k]:.0f}" if row[k] is not None else "-" for k in ("first_result_ms", "peak_memory_mib")]
        table.append((f"{row['name']} {row.get('version') or ''}".rstrip(),
                      *(f"{row[k]:.3f}" for k in ("p50_ms", "p90_ms", "p99_ms", "best_ms", "ratio")), *cold, f"{row['max_abs_diff']:.1e}"))
    print("", *cli.columns(table), sep="\n")
    if result["ours"].get("library_bytes"):
        print(f"library {result['ours']['library_bytes'] / 2**20:.2f} MiB")
    if "kernels" in result:
        _print_kernels(result)
    print()


def _print_kernels(result):
    total = sum(k["ms"] for k in result["kernels"])
    macs = sum(k["macs"] for k in result["kernels"])
    peak = result["peak_gflops"]
    table = [("kernel", "kind", "ms", "share", "GFLOP/s", "of peak", "KB")]
    for k in sorted(result["kernels"], key=lambda k: -k["ms"]):
        share = f"{100 * k['peak_share']:.0f} %" if k["peak_share"] is not None else "-"
        table.append((k["name"][:44], k["kind"], f"{k['ms']:.3f}", f"{k['ms'] / total:.1%}", f"{k['gflops']:.1f}", share,
                      f"{k['bytes'] / 1e3:.0f}"))
    whole = 2 * macs / total / 1e6
    of_peak = f"{100 * whole / peak / result['threads']:.0f} %" if peak else "-"
    table.append(("all kernels", "", f"{total:.3f}", "100.0%", f"{whole:.1f}", of_peak, ""))
    print("", *cli.columns(table), sep="\n")
    if peak:
        print(f"  peak: {peak:.1f} GFLOP/s a thread, measured")


if __name__ == "__main__":
    main()
