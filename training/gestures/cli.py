"""tsm-gestures: look at rendered gestures, and write them as pictures, videos or a data set."""
import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np

from tsm_edge import cli
from tsm_edge.errors import InputError
from tsm_edge.files import written_whole
from tsm_edge.runtimes.sources import frames_in, natural
from tsm_edge.training.data.listing import read_classes

from .clips import CLASSES, CORE_CLASSES, SPLITS, render_clip, render_stream
from .labels import slug

EXAMPLES = """examples:
  tsm-gestures sheet --output sheet.png                          one row of pictures for each of the 27 gestures
  tsm-gestures sheet --label swiping-left thumb-up --rows 4 --output two.png
  tsm-gestures video --label swiping-left --output swipe.mp4     one clip
  tsm-gestures stream --count 20 --output stream.mp4             an untrimmed stream; its intervals beside it as JSON
  tsm-gestures dataset --per-class 20 --output clips/            a folder per class of videos, for tsm-train --data
"""
CODES = {".mp4": "mp4v", ".avi": "MJPG"}
RANGES = {"rows": (1, 1000), "columns": (1, 1000), "count": (1, 100_000), "per_class": (1, 1_000_000), "frames": (1, 100_000)}


def label_of(name):
    """The gesture a label or its slug names.

    Raises
    ------
    InputError
        Naming the nearest label.
    """
    if name in CLASSES:
        return name
    return CLASSES[[slug(c) for c in CLASSES].index(cli.choose(slug(name), [slug(c) for c in CLASSES], "gesture"))]


def contact_sheet(labels, rows=1, columns=12, n_frames=36, size=(128, 128), seed=0, fps=12.0):
    """Rows of frames, uint8 RGB [rows * len(labels) * h, columns * w, 3]."""
    out = []
    for label in labels:
        for k in range(rows):
            clip = render_clip(label, n_frames, size, seed + k, fps)
            row = np.concatenate(list(clip[np.linspace(0, n_frames - 1, columns).round().astype(int)]), 1)
            row = np.ascontiguousarray(row)
            for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
                cv2.putText(row, label, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, width, cv2.LINE_AA)
            out.append(row)
    return np.concatenate(out)


def write_video(path, frames, fps):
    """Write uint8 RGB frames [n, h, w, 3] to a video file, whole or not at all: .mp4 (mp4v) or .avi (MJPEG).

    Raises
    ------
    InputError
    """
    path = Path(path)
    if path.suffix.lower() not in CODES:
        raise InputError(f"{path} cannot be written", found=path.suffix or "no ending", expected=", ".join(CODES),
                         do="name the file .mp4 or .avi")
    with written_whole(path, parents=True) as part:
        encode(part, frames, fps, path)


def encode(path, frames, fps, name):
    """The same, straight to `path`, a place of one's own (`name` in errors); what OpenCV silently left out is found by counting.

    Raises
    ------
    InputError
    """
    h, w = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*CODES[path.suffix.lower()]), fps, (w, h))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    count = frames_in(path)
    if count != len(frames):
        raise InputError(f"{name} cannot be written", found=f"{count} of {len(frames)} frames in the file",
                         expected=f"an OpenCV that writes {path.suffix}, and room on the disk", do="check both, or try another ending")


def export_dataset(folder, labels=CLASSES, per_class=20, split="train", n_frames=36, size=(160, 120), seed=0, fps=12.0,
                   ending=".mp4", progress=None):
    """Write a folder per class of video files, and `labels.txt`, to which classes are added. Returns the paths written."""
    folder, first = Path(folder), SPLITS[cli.choose(split, SPLITS, "split")][0] + seed
    written, listed = [], folder / "labels.txt"
    if listed.exists():
        names = read_classes(listed)
    else:
        there = folder.iterdir() if folder.is_dir() else ()
        names = sorted((p.name for p in there if p.is_dir() and not p.name.startswith(".")), key=natural)
    names += [slug(label) for label in labels if slug(label) not in map(slug, names)]
    for label in labels:
        for k in range(per_class):
            path = folder / slug(label) / f"{split}-{seed + k:06d}{ending}"
            write_video(path, render_clip(label, n_frames, size, first + k, fps), fps)
            written.append(path)
            if progress:
                progress(len(written), len(labels) * per_class)
    with written_whole(listed) as part:
        part.write_bytes("".join(f"{name}\n" for name in names).encode())
    return written


def _size(text):
    try:
        w, h = (int(v) for v in text.lower().split("x"))
        return w, h
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not WIDTHxHEIGHT, for example 160x120") from None


def _parser():
    parser = argparse.ArgumentParser(prog="tsm-gestures", description="Render gestures of an articulated hand.",
                                     epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = parser.add_subparsers(dest="job", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", required=True, type=Path, metavar="PATH", help="file or folder to write")
    common.add_argument("--label", nargs="+", metavar="NAME", help="gestures (default: all 27)")
    common.add_argument("--core", action="store_true", help="the 19 gestures without two-finger poses")
    common.add_argument("--split", default="train", metavar="NAME",
                        help="train, val or test: other seeds, other backgrounds (default: train)")
    common.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    clips = common.add_argument_group("the clips")
    clips.add_argument("--seed", type=int, default=0, metavar="N", help="counted within the split (default: 0)")
    clips.add_argument("--size", type=_size, default=(128, 128), metavar="WxH", help="pixels (default: 128x128)")
    clips.add_argument("--fps", type=float, default=12.0, metavar="FPS", help="frames a second (default: 12)")
    clips.add_argument("--frames", type=int, default=36, metavar="N", help="frames of a clip (default: 36)")
    sheet = jobs.add_parser("sheet", parents=[common], help="contact sheet (PNG)")
    sheet.add_argument("--rows", type=int, default=1, metavar="N", help="clips a gesture (default: 1)")
    sheet.add_argument("--columns", type=int, default=12, metavar="N", help="pictures of a clip (default: 12)")
    jobs.add_parser("video", parents=[common], help="one clip after another in one video")
    stream = jobs.add_parser("stream", parents=[common], help="an untrimmed stream with rest between the gestures")
    stream.add_argument("--count", type=int, default=20, metavar="N", help="gestures in the stream (default: 20)")
    data = jobs.add_parser("dataset", parents=[common], help="a folder per class of videos")
    data.add_argument("--per-class", type=int, default=20, metavar="N", help="clips a class (default: 20)")
    data.add_argument("--ending", default=".mp4", metavar="NAME", help=".mp4 or .avi (default: .mp4)")
    return parser


def main(argv=None):
    cli.run(_main, argv)


def _main(argv):
    args = _parser().parse_args(argv)
    labels = [label_of(n) for n in args.label] if args.label else list(CORE_CLASSES if args.core else CLASSES)
    first, end = SPLITS[cli.choose(args.split, SPLITS, "split")]
    seed = first + args.seed
    cli.echo(vars(args))
    cli.check_ranges(args, {**RANGES, "seed": (0, end - first - 1)})
    written, what = _write(args, labels, seed)
    if args.json:
        print(json.dumps({"written": [str(p) for p in written], "seed": seed, "labels": labels}))
    cli.verdict(f"PASSED wrote {what} to {args.output}", args.json)
    return 0


def _write(args, labels, seed):
    """Do the job that was asked for: (paths written, what it was in words)."""
    shared = {"n_frames": args.frames, "size": args.size, "seed": seed, "fps": args.fps}
    written, what = [args.output], ""
    if args.job == "sheet":
        picture = contact_sheet(labels, args.rows, args.columns, **shared)
        if args.output.suffix.lower() not in (".png", ".jpg"):
            raise InputError(f"{args.output} cannot be written", found=args.output.suffix or "no ending",
                             expected="a name that ends in .png or .jpg", do="name another file")
        with written_whole(args.output, parents=True) as part:
            part.write_bytes(cv2.imencode(args.output.suffix, picture[..., ::-1])[1])
        what = f"{len(labels)} gestures x {args.rows}"
    elif args.job == "video":
        frames = np.concatenate([render_clip(label, **shared) for label in labels])
        write_video(args.output, frames, args.fps)
        what = f"{len(frames)} frames"
    elif args.job == "stream":
        order = np.random.default_rng(args.seed).permutation(np.arange(args.count) % len(labels))
        frames, intervals = render_stream([labels[i] for i in order], args.size, args.fps, seed)
        write_video(args.output, frames, args.fps)
        written.append(args.output.with_suffix(".json"))
        with written_whole(written[1]) as part:
            part.write_bytes(json.dumps({"fps": args.fps, "intervals": intervals}, indent=1).encode())
        what = f"{len(frames)} frames, {len(intervals)} gestures"
    else:
        def progress(done, total):
            print(f"\r{done}/{total} clips", end="" if done < total else "\n", file=sys.stderr)

        written = export_dataset(args.output, labels, args.per_class, args.split, args.frames, args.size, args.seed,
                                 args.fps, args.ending, progress)
        what = f"{len(written)} clips in {len(labels)} classes"
    return written, what
