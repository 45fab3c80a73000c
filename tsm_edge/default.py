"""Where the model is that comes with the package: an online network that recognises hand gestures."""
from pathlib import Path

from .errors import InputError

DEFAULT_CHECKPOINT = Path(__file__).parent / "weights" / "gestures.pth"


def find_default():
    """Path of the model that comes with the package, or None where this copy has none."""
    return DEFAULT_CHECKPOINT if DEFAULT_CHECKPOINT.is_file() else None


def default_checkpoint():
    """Path of the model that comes with the package.

    Raises
    ------
    InputError
        This copy of the package has none.
    """
    path = find_default()
    if path is None:
        raise InputError("the default model is not there", found=f"no file {DEFAULT_CHECKPOINT}",
                         expected="the model that comes with the package",
                         do="install a release that has it, or name a checkpoint of your own")
    return path
