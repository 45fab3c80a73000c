"""tsm-eval: how good a checkpoint, an ONNX file or a bundle is, on clips and on long streams."""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from ..errors import InputError
from . import scores

EXAMPLES = """examples:
  tsm-eval runs/gestures/final.pth --data gestures                held-out rendered clips
  tsm-eval dist/host --data gestures --stream 600                 and ten minutes of joined gestures
  tsm-eval final.pth --data test.txt --root frames/ --confusion confusion.png --json
  tsm-eval final.pth --data gestures --attention attention.png    where the network looks, frame by frame
"""
PARTS = tuple(i / 10 for i in range(1, 11))


def parser():
    p = argparse.ArgumentParser(prog="tsm-eval", description=__doc__, epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", metavar="MODEL", help="a checkpoint, an .onnx step graph or a bundle")
    p.add_argument("--data", required=True, help="'gestures' (rendered, held out), a folder of LABEL/clip files, or a list file")
    p.add_argument("--root", help="folder that the paths of a list file start from")
    p.add_argument("--split", default="test", help="rendered gestures: train, val or test (test)")
    p.add_argument("--clips-per-class", type=int, default=20, help="rendered gestures (20)")
    p.add_argument("--frames", type=int, default=0, help="frames of a clip (0: as the network was trained)")
    p.add_argument("--backend", help="native, onnxruntime or torch")
    p.add_argument("--stream", type=float, default=0.0, metavar="SECONDS",
                   help="also a joined stream of about this length (rendered gestures)")
    p.add_argument("--backwards", action="store_true", help="also play the clips backwards (rendered gestures)")
    p.add_argument("--confusion", metavar="PNG", help="write the confusion matrix as a picture")
    p.add_argument("--attention", metavar="PNG|MP4", help="write what the network looks at (checkpoints only)")
    p.add_argument("--attention-class", help="the class whose evidence is shown; default: the clip's own")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", action="store_true")
    return p


def main(argv=None):
    from ..cli import run

    run(_main, argv)


def _main(argv):
    args = parser().parse_args(argv)
    print("options: " + ", ".join(f"{k}={v}" for k, v in sorted(vars(args).items())), file=sys.stderr)
    import tsm_edge

    model = tsm_edge.load(args.model, backend=args.backend)
    clips = _clips(args, model)
    result = evaluate(model, clips, backwards=args.backwards)
    result = {"model": str(args.model), "backend": model.backend, **result}
    if Path(args.model).is_file() and model.backend == "torch":
        result["clip_top1"] = scores.top_k(scores.clip_logits(clip_forward(args.model, clips)), clips.labels, 1)
    if args.stream:
        result["stream"] = evaluate_stream(model, args.stream, seed=args.seed, split=args.split)
    if args.confusion:
        write_confusion(args.confusion, np.array(result["confusion"]), model.classes)
    if args.attention:
        from .attention import write_attention

        write_attention(args.attention, args.model, clips, args.attention_class)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        _print(result)
    print(f"PASSED top-1 {result['top1']:.2%} over {result['clips']} clips", file=sys.stderr if args.json else sys.stdout)
    return 0


class Clips:
    """Clips in memory or read one by one: `read(i)` -> uint8 [T, h, w, 3]; `labels` int64 [N]; `times` seconds a frame."""

    def __init__(self, read, labels, classes, fps):
        self.read, self.labels, self.classes, self.fps = read, np.asarray(labels), list(classes), fps

    def __len__(self):
        return len(self.labels)


def _clips(args, model):
    network, fps = model.manifest.get("network", {}), model.manifest.get("stream", {}).get("fps") or 0.0
    frames = args.frames or int(network.get("n_segment") or 8)
    if args.data == "gestures":
        from .gestures import GestureDataset
        from .gestures_labels import CLASSES

        unknown = [c for c in model.classes if c not in CLASSES]
        if unknown:
            raise InputError("the rendered gestures do not know the model's classes", found=", ".join(unknown[:4]),
                             expected="Jester's labels", do="evaluate on clips of your own: --data FOLDER")
        seconds = frames / fps if fps else 3.0
        size = (round(model.manifest["input"]["width"] * 256 / 224), round(model.manifest["input"]["height"] * 256 / 224))
        data = GestureDataset(args.split, args.clips_per_class, model.classes, frames, size, seconds, args.seed)
        return Clips(lambda i: data[i][0], [i % len(model.classes) for i in range(len(data))], model.classes, frames / seconds)
    from .datasets import ClipDataset
    from .layouts import find_items
    from .sampling import Sampler

    items, classes = find_items(args.data, args.root, list(model.classes))
    data = ClipDataset(items, Sampler("uniform", frames), train=False, unreadable="none")
    good = [i for i in range(len(data)) if data[i] is not None]
    if data.report():
        print(data.report(), file=sys.stderr)
    if not good:
        raise InputError(f"no clip of {args.data} can be read", found=f"{len(data)} unreadable", expected="readable clips",
                         do="check the path")
    return Clips(lambda i: data[good[i]][0], [items[i].label for i in good], classes, fps or 12.0)


def step_logits(model, clips, *, backwards=False):
    """Logits of every frame by stepping from an empty stream, float32 [N, T, classes]."""
    out = []
    stream = model.stream(max_gap_seconds=0, fps=0)
    for i in range(len(clips)):
        stream.reset()
        clip = clips.read(i)
        out.append([np.array(stream.step(np.ascontiguousarray(f)).logits) for f in (clip[::-1] if backwards else clip)])
    stream.close()
    return np.array(out, np.float32)


def clip_forward(checkpoint, clips):
    """The same by the clip-level network, all frames at once (torch)."""
    import torch

    from ..runtimes.preprocess import preprocess
    from ..shift import set_segments
    from .networks import open_network

    net = open_network(checkpoint).eval()
    rule = _rule(net)
    out = []
    with torch.no_grad():
        for i in range(len(clips)):
            clip = clips.read(i)
            set_segments(net, len(clip))
            x = torch.from_numpy(np.stack([preprocess(f, rule) for f in clip]))
            out.append(net(x).numpy())
    return np.array(out, np.float32)


def _rule(net):
    from ..runtimes.torch_backend import describe

    return describe(net, [])["input"]


def evaluate(model, clips, *, backwards=False):
    """Accuracy of a loaded model on clips, stepping frame by frame; a dict of plain values."""
    logits = step_logits(model, clips)
    whole = scores.clip_logits(logits)
    table = scores.confusion(whole, clips.labels)
    result = {
        "clips": len(clips), "classes": list(model.classes), "frames": int(logits.shape[1]),
        "top1": scores.top_k(whole, clips.labels, 1), "top5": scores.top_k(whole, clips.labels, min(5, whole.shape[1])),
        "early": {f"{part:.0%}": scores.top_k(scores.clip_logits(logits, part), clips.labels, 1) for part in PARTS},
        "per_class": scores.per_class(table, model.classes), "confusion": table.tolist(),
    }
    if backwards:
        result["backwards"] = _backwards(model, clips)
    return result


def _backwards(model, clips):
    """For directed classes: how often a clip played backwards is taken for the opposite gesture."""
    from .augment import backwards_map

    opposite = backwards_map(model.classes)
    directed = [i for i in range(len(clips)) if opposite[clips.labels[i]] not in (-1, clips.labels[i])]
    some = Clips(lambda i: clips.read(directed[i]), clips.labels[directed], clips.classes, clips.fps)
    answers = scores.clip_logits(step_logits(model, some, backwards=True)).argmax(1)
    rows = {}
    for answer, label in zip(answers, some.labels):
        rows.setdefault(model.classes[label], []).append(answer == opposite[label])
    return {"opposite": float(np.mean([a == opposite[c] for a, c in zip(answers, some.labels)])),
            "per_class": {name: float(np.mean(hits)) for name, hits in rows.items()}}


def evaluate_stream(model, seconds, *, seed=0, split="test"):
    """Events on a long rendered stream of joined gestures against what was performed; see `scores.match_events`."""
    from ..runtimes.events import GestureEvents
    from .gestures import SPLITS, Performer
    from .gestures_labels import BACKGROUND_CLASSES

    fps = model.manifest.get("stream", {}).get("fps") or 12.0
    side = model.manifest["input"]
    size = (round(side["width"] * 256 / 224), round(side["height"] * 256 / 224))
    gestures = [c for c in model.classes if c not in BACKGROUND_CLASSES]
    order = np.random.default_rng([seed, 55]).permutation(np.arange(int(seconds)) % len(gestures))
    performer = Performer([gestures[i] for i in order], size, fps, SPLITS[split][0] + 7_000_000 + seed)
    stream, events, found, count = model.stream(max_gap_seconds=0, fps=0), GestureEvents.of(model, fps), [], 0
    for frame in performer:
        result = stream.step(np.ascontiguousarray(frame))
        found += [(e.start, e.label) for e in events.update(result, count / fps) if e.kind == "start"]
        count += 1
        if count >= seconds * fps:
            break
    stream.close()
    length = count / fps
    truth = [t for t in performer.intervals if t["label"] not in BACKGROUND_CLASSES and t["end"] + 1.5 <= length]
    return scores.match_events(truth, [f for f in found if not truth or f[0] <= truth[-1]["end"] + 1.5], length)


def write_confusion(path, table, classes):
    """The confusion matrix as a PNG: rows the truth, in shares of the row."""
    try:
        import matplotlib
    except ImportError as error:
        from ..errors import MissingComponentError

        raise MissingComponentError("matplotlib is not installed", found=str(error), expected="matplotlib",
                                    do="pip install 'tsm-edge[train]'") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    share = table / np.maximum(1, table.sum(1, keepdims=True))
    side = 3 + 0.32 * len(classes)
    figure, axes = plt.subplots(figsize=(side + 1, side), dpi=110)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    for i, j in zip(*np.nonzero(table)):
        axes.text(j, i, table[i, j], ha="center", va="center", fontsize=7, color="white" if share[i, j] > 0.5 else "black")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _print(result):
    print(f"{result['model']} ({result['backend']}): {result['clips']} clips of {result['frames']} frames, "
          f"{len(result['classes'])} classes")
    print(f"online top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}"
          + (f"; the same weights over whole clips {result['clip_top1']:.2%}" if "clip_top1" in result else ""))
    print("early recognition: " + ", ".join(f"{part} {value:.0%}" for part, value in result["early"].items()))
    print(f"\n{'class':34} {'clips':>5} {'recall':>7} {'precision':>9}  most often taken for")
    for row in result["per_class"]:
        numbers = [f"{row[k]:.0%}" if row[k] is not None else "-" for k in ("recall", "precision")]
        print(f"{row['class']:34} {row['clips']:5} {numbers[0]:>7} {numbers[1]:>9}  {row['confused_with'] or ''}")
    if "backwards" in result:
        print(f"\nplayed backwards, taken for the opposite gesture: {result['backwards']['opposite']:.0%}")
        print(", ".join(f"{name} {value:.0%}" for name, value in result["backwards"]["per_class"].items()))
    if "stream" in result:
        s = result["stream"]
        delay = "-" if s["delay"] is None else f"{s['delay']:+.2f} s"
        print(f"\nstream of {s['seconds'] / 60:.1f} minutes, {s['gestures']} gestures: exactly one right event {s['exactly_one']:.0%}, "
              f"recognised {s['recognised']:.0%}, false events {s['false_per_minute']:.2f} a minute, "
              f"median delay from the gesture's end {delay}")
    print()


if __name__ == "__main__":
    main()
