"""tsm-verify: replay a bundle's golden.npz on the machine it is on."""
import argparse
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tsm_edge import cli
from tsm_edge.default import own_bundle
from tsm_edge.errors import BundleError

from . import ENGINES, load
from .bundle import open_bundle, read_golden
from .preprocess import Preprocessor

RELATIVE_TOLERANCE = 1e-4
HALF_TOLERANCE, HALF_LEAST, HALF_MOST = 2e-2, 5e-3, 0.25  # where the export measured nothing; bounds of what it measured
MOVE_FACTOR = 100  # recorded logits must vary by this many fp32 tolerances over the few frames of golden.npz
# The network enlarges the resize's rounding, which has its own check; from frames, only a wrong road is looked for.
FRAMES_FACTOR = 10
PASSED, FAILED = "passed", "failed"
EPILOG = """examples:
  tsm-verify dist/nano                           the engine that tsm_edge.load would take
  tsm-verify dist/nano.zip --engine onnxruntime  the step graph instead of the compiled library
  tsm-verify dist/host --json                    every measurement, for machines

exit code: 0 all checks passed, 1 a check failed, 2 the bundle or the command cannot be used"""


def tolerance_of(manifest, native, name):
    """Allowed difference of "logits" or a cache, relative to its largest value.

    The manifest's precision is that of the library; the step graph computes in fp32. In half precision it is what the export
    measured rounding to cost.
    """
    if not native or manifest["precision"] != "fp16":
        return RELATIVE_TOLERANCE
    measured = manifest["verification"].get("tolerances")
    value = measured.get(name, HALF_TOLERANCE) if isinstance(measured, dict) else HALF_TOLERANCE
    return min(max(float(value), HALF_LEAST), HALF_MOST) if isinstance(value, (int, float)) else HALF_TOLERANCE


def _compare(name, expected, got, relative):
    """One row: largest absolute difference against relative * max(1, max |expected|)."""
    good = expected.shape == got.shape and np.isfinite(expected).all() and np.isfinite(got).all()
    tolerance = relative * max(1.0, float(np.max(np.abs(expected))))
    difference = float(np.max(np.abs(expected.astype(np.float64) - got))) if good else float("inf")
    return {"name": name, "status": PASSED if good and difference <= tolerance else FAILED, "max_abs_diff": difference,
            "tolerance": tolerance, "frames": len(expected)}


def replay(model: Any, golden: dict) -> "list[dict]":
    """Compare a model with what the export recorded.

    The recorded inputs go through the step, and after each frame the logits and every cache are compared. The recorded
    frames are preprocessed and compared, and go the whole way once more.

    Parameters
    ----------
    model : Model
    golden : dict
        As `tsm_edge.runtimes.bundle.read_golden` gives it.

    Returns
    -------
    list of dict
        name, status ("passed", "failed"), max_abs_diff, tolerance, frames; for logits also max_abs_logit, argmax_flips.
    """
    allowed = functools.partial(tolerance_of, model.manifest, model.engine == "native")
    rows = [_movement_row(golden["logits"])]
    stream, prepare = model.stream(), Preprocessor(model.manifest["input"])
    # The native library resizes for itself: that is what is checked where it runs.
    prepared = np.stack([getattr(stream, "preprocess", prepare)(frame) for frame in golden["frames"]])
    rows.append(_compare("preprocessing", golden["inputs"], prepared, 1e-4))

    logits, caches = [], {name: [] for name in model.cache_shapes}  # type: list, dict[str, list]
    for x in golden["inputs"]:
        logits.append(stream.step_tensor(x[None]))
        for name, values in stream.state().items():
            caches[name].append(values[0])
    rows.append(_logits_row("logits", golden["logits"], np.stack(logits), allowed("logits")))
    rows += [_compare(name, golden[name], np.stack(values), allowed(name)) for name, values in caches.items()]

    stream.reset()
    whole = np.stack([stream.step(frame).logits for frame in golden["frames"]])
    rows.append(_logits_row("logits from frames", golden["logits"], whole, FRAMES_FACTOR * allowed("logits")))
    return rows


def _movement_row(logits):
    """Recorded logits that stand still would agree with anything."""
    needed = MOVE_FACTOR * RELATIVE_TOLERANCE * max(1.0, float(np.max(np.abs(logits))))
    moved = float(np.max(np.ptp(logits, axis=0)))
    good = np.isfinite(moved) and (moved >= needed or len(logits) == 1)
    return {"name": "recorded logits move", "status": PASSED if good else FAILED, "max_abs_diff": None, "tolerance": None,
            "frames": len(logits), "detail": f"by {moved:.3g}, at least {needed:.1g} is needed"}


def _logits_row(name, expected, got, relative):
    row = _compare(name, expected, got, relative)
    return {**row, "max_abs_logit": float(np.max(np.abs(expected))),
            "argmax_flips": int((expected.argmax(1) != got.argmax(1)).sum())}


def verify(path: "str | os.PathLike[str]", engine: "str | None" = None, threads: "int | None" = None,
           say: "Callable[[str], object]" = lambda text: None) -> dict:
    """Verify a bundle: every file's hash, then the replay.

    Parameters
    ----------
    path : str or path
        Folder or .zip.
    engine, threads :
        As in `tsm_edge.load`.
    say : callable
        Told of the progress.

    Returns
    -------
    dict
        status, engine, note, checks, ... ; what `tsm-verify --json` prints.

    Raises
    ------
    BundleError, MissingComponentError
    """
    begin = time.perf_counter()
    bundle = open_bundle(path)
    files = bundle.check()
    say(f"files: {files} of {files} have the recorded size and SHA-256")
    if "golden.npz" not in bundle:
        raise BundleError("there is nothing to replay", found="a bundle without golden.npz",
                          expected="recorded frames and outputs", do="export the bundle again")
    golden = read_golden(bundle)
    model = load(bundle, engine, threads)
    say(f"engine: {model.engine}" + (f" ({model.note})" if model.note else ""))
    rows = replay(model, golden)
    manifest = bundle.manifest
    failed = [row["name"] for row in rows if row["status"] != PASSED]
    return {"bundle": str(path), "name": manifest.get("name", ""), "trained": bool(manifest.get("trained", False)),
            "precision": manifest.get("precision", "fp32"), "target": (manifest.get("target") or {}).get("name", ""),
            "machine": platform.machine(), "engine": model.engine, "note": model.note, "files": files,
            "frames": len(golden["logits"]), "status": FAILED if failed else PASSED, "failed": failed, "checks": rows,
            "export": (manifest.get("verification") or {}).get("status", "not executed"),
            "seconds": time.perf_counter() - begin}


def _table(rows):
    table = [("check", "result", "max difference", "allowed", "frames", "")]
    for row in rows:
        flips = f"argmax flips {row['argmax_flips']}" if row.get("argmax_flips") else row.get("detail", "")
        numbers = ("-", "-") if row["max_abs_diff"] is None else (f"{row['max_abs_diff']:.2e}", f"{row['tolerance']:.1e}")
        table.append((row["name"], row["status"], *numbers, str(row["frames"]), flips))
    return cli.columns(table)


def bundle_parser(prog, description, epilog=""):
    """An argparse parser of a command that runs a bundle here: BUNDLE, --engine, --threads, --json."""
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    own = own_bundle()
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?" if own else None, default=own,
                        help="folder or .zip that tsm-export wrote" + (" (default: the one around this program)" if own else ""))
    parser.add_argument("--engine", metavar="NAME", help=f"{', '.join(ENGINES[:3])} (default: native where it fits)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a step (default: the model's)")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return parser


def _main(argv, prog="tsm-verify"):
    options = bundle_parser(prog, "Replay what an export recorded, on this machine: logits and caches, frame by frame.",
                            EPILOG.replace("tsm-verify", prog)).parse_args(argv)
    print(f"{prog} {options.bundle} --engine {options.engine or 'auto'} --threads {options.threads or 'auto'}", file=sys.stderr)
    report = verify(options.bundle, options.engine, options.threads, say=lambda text: print(text, file=sys.stderr))
    passed = report["status"] == PASSED
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        for line in _table(report["checks"]):
            print(line)
        if not report["trained"]:
            print("UNTRAINED: this network has random weights; its labels mean nothing.")
    where = f"{report['name']} by {report['engine']} on {report['machine']}"
    if passed:
        worst = max(row["max_abs_diff"] / row["tolerance"] for row in report["checks"] if row["max_abs_diff"] is not None)
        verdict = f"PASSED {where}: {report['frames']} frames, largest difference {worst:.1g} of what is allowed"
    else:
        verdict = f"FAILED {where}: {', '.join(report['failed'])}"
    cli.verdict(verdict, options.json)
    return 0 if passed else 1


def main(argv=None, **named):
    """The command line; `named`: prog, where it has another name."""
    cli.run(functools.partial(_main, **named), argv)


if __name__ == "__main__":
    main()
