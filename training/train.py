"""tsm-train: train a network with temporal shifts, online or offline."""
from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import math
import os
import signal
import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from tsm_edge.card import Card, background_of, parse_size
from tsm_edge.cli import choose
from tsm_edge.errors import InputError
from tsm_edge.shell import quote

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
    data.add_argument("--sampling", default="uniform", metavar="NAME",
                      help="frames of a clip file: uniform, dense or rate, at --fps (default: uniform)")
    data.add_argument("--sampling-stride", type=int, default=8, metavar="N", help="dense: frames between two of a clip (default: 8)")
    data.add_argument("--mirror", action="store_true", help="mirror clips, left and right classes swapped with them")
    data.add_argument("--mirror-pairs", nargs="*", default=[], metavar="A=B", help="classes that change into each other in a mirror")


def _rendered_options(drawn):
    drawn.add_argument("--clips-per-class", type=int, default=250, metavar="N", help="training clips a class (default: 250)")
    drawn.add_argument("--gesture-set", default="core", metavar="NAME", help="core (19 classes) or all (27) (default: core)")
    drawn.add_argument("--seconds", type=float, metavar="SECONDS", help="length of a clip (default: frames / rate of --init, else 3)")
    drawn.add_argument("--clip-size", type=int, metavar="N",
                       help="pixels a side of the clips that crops are cut from (default: 8/7 of the input)")
    drawn.add_argument("--variety", type=float, default=1.0, metavar="X",
                       help="share of pictures with hard backgrounds, light and cameras, 0 to 1 (default: 1)")


def _network_options(net):
    net.add_argument("--arch", metavar="NAME", help="mobilenet_v2, resnet18 or resnet50 (default: that of --init, else mobilenet_v2)")
    net.add_argument("--width", type=float, metavar="X", help="width multiplier of mobilenet_v2 (default: that of --init, else 1.0)")
    net.add_argument("--input-size", metavar="N|WxH", help="the network's input, pixels (default: that of --init, else 224)")
    net.add_argument("--shift", default="online", metavar="NAME", help="online, offline or none (default: online)")
    net.add_argument("--fold-div", type=int, metavar="N", help="a fold is 1/N of the channels (default: that of --init, else 8)")
    net.add_argument("--head-only", action="store_true", help="train the classifier alone")
    net.add_argument("--dropout", type=float, default=0.2, metavar="X", help="before the classifier (default: 0.2)")


def _fit_options(fit):
    fit.add_argument("--batch", type=int, metavar="N",
                     help="clips a step, over all processes (default: 32, or a quarter of fewer than 128 clips)")
    fit.add_argument("--accumulate", type=int, default=1, metavar="N", help="micro-batches a step is cut into (default: 1)")
    fit.add_argument("--optimizer", default="sgd", metavar="NAME", help="sgd or adamw (default: sgd)")
    fit.add_argument("--lr", type=float, default=0.01, metavar="X",
                     help="learning rate at --lr-batch clips a step, scaled linearly (default: 0.01)")
    fit.add_argument("--lr-batch", type=int, default=32, metavar="N", help="clips a step that --lr is for (default: 32)")
    fit.add_argument("--momentum", type=float, default=0.9, metavar="X", help="of sgd (default: 0.9)")
    fit.add_argument("--weight-decay", type=float, default=1e-4, metavar="X", help="of weights, not of biases and norms (default: 0.0001)")
    fit.add_argument("--warmup-epochs", type=float, default=1.0, metavar="X", help="epochs in which the rate rises (default: 1)")
    fit.add_argument("--label-smoothing", type=float, default=0.1, metavar="X",
                     help="share of a label spread over all classes (default: 0.1)")
    fit.add_argument("--frame-loss", type=float, default=0.0, metavar="X",
                     help="weight of a loss of each frame, where strokes are known (default: 0)")
    fit.add_argument("--hand-loss", type=float, default=0.0, metavar="X",
                     help="rendered gestures: weight of a second loss, on where the hand is and how it moves (default: 0)")
    fit.add_argument("--hand-epochs", type=int, default=0, metavar="N", help="first epochs with that loss alone (default: 0)")
    fit.add_argument("--ema", type=float, default=0.0, metavar="X", help="decay of averaged weights, 0.999 for example (default: 0, none)")
    fit.add_argument("--batch-norm", default="train", metavar="NAME", help="train, partial (as TSN) or frozen (default: train)")
    fit.add_argument("--mixed-precision", action="store_true", help="half precision on a GPU")
    fit.add_argument("--seed", type=int, default=0, metavar="N", help="of weights, order, crops and dropout (default: 0)")


def _run_options(run):
    run.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode clips (default: 0)")
    run.add_argument("--threads", type=int, default=0, metavar="N", help="threads of the CPU (default: 0, torch's own choice)")
    run.add_argument("--save-every", type=int, default=200, metavar="N", help="steps between saved states (default: 200)")
    run.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu or cuda (default: auto)")


def main(argv=None):
    from tsm_edge.cli import run

    run(_main, argv)


def _main(argv):
    args = parser().parse_args(argv)
    choose(args.optimizer, ("sgd", "adamw"), "optimizer")
    choose(args.batch_norm, ("train", "partial", "frozen"), "batch norm mode")
    choose(args.shift, ("online", "offline", "none"), "shift")
    choose(args.gesture_set, ("core", "all"), "gesture set")
    check_ranges(args)
    import torch
    import torch.distributed as dist

    from tsm_edge.training.data.for_training import fingerprints, open_data

    from .loop import Options, Trainer

    if args.threads:
        torch.set_num_threads(args.threads)
    _keep_freed_memory()
    device = pick_device(args.device)
    if "RANK" in os.environ and not dist.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        # the others wait while the first renders or validates
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(hours=4))
    chief = not dist.is_initialized() or dist.get_rank() == 0
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if chief else (lambda text: None)

    source = fill_in(args)
    torch.manual_seed(args.seed)
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("--output cannot be used", found=str(error), expected="a folder that can be written to",
                         do="name another") from None
    data, val, classes, transform, fps = open_data(args, chief)
    if len(classes) < 2:
        raise InputError("one class alone teaches nothing", found=", ".join(classes) or "no class", expected="at least two classes",
                         do="add clips of another class, for example of you at rest: tsm-record --label 'No gesture'")
    fill_in_steps(args, len(data), dist.get_world_size() if dist.is_initialized() else 1)
    net, note = make_network(args, source, classes, fps)
    options = Options(**{k: v for k, v in vars(args).items() if k in Options.__dataclass_fields__})
    record = {k: v for k, v in vars(args).items() if k not in ("json", "workers", "device", "save_every", "threads")}
    settings = {k: v for k, v in record.items() if k not in ("output", "root", *Options.__dataclass_fields__)}
    settings.update(fingerprints(args, data, val), classes=classes, init=source and _fingerprint_of(args.init))  # whatever their paths
    for name in ("init", "output", "data", "val_data", "root", "classes"):  # the checkpoint tells of its files, not of whose folders
        record[name] = record[name] and Path(record[name]).name
    say("options: " + ", ".join(f"{k}={v}" for k, v in sorted(vars(args).items())))
    say(f"{len(data)} training clips, {len(val) if val else 0} validation clips, {len(classes)} classes, {fps:.3g} frames a second; {note}")
    if args.mixed_precision and not device.startswith("cuda"):
        say("note: --mixed-precision has no effect without a GPU")

    def save(path, network, metrics):
        from tsm_edge.checkpoints import save_checkpoint

        save_checkpoint(path, network, training=record, metrics=metrics)

    rest = classes.index("No gesture") if "No gesture" in classes else None
    trainer = Trainer(net, data, val, options, folder, n_segment=args.frames, mean=net.card.mean, std=net.card.std,
                      transform=transform, rest=rest, save=save, settings=settings, device=device, workers=args.workers,
                      save_every=args.save_every, log=say)
    trainer.resume()
    finished = trainer.step == trainer.total
    if finished:
        say(f"the run in {folder} is finished: nothing is trained (another --output to train again)")
    elif trainer.step:
        say(f"going on from step {trainer.step} of {folder / 'last.pt'}")
    writer = _Curves(folder, trainer.step + 1) if chief else None
    try:
        with _Progress(chief) as progress, _stopping(trainer, say):
            accuracy = trainer.run(progress.update, writer)
    finally:
        if writer:
            writer.close()
        for name, some in (("training", data), ("validation", val)):
            if hasattr(some, "report") and some.report():
                say(f"{name}: {some.report()}")
    if dist.is_initialized():
        dist.destroy_process_group()
    if chief:
        final = folder / "final.pth"
        target = "host" if sys.platform.startswith("linux") else "jetson-nano"  # the host target is Linux's
        loss = trainer.history[-1] if trainer.history else None
        result = {"checkpoint": str(final), "validation_top1": accuracy, "loss": loss, "steps": trainer.step, "classes": classes}
        said = f"checkpoint {final}\nnext: tsm-export --checkpoint {quote(str(final))} --target {target}"
        print(json.dumps(result) if args.json else said)
        measured = "" if accuracy is None else f", validation top-1 {accuracy:.2%}"
        verdict = f"PASSED {trainer.step} steps" + " (finished before)" * finished + measured
        print(verdict, file=sys.stderr if args.json else sys.stdout)
    return 0


def _keep_freed_memory():
    """Have the C library keep what a step frees for the next: a fifth of a step on a CPU went into fresh pages."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 64 << 20)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
        mallopt(option, value)


def pick_device(name):
    """What --device names, as torch calls it: "cpu", "cuda" or "cuda:N" (under torchrun each process has its own).

    Raises
    ------
    InputError
        No such device, or not here.
    """
    import torch

    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    kind, _, number = name.partition(":")
    if choose(kind, ("auto", "cpu", "cuda"), "device") == "cpu":
        return "cpu"
    number = number or os.environ.get("LOCAL_RANK", "0")
    if not (number.isdecimal() and int(number) < gpus):
        raise InputError("the device is not there", found=f"--device {name}, {gpus} GPUs that this torch can use",
                         expected="cpu, or cuda where there is a GPU for each process", do="--device cpu, or leave it out")
    return f"cuda:{number}"


def _fingerprint_of(init):
    """Name and digest of the checkpoint that --init names."""
    from tsm_edge.default import default_checkpoint

    digest = hashlib.sha256(Path(default_checkpoint() if init == "default" else init).read_bytes()).hexdigest()
    return f"{Path(init).name} {digest[:12]}"


@contextmanager
def _stopping(trainer, say):
    """Ctrl-C (or a scheduler's SIGTERM) ends the run after the step that is under way, its state saved; twice: at once."""
    def ask(*_):
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True
        say("\nstopping after this step")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        say(f"the state of step {trainer.saved} is in {trainer.folder / 'last.pt'}: the same command goes on from there")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


RANGES = {  # of options that hold a number: least and most
    "frames": (1, 1024), "clips_per_class": (1, 1_000_000), "epochs": (1, 1_000_000), "batch": (1, 1_000_000),
    "accumulate": (1, 1_000_000), "save_every": (1, 10 ** 9), "sampling_stride": (1, 10_000), "clip_size": (16, 4096),
    "variety": (0, 1), "seconds": (0.1, 600), "fps": (0, 1000), "dropout": (0, 0.99), "lr": (1e-9, 1000), "lr_batch": (1, 1_000_000),
    "momentum": (0, 0.999), "weight_decay": (0, 10), "warmup_epochs": (0, 1_000_000), "label_smoothing": (0, 0.99),
    "frame_loss": (0, 1000), "hand_loss": (0, 1000), "hand_epochs": (0, 1_000_000), "ema": (0, 0.999999), "seed": (0, 2 ** 31 - 1),
    "workers": (0, 1024), "threads": (0, 1024),
}


def check_ranges(args):
    """Refuse numbers that no run can use (NaN is in no range); an option that was left out is None."""
    for name, (least, most) in RANGES.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise InputError(f"--{name.replace('_', '-')} cannot be used", found=str(value), expected=f"{least} to {most}",
                             do="pick another")


def fill_in(args):
    """Give the options that were left out the values of --init, else the usual ones; returns --init's Checkpoint or None."""
    source = None
    if args.init:
        from tsm_edge.checkpoints import load_checkpoint
        from tsm_edge.default import default_checkpoint

        source = load_checkpoint(default_checkpoint() if args.init == "default" else args.init)
    known = source.card if source else Card({"name": "mobilenet_v2"})
    size = parse_size(args.input_size) if args.input_size else None
    card = known.but(name=args.arch, width=args.width, n_segment=args.frames, fold_div=args.fold_div, input_size=size)
    if source is not None and (card.name != known.name or known.name == "mobilenet_v2" and card.width != known.width):
        raise InputError("the checkpoint is of another network", found=f"{known.name} x{known.width:g} in {args.init}",
                         expected=card.name if args.width is None else f"{card.name} x{args.width:g}",
                         do=f"give --arch {known.name} --width {known.width:g}, or neither")
    args.arch, args.width, args.input_size = card.name, card.width, card.input_size
    args.frames, args.fold_div = card.n_segment, card.fold_div
    if args.seconds is None:
        args.seconds = args.frames / known.fps if known.fps else 3.0
    return source


def events_of(classes, fps, before=None):
    """How a network's answers on a stream become events, for the manifest.

    Parameters
    ----------
    classes : list of str
    fps : float
        0 where it is not known.
    before : Card or None
        Of the checkpoint that training begins with. Its settings stay (tsm-eval --tune-events may have found them),
        the seconds that are averaged too; without them about a second is averaged.
    """
    events = {"window": min(12, max(1, round(fps or 12.0))), "hold": 2 if fps == 0 or fps >= 6 else 1, "on": 0.5, "off": 0.3,
              "merge": {}, "ignore": [], "background": background_of(classes)}
    if before and before.events:
        events.update({key: before.events[key] for key in ("hold", "on", "off")})
        events["window"] = max(1, round(before.events["window"] * (fps or 12.0) / (before.fps or 12.0)))
    return events


def fill_in_steps(args, clips, world=1):
    """Batch and epochs where they were left out: a few clips get small steps, and enough of them."""
    if args.batch is None:
        parts = world * args.accumulate
        args.batch = max(1, min(32, clips // 4) // parts) * parts
    if args.epochs is None:
        args.epochs = max(20, math.ceil(200 / max(1, clips // args.batch)))


def make_network(args, source, classes, fps):
    """The network to train and a sentence on where its weights come from.

    Parameters
    ----------
    args : namespace
        As `fill_in` left it.
    source : Checkpoint or None
        Weights to begin with; a classifier for other classes is made anew.
    classes : list of str
    fps : float

    Raises
    ------
    InputError, CheckpointError
    """
    from tsm_edge.models import create_model

    shift = None if args.shift == "none" else args.shift
    kind = dict(width=args.width, input_size=args.input_size, shift=shift, fold_div=args.fold_div, n_segment=args.frames,
                dropout=args.dropout)
    known = source.card if source else Card()
    if shift and known.shift:
        # The channels that brought the past still do: of a network of both directions only the future is lost.
        kind.update(past=known.past, placement=known.placement, future=known.future if shift == known.shift else None)
        if shift == "offline" and known.shift == "online":
            kind.update(past=None)
    net = create_model(args.arch, len(classes), classes=list(classes), **kind)
    net.card = net.card.but(trained=True, fps=fps, events=events_of(classes, fps, known),
                            **{key: known[key] for key in ("mean", "std", "resize", "filter")})
    if source is None:
        return net, "weights from scratch"
    mine, theirs = net.state_dict(), dict(source.state_dict)
    head = [k for k in theirs if theirs[k].shape != mine[k].shape] if set(theirs) == set(mine) else None
    if head is None or any(not k.startswith(("classifier", "fc")) for k in head):
        raise InputError("the checkpoint does not fit the network", found=f"{len(theirs)} tensors, first {list(theirs)[:3]}",
                         expected=f"{len(mine)} tensors, first {list(mine)[:3]}", do="check --arch and --width")
    fresh = bool(head) or list(known.classes or []) != list(classes)
    if fresh:
        theirs.update({k: mine[k] for k in mine if k.startswith(("classifier", "fc"))})
    net.load_state_dict(theirs)
    if "shift" not in known.said:
        trained = "shifts that the file does not name"
    else:
        trained = {"online": "online shifts", "offline": "shifts both ways", None: "no shifts"}[known.shift]
    return net, f"weights from {args.init}, trained with {trained}" + (", with a new classifier" if fresh else "")


class _Curves:
    """TensorBoard's curves in `folder`, from `step` on; where they cannot be written training goes on without them."""

    def __init__(self, folder, step):
        self._writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        except ImportError:
            print("note: no TensorBoard curves (pip install 'tsm-edge[train]')", file=sys.stderr)
        except OSError as error:
            self._give_up(error)

    def add_scalar(self, *args):
        try:
            if self._writer:
                self._writer.add_scalar(*args)
        except OSError as error:
            self._give_up(error)

    def close(self):
        try:
            if self._writer:
                self._writer.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error):
        self._writer = None
        print(f"note: no more TensorBoard curves: {error}", file=sys.stderr)


class _Progress:
    """A bar on a terminal, a line every tenth of the run elsewhere, nothing on the other processes."""

    def __init__(self, show):
        self.show, self.bar = show, None

    def __enter__(self):
        if self.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
                                TextColumn("{task.fields[rate]:.1f} clips/s"), TimeRemainingColumn(), console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("", total=None, loss=float("nan"), rate=0.0)
        return self

    def update(self, step, total, loss, rate):
        if self.bar:
            self.bar.update(self.task, completed=step, total=total, loss=loss, rate=rate)
        elif self.show and (step == 1 or step % max(1, total // 50) == 0):
            print(f"step {step}/{total} loss {loss:.4f} {rate:.1f} clips/s", file=sys.stderr, flush=True)

    def __exit__(self, *exc):
        if self.bar:
            self.bar.stop()


if __name__ == "__main__":
    main()
