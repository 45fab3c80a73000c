"""tsm-export: a checkpoint in, a verified bundle for one device out."""
from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import signal
import sys
import threading
from pathlib import Path

from tsm_edge import cli, default
from tsm_edge.card import check_classes, parse_size
from tsm_edge.cli import choose, run
from tsm_edge.errors import CheckFailedError, InputError, MissingComponentError
from tsm_edge.export.bundle.folder import check_output
from tsm_edge.export.bundle.report import Progress, lines
from tsm_edge.export.targets import boards
from tsm_edge.shell import quote
from tsm_edge.sides import for_mirrored_camera

# The signals that end a program, as far as this system has them: Ctrl-C, kill, a closed terminal, Ctrl-Break
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
ARCHITECTURES = ("mobilenet_v2", "resnet18", "resnet50")
_EXAMPLES = """examples:
  tsm-export --list-targets
  tsm-export --target jetson-nano                       # the package's own model
  tsm-export --target jetson-nano --checkpoint mobilenetv2_jester_online.pth.tar
  tsm-export --target raspberry-pi-4 --checkpoint mine.pth --classes labels.txt --input-size 160x120
  tsm-export --target host --random-weights            # to try the machinery: it recognises nothing
  tsm-export --target host --random-weights --runtime tvm      # with a second library, for TVM's own runtime
"""


def _parser():
    parser = argparse.ArgumentParser(
        prog="tsm-export", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--target", metavar="NAME", help="the device; see --list-targets")
    add("--list-targets", action="store_true", help="print all targets and leave")
    add("--checkpoint", metavar="FILE", help="trained weights: the published Jester file, one of the reference "
        "repository, of MMAction2, or our own (default: the package's own model of nine gestures)")
    add("--classes", metavar="FILE", help="class names, one a line, in the order of the network's outputs (default: the checkpoint's)")
    add("--output", metavar="DIR", help="folder of the bundle (default: dist/<target>)")
    add("--precision", default="fp32", metavar="NAME", help="fp32, or fp16 where the CPU computes in it (default: fp32)")
    add("--json", action="store_true", help="the report, or what is wrong, as JSON on stdout")

    add = parser.add_argument_group("the network").add_argument
    add("--random-weights", action="store_true", help="no training at all: an UNTRAINED bundle, to try and to measure; "
        "its classes are numbers, also where there are 27, as no answer of it means a gesture")
    add("--arch", metavar="NAME", help=f"{', '.join(ARCHITECTURES)} (default: as trained, else mobilenet_v2)")
    add("--width", type=float, metavar="X", help="width multiplier of mobilenet_v2 (default: as trained, else 1.0)")
    add("--input-size", metavar="N|WxH", help="the network's input, pixels (default: the checkpoint's, else 224)")
    add("--num-classes", type=int, metavar="N", help="outputs (default: the checkpoint's, else the class list's, else 27)")
    add("--past", metavar="A:B", help="folds of channels that come from the past, where the file does not say (default: 0:1)")
    add("--fold-div", type=int, metavar="N", help="a fold is 1/N of the channels (default: the checkpoint's, else 8)")
    add("--mirrored-camera", action="store_true", help="the device's camera gives its picture as a mirror does (some front cameras): "
        "left and right are exchanged in the classes' names; recorded in the manifest")
    add("--name", metavar="TEXT", help="name of the model (default: made from the network and the classes)")

    add = parser.add_argument_group("the library").add_argument
    add("--threads", type=int, metavar="N", help="threads of a step on the device (default: the target's)")
    add("--cc", metavar="COMMAND", help="C cross-compiler to link with (default: an NDK's, else zig from PyPI)")
    add("--runtime", default="native", metavar="NAME", help="native, or tvm: the bundle also holds model_tvm.so, the same kernels "
        "for devices that have TVM's own runtime (default: native)")
    add("--tvm-runtime", metavar="DIR", help="with --runtime tvm for a board: unpacked wheels of TVM's runtime for it, to run the "
        "library under QEMU")

    add = parser.add_argument_group("the proof").add_argument
    add("--frames", metavar="FILE", help="frames to verify with: .npy, uint8 [T, H, W, 3] RGB, T >= 16 (default: generated ones)")
    add("--seed", type=int, default=0, metavar="N", help="of random weights and of generated frames (default: 0)")
    add("--allow-unverified", action="store_true", help="leave with 0 even where the library could not be run here (no emulator)")
    add("--keep", metavar="DIR", help="also write what every stage made as files that a person can read: ONNX, operations, each "
        "kernel's TensorIR and assembly, memory map, plan.c, traces; of an export that fails, too")

    add = parser.add_argument_group("tuning").add_argument
    add("--tune", nargs="?", const="all", metavar="BUDGET", help="first measure other tile sizes than the cost model's: all, "
        "at most so many (40), or for so long (90s); writes a tuning record")
    add("--tuning-record", metavar="FILE", help="use what --tune measured before; with --tune, the file to write "
        "(default: <output>.tuning.jsonl)")
    add("--rpc-tracker", metavar="HOST:PORT", help="measure on a board: its TVM RPC tracker")
    add("--rpc-key", metavar="KEY", help="measure on a board: the key of its TVM RPC server")
    return parser


class ConsoleProgress(Progress):
    """Stages on stderr: a spinner while one works (on a terminal), its time when it is done."""

    def __init__(self, console):
        super().__init__()
        self.console, self.status = console, None

    def began(self, title):
        if self.console.is_terminal:
            self.status = self.console.status(title)
            self.status.start()
        else:
            self.console.print(f"{title} ...", highlight=False, markup=False)

    def ended(self, title, seconds, failed=False):
        if self.status is not None:
            self.status.stop()
            self.status = None
        word = "FAIL" if failed else " ok "
        self.console.print(f"{word} {title:<58} {seconds:7.1f} s", highlight=False, markup=False)

    def note(self, text):
        self.console.print(f"     {text}", highlight=False, markup=False)


def parse_past(text):
    """"0:1" -> (0, 1), in folds of channels."""
    match = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if not match:
        raise InputError("--past cannot be used", found=f"'{text}'", expected="START:STOP in folds of channels",
                         do="for example --past 0:1 for the first eighth of the channels")
    return int(match[1]), int(match[2])


def read_classes(path):
    """Class names from a text file, one a line; empty lines at the end do not count."""
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the class list {path} cannot be read", found=str(error),
                         expected="a text file, one name a line", do="check --classes") from error
    return check_classes([line.strip() for line in lines])


def make_network(args, classes):
    """The clip network that the options describe, with its weights, and whether they are trained.

    Raises
    ------
    InputError, CheckpointError
    """
    from .networks import from_checkpoint, with_random_weights

    options = {"classes": classes, "width": args.width, "fold_div": args.fold_div,
               "input_size": parse_size(args.input_size) if args.input_size else None,
               "past": parse_past(args.past) if args.past else None}
    if args.arch:
        choose(args.arch, ARCHITECTURES, "architecture")
    if args.random_weights:
        if args.checkpoint:
            raise InputError("--checkpoint and --random-weights exclude each other", found="both",
                             expected="one of them", do="leave --random-weights out to export the checkpoint")
        return with_random_weights(args.arch or "mobilenet_v2", args.num_classes, seed=args.seed, **options)
    checkpoint = args.checkpoint or default.find_default()
    if checkpoint is None:
        raise InputError("no weights were named", found="neither --checkpoint nor --random-weights",
                         expected="one of them (this copy of the package has no model of its own)",
                         do="give --checkpoint FILE, or --random-weights to try the machinery with an untrained one")
    return from_checkpoint(checkpoint, arch=args.arch, num_classes=args.num_classes, **options)


def _list_targets(as_json):
    if as_json:
        print(json.dumps([dict(t.as_dict(), note=t.note) for t in boards.TARGETS.values()], indent=2))
        return 0
    header, rows = boards.rows()
    print("\n".join(cli.columns([header, *rows])))
    return 0


def _read_frames(path):
    import numpy as np

    from tsm_edge.export.bundle.golden import check_frames

    try:
        frames = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"the frames {path} cannot be read", found=str(error), expected="a .npy file",
                         do="write it with numpy.save") from error
    if not isinstance(frames, np.ndarray):
        raise InputError(f"the frames {path} cannot be read", found="an archive of arrays", expected="a .npy file",
                         do="write one array with numpy.save")
    return check_frames(frames)


def _tuning(args, output):
    """What the tuning options ask for: a path, a Tuner or None."""
    if args.tune is None:
        given = [f"--{name}" for name in ("rpc-tracker", "rpc-key") if getattr(args, name.replace("-", "_"))]
        if given:
            raise InputError(f"{given[0]} is for measuring", found=f"{given[0]} without --tune", expected="both",
                             do="add --tune, or leave it out")
        return args.tuning_record
    from tsm_edge.export.tuning.clock import parse_tracker
    from tsm_edge.export.tuning.tuner import Tuner, parse_budget

    candidates, seconds = parse_budget(args.tune)
    if args.rpc_key and not args.rpc_tracker:
        raise InputError("--rpc-key needs --rpc-tracker", found="no tracker", expected="HOST:PORT", do="give both")
    return Tuner(args.tuning_record or f"{output}.tuning.jsonl", candidates, seconds,
                 args.rpc_tracker and parse_tracker(args.rpc_tracker), args.rpc_key, args.cc)


def _next_commands(report):
    folder = quote(report.output)
    if report.target == "host":
        tvm = [f"tsm-verify {folder} --engine tvm"] if report.tvm else []
        return [f"tsm-verify {folder}", *tvm, f"tsm-demo {folder} --source 0"]
    if report.library.endswith(".a"):
        return [f"more {quote(os.path.join(report.output, 'README.md'))}      # two lines of CMake put it into an app"]
    name = Path(report.output).name
    there = quote(shlex.quote(f"{name}/device/tsm_edge.pyz"))  # two shells read it
    tvm = [f"ssh USER@BOARD python3 {there} verify --engine tvm      # with apache-tvm there"] if report.tvm else []
    return [f"scp -r {folder} USER@BOARD:",
            f"ssh USER@BOARD python3 {there} verify",
            *tvm,
            f"tsm-demo {folder} --source clip.mp4 --headless      # the same network here, by onnxruntime"]


def _print_error(status, error, **more):
    """An error as JSON on stdout."""
    print(json.dumps({"status": status, "problem": error.problem, "found": error.found, "expected": error.expected, "do": error.do, **more},
                     indent=2))


def _failed(error, as_json, effective):
    """A check did not hold: its measurements, then the verdict; no bundle was written."""
    verdict = f"FAILED {effective['arch']} for {effective['target']}: {error.problem}. No bundle was written."
    print(f"error: {error}", file=sys.stderr)
    if as_json:
        _print_error("failed", error, options=effective, verdict=verdict)
    cli.verdict(verdict, as_json)
    return error.exit_code


def _refuse_empty(args):
    for option, value in vars(args).items():
        if isinstance(value, str) and not value.strip():
            option = "--" + option.replace("_", "-")
            raise InputError(f"{option} is empty", found=f"{option} '{value}'", expected="a value",
                             do=f"give one, or leave {option} out")


def _main(argv):
    args = _parser().parse_args(argv)
    if args.list_targets:
        return _list_targets(args.json)
    try:
        return _export(args)
    except InputError as error:
        if args.json:
            _print_error("refused", error)
        raise


def _export(args):
    _refuse_empty(args)
    target = _target(args)
    console, progress = _console()
    output = check_output(args.output or Path("dist") / target.name)
    classes = read_classes(args.classes) if args.classes else None
    frames = _read_frames(args.frames) if args.frames else None
    try:
        from .pipeline import export_bundle

        with progress.stage("read the network"):
            net = make_network(args, classes)
            if args.mirrored_camera:
                net.card = for_mirrored_camera(net.card)
    except ModuleNotFoundError as error:
        raise _no_extra(error) from error
    tuning = _tuning(args, output)
    effective = _effective(args, target, net, output, tuning)
    console.print("options: " + ", ".join(f"{key}={value}" for key, value in effective.items()), highlight=False, markup=False)
    if not net.card.trained:
        console.print("UNTRAINED: random weights, the bundle will recognise nothing", style="bold red")
    try:
        bundle = export_bundle(net, target=target, output=output, name=args.name, precision=args.precision,
                               threads=args.threads, cc=args.cc, frames=frames, seed=args.seed, progress=progress,
                               tuning=tuning, runtime=args.runtime, tvm_runtime=args.tvm_runtime, keep=args.keep)
    except CheckFailedError as error:
        return _failed(error, args.json, effective)
    return _show(bundle.report, args, effective)


def _target(args):
    """The target that was named, with what does not go with it refused."""
    if not args.target:
        raise InputError("no target was named", found="no --target", expected="one of " + ", ".join(boards.TARGETS),
                         do="tsm-export --list-targets describes them")
    target = boards.get_target(args.target)
    from tsm_edge.export.library.relax import check_runtime

    check_runtime(args.runtime, target, args.precision)
    if args.tvm_runtime and args.runtime != "tvm":
        raise InputError("--tvm-runtime is for --runtime tvm", found=f"--runtime {args.runtime}", expected="both",
                         do="add --runtime tvm, or leave it out")
    return target


def _console():
    """(rich's console on stderr, the progress that is shown there)."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise _no_extra(error) from error
    console = Console(stderr=True, soft_wrap=True)
    return console, ConsoleProgress(console)


def _no_extra(error):
    return MissingComponentError("tsm-export needs packages that are not installed", found=str(error),
                                 expected="the extra [export]", do="pip install 'tsm-edge[export]'")


def _effective(args, target, net, output, tuning):
    """What the options come to, to be echoed: {name: value}."""
    card = net.card
    effective = {
        "target": target.name,
        "checkpoint": args.checkpoint or ("none (random weights)" if args.random_weights else "default"),
        "arch": card.name, "width": card.width, "input-size": "{}x{}".format(*card.input_size),
        "num-classes": card.num_classes, "classes": args.classes or "built in", "precision": args.precision,
        "camera": card.camera, "runtime": args.runtime,
        "threads": args.threads or target.threads, "cc": args.cc or "default", "seed": args.seed, "output": str(output),
    }
    effective.update({key: value for key, value in (("tvm-runtime", args.tvm_runtime), ("keep", args.keep)) if value})
    if args.tune is not None:
        effective.update({"tune": args.tune, "rpc-tracker": args.rpc_tracker or "none: this machine", "tuning-record": tuning.path})
    elif tuning:
        effective["tuning-record"] = tuning
    return effective


def _show(report, args, effective):
    """The report and the verdict; returns the exit code."""
    if args.json:
        values = dict(report.as_dict(), options=effective, next=_next_commands(report), verdict=report.verdict())
        print(json.dumps(values, indent=2))
    else:
        print(*lines(report), "next:", *("    " + command for command in _next_commands(report)), sep="\n")
    cli.verdict(report.verdict(), args.json)
    if report.status != "passed" and not args.allow_unverified:
        way = "give TVM's runtime with --tvm-runtime" if report.only_tvm_is_open() else "install the emulator"
        print(f"exit code 1, because a library was not run: {way}, or pass --allow-unverified", file=sys.stderr)
        return 1
    return 0


def _stop(number, frame):
    signal.signal(number, signal.SIG_IGN)  # said once is enough: a kernel that is being compiled cannot be interrupted
    os.write(2, b"\nstopping ...\n")
    raise KeyboardInterrupt


def main(argv=None):
    """Entry point of tsm-export; exits with 0 (written), 1 (a check failed) or 2 (wrong usage or input)."""
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:  # its work folders are removed then
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, _stop)
    run(_main, argv)


if __name__ == "__main__":
    main()
