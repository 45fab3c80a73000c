"""What a few real clips are worth: the packaged model before and after fine-tuning on them, and a network trained on them alone.

    python -m tsm_edge.benchmarks.few_clips clips/ --folds 2

The clips of each class are dealt out to folds; each fold is judged by networks that were trained on the others. `--map FOLDER=CLASS` says
what a folder shows that is not called like its class, `FOLDER=-` leaves it out.
"""
from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tsm_edge import cli
from tsm_edge.errors import CheckFailedError, InputError
from tsm_edge.runtimes.sources import natural
from tsm_edge.training.data.listing import VIDEO_ENDINGS

SCRATCH = "--width 1.0 --input-size 112x84 --frames 16 --resize squash --optimizer adamw --lr 1e-3 --weight-decay 0.02 --mirror".split()


def parser():
    p = argparse.ArgumentParser(prog="python -m tsm_edge.benchmarks.few_clips", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", metavar="DATA", help="a folder per class of clips")
    p.add_argument("--map", nargs="+", default=[], metavar="FOLDER=CLASS", help="what folders show that are not called like a class")
    p.add_argument("--folds", type=int, default=2, metavar="N", help="parts that the clips are dealt out to (default: 2)")
    p.add_argument("--init", metavar="MODEL", help="the checkpoint that is fine-tuned (default: the packaged model)")
    p.add_argument("--epochs", type=int, metavar="N", help="of each training (default: tsm-train's)")
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return p


def deal(folder, names, folds):
    """[{class: [paths]}] of each fold: of every class the k-th, k+folds-th, ... clip.

    Raises
    ------
    InputError
        A class with fewer clips than folds.
    """
    out = [{} for _ in range(folds)]
    try:
        subs = sorted(p for p in Path(folder).iterdir() if p.is_dir() and not p.name.startswith(".") and names.get(p.name) != "-")
    except OSError as error:
        raise InputError(f"no clips at {folder}", found=error, expected="a folder per class of clips", do="check the path") from None
    for sub in subs:
        clips = sorted((p for p in sub.iterdir() if p.suffix.lower() in VIDEO_ENDINGS), key=lambda p: natural(p.name))
        if len(clips) < folds:
            raise InputError(f"too few clips in {sub}", found=str(len(clips)), expected=f"one for each of {folds} folds",
                             do="lower --folds, or take the folder away")
        for k in range(folds):
            out[k].setdefault(names.get(sub.name, sub.name), []).extend(clips[k::folds])
    return out


def mapped(pairs):
    """{folder: class} of --map.

    Raises
    ------
    InputError
    """
    wrong = [pair for pair in pairs if not all(pair.partition("="))]
    if wrong:
        raise InputError("--map cannot be used", found=wrong[0], expected="FOLDER=CLASS, or FOLDER=- (left out)", do="correct it")
    return dict(pair.split("=", 1) for pair in pairs)


def lay_out(where, folds):
    """Copy clips into a folder per class."""
    for fold in folds:
        for name, clips in fold.items():
            (where / name).mkdir(parents=True, exist_ok=True)
            for clip in clips:
                shutil.copy(clip, where / name / f"{clip.parent.name}-{clip.name}")
    return where


def run(module, *argv):
    """A command of the package with --json; what it printed."""
    done = subprocess.run([sys.executable, "-m", f"tsm_edge.training.{module}", *map(str, argv), "--json"], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing said"]
        raise CheckFailedError(f"{module} failed", found=said[-1], expected="exit code 0", do="run it alone")
    return json.loads(done.stdout)


def judge(model, data):
    """(clips, right by the clip's answer, clips with a right event, with a wrong one) of a model on a folder of clips."""
    found = run("evaluate.run", model, "--data", data)
    events = found["clip_events"]
    return [found["clips"], round(found["top1"] * found["clips"]), events["right"], events["wrong"]]


def compare(args):
    """{"before", "after", "alone": [clips, answers right, right event, wrong event], "seconds": of a fine-tuning}."""
    folds = deal(args.data, mapped(args.map), args.folds)
    total, seconds = {kind: [0, 0, 0, 0] for kind in ("before", "after", "alone")}, []
    more = ["--epochs", args.epochs] if args.epochs else []
    for k in range(args.folds):
        with tempfile.TemporaryDirectory() as place:
            place = Path(place)
            held = lay_out(place / "held", [folds[k]])
            train = lay_out(place / "train", folds[:k] + folds[k + 1:])
            began = time.perf_counter()
            run("train", "--init", args.init, "--data", train, "--output", place / "runs" / "after", *more)
            seconds.append(time.perf_counter() - began)
            run("train", *SCRATCH, "--data", train, "--output", place / "runs" / "alone", *more)
            trained = {kind: place / "runs" / kind / "final.pth" for kind in ("after", "alone")}
            for kind, model in {"before": args.init, **trained}.items():
                total[kind] = [a + b for a, b in zip(total[kind], judge(model, held))]
    return {**total, "seconds": max(seconds), "folds": args.folds}


def main(argv=None):
    cli.run(_main, argv)


def _main(argv):
    args = parser().parse_args(argv)
    args.init = args.init or "default"
    cli.echo(vars(args))
    cli.check_ranges(args, {"folds": (2, 20)})
    found = compare(args)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        table = [("network", "clips", "answer right", "right event", "wrong event")]
        words = {"before": f"{args.init}, as it is", "after": "fine-tuned on the other folds", "alone": "trained on them alone"}
        print(*cli.columns(table + [(words[kind], *map(str, found[kind])) for kind in words]), sep="\n")
    cli.verdict(f"MEASURED fine-tuning took {found['seconds']:.0f} s; held out {found['before'][1]} -> {found['after'][1]} of "
                f"{found['after'][0]}", args.json)
    return 0


if __name__ == "__main__":
    main()
