"""Writing a bundle's folder: seen whole or not at all, and never over anything that is not a bundle."""
from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import tempfile
from pathlib import Path

from tsm_edge.errors import InputError
from tsm_edge.files import made_beside

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def _entries(folder):
    """Relative paths of all files below `folder`, but for the interpreter's caches."""
    for base, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(files):
            yield Path(base, name).relative_to(folder).as_posix()


def _strangers(folder):
    """Files in `folder` that its manifest does not list; None when the folder is not a bundle."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        listed = {entry["path"] for entry in manifest["files"]}
        if not isinstance(manifest["schema"], int) or not isinstance(manifest["caches"], list):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [path for path in _entries(folder) if path not in listed and path != "manifest.json"]


def check_output(output):
    """Is `output` free, an empty folder, or a bundle that may be replaced? Returns it as an absolute Path.

    Whether one may write there is tried with an empty folder, which is removed at once.

    Raises
    ------
    InputError
        It is something else, or a bundle with files of somebody's own in it, or cannot be written: nothing is touched then.
    """
    path = Path(os.path.abspath(os.path.expanduser(os.fspath(output))))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=next((parent for parent in path.parents if parent.exists()), path)))
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise InputError(f"{path} cannot be written", found=str(error), expected="a folder one may write to",
                         do="pick another --output") from error
    if path.is_symlink():
        raise InputError(f"{path} cannot be written", found="a symbolic link", expected="a new folder or a bundle",
                         do="name the folder that it points to, or another one")
    if not path.exists():
        return path
    if not path.is_dir():
        raise InputError(f"{path} cannot be written", found="a file", expected="a new folder or a bundle to replace",
                         do="pick another --output")
    names = os.listdir(path)
    if not names:
        return path
    strangers = _strangers(path)
    if strangers is None:
        raise InputError(f"{path} is not a tsm-edge bundle, so it is not replaced",
                         found="a folder with " + ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else ""),
                         expected="a new folder, an empty one, or a bundle to replace", do="pick another --output")
    if strangers:
        raise InputError(f"the bundle {path} holds files that are not its own, so it is not replaced",
                         found=", ".join(strangers[:4]) + (", ..." if len(strangers) > 4 else ""),
                         expected="only files that its manifest lists",
                         do="move them elsewhere, or pick another --output")
    return path


def _exchange(one, other):
    """Swap two folders in one step (Linux renameat2). False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library of the process itself
        return False
    return rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


def _put_in_place(new, output, old):
    """Rename folder `new` to `output`; a bundle that is there already is left at `new` or `old`."""
    if output.exists() and not os.listdir(output):
        output.rmdir()  # Windows renames over nothing, be it empty
    if not output.exists():
        os.replace(new, output)
        return
    if _exchange(new, output):
        return
    os.replace(output, old)
    try:
        os.replace(new, output)
    except BaseException:
        os.replace(old, output)
        raise


@contextlib.contextmanager
def new_folder(output):
    """A context that yields an empty folder beside `output` and renames it into place at a clean end.

    On an exception the folder is removed and `output` stays as it was.
    """
    output = check_output(output)
    with made_beside(output, parents=True, do="make room, or pick another --output") as part:
        new = part / "new"
        new.mkdir()
        yield new
        check_output(output)  # minutes have passed since the first look
        _put_in_place(new, output, part / "old")


def list_files(folder):
    """The manifest's `files`: path, size and sha256 of every file in `folder` but manifest.json, sorted by path."""
    entries = []
    for path in _entries(folder):
        if path != "manifest.json":
            data = Path(folder, path).read_bytes()
            entries.append({"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return sorted(entries, key=lambda entry: entry["path"])
