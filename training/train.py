"""tsm-train: train a network with temporal shifts, online or offline."""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from ..cli import choose
from ..errors import InputError

EXAMPLES = """examples:
  tsm-train --data gestures --output runs/gestures            the rendered gestures, from scratch
  tsm-train --data clips/ --init default --output runs/mine   fine-tune the shipped model on clips/LABEL/*.mp4
  tsm-train --data train.txt --val-data val.txt --root frames/ --arch resnet50 --init tsm_kinetics.pth --shift online
  torchrun --nproc-per-node 8 -m tsm_edge.training.train --data train.txt --batch 512 --workers 8
A run that was stopped goes on where it was when the same command is given again.
"""


def parser():
    p = argparse.ArgumentParser(prog="tsm-train", description=__doc__, epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="'gestures' (rendered), a folder of LABEL/clip files, or a list file")
    p.add_argument("--val-data", help="the same for validation; default: held-out rendered clips, or a tenth of --data")
    p.add_argument("--root", help="folder that the paths of a list file start from")
    p.add_argument("--classes", help="file with one class name a line; default: the folders' names, or those of --data")
    p.add_argument("--clips-per-class", type=int, default=250, help="rendered gestures: training clips a class (250)")
    p.add_argument("--gesture-set", default="core", help="rendered gestures: core (19 classes) or all (27)")
    p.add_argument("--output", default="runs/train", help="folder of the run (runs/train)")
    net = p.add_argument_group("network")
    net.add_argument("--arch", default="mobilenet_v2", help="mobilenet_v2, resnet18 or resnet50")
    net.add_argument("--width", type=float, default=1.0, help="width multiplier of mobilenet_v2 (1.0)")
    net.add_argument("--input-size", type=int, default=224, help="side of the network's input, pixels (224)")
    net.add_argument("--shift", default="online", help="online, offline or none")
    net.add_argument("--fold-div", type=int, default=8)
    p.add_argument("--sampling", default="uniform", help="frames of a clip file: uniform, dense or rate (at --fps)")
    p.add_argument("--sampling-stride", type=int, default=8, help="dense: frames between two of a clip (8)")
    net.add_argument("--frames", type=int, default=8, help="frames of a clip (8)")
    net.add_argument("--seconds", type=float, default=3.0, help="rendered gestures: seconds of a clip (3)")
    net.add_argument("--fps", type=float, default=0.0, help="frame rate the model is to run at, recorded (0: frames / seconds)")
    net.add_argument("--init", help="'default' (the shipped model) or a checkpoint; a new class list gets a new classifier")
    net.add_argument("--head-only", action="store_true", help="train the classifier alone")
    net.add_argument("--dropout", type=float, default=0.2)
    fit = p.add_argument_group("optimisation")
    fit.add_argument("--epochs", type=int, default=20)
    fit.add_argument("--batch", type=int, default=32, help="clips a step, over all processes (32)")
    fit.add_argument("--accumulate", type=int, default=1, help="micro-batches a step is cut into (1)")
    fit.add_argument("--optimizer", default="sgd", help="sgd or adamw")
    fit.add_argument("--lr", type=float, default=0.01, help="learning rate at --lr-batch clips a step, scaled linearly (0.01)")
    fit.add_argument("--lr-batch", type=int, default=32)
    fit.add_argument("--momentum", type=float, default=0.9)
    fit.add_argument("--weight-decay", type=float, default=1e-4)
    fit.add_argument("--warmup-epochs", type=float, default=1.0)
    fit.add_argument("--label-smoothing", type=float, default=0.1)
    fit.add_argument("--frame-loss", type=float, default=0.0, help="weight of a per-frame loss, where strokes are known (0)")
    fit.add_argument("--ema", type=float, default=0.0, help="decay of averaged weights, e.g. 0.999 (0: none)")
    fit.add_argument("--batch-norm", default="train", help="train, partial (as TSN) or frozen")
    fit.add_argument("--mixed-precision", action="store_true", help="half precision on a GPU")
    fit.add_argument("--mirror", action="store_true", help="mirror clips, left and right classes swapped with them")
    fit.add_argument("--mirror-pairs", nargs="*", default=[], metavar="A=B", help="classes that change into each other in a mirror")
    fit.add_argument("--seed", type=int, default=0)
    run = p.add_argument_group("run")
    run.add_argument("--workers", type=int, default=0, help="processes that decode clips (0)")
    run.add_argument("--threads", type=int, default=0, help="threads of the CPU (0: torch's own choice)")
    run.add_argument("--save-every", type=int, default=200, help="steps between saved states (200)")
    run.add_argument("--device", default="auto", help="auto, cpu or cuda")
    run.add_argument("--json", action="store_true", help="print the result as JSON")
    return p


def main(argv=None):
    from ..cli import run

    run(_main, argv)


def _main(argv):
    args = parser().parse_args(argv)
    choose(args.optimizer, ("sgd", "adamw"), "optimizer")
    choose(args.batch_norm, ("train", "partial", "frozen"), "batch norm mode")
    choose(args.shift, ("online", "offline", "none"), "shift")
    choose(args.gesture_set, ("core", "all"), "gesture set")
    import torch
    import torch.distributed as dist

    from .loop import Options, Trainer

    if args.threads:
        torch.set_num_threads(args.threads)
    device = args.device if args.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" in os.environ and not dist.is_initialized():
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    chief = not dist.is_initialized() or dist.get_rank() == 0
    torch.manual_seed(args.seed)

    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    data, val, classes, transform = _data(args, folder, chief)
    net, note = _network(args, classes)
    options = Options(**{k: v for k, v in vars(args).items() if k in Options.__dataclass_fields__})
    record = {k: v for k, v in vars(args).items() if k not in ("json", "workers", "device", "save_every")}
    if chief:
        print("options: " + ", ".join(f"{k}={v}" for k, v in sorted(vars(args).items())), file=sys.stderr)
        print(f"{len(data)} training clips, {len(val) if val else 0} validation clips, {len(classes)} classes; {note}", file=sys.stderr)

    def save(path, network, metrics):
        from ..checkpoints import save_checkpoint

        save_checkpoint(path, network, training=record, metrics=metrics)

    rest = classes.index("No gesture") if "No gesture" in classes else None
    trainer = Trainer(net, data, val, options, folder, n_segment=args.frames, mean=net.tsm_info["mean"], std=net.tsm_info["std"],
                      transform=transform, rest=rest, save=save, device=device, workers=args.workers, save_every=args.save_every,
                      log=lambda line: print(line, file=sys.stderr))
    if trainer.resume() and chief:
        print(f"going on from step {trainer.step} of {folder / 'last.pt'}", file=sys.stderr)
    writer = _writer(folder, trainer.step) if chief else None
    with _Progress(chief) as progress:
        accuracy = trainer.run(progress.update, writer)
    if writer:
        writer.close()
    if hasattr(data, "report") and data.report():
        print(data.report(), file=sys.stderr)
    if dist.is_initialized():
        dist.destroy_process_group()
    if chief:
        final = folder / "final.pth"
        loss = trainer.history[-1] if trainer.history else None
        result = {"checkpoint": str(final), "validation_top1": accuracy, "loss": loss, "steps": trainer.step, "classes": classes}
        print(json.dumps(result) if args.json else f"checkpoint {final}\nnext: tsm-export --checkpoint {final} --target host")
        verdict = f"PASSED {trainer.step} steps" + ("" if accuracy is None else f", validation top-1 {accuracy:.2%}")
        print(verdict, file=sys.stderr if args.json else sys.stdout)
    return 0


def _data(args, folder, chief):
    """(training set, validation set or None, class names, transform)."""
    from .augment import CentreCrop, ColourJitter, Compose, Mirror, MultiScaleCrop, mirror_map

    size = (args.input_size, args.input_size)
    if args.data == "gestures":
        data, val = _gestures(args, chief)
        classes = list(data.classes)
    else:
        from .datasets import ClipDataset
        from .layouts import find_items
        from .sampling import Sampler

        items, classes = find_items(args.data, args.root, args.classes)
        sampler = Sampler(args.sampling, args.frames, args.sampling_stride, args.fps or 12.0)
        if args.val_data:
            val_items, _ = find_items(args.val_data, args.root, classes)
        else:  # every tenth clip of a class
            seen = {}
            places = [seen.__setitem__(i.label, seen.get(i.label, -1) + 1) or seen[i.label] for i in items]
            val_items = [i for i, place in zip(items, places) if place % 10 == 9]
            items = [i for i, place in zip(items, places) if place % 10 != 9]
        data = ClipDataset(items, sampler, train=True, seed=args.seed)
        val = ClipDataset(val_items, sampler, train=False) if val_items else None
    steps = [MultiScaleCrop(size, scales=(1.0, 0.9, 0.8), distort=1, fixed=False)]
    if args.mirror:
        pairs = [tuple(pair.split("=", 1)) if "=" in pair else (pair, pair) for pair in args.mirror_pairs]
        steps.append(Mirror(mirror_map(classes, pairs)))
    steps.append(ColourJitter())
    return data, Changed(val, CentreCrop(size)) if val is not None else None, classes, Compose(*steps)


class Changed:
    """A data set seen through a transform without chance (validation sees frames as the runtime will)."""

    def __init__(self, data, transform):
        self.data, self.transform = data, transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.transform(*self.data[index])


def _gestures(args, chief):
    import torch.distributed as dist

    from .gestures_cache import CachedClips, prerender
    from .gestures_labels import CLASSES, CORE_CLASSES

    names = CLASSES if args.gesture_set == "all" else CORE_CLASSES
    side = round(args.input_size * 256 / 224)
    root = Path(args.output).parent / "gesture-clips"
    made = []
    for split, count in (("train", args.clips_per_class), ("val", max(8, args.clips_per_class // 16))):
        path = root / f"{split}-{args.gesture_set}-{count}x{args.frames}-{side}px-{args.seconds:g}s"
        if chief:
            path.parent.mkdir(parents=True, exist_ok=True)
            show = _rendering(split) if sys.stderr.isatty() else None
            prerender(path, split, count, names, args.frames, (side, side), args.seconds, progress=show)
        made.append(path)
    if dist.is_initialized():
        dist.barrier()
    return CachedClips(made[0]), CachedClips(made[1])


def _rendering(split):
    def show(done, total):
        print(f"\rrendering {split} clips {done}/{total}", end="\n" if done == total else "", file=sys.stderr)

    return show


def _network(args, classes):
    """The network to train and a sentence on where its weights come from."""
    from .. import create_model

    kind = dict(width=args.width, input_size=args.input_size, shift=None if args.shift == "none" else args.shift,
                fold_div=args.fold_div, n_segment=args.frames, dropout=args.dropout)
    net = create_model(args.arch, len(classes), classes=list(classes), **kind)
    net.tsm_info.update(trained=True, fps=args.fps or (args.frames / args.seconds if args.data == "gestures" else 0))
    if not args.init:
        return net, "weights from scratch"
    from ..checkpoints import load_checkpoint

    path = args.init
    if path == "default":
        from .default import DEFAULT_CHECKPOINT as path
    source = load_checkpoint(path)
    if source.arch != args.arch or source.arch == "mobilenet_v2" and source.width != args.width:
        raise InputError("the checkpoint is of another network", found=f"{source.arch} x{source.width:g} in {path}",
                         expected=f"{args.arch} x{args.width:g}", do=f"add --arch {source.arch} --width {source.width:g}")
    mine, theirs = net.state_dict(), dict(source.state_dict)
    head = [k for k in theirs if theirs[k].shape != mine[k].shape] if set(theirs) == set(mine) else None
    if head is None or any(not k.startswith(("classifier", "fc")) for k in head):
        raise InputError("the checkpoint does not fit the network", found=f"{len(theirs)} tensors, first {list(theirs)[:3]}",
                         expected=f"{len(mine)} tensors, first {list(mine)[:3]}", do="check --arch and --width")
    fresh = bool(head) or list(source.classes or []) != list(classes)
    if fresh:
        theirs.update({k: mine[k] for k in mine if k.startswith(("classifier", "fc"))})
    net.load_state_dict(theirs)
    return net, f"weights from {path}" + (" with a new classifier" if fresh else "")


def _writer(folder, step):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("note: no TensorBoard curves (pip install 'tsm-edge[train]')", file=sys.stderr)
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)


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
