"""The C runtime's files, for those who compile it: the one place that knows where they lie and which make a library."""
from pathlib import Path

from tsm_edge.errors import BundleError

FOLDER = Path(__file__).resolve().parent / "c"
HEADER = FOLDER / "tsm_edge.h"  # the public one
EXPORTS = FOLDER / "tsm_edge.map"  # the linker's list of what leaves a library
REPLAY = FOLDER / "tsm_replay.c"  # a program of its own, which opens a library


def library_sources(folder=FOLDER):
    """The .c files that a library is made of, and the headers that they include beside the public one; paths, sorted.

    Raises
    ------
    BundleError
        `folder` holds no runtime.
    """
    folder = Path(folder)
    sources = [path for path in sorted(folder.glob("*.c")) if path.name != REPLAY.name]
    headers = [path for path in sorted(folder.glob("*.h")) if path.name != HEADER.name]
    if not sources:
        raise BundleError(f"{folder} holds no runtime", found="no .c files", expected="the C runtime's sources",
                          do="reinstall tsm-edge")
    return sources, headers
