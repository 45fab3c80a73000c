"""Clips of a real data set, decoded with OpenCV. Works with torch's DataLoader; needs no torch itself."""
import contextlib
import json
import os
import tempfile
import uuid
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # unreadable clips are named by us, once

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from tsm_edge.cli import choose  # noqa: E402
from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.runtimes.sources import FOLDER_RATE, PICTURES, natural  # noqa: E402

from .listing import Item, find_items  # noqa: E402, F401
from .sampling import Sampler  # noqa: E402


class UnreadableClip(Exception):
    """A clip that cannot be decoded; the text says why."""


class FrameFolder:
    """A folder of pictures, in the order of the numbers in their names."""

    def __init__(self, path):
        self.path, self.fps = Path(path), 0.0
        try:
            names = [name for name in os.listdir(path) if name.lower().endswith(PICTURES) and not name.startswith(".")]
        except OSError as error:
            raise UnreadableClip(str(error)) from error
        self.names = sorted(names, key=natural)
        if not self.names:
            raise UnreadableClip("the folder holds no pictures")
        self.n_frames = len(self.names)

    def read(self, indices):
        """Frames at rising `indices`, uint8 RGB [k, h, w, 3]."""
        cache, out = {}, []
        for i in map(int, indices):
            if i not in cache:
                picture = cv2.imread(str(self.path / self.names[i]), cv2.IMREAD_COLOR)
                if picture is None:
                    raise UnreadableClip(f"{self.names[i]} is no readable picture")
                cache = {i: picture[..., ::-1]}
            out.append(cache[i])
        if len({f.shape for f in out}) > 1:
            raise UnreadableClip(f"pictures of different sizes: {sorted({f.shape[1::-1] for f in out})}")
        return np.stack(out)


class VideoFile:
    """A video file. The stated number of frames is not trusted: `read` corrects it when the file ends earlier."""

    def __init__(self, path):
        self.path = str(path)
        if not os.path.isfile(self.path):
            raise UnreadableClip("no such file or folder")
        capture = self._open()
        self.fps = float(capture.get(cv2.CAP_PROP_FPS) or 0)
        self.n_frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if not 0 < self.n_frames < 10 ** 7:  # streams without an index
            self.n_frames = 0
            while capture.grab():
                self.n_frames += 1
        capture.release()
        if self.n_frames == 0:
            raise UnreadableClip("the file holds no frames")

    def _open(self):
        capture = cv2.VideoCapture(self.path)
        if not capture.isOpened():
            raise UnreadableClip("no known video format")
        return capture

    def read(self, indices):
        """Frames at rising `indices`, uint8 RGB [k, h, w, 3], or None if the file ends before the last of them.

        After None, `n_frames` is the number of frames that are really there.
        """
        capture, out, at = self._open(), [], -1
        try:
            for i in map(int, indices):
                if i == at:
                    out.append(out[-1])
                    continue
                while at < i:
                    if not capture.grab():
                        self.n_frames = at + 1
                        if not self.n_frames:
                            raise UnreadableClip("no frame can be decoded")
                        return None
                    at += 1
                good, frame = capture.retrieve()
                if not good:
                    raise UnreadableClip(f"frame {i} cannot be decoded")
                out.append(np.ascontiguousarray(frame[..., ::-1]))
        finally:
            capture.release()
        return np.stack(out)


def open_clip(path):
    """`FrameFolder` or `VideoFile` at `path`.

    Raises
    ------
    UnreadableClip
    """
    return FrameFolder(path) if os.path.isdir(path) else VideoFile(path)


def read_clip(path, sample=None):
    """Decode a clip.

    Parameters
    ----------
    path : path
        Video file or folder of frames.
    sample : callable, optional
        `sample(n_frames, fps) -> rising indices`; by default all frames. `fps` is 0 where it is not known.

    Returns
    -------
    frames : uint8 array [k, h, w, 3], RGB

    Raises
    ------
    UnreadableClip
    """
    clip = open_clip(path)
    for _ in range(3):
        frames = clip.read(np.arange(clip.n_frames) if sample is None else sample(clip.n_frames, clip.fps))
        if frames is not None:
            return frames
    raise UnreadableClip("the file gives another number of frames each time it is read")


class ClipDataset:
    """Clips of a data set, sampled and changed for training or testing (map style).

    `dataset[i]` or `dataset[epoch, i]` gives `(clip, label)`. All chance follows from (seed, epoch, i) alone: the
    number of workers changes nothing, and a resumed training sees what an uninterrupted one would have seen.

    Parameters
    ----------
    items : list of Item
    sampler : Sampler
    transform : callable, optional
        `transform(clip, label, rng) -> (clip, label)`, see `augment`.
    train : bool
        Sample with chance; else the fixed choice.
    seed : int
    unreadable : str
        What to do with a clip that cannot be read: "replace" it by the next readable one (training), give None
        in its place ("none", testing), or "raise".
    finish : callable, optional
        Applied last to the clip alone, for example `augment.normalise`.
    clip_fps : float
        Frame rate of frame folders, which do not say theirs.

    Notes
    -----
    Unreadable clips of all worker processes are gathered in a small file, made with the first; `skipped()` names them.
    """

    def __init__(self, items, sampler=None, transform=None, train=True, seed=0, unreadable="replace", finish=None,
                 clip_fps=FOLDER_RATE):
        if not items:
            raise InputError("the data set is empty", found="no clips", expected="at least one", do="check the path")
        self.items, self.sampler, self.transform = list(items), sampler or Sampler(), transform
        self.train, self.seed, self.finish, self.clip_fps = train, seed, finish, clip_fps
        self.unreadable = choose(unreadable, ("replace", "none", "raise"), "way to treat unreadable clips")
        self._log = os.path.join(tempfile.gettempdir(), f"tsm-edge-skipped-{uuid.uuid4().hex}.jsonl")
        self._owner, self._bad, self.epoch = os.getpid(), {}, 0

    def __del__(self):
        if getattr(self, "_owner", None) == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(self._log)

    def __len__(self):
        return len(self.items)

    def load(self, index, epoch=0):
        """One clip, without a fallback.

        Raises
        ------
        UnreadableClip
        """
        rng = np.random.default_rng([self.seed, epoch, index])
        item = self.items[index]

        def sample(n_frames, fps):
            return self.sampler(n_frames, rng if self.train else None, fps or self.clip_fps)

        clip, label = read_clip(item.path, sample), item.label
        if self.transform is not None:
            clip, label = self.transform(clip, label, rng)
        return (clip if self.finish is None else self.finish(clip)), label

    def __getitem__(self, index):
        epoch, index = index if isinstance(index, tuple) else (self.epoch, index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        for step in range(len(self)):
            at = (index + step) % len(self)
            if at in self._bad:
                if self.unreadable == "none":
                    return None
                continue
            try:
                return self.load(at, epoch)
            except (UnreadableClip, cv2.error) as error:
                if self.unreadable == "raise":
                    raise InputError(f"cannot read {self.items[at].path}", found=error, expected="a readable clip",
                                     do="repair it or take it out of the data set") from error
                self._bad[at] = str(error)
                # one short write each: workers may share the file
                with contextlib.suppress(OSError), open(self._log, "a", encoding="utf-8", newline="\n") as out:
                    out.write(json.dumps([self.items[at].path, str(error)]) + "\n")
                if self.unreadable == "none":
                    return None
        raise InputError("no clip of the data set can be read", found=f"{len(self)} clips, all unreadable",
                         expected="readable clips", do="check paths and formats; the first: " + self.items[0].path)

    def skipped(self):
        """Unreadable clips met so far, by all workers: {path: reason}."""
        found = {self.items[at].path: reason for at, reason in self._bad.items()}
        # the file is not there before the first, nor after a cleaning of the folder
        with contextlib.suppress(OSError), open(self._log, encoding="utf-8") as log:
            found.update(json.loads(line) for line in log)
        return found

    def report(self):
        """One line on unreadable clips for a log, or an empty string."""
        bad = self.skipped()
        if not bad:
            return ""
        shown = "; ".join(f"{path} ({reason})" for path, reason in list(bad.items())[:5])
        return f"skipped {len(bad)} unreadable of {len(self)} clips: {shown}" + (" ..." if len(bad) > 5 else "")
