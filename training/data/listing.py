"""Where clips are and what they show: readers of the layouts that people have.

Every reader returns `(items, classes)`: a list of `Item` and the class names in the order of the labels.

    folder per class    root/swipe-left/a.mp4, root/swipe-left/clip7/00001.jpg (a folder of frames is a clip);
                        root/labels.txt, if there, gives the order of the classes
    list of clips       `path label`, the reference repository's `folder n_frames label`, or columns divided by `;`, tabs or `,`
                        (Jester, Something-Something, UCF101), quoted as CSV is, with a header or without. A label is a
                        number from 0, or a class name
    Something-Something JSON with "id" and "template" (or "label") for each video, and labels.json for the order

A class is found by its exact name, else by its `slug`: "Swiping Left" in a list, swiping_left as a folder.
"""
import csv
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from tsm_edge.card import check_classes
from tsm_edge.errors import InputError
from tsm_edge.runtimes.sources import PICTURES, natural
from tsm_edge.training.gestures.labels import slug

VIDEO_ENDINGS = (".mp4", ".webm", ".avi", ".mov", ".mkv", ".m4v", ".mpg", ".mpeg", ".wmv", ".3gp", ".gif")
_VIDEO = rf".+?(?:{'|'.join(map(re.escape, VIDEO_ENDINGS))})"
_NAMED = re.compile(rf"({_VIDEO})\s+(\S.*)", re.IGNORECASE)
_ALONE = re.compile(_VIDEO, re.IGNORECASE)
# Slugs of what lists call their columns.
_COLUMNS = {
    "path": ("path", "paths", "filepath", "file-path", "file", "filename", "file-name", "video", "video-path", "video-id", "video-name",
             "clip", "clip-path", "clip-id", "clip-name", "folder", "directory", "id"),
    "frames": ("n-frames", "frames", "num-frames", "nframes", "frame-count", "number-of-frames", "total-frames"),
    "label": ("label", "labels", "label-id", "class", "class-name", "class-id", "category", "target"),
}


@dataclass(frozen=True)
class Item:
    """One clip: a video file or a folder of frames, the index of its class (-1: unknown), its stated length if any."""

    path: str
    label: int
    n_frames: Optional[int] = None


def class_finder(classes):
    """`find(name)`: the index of the class of that exact name, else of the one that has its slug; None: there is none.

    Raises
    ------
    InputError
        Now: no classes, one without a name, one named twice. From `find`: several classes have the name's slug.
    """
    classes = check_classes([str(name) for name in classes])
    exact = {name: i for i, name in enumerate(classes)}
    alike = {}
    for i, name in enumerate(classes):
        alike.setdefault(slug(name), []).append(i)

    def find(name):
        if name in exact:
            return exact[name]
        found = alike.get(slug(name), []) if slug(name) else []
        if len(found) > 1:
            raise InputError(f"'{name}' may be more than one class", found=", ".join(repr(classes[i]) for i in found),
                             expected="the exact name of a class, or classes that differ in letters and digits",
                             do="write it as the class is written, or rename the classes")
        return found[0] if found else None

    return find


def _text(path):
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}", found=error, expected="a text file in UTF-8",
                         do="check the path and the file") from error


def read_classes(path, seen=()):
    """Class names from a file: one a line; `1 Name` lines in number order (UCF101); or JSON {name: number} or [names].

    Parameters
    ----------
    path : path
    seen : iterable of str
        What the clips' folders or labels are called: where "1 finger" is among them, a line `1 finger` is a whole name.

    Raises
    ------
    InputError
    """
    text = _text(path)
    try:
        if str(path).endswith(".json"):
            data = json.loads(text)
            if isinstance(data, dict):
                numbers = [int(number) for number in data.values()]
                if len(set(numbers)) < len(numbers):
                    raise ValueError("two classes with one number")
                names = sorted(data, key=lambda name: int(data[name]))
            elif isinstance(data, list):
                names = [str(name) for name in data]
            else:
                raise TypeError(type(data).__name__)
        else:
            names = [line.strip() for line in text.split("\n") if line.strip()]
            numbered = [re.fullmatch(r"(\d+)[\s,;]+(.+)", line) for line in names]
            if names and all(numbered) and not {slug(name) for name in names} & {slug(name) for name in seen}:
                names = [m[2] for m in sorted(numbered, key=lambda m: int(m[1]))]
        class_finder(names)
    except InputError as error:
        raise InputError(f"{path} is no list of classes", found=error.found, expected=error.expected, do="correct the file") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{path} is no list of classes", found=error,
                         expected='{"name": number, ...} or ["name", ...]', do="correct the file") from error
    return names


def _classes(classes, seen):
    """Names as they are given, or from the file that is given."""
    return list(classes) if isinstance(classes, (list, tuple)) else read_classes(classes, seen)


def _entries(folder):
    """What a folder holds, as people count; hidden files are left out.

    Raises
    ------
    InputError
    """
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise InputError(f"cannot read {folder}", found=error, expected="a folder that can be read", do="check its rights") from error
    return [Path(folder) / name for name in sorted(names, key=lambda name: (natural(name), name))]


def _is_clip(path):
    """A video or a folder of frames. What cannot be looked into counts too: reading the clips names it."""
    if not os.path.isdir(path):
        return path.suffix.lower() in VIDEO_ENDINGS or not os.path.exists(path)
    try:
        return any(name.lower().endswith(PICTURES) and not name.startswith(".") for name in os.listdir(path))
    except OSError:
        return True


def read_folder(root, classes=None, called=None):
    """Read a folder per class. `classes` gives names and order; else labels.txt; else the sorted folder names.

    called : callable, index of the class that a folder's name stands for, -1: no class, None: it is left out; by default folders
    that are no class are refused.

    Raises
    ------
    InputError
        No class folder, no clip, or a folder that is not among the given classes.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise InputError(f"no data set at {root}", found="no such folder", expected="a folder per class of clips",
                         do="check the path")
    folders = [path for path in _entries(root) if os.path.isdir(path)]
    names = [path.name for path in folders]
    if not folders:
        raise InputError(f"no clips in {root}", found="no folders", expected="a folder per class of clips", do="check the path")
    if classes is None:
        listed = root / "labels.txt"
        classes = listed if os.path.exists(listed) else names
    classes = _classes(classes, names)
    find = class_finder(classes)
    strange = [name for name in names if find(name) is None]
    if called:
        find, folders = called, [folder for folder in folders if called(folder.name) is not None]
    elif strange:
        raise InputError(f"{root} holds folders that are no class", found=", ".join(strange[:5]),
                         expected=", ".join(classes), do="move them away, or add them to labels.txt")
    items = [Item(str(clip), find(folder.name)) for folder in folders for clip in _entries(folder) if _is_clip(clip)]
    if folders and not items:
        raise InputError(f"no clips in {root}", found=f"{len(folders)} folders without videos or frames",
                         expected=f"videos ({', '.join(VIDEO_ENDINGS[:4])}, ...) or folders of frames in them",
                         do="check the path and the endings")
    return items, classes


def _lines(path):
    """The mark that divides a list's columns (None: spaces), and (number, columns) of each line that is no comment."""
    lines = [(n, line.strip()) for n, line in enumerate(_text(path).split("\n"), 1)]
    lines = [(n, line) for n, line in lines if line and not line.startswith("#")]
    # The mark that most lines have outside quotes; a list divided by spaces may have one in a path or two.
    bare = [re.sub(r'"[^"]*"', "", line) for _, line in lines]
    mark = max((";", "\t", ","), key=lambda mark: sum(mark in line for line in bare))
    if 2 * sum(mark in line for line in bare) < len(bare) or not lines:
        return None, [(n, _by_spaces(line)) for n, line in lines]
    try:
        table = [next(csv.reader([line], delimiter=mark, skipinitialspace=True)) for _, line in lines]
    except csv.Error as error:
        raise InputError(f"{path} is no list of clips", found=error, expected=f"columns divided by {mark!r}",
                         do="check the file") from error
    return mark, [(n, [column.strip() for column in columns]) for (n, _), columns in zip(lines, table)]


def _by_spaces(line):
    """Columns of a line. Paths and class names may hold spaces: a file's ending divides them, else it is read from its end."""
    if _ALONE.fullmatch(line):
        return [line]
    match = re.fullmatch(r"(.+?)\s+(\d+)\s+(\d+)", line) or _NAMED.fullmatch(line) or re.fullmatch(r"(.+?)\s+(\S+)", line)
    return list(match.groups()) if match else [line]


def _header(columns, root):
    """{"path", "frames", "label": column} if a list's first line is a header, else None."""
    if any(_ALONE.fullmatch(column) or column.isdecimal() for column in columns) or os.path.exists(locate(root, columns[0])):
        return None
    called, named = [slug(column) for column in columns], {}
    for kind, names in _COLUMNS.items():
        found = [name for name in names if name in called]
        if found:
            named[kind] = called.index(found[0])
    if not named:
        return None
    for kind in ("path", "label"):  # one that is called otherwise
        rest = [i for i in range(len(columns)) if i not in named.values()]
        if kind not in named and rest:
            named[kind] = rest[0]
    return named


def _rows(path, root):
    """(line's number, path, frames or None, label or None) of each clip of a list."""
    mark, lines = _lines(path)
    first = lines[0][1] if lines else []
    header = _header(first if mark else " ".join(first).split(), root) if first else None
    if header:
        lines = lines[1:]
    if not mark:  # the columns of a list divided by spaces are those that `_by_spaces` found
        header = None
    for number, columns in lines:
        while columns and not columns[-1]:
            columns = columns[:-1]
        where = header or {"path": 0, **({"frames": 1, "label": 2} if len(columns) == 3 and columns[1].isdecimal() else {"label": 1})}
        if not header and len(columns) > max(where.values()) + 1:
            raise InputError(f"{path}, line {number}: it is not clear what the columns are", found=f"{len(columns)} columns: {columns}",
                             expected="path and label; or path, number of frames and label",
                             do='add a header line such as "path,label,other", or put what holds a comma into quotes')
        name, frames, label = (columns[where[k]] if k in where and where[k] < len(columns) else "" for k in ("path", "frames", "label"))
        yield number, name, int(frames) if frames.isdecimal() else None, label or None


def read_list(path, root=None, classes=None, first_label=0, called=None):
    """Read a list of clips: TXT or CSV (see the module's text), or Something-Something's JSON.

    Parameters
    ----------
    path : path
    root : path, optional
        Where the clips are; by default the list's own folder.
    classes : list of str or path, optional
        Names and order, or the file that has them. By default: the names in the list, sorted; or "0", "1", ... where it
        holds numbers.
    first_label : int
        What the list calls class 0 (1 for UCF101's trainlist).
    called : callable, optional
        As `read_folder` has it, of labels in words; without a label, of the clip's folder.

    Raises
    ------
    InputError
        With the line's number.
    """
    path = Path(path)
    root = Path(root) if root is not None else path.parent
    rows = _something(path) if path.suffix.lower() == ".json" else list(_rows(path, root))
    if not rows:
        raise InputError(f"{path} lists no clips", found="no lines", expected="`path label` lines",
                         do="check the file")
    for number, name, _, _ in rows:
        if not name:
            raise InputError(f"{path}, line {number}: no path", found="an empty column", expected="the path of a clip",
                             do="correct the line")
    # A test list has no labels: the class is the folder where that is a class (UCF101), else unknown.
    known = [row[3] for row in rows if row[3] is not None]
    if classes is not None:
        classes = _classes(classes, known)
    numeric = bool(known) and all(re.fullmatch(r"-?\d{1,6}", label) for label in known) and not set(known) <= set(classes or ())
    if classes is None:
        if numeric:
            highest = max(int(label) for label in known) - first_label
            classes = [str(i + first_label) for i in range(max(0, highest) + 1)]
        else:
            folders = [Path(row[1]).parent.name for row in rows if row[3] is None]
            classes = sorted(set(known) | {f for f in folders if f})
    return _listed(path, root, rows, classes or [], first_label if numeric else None, called), classes


def _listed(path, root, rows, classes, first_label, called):
    """Items of a list's rows. first_label : number of class 0, None where labels are names."""
    find = called or (class_finder(classes) if classes else lambda name: None)
    items, without = [], []
    for number, name, n_frames, label in rows:
        if label is None:
            target = find(Path(name).parent.name)
            without += [Item(name, -1)] if target is None else []
        elif first_label is None:
            target, expected, more = find(label), ", ".join(classes[:30]), ""
        else:
            target, expected = int(label) - first_label, f"{first_label} to {first_label + len(classes) - 1}"
            target, more = target if 0 <= target < len(classes) else None, ", and the number of the first label"
        if label is not None and target is None:
            if called and first_label is None:
                continue
            raise InputError(f"{path}, line {number}: unknown class", found=f"'{label}'", expected=expected,
                             do="check the list of classes" + more)
        items.append(Item(str(locate(root, name)), -1 if target is None else target, n_frames))
    if called:
        labelled(without, path)
    return items


def _something(path):
    try:
        data = json.loads(_text(path))
        return [(n, str(entry["id"]), None, str(entry.get("template") or entry["label"]).replace("[", "").replace("]", "")
                 if "template" in entry or "label" in entry else None) for n, entry in enumerate(data, 1)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is no list of clips", found=repr(error),
                         expected='[{"id": ..., "template": ...}, ...]', do="check the file") from error


def locate(root, name):
    """Path of a clip that a list names, with or without its ending; unchanged if nothing is found (found out later)."""
    path = Path(root) / name
    if os.path.exists(path) or path.suffix.lower() in VIDEO_ENDINGS:
        return path
    for ending in VIDEO_ENDINGS:
        if os.path.exists(f"{path}{ending}"):
            return Path(f"{path}{ending}")
    return path


def labelled(items, name):
    """Refuse clips of `name` that have no label.

    Raises
    ------
    InputError
    """
    unknown = [item.path for item in items if item.label < 0]
    if unknown:
        raise InputError(f"{name} does not say what its clips show", found=f"{len(unknown)} clips without a label, first {unknown[0]}",
                         expected="a label for each", do="add the labels, or leave these clips out")


def find_items(path, root=None, classes=None, first_label=0, called=None):
    """Items and classes of whatever is at `path`: a folder per class, or a list of clips.

    `classes` may be a list of names or the path of a file that holds them; `called` as in `read_folder`.

    Raises
    ------
    InputError
    """
    path = Path(path)
    if os.path.isdir(path):
        return read_folder(path, classes, called)
    if not os.path.exists(path):
        raise InputError(f"no data set at {path}", found="no such file or folder",
                         expected="a folder per class, or a list of clips", do="check the path")
    return read_list(path, root, classes, first_label, called)
