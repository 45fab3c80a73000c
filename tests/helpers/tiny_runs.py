"""Tiny clips and runs that the tests of training share: a bright square wanders left or right, or stays."""
import os
import subprocess
import sys

import cv2
import numpy as np

cv2.setNumThreads(1)
CLASSES = ("go-left", "go-right", "stay")
NETWORK = ("--width", "0.35", "--input-size", "32", "--frames", "4")


def moving_clip(label, rng, n_frames=8, size=48):
    """uint8 [n_frames, size, size, 3] RGB."""
    x = {0: np.linspace(size * 0.7, size * 0.1, n_frames), 1: np.linspace(size * 0.1, size * 0.7, n_frames),
         2: np.full(n_frames, size * 0.4)}[label] + rng.uniform(-3, 3)
    y, colour = rng.uniform(8, size - 20), rng.integers(120, 255, 3)
    clip = np.full((n_frames, size, size, 3), rng.integers(0, 90, 3), np.uint8)
    for frame, left in zip(clip, x):
        cv2.rectangle(frame, (int(left), int(y)), (int(left) + 10, int(y) + 10), colour.tolist(), -1)
    return clip


def write_video(path, clip, fps=8.0):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, clip.shape[2:0:-1])
    assert writer.isOpened()
    for frame in clip:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()


def write_clips(root, per_class=5, classes=CLASSES, seed=0):
    """A folder per class of short videos, 8 frames at 8 a second."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for k in range(per_class):
            write_video(root / name / f"{k:03d}.avi", moving_clip(label, np.random.default_rng([seed, label, k])))
    return root


def command(*argv, module="train"):
    return [sys.executable, "-m", f"tsm_edge.training.{module}", *map(str, argv)]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(*argv, module="train", check=True, before=()):
    done = subprocess.run([*before, *(command(*argv, module=module) if not before else map(str, argv))], env=environment(),
                          capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done
