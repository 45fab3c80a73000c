"""tsm-record: labelled clips from a camera, or cut from a video, to train from."""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what cannot be opened is named by us

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from tsm_edge import cli  # noqa: E402
from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.files import made_beside  # noqa: E402
from tsm_edge.runtimes.sources import add_options, asked_for, kind_of, masked, open_source  # noqa: E402
from tsm_edge.shell import quote  # noqa: E402
from tsm_edge.training.data.mixed import rendered_names  # noqa: E402
from tsm_edge.training.gestures.cli import encode  # noqa: E402
from tsm_edge.training.gestures.clips import SPLITS  # noqa: E402
from tsm_edge.training.gestures.labels import slug  # noqa: E402

from .guide import Guide, problems  # noqa: E402

EXAMPLES = """examples:
  tsm-record --label swipe-left --output clips/                           ten clips of three seconds from camera 0
  tsm-record --label swipe-left --output clips/ --source csi://0 --input-flip rotate-180     a Jetson's camera, upside down
  tsm-record --label "Swiping Left" --output clips/ --guide                with a hand that shows it, and a look at each clip
  tsm-record --label "No gesture" --output clips/ --count 20               you at rest: under this name it is never an event
  tsm-record --label wave --output clips/ --source party.mp4 --start 12.5 --end 15
  tsm-record --label wave --output clips/ --source waving.mp4             the whole file in pieces of three seconds
  tsm-record --label swipe-left --output clips/ --source test://swiping-left       rendered, to try the way without a camera
then: tsm-train --init default --data clips/ --output runs/mine
Make the whole movement once in each clip. Vary place, light, distance and background: ten clips alike teach as much as one.
"""
RENDERED_FPS, RENDERED_SIZE = 15.0, (320, 240)
RENDERED_SEED = SPLITS["test"][0] + 3_000_000


def parser():
    p = argparse.ArgumentParser(prog="tsm-record", description=__doc__, epilog=EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--label", required=True, metavar="NAME", help="name of the class: the clips go to OUTPUT/NAME/NNNN.mp4")
    p.add_argument("--output", default="clips", metavar="DIR", help="folder of the data set (default: clips)")
    p.add_argument("--source", default="0", metavar="SOURCE",
                   help="camera number, /dev/videoN, csi://0, rtsp://..., a video file, or test://GESTURE (default: 0)")
    p.add_argument("--count", type=int, metavar="N", help="clips to record (default: 10; of a file, as many as it gives)")
    p.add_argument("--seconds", type=float, metavar="SECONDS",
                   help="length of a clip (default: 3; the whole cut where --start and --end are given)")
    p.add_argument("--headless", action="store_true", help="no window: the countdown is in the terminal alone")
    p.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    cut = p.add_argument_group("the clips")
    cut.add_argument("--guide", action="store_true", help="show the gesture in the picture's corner, look at each clip (light, "
                     "movement, place) and offer to make it again")
    cut.add_argument("--start", type=float, metavar="SECONDS", help="of a file: where the cut begins (default: 0)")
    cut.add_argument("--end", type=float, metavar="SECONDS", help="of a file: where it ends (default: the file's end)")
    cut.add_argument("--pause", type=float, default=3.0, metavar="SECONDS", help="counted down before each clip of a camera (default: 3)")
    cut.add_argument("--shorter-side", type=int, default=320, metavar="N",
                     help="larger pictures are scaled down to this, pixels (default: 320)")
    add_options(p)
    return p


def main(argv=None):
    cli.run(_main, argv)


def _main(argv):
    args = parser().parse_args(argv)
    cli.echo({**vars(args), "source": masked(args.source)})
    _check(args)
    if args.guide:
        _explain(args.label)
    source = _source(args)  # before any folder is made: a missing camera leaves nothing behind
    folder = class_folder(args.output, args.label)
    made = []
    try:
        for frames, fps, wrong in source:
            path = write_clip(folder, frames, fps)
            made.append({"path": str(path), "frames": len(frames), "fps": round(fps, 3), "seconds": round(len(frames) / fps, 3)})
            print(f"{path}: {len(frames)} frames, {len(frames) / fps:.2f} s", file=sys.stderr, flush=True)
            if args.guide:
                made[-1]["problems"] = wrong
    finally:
        source.close()
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where nothing was recorded
    if not made:
        raise InputError("nothing was recorded", found=f"no whole clip in {args.source}",
                         expected=f"at least {clip_seconds(args) / 2:g} s of video", do="check --start, --end and --seconds")
    if args.json:
        print(json.dumps({"label": args.label, "folder": str(folder), "clips": made}, indent=1))
    else:
        print(f"next: the other classes, then tsm-train --init default --data {quote(str(args.output))} --output runs/mine")
    cli.verdict(f"PASSED {len(made)} clips in {folder}", args.json)
    return 0


def _explain(label):
    """How the gesture goes, where that is known."""
    print(f"'{label}': " + ("the corner of the window shows it, as a mirror would" if rendered_names([label]) else
                            "make it as you would before your device; there is no picture of it here")
          + ". Left and right are your own. Begin and end with the hand at rest.", file=sys.stderr, flush=True)


def _check(args):
    cli.check_ranges(args, {"seconds": (0.2, 600), "count": (1, None), "pause": (0, 60), "shorter_side": (32, None),
                            "start": (0, 1_000_000), "end": (0, 1_000_000)})
    if args.end is not None and args.end <= (args.start or 0):
        raise InputError("--end cannot be used", found=str(args.end), expected="more than --start", do="pick another")


def class_folder(root, label):
    """The folder of a class, made if need be.

    Raises
    ------
    InputError
        A label that is no name of a folder, or too like that of another class.
    """
    odd = label.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', label) or len(label) > 100
    if odd or not slug(label) or label.lower() == "labels.txt":  # the list of classes has that name
        raise InputError("the label cannot be used", found=repr(label), expected="letters, digits, spaces, dashes, underscores",
                         do="for example --label swipe-left")
    root = Path(root)
    if root.is_dir():
        listed = root / "labels.txt"
        if listed.exists():
            from tsm_edge.training.data.listing import read_classes

            cli.choose(label, read_classes(listed, [label]), f"class of {listed}")
        twin = [p.name for p in root.iterdir() if p.is_dir() and slug(p.name) == slug(label) and p.name != label]
        if twin:
            raise InputError("the label is nearly that of another class", found=f"'{label}' beside '{twin[0]}'",
                             expected="one spelling for a class", do=f"--label '{twin[0]}', or another name")
    try:
        (root / label).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"no clips can be written to {root}", found=str(error), do="check --output",
                         expected="a folder that can be written to, and room there") from error
    return root / label


def write_clip(folder, frames, fps):
    """Write the next clip of a folder, NNNN.mp4: whole or not at all, and never over another.

    Parameters
    ----------
    folder : path
    frames : list of uint8 [h, w, 3], RGB, all of one size
    fps : float

    Returns
    -------
    Path
    """
    folder = Path(folder)
    with made_beside(folder / "clip.mp4") as part:
        film = part / "clip.mp4"
        height, width = (side // 2 * 2 for side in frames[0].shape[:2])  # the codec wants even sides
        encode(film, [frame[:height, :width] for frame in frames], fps, f"the clip in {folder}")
        number = next_number(folder)
        while True:
            path = folder / f"{number:04d}.mp4"
            try:
                os.link(film, path)  # unlike a renaming this refuses to replace
                return path
            except FileExistsError:
                number += 1
            except OSError:  # a file system without links
                if not path.exists():
                    os.replace(film, path)
                    return path
                number += 1


def next_number(folder):
    """One more than the highest number of a clip in a class's folder."""
    return max([int(p.stem) for p in Path(folder).glob("*.mp4") if p.stem.isdecimal()], default=-1) + 1


# --- where clips come from: generators of (frames uint8 RGB, fps, what is wrong with them where --guide asks) -----------


def _source(args):
    """A generator of clips; what is wrong with the source is said here, not at the first clip."""
    kind = kind_of(args.source)
    if kind != "file" and (args.start is not None or args.end is not None):
        raise InputError(f"a {'rendered clip' if kind == 'test' else 'camera'} has no beginning and end",
                         found=f"--start {args.start} --end {args.end} with {masked(args.source)}",
                         expected="--seconds and --count", do="leave --start and --end out")
    if kind == "test":
        return _rendered(args)
    if kind == "file":
        return _from_file(args, open_source(args.source, **asked_for(args)))
    source = open_source(args.source, **asked_for(args))
    if source.read() is None:  # some open without a camera behind them
        source.close()
        raise InputError("the camera cannot be opened", found=f"{source.name} opens, but gives no frame",
                         expected="a camera that no other program uses, and that you may read (group video)",
                         do="plug it in, try another --source, or cut clips from a file: --source clip.mp4")
    return _from_camera(args, source)


def _rendered(args):
    asked = asked_for(args)
    if not asked["width"] and not asked["height"]:
        asked["width"], asked["height"] = RENDERED_SIZE
    seed = RENDERED_SEED + next_number(Path(args.output) / args.label)  # a second call renders others
    source = open_source(args.source, **{**asked, "fps": asked["fps"] or RENDERED_FPS}, seed=seed, seconds=args.seconds or 3.0)
    clips = ([shrink(source.read()[0][..., ::-1], args.shorter_side) for _ in range(source.length)] for _ in range(args.count or 10))
    return ((frames, source.fps, _wrong(args, frames)) for frames in clips)


def _wrong(args, frames):
    """What is wrong with a clip, said, where --guide asks."""
    found = problems(frames, args.label) if args.guide else []
    for text in found:
        print(f"  {text}", file=sys.stderr, flush=True)
    return found


def clip_seconds(args):
    """Seconds of a clip that is cut from a file."""
    if args.seconds is None and args.start is not None and args.end is not None:
        return args.end - args.start
    return args.seconds or 3.0


def _from_file(args, source):
    """Consecutive clips of --seconds between --start and --end; a last piece counts from half of that on."""
    seconds = clip_seconds(args)
    fps = source.fps or 30.0
    begin, end, most = args.start or 0.0, args.end if args.end is not None else float("inf"), args.count or sys.maxsize
    frames, made, length = [], 0, max(2, round(seconds * fps))
    try:
        while made < most and (got := source.read()) is not None:
            frame, at = got
            if at < begin - 0.5 / fps:
                continue
            if at >= end - 0.5 / fps:
                break
            frames.append(shrink(frame[..., ::-1], args.shorter_side))
            if len(frames) == length:
                made += 1
                yield frames, fps, _wrong(args, frames)
                frames = []
        if made < most and len(frames) >= max(2, length / 2):
            yield frames, fps, _wrong(args, frames)
    finally:
        source.close()


def _from_camera(args, source):
    seconds, count, view = args.seconds or 3.0, args.count or 10, _View(args)
    k = 0
    try:
        while k < count:
            said = None
            began = time.monotonic()
            while True:  # frames are taken all the time, so that none is old when the clip begins
                frame, _ = _read(source)
                left = args.pause - (time.monotonic() - began)
                if left <= 0:
                    break
                if said != int(np.ceil(left)):
                    said = int(np.ceil(left))
                    view.say(f"clip {k + 1}/{count} of '{args.label}' in {said} ...")
                view.show(frame, str(said), (0, 200, 255))
            view.say(f"clip {k + 1}/{count} of '{args.label}': NOW, {seconds:g} s")
            frames, times = [], []
            while not times or times[-1] - times[0] < seconds:
                frame, now = _read(source)
                frames.append(shrink(frame[..., ::-1], args.shorter_side))
                times.append(now)
                view.show(frame, "REC", (0, 0, 255))
            if len(frames) < 2:
                raise InputError("the camera is too slow", found=f"{len(frames)} frame in {seconds:g} s", expected="at least 2",
                                 do="lengthen --seconds, or use another camera")
            wrong = _wrong(args, frames)
            if wrong and view.again(lambda: _read(source)[0]):
                continue
            k += 1
            yield frames, (len(times) - 1) / (times[-1] - times[0]), wrong  # at the rate they came, not as the camera announces
    finally:
        source.close()
        view.close()


def _read(source):
    got = source.read()
    if got is None:
        raise InputError("the camera is gone", found=f"no more frames from {source.name}", expected="frames until the last clip",
                         do="check plug and cable, and give the command again: clips that are there stay")
    return got


def shrink(frame, shorter_side):
    """A frame whose shorter side is at most `shorter_side`, contiguous."""
    h, w = frame.shape[:2]
    scale = shorter_side / min(h, w)
    if scale >= 1:
        return np.ascontiguousarray(frame)
    return cv2.resize(np.ascontiguousarray(frame), (round(w * scale), round(h * scale)), interpolation=cv2.INTER_AREA)


class _View:
    """The countdown: in the terminal, and over the camera's picture where a window can be opened."""

    NAME = "tsm-record"

    def __init__(self, args):
        self.guide = Guide(args.label) if args.guide else None
        self.window = not args.headless and (os.name == "nt" or sys.platform == "darwin" or bool(
            os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")))

    def say(self, text):
        print(text, file=sys.stderr, flush=True)

    def again(self, frame, seconds=8.0):
        """Whether a clip with something wrong shall be made again: asked in the terminal, else in the window, else it is kept."""
        if sys.stdin is not None and sys.stdin.isatty():
            return input("  make it again? [Y/n] ").strip().lower() not in ("n", "no")
        until = time.monotonic() + seconds
        if self.window:
            self.say("  R: make it again, K: keep it (in the window)")
        while self.window and time.monotonic() < until:
            key = self.show(frame(), "R again, K keep", (0, 0, 255))
            if key in (ord("r"), ord("k")):
                return key == ord("r")
        self.say("  it is kept")
        return False

    def show(self, frame, text, colour):
        if not self.window:
            return None
        if self.guide:
            frame = frame.copy()
            self.guide.draw(frame, time.monotonic())
        picture = np.ascontiguousarray(frame[:, ::-1])  # as in a mirror; the clip is as the camera sees it
        size = picture.shape[0] / 160
        cv2.putText(picture, text, (round(10 * size), round(40 * size)), cv2.FONT_HERSHEY_SIMPLEX, size, colour, max(2, round(2 * size)))
        try:
            cv2.imshow(self.NAME, picture)
            key = cv2.waitKey(1) & 0xFF
        except cv2.error:
            self.window = False
            self.say("note: this OpenCV opens no windows; the countdown is here")
            return None
        if key in (27, ord("q")):
            raise KeyboardInterrupt
        return key

    def close(self):
        if self.window:
            with contextlib.suppress(cv2.error):
                cv2.destroyAllWindows()


if __name__ == "__main__":
    main()
