"""How a model like the packaged one is made, in one command that nobody has to watch.

    python -m tsm_edge.training.packaged --init features.pth --people people.npz --photos DIR --output runs/packaged

First a short run on calm pictures, then three long ones on other clips each. Weights before and after a long run are averaged, because
either knows something of real hands that the other does not (Wortsman et al., "Model soups", ICML 2022; docs/transfer.md has the
figures), and stored in 16 bits. A run that was stopped goes on where it was. The model card says what the inputs were and where they
come from.
"""
from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tsm_edge import cli
from tsm_edge.errors import CheckFailedError

COMMON = ("--data gestures --gesture-set webcam --frames 16 --seconds 2 --resize squash --mirror --batch 24 --optimizer adamw "
          "--lr-batch 24 --weight-decay 0.02 --dropout 0.1 --warmup-epochs 0.2 --ema 0.998 --frame-loss 0.5 --freeze 3 "
          "--disguise 0.25 --threads 1")
CALM = "--width 1.0 --input-size 112x84 --variety 0 --hand-loss 0.5 --hand-epochs 1 --epochs 4 --lr 2e-3"
FULL = "--hand-loss 0.3 --epochs 2 --lr 2e-3"
LAST = "--hand-loss 0.3 --epochs 2 --lr 1e-3 --render-seed 1 --stutter 0.15"
AGAIN = "--hand-loss 0.3 --epochs 1 --lr 8e-4 --render-seed 2 --stutter 0.15"
CLIPS, CALM_CLIPS = 1200, 250  # of a class, in each of the long runs and at most in the first
EVENTS = {"window": 4, "hold": 2, "on": 0.8, "off": 0.3}
"""Half a second averaged: a real stroke lasts no longer. A rendered stream alone would choose 1.25 s (docs/transfer.md)."""
NAME = "gestures"


@dataclass(frozen=True)
class Average:
    """A step of the recipe: the mean of the weights of networks of one shape."""

    paths: tuple
    made: str


def parser():
    p = argparse.ArgumentParser(prog="python -m tsm_edge.training.packaged", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--init", required=True, metavar="MODEL", help="features of MobileNetV2 x1.0 trained on ImageNet")
    p.add_argument("--people", required=True, metavar="FILE", help="hands and people, written by tsm_edge.training.gestures.people")
    p.add_argument("--photos", nargs="*", default=[], metavar="DIR", help="folders of more photographs")
    p.add_argument("--output", default="runs/packaged", metavar="DIR", help="folder of the runs (default: runs/packaged)")
    p.add_argument("--processes", type=int, default=2, metavar="N", help="processes that train; other numbers, other weights (default: 2)")
    p.add_argument("--clips-per-class", type=int, default=CLIPS, metavar="N", help="of the long runs, to try the way (default: 1200)")
    return p


def steps(args):
    """The steps in order: command lines of tsm-train, as lists of words, and `Average`."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(args.processes), "-m", "tsm_edge.training.train"]
    calm, full, last, again = (str(Path(args.output) / name) for name in ("calm", "full", "last", "again"))
    mean, made = (str(Path(args.output) / name) for name in ("mean.pth", "gestures.pth"))
    real = ["--people", args.people, *(["--photos", *args.photos] if args.photos else []), "--clips-per-class", str(args.clips_per_class)]
    return [
        [*run, *COMMON.split(), *CALM.split(), "--clips-per-class", str(min(CALM_CLIPS, args.clips_per_class)), "--init", args.init,
         "--output", calm],
        [*run, *COMMON.split(), *FULL.split(), *real, "--init", f"{calm}/final.pth", "--output", full],
        [*run, *COMMON.split(), *LAST.split(), *real, "--init", f"{full}/final.pth", "--output", last],
        Average((f"{full}/final.pth", f"{last}/final.pth"), mean),
        [*run, *COMMON.split(), *AGAIN.split(), *real, "--init", mean, "--output", again],
        Average((mean, f"{again}/final.pth"), made),
    ]


def main(argv=None):
    cli.run(_main, argv)


def _main(argv):
    args = parser().parse_args(argv)
    cli.echo(vars(args))
    cli.check_ranges(args, {"processes": (1, 64), "clips_per_class": (1, 100_000)})
    for step in steps(args):
        if isinstance(step, Average):
            print(f"the mean of {' and '.join(step.paths)}: {step.made}", file=sys.stderr, flush=True)
            average(step.paths, step.made)
        else:
            train(step)
    made = Path(args.output) / "gestures.pth"
    finish(made)
    print(f"PASSED {made}: {made.stat().st_size / 1e6:.2f} MB")
    return 0


def train(command):
    """Run a command of the recipe.

    Raises
    ------
    CheckFailedError
    """
    print("$ " + " ".join(command), file=sys.stderr, flush=True)
    code = subprocess.run(command, stdout=sys.stderr).returncode
    if code:
        raise CheckFailedError("a command of the recipe failed", found=f"exit code {code}: {' '.join(command[:8])} ...",
                               expected="exit code 0", do="see what it said above; the same command goes on where it was")


def average(paths, made):
    """Write the mean of the weights of networks of one shape, batch norms' statistics with them; the rest is the last one's.

    Sums are in float64. What is counted (batches seen) is the last one's.

    Raises
    ------
    CheckpointError
    """
    import torch

    from tsm_edge.checkpoints import load_checkpoint, save_checkpoint

    from .networks import open_network

    net, states = open_network(paths[-1]), [open_network(path).state_dict() for path in paths]
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name].double() for state in states]).mean(0))
    save_checkpoint(made, net, **_kept(load_checkpoint(paths[-1])))


def finish(path):
    """Write a checkpoint again as it is packaged: the name, the settings of the events, weights of 16 bits."""
    from tsm_edge.checkpoints import load_checkpoint, save_checkpoint

    from .networks import open_network

    net = open_network(path)
    net.card = net.card.but(model_name=NAME, events={**net.card.manifest()["events"], **EVENTS})
    save_checkpoint(path, net, half=True, **_kept(load_checkpoint(path)))


def _kept(checkpoint):
    """What a checkpoint says of its training; figures of a run are not those of a mean and stay behind."""
    return {"training": checkpoint.extra["training"]} if "training" in checkpoint.extra else {}


if __name__ == "__main__":
    main()
