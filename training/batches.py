"""What a training step is fed with: clips cut into micro-batches, decoded by processes of their own, as tensors."""
from __future__ import annotations

import signal

import numpy as np
import torch

from tsm_edge.errors import InputError, TsmEdgeError


class Batches(torch.utils.data.Dataset):
    """Micro-batches of an epoch for one process, each a deterministic function of (seed, epoch, position).

    Item i is (frames uint8 [n, T, h, w, 3], labels int64 [n], marks float32 [n, 2], hands float32 [n, T, 20]); marks are the
    stroke's start and end as fractions of the clip, NaN where the data set does not know them; hands is empty unless the
    options ask for a loss on it. What is wrong with the clips is given instead, as the error that `read_batches` raises: torch would
    make a text of an error that is raised in a worker.
    """

    def __init__(self, data, transform, options, epoch, first_step, rank, world):
        self.data, self.transform, self.options, self.epoch = data, transform, options, epoch
        self.hands = data.targets if options.hand_loss else None
        order = np.random.default_rng([options.seed, epoch, 1]).permutation(len(data))
        steps = len(data) // options.batch
        parts = world * options.accumulate
        order = order[: steps * options.batch].reshape(steps, parts, options.batch // parts)
        mine = order[first_step:, rank::world]  # [steps, accumulate, clips]
        self.micro = mine.reshape(-1, options.batch // parts)

    def __len__(self):
        return len(self.micro)

    def __getitem__(self, i):
        try:
            return self._batch(i)
        except TsmEdgeError as error:
            return error

    def _batch(self, i):
        clips, labels, marks, hands = [], [], [], []
        for index in self.micro[i]:
            # a data set with chance of its own takes (epoch, index), so that it too repeats itself
            clip, label = self.data[(self.epoch, int(index)) if hasattr(self.data, "load") else int(index)]
            hand = None if self.hands is None else np.array(self.hands[int(index)])
            if self.transform is not None:
                rng = np.random.default_rng([self.options.seed, self.epoch, int(index), 2])
                clip, label = self.transform(clip, label, rng, hand)
            hands.append(np.empty(0, np.float32) if hand is None else hand)
            clips.append(clip)
            labels.append(label)
            marks.append(self.data.strokes[int(index)] if hasattr(self.data, "strokes") else (np.nan, np.nan))
        return (torch.from_numpy(np.stack(clips)), torch.tensor(labels),
                torch.from_numpy(np.array(marks, np.float32)), torch.from_numpy(np.stack(hands)))


def read_batches(batches, workers, pinned):
    """The micro-batches in order, with everything that can go wrong in the processes that decode them in words.

    workers : number of those processes. pinned : in memory that a GPU reads fast.

    Raises
    ------
    InputError
    """
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers, worker_init_fn=_in_worker, pin_memory=pinned)
    try:
        for batch in loader:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError("a process that decodes clips has ended", found=str(error).partition("\n")[0],
                         expected="--workers processes until the end", do="lower --workers; check the memory") from error


def _in_worker(_):
    """In a process that decodes clips: Ctrl-C is the trainer's affair, and cores are shared by starting more of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(1)


def normalise(frames, mean, std):
    """uint8 [N, T, h, w, 3] -> float32 [N * T, 3, h, w], (pixel / 255 - mean) / std."""
    x = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) * 255 for v in (mean, std))
    return (x - mean) / std


def frame_targets(labels, marks, frames, rest, seen=None):
    """Class of every frame, int64 [N, T], -100 where it is not decided.

    A stroke counts from its middle, or a fifth of the clip after its start (before, nobody can know), to a tenth after its
    end; frames before it begins and well after it are `rest` (the class of no gesture; -100 where there is none).
    seen : bool [N, T], where a hand is in the picture; None: not known. A hand that is seen outside its stroke is not at rest (a
    palm that waits to swipe looks like a stop sign): such frames are undecided.
    """
    t = (torch.arange(frames, device=labels.device) + 0.5) / frames
    start, end = marks[:, :1], marks[:, 1:]
    target = torch.full((len(labels), frames), -100, device=labels.device)
    outside = (t < start) | (t > end + 0.25)
    target = torch.where(outside if seen is None else outside & ~seen, torch.full_like(target, rest), target)
    return torch.where((t >= torch.minimum((start + end) / 2, start + 0.2)) & (t <= end + 0.1), labels[:, None].expand_as(target), target)
