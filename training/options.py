"""The options of tsm-train: what they are, which values they may have, and what stands for those that were left out."""
from __future__ import annotations

import argparse
import math

from tsm_edge.card import Card, parse_size
from tsm_edge.cli import check_ranges, choose
from tsm_edge.errors import InputError

EXAMPLES = """examples:
  tsm-train --data gestures --output runs/gestures            the rendered gestures, from scratch
  tsm-train --data clips/ --init default --output runs/mine   fine-tune the shipped model on clips/LABEL/*.mp4
  tsm-train --data train.txt --val-data val.txt --root frames/ --arch resnet50 --init tsm_kinetics.pth --shift online
  torchrun --nproc-per-node 8 -m tsm_edge.training.train --data train.txt --batch 512 --workers 8
A run that was stopped (Ctrl-C, kill, power) goes on where it was when the same command is given again.
"""


def parser():
    p = argparse.ArgumentParser(prog="tsm-train", description=__doc__, epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, metavar="DATA", help="'gestures' (rendered), a folder of LABEL/clip files, or a list file")
    p.add_argument("--init", metavar="MODEL", help="'default' (the packaged model) or a checkpoint; a new class list gets a new classifier")
    p.add_argument("--output", default="runs/train", metavar="DIR", help="folder of the run (default: runs/train)")
    p.add_argument("--epochs", type=int, metavar="N", help="times through the data (default: 20, or as many as make 200 steps)")
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")

    _data_options(p.add_argument_group("the data"))
    _rendered_options(p.add_argument_group("rendered gestures"))
    _network_options(p.add_argument_group("the network"))
    _fit_options(p.add_argument_group("optimisation"))
    _run_options(p.add_argument_group("the run"))
    return p


def _data_options(data):
    data.add_argument("--val-data", metavar="DATA", help="the same for validation (default: held-out rendered clips, or a tenth of --data)")
    data.add_argument("--root", metavar="DIR", help="folder that the paths of a list file start from (default: the list's own)")
    data.add_argument("--classes", metavar="FILE", help="class names, one a line (default: the folders' names, or those of --data)")
    data.add_argument("--frames", type=int, metavar="N", help="frames of a clip (default: that of --init, else 8)")
    data.add_argument("--fps", type=float, default=0.0, metavar="FPS",
                      help="frame rate the model is to run at (default: 0, as the clips' frames come)")
    data.add_argument("--sampling", metavar="NAME",
                      help="frames of a clip file: uniform, dense or rate, at --fps (default: uniform; few clips: rate, that of --init)")
    data.add_argument("--rate-jitter", type=float, metavar="X",
                      help="clips played up to so much faster or slower, 0.3 for 0.74 to 1.35 times (default: 0; few clips: 0.3)")
    data.add_argument("--mix", type=float, metavar="X", help="rendered clips of the same classes for each of your own; all classes of "
                      "--init stay where yours are among them (default: 0; few clips: 1 where classes can be rendered)")
    data.add_argument("--sampling-stride", type=int, default=8, metavar="N", help="dense: frames between two of a clip (default: 8)")
    data.add_argument("--mirror", action="store_true", help="mirror clips, left and right classes swapped with them")
    data.add_argument("--disguise", type=float, default=0.0, metavar="X",
                      help="share of clips in another look: grey, inverted, edges, ... (default: 0)")
    data.add_argument("--stutter", type=float, default=0.0, metavar="X",
                      help="share of clips with frames lost and shown twice, as slow cameras do (default: 0)")
    data.add_argument("--mirror-pairs", nargs="*", default=[], metavar="A=B", help="classes that change into each other in a mirror")


def _rendered_options(drawn):
    drawn.add_argument("--clips-per-class", type=int, default=250, metavar="N", help="training clips a class (default: 250)")
    drawn.add_argument("--gesture-set", default="webcam", metavar="NAME",
                       help="webcam (11 classes), core (19) or all (27) (default: webcam)")
    drawn.add_argument("--people", metavar="FILE", help="real hands and people, from training.gestures.people, for training")
    drawn.add_argument("--photos", nargs="*", default=[], metavar="DIR",
                       help="folders of photographs to put behind rendered hands, for training")
    drawn.add_argument("--seconds", type=float, metavar="SECONDS", help="length of a clip (default: frames / rate of --init, else 3)")
    drawn.add_argument("--render-seed", type=int, default=0, metavar="N", help="another number, other clips, below 100 (default: 0)")
    drawn.add_argument("--clip-size", type=int, metavar="N",
                       help="pixels a side of the clips that crops are cut from (default: 8/7 of the input)")
    drawn.add_argument("--variety", type=float, default=1.0, metavar="X",
                       help="share of pictures with hard backgrounds, light and cameras, 0 to 1 (default: 1)")


def _network_options(net):
    net.add_argument("--arch", metavar="NAME", help="mobilenet_v2, resnet18 or resnet50 (default: that of --init, else mobilenet_v2)")
    net.add_argument("--width", type=float, metavar="X", help="width multiplier of mobilenet_v2 (default: that of --init, else 1.0)")
    net.add_argument("--input-size", metavar="N|WxH", help="the network's input, pixels (default: that of --init, else 224)")
    net.add_argument("--resize", metavar="NAME",
                     help="crop or squash: how the input is cut from a picture (default: that of --init, else crop)")
    net.add_argument("--shift", default="online", metavar="NAME", help="online, offline or none (default: online)")
    net.add_argument("--fold-div", type=int, metavar="N", help="a fold is 1/N of the channels (default: that of --init, else 8)")
    net.add_argument("--head-only", action="store_true", help="train the classifier alone")
    net.add_argument("--dropout", type=float, default=0.2, metavar="X", help="before the classifier (default: 0.2)")


def _fit_options(fit):
    fit.add_argument("--batch", type=int, metavar="N",
                     help="clips a step, over all processes (default: 32, or a quarter of fewer than 128 clips)")
    fit.add_argument("--accumulate", type=int, default=1, metavar="N", help="micro-batches a step is cut into (default: 1)")
    fit.add_argument("--optimizer", metavar="NAME", help="sgd or adamw (default: sgd; few clips: adamw)")
    fit.add_argument("--lr", type=float, metavar="X",
                     help="learning rate at --lr-batch clips a step, scaled linearly (default: 0.01; few clips: 0.001 as it is)")
    fit.add_argument("--lr-batch", type=int, metavar="N", help="clips a step that --lr is for (default: 32)")
    fit.add_argument("--momentum", type=float, default=0.9, metavar="X", help="of sgd (default: 0.9)")
    fit.add_argument("--weight-decay", type=float, metavar="X",
                     help="of weights, not of biases and norms (default: 0.0001; few clips: 0.02)")
    fit.add_argument("--warmup-epochs", type=float, metavar="X", help="epochs in which the rate rises (default: 1; few clips: 0.5)")
    fit.add_argument("--label-smoothing", type=float, default=0.1, metavar="X",
                     help="share of a label spread over all classes (default: 0.1)")
    fit.add_argument("--frame-loss", type=float, default=0.0, metavar="X",
                     help="weight of a loss of each frame, where strokes are known (default: 0)")
    fit.add_argument("--hand-loss", type=float, default=0.0, metavar="X",
                     help="rendered gestures: weight of a second loss, on where the hand is and how it moves (default: 0)")
    fit.add_argument("--hand-epochs", type=int, default=0, metavar="N", help="first epochs with that loss alone (default: 0)")
    fit.add_argument("--ema", type=float, default=0.0, metavar="X", help="decay of averaged weights, 0.999 for example (default: 0, none)")
    fit.add_argument("--batch-norm", metavar="NAME", help="train, partial (as TSN) or frozen (default: train; few clips: frozen)")
    fit.add_argument("--freeze", type=int, metavar="N", help="first parts of the network that stay as --init has them: stem and blocks "
                     "or stages (default: 0; few clips: 7 of MobileNetV2, 2 of a ResNet)")
    fit.add_argument("--mixed-precision", action="store_true", help="half precision on a GPU")
    fit.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, order, crops and dropout (default: 0)")


def _run_options(run):
    run.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode clips (default: 0)")
    run.add_argument("--threads", type=int, default=0, metavar="N", help="threads of the CPU (default: 0, torch's own choice)")
    run.add_argument("--save-every", type=int, default=200, metavar="N", help="steps between saved states (default: 200)")
    run.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda (default: auto)")


RANGES = {  # of options that hold a number: least and most
    "frames": (1, 1024), "clips_per_class": (1, 1_000_000), "epochs": (1, 1_000_000), "batch": (1, 1_000_000),
    "accumulate": (1, 1_000_000), "save_every": (1, 10 ** 9), "sampling_stride": (1, 10_000), "clip_size": (16, 4096),
    "render_seed": (0, 80),
    "variety": (0, 1), "disguise": (0, 1), "stutter": (0, 1), "rate_jitter": (0, 1), "mix": (0, 100),
    "seconds": (0.1, 600), "fps": (0, 1000), "dropout": (0, 0.99), "lr": (1e-9, 1000),
    "lr_batch": (1, 1_000_000), "momentum": (0, 0.999), "weight_decay": (0, 10), "warmup_epochs": (0, 1_000_000),
    "label_smoothing": (0, 0.99),
    "frame_loss": (0, 1000), "hand_loss": (0, 1000), "hand_epochs": (0, 1_000_000), "ema": (0, 0.999999),
    "freeze": (0, 18), "seed": (0, 2 ** 31 - 1), "workers": (0, 1024), "threads": (0, 1024),
}


def check(args):
    """Refuse names and numbers that no run can use."""
    choose(args.optimizer or "sgd", ("sgd", "adamw"), "optimizer")
    choose(args.batch_norm or "train", ("train", "partial", "frozen"), "batch norm mode")
    choose(args.shift, ("online", "offline", "none"), "shift")
    choose(args.gesture_set, ("webcam", "core", "all"), "gesture set")
    choose(args.resize or "crop", ("crop", "squash"), "resize")
    check_ranges(args, RANGES)


def values(args, kind):
    """A dataclass of what it has fields for among the options."""
    return kind(**{name: value for name, value in vars(args).items() if name in kind.__dataclass_fields__})


def fill_in(args):
    """Give the options that were left out the values of --init, else the usual ones; returns --init's Checkpoint or None."""
    source = None
    if args.init:
        from tsm_edge.checkpoints import load_checkpoint
        from tsm_edge.default import default_checkpoint

        source = load_checkpoint(default_checkpoint() if args.init == "default" else args.init)
    known = source.card if source else Card({"name": "mobilenet_v2"})
    size = parse_size(args.input_size) if args.input_size else None
    card = known.but(name=args.arch, width=args.width, n_segment=args.frames, fold_div=args.fold_div, input_size=size, resize=args.resize)
    if source is not None and (card.name != known.name or known.name == "mobilenet_v2" and card.width != known.width):
        raise InputError("the checkpoint is of another network", found=f"{known.name} x{known.width:g} in {args.init}",
                         expected=card.name if args.width is None else f"{card.name} x{args.width:g}",
                         do=f"give --arch {known.name} --width {known.width:g}, or neither")
    args.arch, args.width, args.input_size = card.name, card.width, card.input_size
    args.frames, args.fold_div, args.resize = card.n_segment, card.fold_div, card.resize
    if args.seconds is None:
        args.seconds = args.frames / known.fps if known.fps else 3.0
    return source


def fill_in_steps(args, clips, world=1):
    """Batch and epochs where they were left out: a few clips get small steps, and enough of them."""
    if args.batch is None:
        parts = world * args.accumulate
        args.batch = max(1, min(32, clips // 4) // parts) * parts
    if args.epochs is None:
        args.epochs = max(1 if args.mix else 20, math.ceil(200 / max(1, clips // args.batch)))
