"""tsm-demo: recognise gestures in a video or before a camera."""
import argparse
import functools
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

from tsm_edge import cli
from tsm_edge.default import own_bundle
from tsm_edge.errors import InputError
from tsm_edge.runtimes import CHECKPOINTS, ENGINES, load
from tsm_edge.runtimes.sources import add_options, asked_for, file_of, masked, open_source
from tsm_edge.sides import whose

EPILOG = """sources (the words of jetson-inference):
  0, /dev/video0          a USB camera               csi://0        a Jetson's CSI camera
  rtsp://HOST/PATH        a network camera           file://clip.mp4, clip.mp4, or a folder of frames
  test://"Swiping Left"   a rendered gesture (tsm_edge.training)

examples:
{examples}

keys: Q or Esc ends, F switches full screen

Files give every frame at the video's own times, so results do not depend on this machine's speed; cameras give the newest
frame, older ones are dropped and counted.
exit code: 0 ended as asked, 2 wrong input, or the camera was lost"""
EXAMPLES = """\
  tsm-demo --source test://swiping-left
  tsm-demo dist/nano --source 0
  tsm-demo dist/nano --source clip.mp4 --headless --output out.mp4 --events events.jsonl
  tsm-demo dist/nano --source csi://0 --input-width 1280 --input-height 720 --input-flip rotate-180
  tsm-demo dist/nano --source test://swiping-left --headless --events - --max-frames 100
  tsm-demo mine.pth --source 0 --attention                    where the network looks; needs a checkpoint or the default model
  tsm-demo --source clip.mp4 --attention-class "Swiping Left" --headless --output heat.mp4"""


def _parser(prog, examples):
    parser = argparse.ArgumentParser(prog=prog, description="Recognise gestures in a video or before a camera.",
                                     epilog=EPILOG.format(examples=examples), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", metavar="MODEL",
                        help="a bundle (folder or .zip), an .onnx step graph or a checkpoint (default: the model that comes with the "
                             "package; on a board, the bundle that this program lies in)")
    parser.add_argument("--source", default="0", metavar="SOURCE", help="where frames come from, see below (default: 0)")
    parser.add_argument("--headless", action="store_true", help="no window")
    parser.add_argument("--output", metavar="FILE", help="record the picture with its overlay (.mp4, .avi, .mkv)")
    parser.add_argument("--events", metavar="FILE", help="events as JSON lines into FILE; - for stdout")
    parser.add_argument("--mirror", action="store_true", help="show the picture mirrored; the network sees it as it is")
    parser.add_argument("--max-frames", type=int, metavar="N", help="end after N frames of the source (default: at its end)")
    engine = parser.add_argument_group("the engine")
    engine.add_argument("--engine", metavar="NAME", help=f"{', '.join(ENGINES[:3])} (default: native where it fits)")
    engine.add_argument("--threads", type=int, metavar="N", help="threads of a step (default: the model's)")
    heat = parser.add_argument_group("where the network looks (checkpoints only)")
    heat.add_argument("--attention", action="store_true", help="show it as heat, for the likeliest class of each frame")
    heat.add_argument("--attention-class", metavar="NAME", help="the same for one class, whatever comes first")
    add_options(parser)
    return parser


def _check_attention(options):
    """Refuse attention where it cannot be had, before anything is opened."""
    path = Path(options.bundle) if options.bundle else None
    if path and path.exists() and not (path.is_file() and path.suffix in CHECKPOINTS):
        raise InputError("attention needs the network's last feature map", found=f"{path}, which gives logits only",
                         expected="a checkpoint (.pth, .pth.tar, .pt)", do="pass the checkpoint it was made from")
    if options.engine not in (None, "torch"):
        raise InputError(f"the {options.engine} engine gives no attention", found=f"--engine {options.engine}",
                         expected="torch", do="leave --engine out")
    if options.headless and not options.output:
        raise InputError("there is no picture to show attention in", found="--headless without --output",
                         expected="a window or a film", do="add --output heat.mp4, or leave --headless out")


def _check_outputs(options):
    """Refuse to write over what is read, and two things into one file, before anything is opened."""
    used = [(name, path) for name, path in (("MODEL", options.bundle), ("--source", file_of(options.source))) if path]
    for option, path in (("--output", options.output), ("--events", options.events)):
        if path in (None, "-"):
            continue
        for other, there in used:
            if os.path.realpath(path) == os.path.realpath(there) or \
                    (os.path.exists(path) and os.path.exists(there) and os.path.samefile(path, there)):
                raise InputError(f"{option} would write over {other}", found=f"{path} for both", expected="a file of its own",
                                 do="write elsewhere")
        used.append((option, path))


def _say(text):
    print(text, file=sys.stderr, flush=True)


def _main(argv, prog="tsm-demo", examples=EXAMPLES):
    options = _parser(prog, examples).parse_args(argv)
    options.bundle = options.bundle or own_bundle()
    if options.max_frames is not None and options.max_frames < 1:
        raise InputError("--max-frames cannot be used", found=str(options.max_frames), expected="1 or more",
                         do="leave it out for no limit")
    _check_outputs(options)
    shown = {"source": masked(options.source), "headless": options.headless, "output": options.output, "events": options.events,
             "engine": options.engine or "auto", "threads": options.threads or "auto", "flip": options.input_flip,
             "attention": options.attention_class or options.attention}
    _say(f"{prog} {options.bundle or 'with the default model'} " + " ".join(f"{name}={value}" for name, value in shown.items() if value))
    return _run(options)


def _run(options):
    attention = options.attention or options.attention_class is not None
    if attention:
        _check_attention(options)
    from .app import quiet_threads, run
    from .heat import Heat
    from .recording import EventLog, VideoRecorder
    from .window import Window

    model = load(options.bundle, options.engine, options.threads)
    heat = Heat(model, options.attention_class) if attention else None
    window = None if options.headless else Window()
    quiet_threads()
    source = open_source(options.source, **asked_for(options))
    trained = bool(model.manifest.get("trained", False))
    try:
        recorder = VideoRecorder(options.output, source.fps) if options.output else None
        log = EventLog(options.events, trained)
    except InputError:
        source.close()
        raise
    rate = (f", {source.fps:.3g} fps" if source.fps else "") + (f" ({source.note})" if source.note else "")
    _say(f"{model.manifest.get('name', '')}: {len(model.classes)} classes, {model.engine}"
         + (f" ({model.note})" if model.note else "") + f"; {source.name}{rate}" + (f", {source.frames} frames" if source.frames else ""))
    sides = whose(model.manifest)
    if sides:
        _say(sides)
    if not trained:
        _say("UNTRAINED: this network has random weights; its labels mean nothing.")
    with _stopping() as stop:
        outcome = run(model, source, log=log, window=window, recorder=recorder, max_frames=options.max_frames,
                      mirror=options.mirror, attention=heat, stop=stop)
    return _report(outcome, source, recorder)


def _report(outcome, source, recorder):
    """Say how it went; returns the exit code."""
    from .timing import print_summary

    rate = outcome.frames / outcome.seconds if outcome.seconds > 0 else 0.0
    notes = [f"{outcome.read} frames read, {outcome.dropped} dropped, {outcome.skipped} skipped by the model's frame rate, "
             f"{outcome.resets} resets; {outcome.frames} steps in {outcome.seconds:.1f} s ({rate:.1f} a second)"]
    if outcome.reason == "end of file" and outcome.read < 0.9 * source.frames:  # the number may be an estimate
        notes.append(f"note: the file announces {source.frames} frames, {outcome.read} could be read: it may be damaged")
    if recorder:
        recorder.check()
    if recorder and recorder.frames:
        notes.append(f"recorded {recorder.frames} frames at {recorder.fps:.3g} fps: {recorder.path}")
    print_summary(outcome.stages, notes)
    if outcome.reason == "source lost":
        raise InputError("the camera is gone", found=f"{source.name} gave {outcome.read} frames, then none",
                         expected="frames until you end it", do="check plug and cable, then start again")
    if outcome.read == 0 and outcome.reason == "end of file":
        raise InputError("the video has no frames", found=f"{source.name}: none could be decoded", expected="at least one",
                         do="play it elsewhere to see whether it is whole")
    _say(f"PASSED {'' if outcome.reason == 'end of file' else 'ended by '}{outcome.reason}: {outcome.frames} frames, "
         f"{outcome.events} events")
    return 0


@contextmanager
def _stopping():
    """Ctrl-C or SIGTERM makes the yielded function return True; twice: KeyboardInterrupt at once.

    Not an exception the first time: OpenCV 5 dies of one that a signal raises while it draws text in its outline font.
    """
    asked = []

    def ask(*_):
        if asked:
            raise KeyboardInterrupt
        asked.append(True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)
              if signal.getsignal(number) is not signal.SIG_IGN}  # as under nohup
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv=None, **named):
    """The command line; `named`: prog, examples, where it has another name."""
    cli.run(functools.partial(_main, **named), argv)


if __name__ == "__main__":
    main()
