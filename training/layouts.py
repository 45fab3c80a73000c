"""Where clips are and what they show: readers of the layouts that people have.

Every reader returns `(items, classes)`: a list of `Item` and the class names in the order of the labels.

    folder per class    root/swipe-left/a.mp4, root/swipe-left/clip7/00001.jpg (a folder of frames is a clip);
                        root/labels.txt, if there, gives the order of the classes
    list of clips       `path label`, the reference repository's `folder n_frames label`, or `path;label`, `path,label`
                        (Jester, Something-Something, UCF101). A label is a number from 0, or a class name
    Something-Something JSON with "id" and "template" (or "label") for each video, and labels.json for the order
"""
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ..errors import InputError
from .gestures_labels import slug

VIDEO_ENDINGS = (".mp4", ".webm", ".avi", ".mov", ".mkv", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_NAMED = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, VIDEO_ENDINGS))}))\s+(\S.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One clip: a video file or a folder of frames, the index of its class (-1: unknown), its stated length if any."""

    path: str
    label: int
    n_frames: Optional[int] = None


def natural(name):
    """Sort key that counts: "img_10.jpg" comes after "img_9.jpg"."""
    return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", str(name))]


def _text(path):
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", found=error, expected="a text file in UTF-8",
                         do="check the path and the file") from error


def read_classes(path):
    """Class names from a file: one a line; `1 Name` lines in number order (UCF101); or JSON {name: number} or [names].

    Raises
    ------
    InputError
    """
    text = _text(path)
    if str(path).endswith(".json"):
        try:
            data = json.loads(text)
            return sorted(data, key=lambda k: int(data[k])) if isinstance(data, dict) else [str(v) for v in data]
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is no list of classes", found=error,
                             expected='{"name": number, ...} or ["name", ...]', do="correct the file") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    numbered = [re.fullmatch(r"(\d+)[\s,;]+(.+)", line) for line in lines]
    if lines and all(numbered):
        names = [m[2] for m in sorted(numbered, key=lambda m: int(m[1]))]
    else:
        names = lines
    twice = {n for n in names if names.count(n) > 1}
    if twice or not names:
        raise InputError(f"{path} is no list of classes", found=f"named twice: {sorted(twice)}" if twice else "nothing",
                         expected="each class once", do="correct the file")
    return names


def _is_clip(path):
    if path.is_file():
        return path.suffix.lower() in VIDEO_ENDINGS
    return any(p.suffix.lower() in IMAGE_ENDINGS for p in path.iterdir())


def read_folder(root, classes=None):
    """Read a folder per class. `classes` gives names and order; else labels.txt; else the sorted folder names.

    Raises
    ------
    InputError
        No class folder, no clip, or a folder that is not among the given classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"no data set at {root}", found="no such folder", expected="a folder per class of clips",
                         do="check the path")
    folders = sorted((p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")),
                     key=lambda p: natural(p.name))
    if classes is None:
        listed = root / "labels.txt"
        classes = read_classes(listed) if listed.exists() else [p.name for p in folders]
    index = {slug(name): i for i, name in enumerate(classes)}
    strange = [p.name for p in folders if slug(p.name) not in index]
    if strange:
        raise InputError(f"{root} holds folders that are no class", found=", ".join(strange[:5]),
                         expected=", ".join(classes), do="move them away, or add them to labels.txt")
    items = [Item(str(clip), index[slug(folder.name)]) for folder in folders
             for clip in sorted(folder.iterdir(), key=lambda p: natural(p.name)) if _is_clip(clip)]
    if not items:
        raise InputError(f"no clips in {root}", found=f"{len(folders)} folders without videos or frames",
                         expected=f"videos ({', '.join(VIDEO_ENDINGS[:4])}, ...) or folders of frames in them",
                         do="check the path and the endings")
    return items, list(classes)


def _split(line):
    """Columns of a line of a list: path, number of frames (or None), label (or None)."""
    for mark in (";", "\t", ","):
        if mark in line:
            columns = [c.strip().strip('"') for c in line.split(mark)]
            break
    else:
        # Paths and class names may hold spaces: a file's ending divides them, else the line is read from its end.
        match = re.fullmatch(r"(.+?)\s+(\d+)\s+(\d+)", line) or _NAMED.fullmatch(line) \
            or re.fullmatch(r"(.+?)\s+(\S+)", line)
        columns = list(match.groups()) if match else [line]
    if len(columns) >= 3 and columns[1].isdigit():
        return columns[0], int(columns[1]), columns[2]
    return columns[0], None, columns[1] if len(columns) > 1 and columns[1] else None


def read_list(path, root=None, classes=None, first_label=0):
    """Read a list of clips: TXT or CSV (see the module's text), or Something-Something's JSON.

    Parameters
    ----------
    path : path
    root : path, optional
        Where the clips are; by default the list's own folder.
    classes : list of str, optional
        Names and order. By default: the names in the list, sorted; or "0", "1", ... where it holds numbers.
    first_label : int
        What the list calls class 0 (1 for UCF101's trainlist).

    Raises
    ------
    InputError
        With the line's number.
    """
    path = Path(path)
    root = Path(root) if root is not None else path.parent
    if path.suffix.lower() == ".json":
        rows = _something(path)
    else:
        lines = enumerate(_text(path).splitlines(), 1)
        rows = [(n, *_split(line.strip())) for n, line in lines if line.strip() and not line.startswith("#")]
        if rows and rows[0][3] is not None and slug(rows[0][3]) in ("label", "class", "target", "label-id"):
            rows = rows[1:]  # a header
    if not rows:
        raise InputError(f"{path} lists no clips", found="no lines", expected="`path label` lines",
                         do="check the file")
    # A test list has no labels: the class is the folder where that is a class (UCF101), else unknown.
    known = [row[3] for row in rows if row[3] is not None]
    numeric = bool(known) and all(label.lstrip("-").isdigit() for label in known)
    if classes is None:
        if numeric:
            highest = max(int(label) for label in known) - first_label
            classes = [str(i + first_label) for i in range(max(0, highest) + 1)]
        else:
            folders = [Path(row[1]).parent.name for row in rows if row[3] is None]
            classes = sorted(set(known) | {f for f in folders if f})
    index = {slug(name): i for i, name in enumerate(classes)}
    items = []
    for number, name, n_frames, label in rows:
        if label is None:
            target = index.get(slug(Path(name).parent.name), -1)
        elif numeric:
            target = int(label) - first_label
        else:
            target = index.get(slug(_template(label)), -2)
        if not -1 <= target < len(classes) or (numeric and label is not None and target < 0):
            numbers = f"{first_label} to {first_label + len(classes) - 1}"
            raise InputError(f"{path}, line {number}: unknown class", found=f"'{label}'",
                             expected=numbers if numeric else ", ".join(classes[:30]),
                             do="check the list of classes" + ", and the number of the first label" * numeric)
        items.append(Item(str(locate(root, name)), target, n_frames))
    return items, list(classes)


def _template(label):
    return label.replace("[", "").replace("]", "")


def _something(path):
    try:
        data = json.loads(_text(path))
        return [(n, str(entry["id"]), None, _template(str(entry.get("template") or entry["label"]))
                 if "template" in entry or "label" in entry else None) for n, entry in enumerate(data, 1)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is no list of clips", found=repr(error),
                         expected='[{"id": ..., "template": ...}, ...]', do="check the file") from error


def locate(root, name):
    """Path of a clip that a list names, with or without its ending; unchanged if nothing is found (found out later)."""
    path = Path(root) / name
    if path.exists() or path.suffix.lower() in VIDEO_ENDINGS:
        return path
    for ending in VIDEO_ENDINGS:
        other = path.with_name(path.name + ending)
        if other.exists():
            return other
    return path


def find_items(path, root=None, classes=None, first_label=0):
    """Items and classes of whatever is at `path`: a folder per class, or a list of clips.

    `classes` may be a list of names or the path of a file that holds them.

    Raises
    ------
    InputError
    """
    if classes is not None and not isinstance(classes, (list, tuple)):
        classes = read_classes(classes)
    path = Path(path)
    if path.is_dir():
        return read_folder(path, classes)
    if not path.exists():
        raise InputError(f"no data set at {path}", found="no such file or folder",
                         expected="a folder per class, or a list of clips", do="check the path")
    return read_list(path, root, classes, first_label)
