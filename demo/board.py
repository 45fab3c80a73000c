"""The command that comes zipped in a bundle, for its own device: python3 device/tsm_edge.pyz verify, demo or bench."""
import importlib

from tsm_edge import cli
from tsm_edge.errors import MissingComponentError

NAME = "python3 tsm_edge.pyz"
COMMANDS = {"verify": "tsm_edge.runtimes.verify", "demo": "tsm_edge.demo.cli", "bench": "tsm_edge.runtimes.bench"}
EXAMPLES = f"""\
  {NAME} demo --source csi://0                       a Jetson's camera, in a window
  {NAME} demo --source /dev/video0 --headless --events -
  {NAME} demo --source clip.mp4 --headless --output out.mp4"""
HELP = f"""usage: {NAME} COMMAND ...

  verify    replay the bundle's golden.npz here: logits and caches, frame by frame
  demo      recognise gestures: --source csi://0, /dev/video0, rtsp://HOST/PATH, clip.mp4
  bench     how long a step takes here

Each takes the bundle that this file lies in unless another one is named, and says more with --help.
Needs Python 3.6 or newer and numpy; demo needs OpenCV, too."""


def _main(argv):
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    name = cli.choose(argv[0], COMMANDS, "command")
    try:
        import numpy  # noqa: F401
    except ImportError as error:
        raise MissingComponentError("numpy is not installed", found=str(error), expected="numpy for this Python",
                                    do="sudo apt install python3-numpy") from error
    more = {"examples": EXAMPLES} if name == "demo" else {}
    return importlib.import_module(COMMANDS[name]).main(argv[1:], prog=f"{NAME} {name}", **more)


def main(argv=None):
    """The command line."""
    cli.run(_main, argv)
