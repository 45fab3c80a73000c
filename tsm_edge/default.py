"""What runs where no model is named: the bundle that this code lies in, else the model that comes with the package."""
import os
from pathlib import Path

from .errors import InputError

HERE = Path(os.path.abspath(__file__)).parent
DEFAULT_CHECKPOINT = HERE / "weights" / "gestures.pth"


def own_bundle() -> "Path | None":
    """Folder of the bundle that this package lies in, zipped into BUNDLE/device/; None where it lies anywhere else."""
    archive, bundle = HERE.parent, HERE.parent.parent.parent
    return bundle if archive.is_file() and (bundle / "manifest.json").is_file() else None


def find_default() -> "Path | None":
    """Path of the model that comes with the package, or None where this copy has none."""
    return DEFAULT_CHECKPOINT if DEFAULT_CHECKPOINT.is_file() else None


def default_checkpoint() -> Path:
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
                         do="install a release that has it, or name a model of your own")
    return path


def default_model() -> Path:
    """Path of what runs where no model is named.

    Raises
    ------
    InputError
        There is none.
    """
    return own_bundle() or default_checkpoint()
