"""tsm-train: train a network with temporal shifts, online or offline."""
from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np

from tsm_edge import cli
from tsm_edge.card import Card, background_of
from tsm_edge.errors import InputError
from tsm_edge.shell import quote

from . import options
from .progress import Curves, Progress, stopping


def main(argv=None):
    cli.run(_main, argv)


def _main(argv):
    args = options.parser().parse_args(argv)
    options.check(args)
    import torch
    import torch.distributed as dist

    from tsm_edge.training.data.for_training import ClipOptions, fingerprints, open_data

    from . import personal

    device, chief = _join(args.device, args.threads)
    say = (lambda text: print(text, file=sys.stderr, flush=True)) if chief else (lambda text: None)
    asked_frames = args.frames
    source = options.fill_in(args)
    torch.manual_seed(args.seed)
    folder = _made(args.output)
    args.few = few = _few_clips(args, source, asked_frames)
    asked = options.values(args, ClipOptions)
    clips = open_data(asked, folder.parent / "gesture-clips", chief)
    classes = clips.classes
    if len(classes) < 2:
        raise InputError("one class alone teaches nothing", found=", ".join(classes) or "no class", expected="at least two classes",
                         do="add clips of another class, for example of you at rest: tsm-record --label 'No gesture'")
    options.fill_in_steps(args, len(clips.data), dist.get_world_size() if dist.is_initialized() else 1)
    net, note = make_network(args, source, classes, clips.fps)
    if chief:
        cli.echo(vars(args))
    say(f"{len(clips.data)} training clips, {len(clips.val) if clips.val else 0} validation clips, {len(classes)} classes, "
        f"{clips.fps:.3g} frames a second; {note}")
    if args.mixed_precision and not device.startswith("cuda"):
        say("note: --mixed-precision has no effect without a GPU")
    if few:
        chosen = [f"{name.replace('_', '-')} {getattr(args, name):g}" if isinstance(getattr(args, name), float) else
                  f"{name.replace('_', '-')} {getattr(args, name)}" for name in (*personal.USUAL, "batch", "epochs", "frames")]
        say("the recipe for few clips where the options say nothing: " + ", ".join(chosen))
    whose = {**fingerprints(asked, clips), "classes": classes, "init": source and _fingerprint_of(args.init)}
    trainer = _trainer(args, net, clips, whose, folder, device, say)
    before = few and chief and _answers(net, clips) if source and source.card.classes else None
    trainer.resume()
    finished = trainer.step == trainer.total
    accuracy = _train(trainer, clips, chief, say)
    if dist.is_initialized():
        dist.destroy_process_group()
    if chief and few:
        counts = np.bincount([item.label for item in {item.path: item for item in clips.data.items}.values()], minlength=len(classes))
        for line in personal.told(classes, before, _answers(trainer.average or trainer.net, clips), counts):
            say(line)
        if not finished and args.shift == "online":
            _settle_events(trainer, clips, say)
    if chief:
        _report(trainer, classes, accuracy, finished, args.json)
    return 0


def _few_clips(args, source, asked_frames):
    """Fill in what the clips decide: recipe, frames of a clip (where none were asked for), classes; returns whether they are few."""
    from tsm_edge.training.data.for_training import lengths
    from tsm_edge.training.data.listing import find_items

    from . import personal

    if args.data == "gestures" or not (source or args.mix):
        return personal.choose_recipe(args, None, 0)
    items, names = find_items(args.data, args.root, args.classes)
    few = personal.choose_recipe(args, source and source.card, len(items), names)
    if few and args.sampling == "rate" and asked_frames is None:  # a whole clip, as the camera gives it
        seconds = np.median(list(lengths(items).values()) or [0.0])
        args.frames = int(np.clip(round(seconds * args.fps), args.frames, 32))
    if args.mix and not args.classes:
        args.classes = tuple(personal.classes_to_keep(source.card.classes if source else [], names))
    return few


def _settle_events(trainer, clips, say):
    from . import personal

    net = trainer.average or trainer.net
    bad = clips.val.data.skipped() if clips.val else {}
    held = [item for item in clips.val.data.items if item.path not in bad] if clips.val else []
    settings, said = personal.settle_events(net, held)
    say(said)
    if settings:
        net.card = net.card.but(events=settings)
        trainer.write("final.pth")


def _answers(net, clips):
    """(labels, answers) of the held-out clips; empty without any."""
    from .loop import answers

    was = net.training
    found = answers(net.eval(), clips.val or [], net.card.mean, net.card.std)
    net.train(was)
    return found


def _join(device, threads):
    """This process's device, as torch calls it, and whether it is the one that speaks: of several (torchrun) the first."""
    import torch
    import torch.distributed as dist

    if threads:
        torch.set_num_threads(threads)
    _keep_freed_memory()
    device = pick_device(device)
    if "RANK" in os.environ and not dist.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        # the others wait while the first renders or validates
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(hours=4))
    return device, not dist.is_initialized() or dist.get_rank() == 0


def _made(output):
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("--output cannot be used", found=str(error), expected="a folder that can be written to",
                         do="name another") from None
    return folder


def _trainer(args, net, clips, whose, folder, device, say):
    """The run as the options have it. whose : what tells its clips, classes and first weights from others, whatever their paths."""
    from .loop import Options, Trainer

    record = {k: v for k, v in vars(args).items() if k not in ("json", "workers", "device", "save_every", "threads")}
    settings = {k: v for k, v in record.items() if k not in ("output", "root", *Options.__dataclass_fields__)}
    for name in ("init", "output", "data", "val_data", "root", "classes", "people"):  # the checkpoint tells of files, not of whose folders
        record[name] = Path(record[name]).name if isinstance(record[name], str) else record[name] and list(record[name])
    record["photos"] = [Path(name).name for name in record["photos"]]

    def save(path, network, metrics):
        from tsm_edge.checkpoints import save_checkpoint

        save_checkpoint(path, network, training=record, metrics=metrics)

    rest = clips.classes.index("No gesture") if "No gesture" in clips.classes else None
    return Trainer(net, clips.data, clips.val, options.values(args, Options), folder, n_segment=args.frames, mean=net.card.mean,
                   std=net.card.std, transform=clips.transform, rest=rest, save=save, settings={**settings, **whose}, device=device,
                   workers=args.workers, save_every=args.save_every, log=say)


def _train(trainer, clips, chief, say):
    """Go on from where the run is, to its end; the accuracy then."""
    if trainer.step == trainer.total:
        say(f"the run in {trainer.folder} is finished: nothing is trained (another --output to train again)")
    elif trainer.step:
        say(f"going on from step {trainer.step} of {trainer.folder / 'last.pt'}")
    writer = Curves(trainer.folder, trainer.step + 1) if chief else None
    try:
        with Progress(chief) as progress, stopping(trainer, say):
            return trainer.run(progress.update, writer)
    finally:
        if writer:
            writer.close()
        for name, some in (("training", clips.data), ("validation", clips.val)):
            if hasattr(some, "report") and some.report():
                say(f"{name}: {some.report()}")


def _report(trainer, classes, accuracy, finished, as_json):
    final = trainer.folder / "final.pth"
    target = "host" if sys.platform.startswith("linux") else "jetson-nano"  # the host target is Linux's
    loss = trainer.history[-1] if trainer.history else None
    result = {"checkpoint": str(final), "validation_top1": accuracy, "loss": loss, "steps": trainer.step, "classes": classes}
    said = f"checkpoint {final}\nnext: tsm-export --checkpoint {quote(str(final))} --target {target}"
    print(json.dumps(result) if as_json else said)
    measured = "" if accuracy is None else f", validation top-1 {accuracy:.2%}"
    cli.verdict(f"PASSED {trainer.step} steps" + " (finished before)" * finished + measured, as_json)


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
    if cli.choose(kind, ("auto", "cpu", "cuda"), "device") == "cpu":
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


def make_network(args, source, classes, fps):
    """The network to train and a sentence on where its weights come from.

    Parameters
    ----------
    args : namespace
        As `fill_in` left it.
    source : Checkpoint or None
        Weights to begin with; the classifier's rows of other classes are made anew.
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
    net.card = net.card.but(trained=True, fps=fps, events=events_of(classes, fps, known), resize=args.resize,
                            **{key: known[key] for key in ("mean", "std", "filter")})
    if source is None:
        return net, "weights from scratch"
    mine, theirs = net.state_dict(), dict(source.state_dict)
    body = [k for k in mine if not k.startswith(_HEADS)]
    if any(k not in theirs or theirs[k].shape != mine[k].shape for k in body) or any(k not in mine for k in theirs):
        raise InputError("the checkpoint does not fit the network", found=f"{len(theirs)} tensors, first {list(theirs)[:3]}",
                         expected=f"{len(mine)} tensors, first {list(mine)[:3]}", do="check --arch and --width")
    kept = _rows_of(known.classes or [], classes)
    for key in [k for k in mine if k.startswith(_HEADS)]:
        head = mine[key].clone()
        if key in theirs and theirs[key].shape[1:] == head.shape[1:]:
            for row, before in kept.items():
                head[row] = theirs[key][before]
        theirs[key] = head
    net.load_state_dict(theirs)
    if "shift" not in known.said:
        trained = "shifts that the file does not name"
    else:
        trained = {"online": "online shifts", "offline": "shifts both ways", None: "no shifts"}[known.shift]
    new = [name for i, name in enumerate(classes) if i not in kept]
    head = "" if not new else ", with a new classifier" if not kept else f", the classifier new for {', '.join(new)} alone"
    return net, f"weights from {args.init}, trained with {trained}{head}"


_HEADS = ("classifier", "fc")


def _rows_of(before, classes):
    """{row of the new classifier: row of the old one} of the classes that both have, by exact name or by slug."""
    from tsm_edge.training.data.listing import class_finder

    find = class_finder(before) if before else lambda name: None
    rows = {i: find(name) for i, name in enumerate(classes)}
    return {i: row for i, row in rows.items() if row is not None}


if __name__ == "__main__":
    main()
