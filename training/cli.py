"""Entry points of the training room's commands. Each imports its own part, so that none needs the others' packages."""
import importlib
import os

from tsm_edge.cli import run
from tsm_edge.errors import MissingComponentError
from tsm_edge.runtimes.sources import import_cv2

_PACKAGES = {"cv2": "opencv-python-headless", "torch": "torch", "rich": "rich", "tensorboard": "tensorboard",
             "matplotlib": "matplotlib"}


def _missing(error, command):
    """What is not installed or cannot be loaded, as an error in words; None where it is another matter."""
    if not isinstance(error, ModuleNotFoundError):
        try:
            import_cv2()
        except MissingComponentError as problem:
            return problem
        return None
    missing = _PACKAGES.get((error.name or "").split(".")[0])
    extra = "demo" if command == "tsm-gestures" else "train"
    return missing and MissingComponentError(f"{command} needs {missing}", found="not installed", expected=missing,
                                             do=f"pip install 'tsm-edge[{extra}]'")


def _start(module, command, argv):
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # torch's threads wait without spinning: other programs want the cores too
    try:
        return importlib.import_module(f".{module}", __package__).main(argv)
    except ImportError as error:  # of the room, or later of what its work needs
        problem = _missing(error, command)
        if problem is None:
            raise

    def refuse(argv):
        raise problem

    return run(refuse, argv)


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
