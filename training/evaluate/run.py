"""tsm-eval: how good a checkpoint, an ONNX file or a bundle is, on clips and on long streams."""
from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path

import numpy as np

from tsm_edge import cli
from tsm_edge.errors import InputError
from tsm_edge.runtimes.sources import FLIPS, FOLDER_RATE

from . import films, scores, streams
from .clips import Clips, WholeClips, open_clips, picture_size
from .plots import import_pyplot, print_figures, write_confusion

EXAMPLES = """examples:
  tsm-eval runs/gestures/final.pth --data gestures                held-out rendered clips
  tsm-eval dist/host --data gestures --stream 600                 and ten minutes of joined gestures
  tsm-eval final.pth --data test.txt --root frames/ --confusion confusion.png --json
  tsm-eval default --data clips/ --map left=\"Swiping Left\" wave=none --per-clip      real clips, whatever their folders are called
  tsm-eval final.pth --data gestures --attention attention.png    where the network looks, frame by frame
  tsm-eval offline.pth --data gestures --past 1:2                 an offline network, and its weights run online
A network that was trained online is stepped frame by frame. One that was trained offline or without shifts (checkpoints only)
sees whole clips.
"""
PARTS = tuple(i / 10 for i in range(1, 11))


def parser():
    p = argparse.ArgumentParser(prog="tsm-eval", description=__doc__, epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", metavar="MODEL", help="a checkpoint, an .onnx step graph, a bundle, or 'default': the packaged model")
    p.add_argument("--data", required=True, metavar="DATA",
                   help="'gestures' (rendered, held out), a folder of LABEL/clip files, or a list file")
    p.add_argument("--stream", type=float, default=0.0, metavar="SECONDS", help="also a stream of this length: rendered gestures with rest "
                   "between them, or the clips joined (default: 0, none)")
    p.add_argument("--confusion", metavar="PNG", help="write the confusion matrix as a picture")
    p.add_argument("--engine", metavar="NAME", help="native, onnxruntime or torch (default: what fits MODEL)")
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")

    data = p.add_argument_group("the data")
    data.add_argument("--root", metavar="DIR", help="folder that the paths of a list file start from (default: the list's own)")
    data.add_argument("--frames", type=int, default=0, metavar="N", help="frames of a clip (default: 0, as the network was trained)")
    data.add_argument("--sampling", metavar="NAME",
                      help="frames of a clip file: uniform, dense or rate (default: as a checkpoint was trained, else uniform)")
    data.add_argument("--sampling-stride", type=int, metavar="N",
                      help="dense: frames between two of a clip (default: as a checkpoint was trained, else 8)")
    data.add_argument("--seed", type=int, default=0, metavar="N", help="of rendered clips, and of the order in a stream (default: 0)")

    own = p.add_argument_group("clips of your own")
    own.add_argument("--map", nargs="+", action="extend", default=[], metavar="FOLDER=CLASS",
                     help="what folders (in a list: labels) show that are not called like a class; =none: nothing named, any event is "
                     "false; =-: left out")
    own.add_argument("--flip", default="none", metavar="NAME", help="turn or mirror what is read: horizontal for films of a camera that "
                     "mirrors (default: none)")
    own.add_argument("--input-rate", type=float, metavar="FPS",
                     help="frames a second that the files really have (default: what they say; folders of frames: 12)")
    own.add_argument("--fps", type=float, nargs="+", action="extend", default=[], metavar="FPS",
                     help="also play the clips at these cameras' rates")
    own.add_argument("--hold-last", type=float, default=0.0, metavar="SECONDS",
                     help="show the last frame of a clip so much longer (default: 0)")
    own.add_argument("--per-clip", action="store_true", help="a line for each clip")
    own.add_argument("--at-least", type=float, metavar="X", help="fail (exit code 1) where top-1 is below X, 0 to 1")

    drawn = p.add_argument_group("rendered gestures")
    drawn.add_argument("--split", default="test", metavar="NAME", help="train, val or test: other seeds, other backgrounds (default: test)")
    drawn.add_argument("--clips-per-class", type=int, default=20, metavar="N", help="clips a class (default: 20)")
    drawn.add_argument("--clip-size", type=int, default=240, metavar="N",
                       help="pixels a side; scaled down as a camera's are (default: 240)")

    more = p.add_argument_group("more to measure")
    more.add_argument("--past", metavar="A:B", help="also run an offline network's weights online; folds of channels from the past, 1:2")
    more.add_argument("--backwards", action="store_true", help="also play the clips backwards: is each taken for its opposite?")
    more.add_argument("--opposites", nargs="*", default=[], metavar="A=B", help="classes of your own that turn into each other backwards")
    more.add_argument("--tune-events", metavar="FILE",
                      help="look for the event settings that answer best on another stream (rendered: split "
                      "val), and write the checkpoint with them to FILE; needs --stream")
    more.add_argument("--attention", metavar="PNG|MP4", help="write what the network looks at (checkpoints only)")
    more.add_argument("--attention-class", metavar="NAME", help="the class whose evidence is shown (default: the clip's own)")
    return p


def main(argv=None):
    cli.run(_main, argv)


def _main(argv):
    args = parser().parse_args(argv)
    cli.echo(vars(args))
    check(args)
    model = open_model(args)
    past = check_model(args, model)
    clips = open_clips(args, model)
    check_clips(args, clips)
    result = {"model": str(args.model), "engine": model.engine, "shift": model.shift, "sampling": clips.sampling, "clips": len(clips)}
    if len(clips):
        result.update(evaluate(model, clips, backwards=args.backwards, opposites=_pairs(args.opposites)))
    if len(clips) and model.net is not None and model.shift == "online":
        result["clip_top1"] = scores.top_k(scores.clip_logits(clip_forward(model.net, clips)), clips.labels, 1)
    if past:
        result["online_top1"] = _run_online(args, model, clips, past)
    if args.stream:
        if args.tune_events:
            result["events"] = _tune_events(args, model, clips)
        stream = streams.rendered(model, args.stream, picture_size(args, model), args.seed, args.split) if args.data == "gestures" \
            else streams.joined(model, clips, args.stream, args.seed)
        result["stream"] = stream.figures(model.manifest["events"])
    answers = result.pop("answers", [])
    if clips.films:
        result.update(_each(args, model, clips, answers))
    if args.confusion:
        write_confusion(args.confusion, np.array(result["confusion"]), model.classes)
    if args.attention:
        from .heat import write_attention

        write_attention(args.attention, model.net, clips, args.attention_class)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_figures(result, args.per_clip)
    return _verdict(args, result)


def _verdict(args, result):
    """The last line, and the exit code: a figure is no check, unless --at-least makes it one."""
    said = f"top-1 {result['top1']:.2%} over {result['clips']} clips" if result["clips"] else "no clip shows a class of the model"
    passed = args.at_least is None or result["clips"] and result["top1"] >= args.at_least
    word = "MEASURED" if args.at_least is None else "PASSED" if passed else "FAILED"
    cli.verdict(f"{word} {said}" + (f", at least {args.at_least:.2%} wanted" if args.at_least is not None else ""), args.json)
    return 0 if passed else 1


def _each(args, model, clips, answers):
    """What comes of each file: {"results": a row a clip, "unreadable": {path: why}, "assumed_rate"}; of an online model that is played
    the clips in full also {"clip_events": figures, "rates": {fps: figures}}."""
    whole, found = clips.films, {}
    if model.shift == "online":
        never = {model.classes[int(i)] for i in model.manifest["events"].get("ignore") or ()}
        never &= {model.classes[item.label] for item in whole.items if item.label >= 0}
        if never:
            print(f"the model's event rule never reports {', '.join(sorted(never))}: no right event is possible there", file=sys.stderr)
        before = set(whole.bad)
        own = films.outcomes(model, whole, None, args.hold_last, dict(zip(clips.paths, answers)))
        rates = {f"{fps:g}": films.figures(films.outcomes(model, whole, fps, args.hold_last)) for fps in args.fps}
        found = {"clip_events": films.figures(own), "rates": rates}
        rows = [o._asdict() for o in own]
        for path in whole.bad.keys() - before:
            print(f"not played: {path} ({whole.bad[path]})", file=sys.stderr)
    else:
        rows = [{"path": path, "label": clips.classes[label], "answer": answer}
                for path, label, answer in zip(clips.paths, clips.labels, answers)]
    return {**found, "results": rows, "unreadable": whole.bad, "assumed_rate": FOLDER_RATE if whole.assumed else None}


def check(args):
    """Refuse numbers and paths that cannot be used, before anything is computed."""
    from tsm_edge.runtimes import CHECKPOINTS

    cli.check_ranges(args, {"clips_per_class": (1, None), "clip_size": (16, None), "frames": (0, None), "seed": (0, None),
                            "sampling_stride": (1, None), **({"stream": (1, 1_000_000)} if args.stream else {})})
    cli.check_ranges(args, {"hold_last": (0, 60), **({"input_rate": (0.1, 1000)} if args.input_rate is not None else {}),
                            **({"at_least": (0, 1)} if args.at_least is not None else {})})
    cli.choose(args.flip, FLIPS, "flip method")
    if any(not 0.1 <= fps <= 1000 for fps in args.fps):
        raise InputError("--fps cannot be used", found=", ".join(f"{fps:g}" for fps in args.fps), expected="0.1 to 1000", do="pick others")
    given = [name for name in ("map", "flip", "input_rate", "fps", "hold_last", "per_clip")
             if getattr(args, name) not in ([], None, 0, "none")]
    if args.data == "gestures" and given:
        raise InputError("rendered gestures are no files", found="--data gestures with --" + given[0].replace("_", "-"),
                         expected="a folder or a list of clips", do="leave them out, or write clips first: tsm-gestures dataset")
    if args.tune_events and not args.stream:
        raise InputError("--tune-events needs a stream", found="no --stream", expected="--stream SECONDS", do="for example --stream 600")
    if args.confusion:
        import_pyplot()
    for path, endings in ((args.tune_events, CHECKPOINTS), (args.confusion, (".png", ".jpg", ".pdf", ".svg")),
                          (args.attention, (".png", ".mp4"))):
        if path:
            _check_output(path, endings)


def _check_output(path, endings):
    """Refuse a path that cannot be written; a file that is there stays as it is."""
    there, problem = os.path.lexists(path), None
    if not path.lower().endswith(endings):
        problem = f"the ending '{Path(path).suffix}'"
    else:
        try:
            with open(path, "ab"):
                pass
            if not there:
                os.unlink(path)
        except OSError as error:
            problem = error.strerror or error
    if problem:
        raise InputError(f"{path} cannot be written", found=problem, expected=f"a writable path, ending in {' or '.join(endings)}",
                         do="check folder and name")


def check_model(args, model):
    """Refuse what this model cannot do, before it does anything; returns --past as (start, stop), or None."""
    if args.tune_events and model.net is None:
        raise InputError("--tune-events needs the checkpoint", found=f"{args.model}, which is compiled or exported",
                         expected="a checkpoint", do="tune the checkpoint that it was made from, then export that")
    if args.stream and model.shift != "online":
        raise InputError("only online networks run on streams", found=f"{args.model}, shift {model.shift}",
                         expected="a network trained online", do="leave --stream out")
    if (args.fps or args.hold_last) and model.shift != "online":
        raise InputError("only online networks are played clips as a camera gives them", found=f"{args.model}, shift {model.shift}",
                         expected="a network trained online", do="leave --fps and --hold-last out")
    if args.attention:
        from .heat import check_request

        check_request(args.attention, model.net, args.attention_class, model.classes)
    if not args.past:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", args.past)
    if not match or model.shift == "online" or model.net is None:
        raise InputError("--past cannot be used", found=f"--past {args.past}, {args.model} with shift {model.shift}",
                         expected="START:STOP in folds of channels, for a checkpoint that was trained offline",
                         do="for example --past 1:2, or leave it out")
    return int(match[1]), int(match[2])


def check_clips(args, clips):
    """Refuse what needs clips of classes where there are none, but only footage in which nothing has a name."""
    needs = [name for name in ("stream", "confusion", "attention", "backwards", "past", "at_least") if getattr(args, name) not in (None, 0)]
    if needs and not len(clips):
        raise InputError(f"--{needs[0].replace('_', '-')} needs clips of a class", found=f"none in {args.data}, as --map has it",
                         expected="clips of the model's classes", do="leave it out, or map a folder to a class")


def open_model(args):
    """A loaded model with what a checkpoint alone tells: `net` (the clip-level network, or None), `shift` ("online", "offline",
    None) and `training` (the options of tsm-train, or {}).

    A checkpoint that was not trained online is given as a `WholeClips`.
    """
    import tsm_edge
    from tsm_edge.default import default_checkpoint
    from tsm_edge.runtimes import CHECKPOINTS

    if args.model == "default":
        args.model = str(default_checkpoint())
    path, net, training = Path(args.model), None, {}
    if path.suffix in CHECKPOINTS and path.is_file():
        from tsm_edge.checkpoints import load_checkpoint
        from tsm_edge.training.networks import open_network

        net, training = open_network(path), load_checkpoint(path).extra.get("training") or {}
        if net.card.shift != "online" and args.engine in (None, "torch"):
            model = WholeClips(net)
            model.training = training
            return model
    model = tsm_edge.load(args.model, engine=args.engine)
    model.net, model.shift, model.training = net, "online", training
    return model


def _tune_events(args, model, clips):
    """Settings that answer best on a stream which is not the one that is reported; the model takes them, and FILE has them."""
    from tsm_edge.checkpoints import load_checkpoint, save_checkpoint

    seed = args.seed + 1
    stream = streams.rendered(model, args.stream, picture_size(args, model), seed, "val") if args.data == "gestures" else \
        streams.joined(model, clips, args.stream, seed)
    settings, figures = stream.best_settings(model.manifest["events"])
    model.manifest["events"] = settings
    model.net.card = model.net.card.but(events=settings)
    extra = load_checkpoint(args.model).extra
    save_checkpoint(args.tune_events, model.net, **{k: extra[k] for k in ("training", "metrics") if k in extra})
    print(f"events {settings} give, on the stream they were chosen by, {streams.sentence(figures)}; {args.tune_events} has them",
          file=sys.stderr)
    return settings


def _run_online(args, model, clips, past):
    """Top-1 of an offline network's weights, stepped."""
    from tsm_edge.models import create_model
    from tsm_edge.runtimes.engines.torch import TorchModel

    online = create_model(model.net.card.name, checkpoint=args.model, past=past)
    return scores.top_k(scores.clip_logits(step_logits(TorchModel(online), clips)), clips.labels, 1)


def step_logits(model, clips, *, backwards=False):
    """Logits of every frame by stepping from an empty stream, float32 [N, T, classes]; whole clips where it has to be."""
    if isinstance(model, WholeClips):
        turned = Clips(lambda i: clips.read(i)[::-1], clips.labels, clips.classes, clips.fps)
        return clip_forward(model.net, turned if backwards else clips)
    out = []
    stream = model.stream(max_gap_seconds=0, fps=0)
    for i in range(len(clips)):
        stream.reset()
        clip = clips.read(i)
        out.append([np.array(stream.step(np.ascontiguousarray(f)).logits) for f in (clip[::-1] if backwards else clip)])
    stream.close()
    return scores.finite(np.array(out, np.float32))


def clip_forward(net, clips):
    """Logits of every frame by a clip-level network, all frames of a clip at once (torch), float32 [N, T, classes]."""
    import torch

    from tsm_edge.runtimes.preprocess import preprocess
    from tsm_edge.shift import set_segments

    net, rule, out = net.eval(), _rule(net), []
    with torch.no_grad():
        for i in range(len(clips)):
            clip = clips.read(i)
            set_segments(net, len(clip))
            x = torch.from_numpy(np.stack([preprocess(np.ascontiguousarray(f), rule) for f in clip]))
            out.append(net(x).numpy())
    return scores.finite(np.array(out, np.float32))


def _rule(net):
    from tsm_edge.runtimes.engines.torch import describe

    return describe(net, [])["input"]


def _pairs(texts):
    return [tuple(text.split("=", 1)) if "=" in text else (text, text) for text in texts]


def evaluate(model, clips, *, backwards=False, opposites=()):
    """Accuracy of a loaded model on clips, stepping frame by frame; a dict of plain values.

    backwards : also the clips played backwards; opposites : pairs of class names, for names that Jester has not.
    """
    if backwards:  # classes that are not declared are named before the work
        from tsm_edge.training.data.augment import backwards_map

        backwards_map(model.classes, opposites)
    logits = step_logits(model, clips)
    whole = scores.clip_logits(logits)
    table = scores.confusion(whole, clips.labels)
    result = {
        "clips": len(clips), "classes": list(model.classes), "frames": int(logits.shape[1]),
        "top1": scores.top_k(whole, clips.labels, 1), "top5": scores.top_k(whole, clips.labels, min(5, whole.shape[1])),
        "early": {f"{part:.0%}": scores.top_k(scores.clip_logits(logits, part), clips.labels, 1) for part in PARTS},
        "per_class": scores.per_class(table, model.classes), "confusion": table.tolist(),
        "answers": [model.classes[i] for i in whole.argmax(1)],
    }
    if backwards:
        result["backwards"] = _backwards(model, clips, opposites)
    return result


def _backwards(model, clips, pairs):
    """For directed classes: how often a clip played backwards is taken for the opposite gesture."""
    from tsm_edge.training.data.augment import backwards_map

    opposite = backwards_map(model.classes, pairs)
    directed = [i for i in range(len(clips)) if opposite[clips.labels[i]] not in (-1, clips.labels[i])]
    if not directed:
        return {"opposite": None, "per_class": {}}
    some = Clips(lambda i: clips.read(directed[i]), clips.labels[directed], clips.classes, clips.fps)
    answers = scores.clip_logits(step_logits(model, some, backwards=True)).argmax(1)
    rows = {}
    for answer, label in zip(answers, some.labels):
        rows.setdefault(model.classes[label], []).append(answer == opposite[label])
    return {"opposite": float(np.mean([a == opposite[c] for a, c in zip(answers, some.labels)])),
            "per_class": {name: float(np.mean(hits)) for name, hits in rows.items()}}


if __name__ == "__main__":
    main()
