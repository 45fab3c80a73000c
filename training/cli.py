"""Entry points of the training room's commands. Each imports its own part, so that none needs the others' packages."""
import importlib
import os

from tsm_edge.cli import run
from tsm_edge.errors import MissingComponentError

_PACKAGES = {"cv2": "opencv-python-headless", "torch": "torch", "rich": "rich", "tensorboard": "tensorboard",
             "matplotlib": "matplotlib"}


def _start(module, command, argv):
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads wait without spinning: other programs want the cores too
    try:
        part = importlib.import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        missing = _PACKAGES.get((error.name or "").split(".")[0])
        if missing is None:
            raise
        extra = "demo" if command == "tsm-gestures" else "train"
        problem = MissingComponentError(f"{command} needs {missing}", found="not installed", expected=missing,
                                        do=f"pip install 'tsm-edge[{extra}]'")

        def refuse(argv):
            raise problem

        return run(refuse, argv)
    return part.main(argv)


def train_main(argv=None):
    """tsm-train."""
    return _start("train", "tsm-train", argv)


def eval_main(argv=None):
    """tsm-eval."""
    return _start("evaluate.run", "tsm-eval", argv)


def record_main(argv=None):
    """tsm-record."""
    return _start("record", "tsm-record", argv)


def gestures_main(argv=None):
    """tsm-gestures."""
    return _start("gestures.cli", "tsm-gestures", argv)
