"""Names of what is being written, and the removal of what a killed process left of it."""
import contextlib
import os
import platform
import re
import shutil
from pathlib import Path


def part_of(name):
    """What `name` is called while this process writes it."""
    return f"{name}.part-{_HOST}-{os.getpid()}"


def remove_dead(folder, name):
    """Remove from `folder` the parts of `name` whose processes, on this machine, are gone."""
    for path in Path(folder).iterdir():
        begin, _, pid = path.name.rpartition("-")
        if begin != f"{name}.part-{_HOST}" or not pid.isdecimal() or _alive(int(pid)):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def written_whole(path):
    """A path of the same name to write to, which takes the place of `path` in the end: the file appears whole or not at all."""
    path = Path(path)
    remove_dead(path.parent, f".{path.name}")
    part = path.with_name(part_of(f".{path.name}"))
    part.mkdir()
    try:
        yield part / path.name
        os.replace(part / path.name, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


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


_HOST = re.sub(r"\W+", "-", platform.node())  # several machines may share a disk
