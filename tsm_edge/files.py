"""Files and folders that appear whole or not at all: made beside their place, then renamed into it.

What is being made is named after the machine and the process that makes it, so that what a killed process left can be told
from what a living one is still writing, and is removed the next time something is written there.
"""
import contextlib
import os
import platform
import re
import shutil
from pathlib import Path

from .errors import InputError

ELSEWHERE = "make room, or write elsewhere"
_HOST = re.sub(r"\W+", "-", platform.node())  # several machines may share a disk


@contextlib.contextmanager
def written_whole(path, parents=False, do=ELSEWHERE):
    """A path of the same name to write to, which takes the place of `path` at a clean end.

    parents : whether folders that are missing above it are made. do : what to do where it cannot be written.

    Raises
    ------
    InputError
        It cannot be written; what was there is as it was.
    """
    path = Path(path)
    with made_beside(path, parents, do) as folder:
        yield folder / path.name
        os.replace(str(folder / path.name), str(path))


@contextlib.contextmanager
def made_beside(path, parents=False, do=ELSEWHERE):
    """An empty folder beside `path`, to make there what will take its place; it is removed in the end, with all that is in it.

    parents, do : as for `written_whole`.

    Raises
    ------
    InputError
        It cannot be made, or the disk fails while it is used.
    """
    path = Path(path)
    folder = path.with_name(part_of(path.name))
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(path.parent, path.name)
        shutil.rmtree(str(folder), ignore_errors=True)  # of a process that had our number
        folder.mkdir()
        yield folder
    except OSError as error:
        raise InputError(f"{path} cannot be written", found=str(error), expected="a folder that can be written to, and room on the disk",
                         do=do) from error
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)


def part_of(name):
    """What `name` is called while this process makes it."""
    return f".{name}.part-{_HOST}-{os.getpid()}"


def remove_dead(folder, name):
    """Remove from `folder` the parts of `name` whose processes, on this machine, are gone."""
    for path in Path(folder).iterdir():
        begin, _, pid = path.name.rpartition("-")
        if begin == f".{name}.part-{_HOST}" and pid.isdecimal() and not _alive(int(pid)):
            shutil.rmtree(str(path), ignore_errors=True)


def _alive(pid):
    if os.name == "nt":  # where a process cannot be asked whether it is there: os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True
