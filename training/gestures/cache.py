"""Rendered clips kept on disk as plain arrays, for training from memory: rendered once, by several processes.

A clip cache is a folder: `clips.npy` uint8 [N, T, h, w, 3], `labels.npy` int64 [N], `strokes.npy` float32 [N, 2]
(start and end of the stroke as fractions of the clip), `targets.npy` float32 [N, T, 20] (the hand in every frame, for
an auxiliary loss: see targets.py) and `cache.json` (what was asked for). It is made beside its place and renamed: a
cache that exists is complete.

    python -m tsm_edge.training.gestures.cache --output runs/train --split train --clips-per-class 200 --workers 2
"""
import argparse
import errno
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np

from tsm_edge import cli
from tsm_edge.errors import InputError
from tsm_edge.files import made_beside

from . import people, photos
from .clips import CLASSES, PLAIN, TARGETS, GestureDataset, render_clip

VERSION = 6  # of the generator: raise it when the same seed gives other pictures


def _render_range(folder, first, last, names, clips, seeds, fps, size, n_frames, variety, setting):
    cv2.setNumThreads(1)
    store = np.load(folder / "clips.npy", mmap_mode="r+")
    strokes = np.load(folder / "strokes.npy", mmap_mode="r+")
    targets = np.load(folder / "targets.npy", mmap_mode="r+")
    for i in range(first, last):
        store[i], info = render_clip(names[clips[i]], n_frames, size, int(seeds[i]), fps, info=True,
                                     variety=variety, setting=setting)
        strokes[i] = np.array(info["stroke"]) * fps / n_frames
        targets[i] = info["targets"]
    for array in (store, strokes, targets):
        array.flush()
    return last - first


def _end_with_parent():
    """In a process that renders: end when the one that started it is gone, which cannot say so if it was killed."""
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _allocate(path, dtype, shape):
    """An array file of zeros whose place on the disk is taken: where there is none, a process that fills it would be killed."""
    np.lib.format.open_memmap(path, "w+", dtype, shape).flush()
    if hasattr(os, "posix_fallocate"):
        with open(path, "rb+") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise


def _asked_of(setting):
    """A setting in plain values, its photographs by how many they are and what they add up to."""
    pictures = list(photos.load(setting.photos)) if setting.photos else []
    if setting.people:
        found = people.load(setting.people)
        pictures += [*found.scenes, *found.hands]
    digest = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()[:12]
    return {"photos": f"{len(pictures)} {digest}" if pictures else "", "cameras": setting.cameras, "others": list(setting.others)}


def _is_there(path, asked):
    """Whether `path` already holds what is asked for; refuses what else may be there."""
    if (path / "cache.json").exists():
        found = json.loads((path / "cache.json").read_text(encoding="utf-8"))
        if {k: found.get(k) for k in asked} == json.loads(json.dumps(asked)):
            return True
        raise InputError(f"{path} holds another cache", found={k: found.get(k) for k in asked}, expected=asked,
                         do="name another folder or remove this one")
    if path.exists():
        raise InputError(f"{path} exists and is no cache", found="another folder or file", expected="a new path",
                         do="name another folder")
    return False


def _render_jobs(jobs, workers, count):
    """Render, here or in processes; count(clips) is called after each job."""
    if workers == 1:
        for job in jobs:
            count(_render_range(*job))
        return
    # started afresh: a copy of this process could inherit a lock that a thread of OpenCV's or torch's holds
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=fresh, initializer=_end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(_render_range, *job) for job in jobs]):
                count(future.result())
        except BrokenProcessPool as error:
            raise InputError("a process that renders was killed", found=str(error), expected="room in memory and on the disk for each",
                             do="check both, or render with fewer --workers") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def prerender(path, split="train", clips_per_class=200, classes=CLASSES, n_frames=16, size=(128, 128), seconds=3.0,
              seed=0, workers=None, progress=None, variety=1.0, setting=PLAIN):
    """Render clips of every class into a cache folder; a cache of the same request is reused.

    Parameters
    ----------
    path : path
        Folder to make.
    split, clips_per_class, classes, size, seconds, seed, variety, setting
        As in `GestureDataset`.
    n_frames : int
        Frames a clip, at equal steps over `seconds`.
    workers : int, optional
        Processes; by default one per core.
    progress : callable, optional
        Called with (clips done, clips in all).

    Returns
    -------
    CachedClips

    Raises
    ------
    InputError
        If `path` holds something else, or cannot be written.
    """
    size = tuple(int(v) for v in size)
    source = GestureDataset(split, clips_per_class, classes, n_frames, size, seconds, seed, variety=variety, setting=setting)
    asked = {"version": VERSION, "kind": "clips", "split": split, "classes": list(source.classes),
             "clips_per_class": clips_per_class, "n_frames": n_frames, "size": list(size), "seconds": seconds,
             "seed": seed, "variety": variety, **_asked_of(setting)}
    path = Path(path)
    if _is_there(path, asked):
        return CachedClips(path)
    total, fps = len(source), n_frames / seconds
    labels = np.arange(total) % len(source.classes)
    with made_beside(path, parents=True) as part:
        _allocate(part / "clips.npy", np.uint8, (total, n_frames, size[1], size[0], 3))
        _allocate(part / "strokes.npy", np.float32, (total, 2))
        _allocate(part / "targets.npy", np.float32, (total, n_frames, len(TARGETS)))
        np.save(part / "labels.npy", labels.astype(np.int64))
        seeds = np.array([source.seed_of(i) for i in range(total)])
        workers = min(workers or os.cpu_count() or 1, total)
        step = max(1, min(64, -(-total // workers)))
        jobs = [(part, a, min(a + step, total), source.classes, labels, seeds, fps, size, n_frames, variety, setting)
                for a in range(0, total, step)]
        done = 0

        def count(clips):
            nonlocal done
            done += clips
            if progress:
                progress(done, total)

        _render_jobs(jobs, workers, count)
        (part / "cache.json").write_bytes(json.dumps(asked, indent=1).encode())
        part.replace(path)
    return CachedClips(path)


class CachedClips:
    """A clip cache, opened. `clips` uint8 [N, T, h, w, 3] (mapped, or in memory), `labels` int64 [N], `strokes`,
    `targets` float32 [N, T, 20]."""

    def __init__(self, path, in_memory=False):
        self._opened = path, in_memory
        path = Path(path)
        try:
            self.record = json.loads((path / "cache.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no gesture cache", found=error, expected="a folder with cache.json",
                             do="make one with tsm_edge.training.gestures.cache") from error
        self.clips = np.load(path / "clips.npy", mmap_mode=None if in_memory else "r")
        self.labels = np.load(path / "labels.npy")
        self.strokes = np.load(path / "strokes.npy")
        self._targets = path / "targets.npy"
        self.classes = self.record["classes"]

    def __reduce__(self):  # a process that is started afresh opens the files itself, instead of being sent what is in them
        return CachedClips, self._opened

    @property
    def targets(self):
        found = np.load(self._targets, mmap_mode="r") if self._targets.exists() else np.empty((0, 0, 0))
        if found.shape[-1] != len(TARGETS):
            raise InputError("this cache does not tell where the hands are", found=f"shape {found.shape}",
                             expected=f"{len(TARGETS)} columns in {self._targets}",
                             do="remove the cache's folder and render it again")
        return found

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return np.array(self.clips[index]), int(self.labels[index])


def main(argv=None):
    cli.run(_main, argv)


def _main(argv):
    parser = argparse.ArgumentParser(prog="python -m tsm_edge.training.gestures.cache", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder to make")
    parser.add_argument("--split", default="train", help="train, val or test")
    parser.add_argument("--clips-per-class", type=int, default=200)
    parser.add_argument("--frames", type=int, default=16, help="frames a clip")
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variety", type=float, default=1.0, help="share of hard pictures, 0 to 1 (default 1)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    cli.echo(vars(args))
    cache = prerender(args.output, args.split, args.clips_per_class, n_frames=args.frames, size=(args.size, args.size),
                      seconds=args.seconds, seed=args.seed, workers=args.workers, variety=args.variety,
                      progress=lambda done, total: print(f"\r{done}/{total} clips", end="", file=sys.stderr))
    print(file=sys.stderr)
    print(f"{args.output}: clips {cache.clips.shape} {cache.clips.nbytes / 1e6:.0f} MB, {len(cache.classes)} classes")
    print(f"PASSED {len(cache)} clips are in {args.output}")
    return 0


if __name__ == "__main__":
    main()
