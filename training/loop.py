"""The training loop: deterministic by step, so that a run killed at any moment resumes to the very same weights.

Nothing random is carried from step to step. Each epoch's order comes from (seed, epoch), each clip's augmentation from
(seed, epoch, clip), dropout from (seed, step, rank): the state of a run is its weights, its optimiser's and one number.

On several processes (torchrun, DistributedDataParallel) the global batch of a step is the same as on one; it is cut into
micro-batches, and a micro-batch is what batch norm sees. One process with `accumulate` micro-batches and several
processes with one each compute the same losses.
"""
from __future__ import annotations

import copy
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from tsm_edge.checkpoints import save_whole
from tsm_edge.errors import InputError
from tsm_edge.training.gestures.targets import TARGETS

from .batches import Batches, frame_targets, normalise, read_batches
from .hand_loss import WithHands, variance_of

STATE = 2  # version of last.pt: raise it where a state means something else than before


@dataclass(frozen=True)
class Options:
    """What decides the outcome of a run. `batch` is clips a step over all processes and micro-batches."""

    epochs: int = 20
    batch: int = 32
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.01  # at `lr_batch` clips a step; scaled linearly with the batch (Goyal et al. 2017, section 2.1)
    lr_batch: int = 32
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    frame_loss: float = 0.0  # weight of the per-frame loss beside that of the clip's averaged logits
    hand_loss: float = 0.0  # weight of the loss on the rendered hand's state (`hands`)
    hand_epochs: int = 0  # first epochs in which that loss alone counts, with weight 1
    clip_gradient: float = 20.0
    ema: float = 0.0  # decay of the averaged weights; 0: none
    batch_norm: str = "train"  # "partial": all but the first frozen, as TSN and TSM train; "frozen": all
    head_only: bool = False
    freeze: int = 0  # first parts of the network (`parts_of`) that stay as they are, statistics included
    mixed_precision: bool = False
    seed: int = 0

    @property
    def peak_lr(self):
        return self.lr * self.batch / self.lr_batch


def learning_rate(options, step, steps_per_epoch):
    """Linear warm-up from a tenth, then half a cosine down to 1/1000 of the peak."""
    warm, total = options.warmup_epochs * steps_per_epoch, options.epochs * steps_per_epoch
    if step < warm:
        return options.peak_lr * (0.1 + 0.9 * (step + 1) / warm)
    part = (step - warm) / max(1, total - warm)
    return options.peak_lr * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * part)))


def parts_of(net):
    """The network's parts in the order of its layers, for `Options.freeze`: MobileNetV2's stem and blocks, ResNet's stem and stages."""
    if hasattr(net, "features"):
        return list(net.features)
    return [nn.ModuleList([net.conv1, net.bn1]), net.layer1, net.layer2, net.layer3, net.layer4]


class Trainer:
    """One run. Files in `folder`: last.pt (everything to go on from), best.pth and final.pth (networks), TensorBoard's events.

    Parameters
    ----------
    net : nn.Module
        Clip-level network [N * T, 3, h, w] -> [N * T, classes].
    data, val : data sets of (clip uint8 [T, h, w, 3], label)
    transform : callable (clip, label, rng, hands) -> (clip, label), or None
        `hands`, None or float32 [T, 20], is changed in place with the picture.
    save : callable (path, net, metrics)
        Writes a network as a checkpoint, atomically.
    rest : int or None
        Index of the class of no gesture, for the per-frame loss.
    settings : dict of plain values, or None
        Whatever else decides the outcome (data, network, ...): a run goes on only with the same.

    Set `stop` to end after the step that is under way: its state is saved, and `run` raises KeyboardInterrupt.
    """

    def __init__(self, net, data, val, options, folder, *, n_segment, mean, std, transform=None, rest=None, save=None,
                 settings=None, device="cpu", workers=0, save_every=200, log=print):
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if options.batch % (self.world * options.accumulate):
            raise InputError("the batch cannot be cut into micro-batches", found=f"--batch {options.batch}",
                             expected=f"a multiple of {self.world} processes x --accumulate {options.accumulate}",
                             do="change --batch or --accumulate")
        if n_segment * options.batch == self.world * options.accumulate and options.batch_norm == "train" and not options.head_only:
            raise InputError("batch norm cannot learn from one picture at a time", found=f"--batch {options.batch}, clips of one frame",
                             expected="micro-batches of two pictures or more", do="raise --batch or --frames, or --batch-norm frozen")
        if len(data) < options.batch:
            raise InputError("fewer clips than one step takes", found=f"{len(data)} clips, --batch {options.batch}",
                             expected="at least one batch of clips", do="lower --batch or add clips")
        self.net, self.data, self.val, self.options, self.folder = net.to(device), data, val, options, Path(folder)
        self.n_segment, self.mean, self.std, self.transform, self.rest = n_segment, mean, std, transform, rest
        self.save, self.device, self.workers, self.save_every, self.log = save, torch.device(device), workers, save_every, log
        self.steps_per_epoch = len(data) // options.batch
        self._freeze()
        self.whole = self.net
        if options.hand_loss:
            if not hasattr(data, "targets"):
                raise InputError("these clips do not tell where the hands are", found="clips of one's own",
                                 expected="rendered gestures", do="leave --hand-loss out, or --data gestures")
            h, w = (data[0][0] if transform is None else transform(*data[0], np.random.default_rng(0), None)[0]).shape[1:3]
            self.whole = WithHands(self.net, (w, h), variance_of(data.targets))
        parameters = [p for p in self.whole.parameters() if p.requires_grad]
        decayed = [p for p in parameters if p.ndim > 1]
        plain = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        if options.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(groups, lr=options.peak_lr, momentum=options.momentum, nesterov=options.momentum > 0)
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=options.peak_lr)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.mixed_precision and self.device.type == "cuda")
        self.average = copy.deepcopy(self.net) if options.ema else None
        self.model = self.whole
        if self.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(self.whole, device_ids=ids)
        self.total = options.epochs * self.steps_per_epoch
        self.step, self.saved, self.best, self.stop = 0, 0, -1.0, False
        self.accuracy = None  # of the last epoch that was finished
        self.losses, self.history = [], []  # of the steps of this epoch; means of the epochs before
        # The micro-batch counts, not how it is come by: a run may go on with other numbers of processes.
        self.identity = {**asdict(options), "accumulate": None, **(settings or {}),
                         "clips a micro-batch": options.batch // (self.world * options.accumulate)}

    def _freeze(self):
        for norm in self._frozen_norms():
            norm.requires_grad_(False)
        if self.options.head_only:
            last = [m for m in self.net.modules() if isinstance(m, nn.Linear)][-1]
            self.net.requires_grad_(False)
            last.requires_grad_(True)
        for part in parts_of(self.net)[: self.options.freeze]:
            part.requires_grad_(False)

    def _frozen_norms(self):
        """Batch norms that keep their statistics, and their scales and offsets, as TSN has it."""
        norms = [m for m in self.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        kind = "frozen" if self.options.head_only else self.options.batch_norm
        return norms[{"train": len(norms), "partial": 1, "frozen": 0}[kind]:]

    def _train_mode(self):
        self.net.train()
        for norm in self._frozen_norms():
            norm.eval()
        for part in parts_of(self.net)[: self.options.freeze]:
            part.eval()

    # --- state ---------------------------------------------------------------------------------------------------------

    def state(self):
        return {"net": self.net.state_dict(), "average": self.average.state_dict() if self.average else None,
                "hands": self.whole.heads() if self.options.hand_loss else None,
                "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "step": self.step,
                "best": self.best, "accuracy": self.accuracy, "losses": self.losses, "history": self.history,
                "identity": self.identity, "version": STATE}

    def _write_state(self):
        self._check_weights()
        if self.rank == 0:
            save_whole(self.folder / "last.pt", self.state())
        self.saved = self.step

    def _check_weights(self):
        """Weights that are no numbers are never saved (a step can spoil them though its loss was fine)."""
        for name, value in self.net.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise self._diverged(f"NaN or infinity in {name}", "finite weights")

    def _diverged(self, found, expected):
        return InputError(f"training diverged at step {self.step}", found=found, expected=expected,
                          do="lower --lr or lengthen --warmup-epochs")

    def resume(self):
        """Go on from last.pt if there is one; True if so.

        Raises
        ------
        InputError
            It belongs to a run with other options, or is damaged, or not every process finds the same one.
        """
        found = self._load_state()
        if self.world > 1:
            steps = [torch.zeros((), dtype=torch.int64, device=self.device) for _ in range(self.world)]
            dist.all_gather(steps, torch.tensor(self.step, device=self.device))
            steps = [int(step) for step in steps]
            if len(set(steps)) > 1:
                raise InputError("the processes would go on from different steps", found=f"steps {sorted(set(steps))}",
                                 expected=f"the same {self.folder / 'last.pt'} for all",
                                 do="put --output on a disk that all machines share, or copy last.pt to each of them")
        return found

    def _load_state(self):
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            found = state["identity"]
        except Exception as error:
            raise InputError(f"{path} cannot be read", found=f"{type(error).__name__}: {str(error)[:100]}",
                             expected="the state of an unfinished run", do="remove it to start anew") from None
        if state.get("version") != STATE:
            raise InputError(f"{path} was written by another version of tsm-edge", found=f"version {state.get('version', 1)}",
                             expected=f"version {STATE}", do="another --output (what is in this one stays as it is), or finish the run "
                             "with the version that began it")
        other = sorted(k for k in {*found, *self.identity} if found.get(k) != self.identity.get(k))
        if other:
            raise InputError(f"{path} belongs to another run", found=", ".join(f"{k}={found.get(k)}" for k in other),
                             expected=", ".join(f"{k}={self.identity.get(k)}" for k in other),
                             do="use the same options and clips, or another --output")
        self.net.load_state_dict(state["net"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if self.options.hand_loss:
            self.whole.load_state_dict(state["hands"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for key in ("step", "best", "accuracy", "losses", "history"):
            setattr(self, key, state[key])
        self.saved = self.step
        return True

    # --- one step -------------------------------------------------------------------------------------------------------

    def loss(self, logits, labels, marks, seen=None):
        """Cross entropy of the clip's averaged logits, plus that of the decided frames where it is asked for."""
        per_frame = logits.view(len(labels), -1, logits.shape[-1]).float()  # [n, T, classes]
        loss = cross_entropy(per_frame.mean(1), labels, label_smoothing=self.options.label_smoothing)
        if self.options.frame_loss and torch.isfinite(marks).all():
            targets = frame_targets(labels, marks, per_frame.shape[1], -100 if self.rest is None else self.rest, seen)
            if (targets >= 0).any():
                loss = loss + self.options.frame_loss * cross_entropy(per_frame.flatten(0, 1), targets.flatten())
        return loss

    def _loss(self, x, labels, marks, hands):
        """Of one micro-batch, through the model."""
        if not self.options.hand_loss:
            return self.loss(self.model(x), labels, marks)
        logits, *found = self.model(x)
        loss, off = self.loss(logits, labels, marks, hands[..., TARGETS.index("visible")] > 0.5), self.whole.hand_loss(*found, hands)
        if self.step < self.options.hand_epochs * self.steps_per_epoch:
            return 0 * loss + off
        return loss + self.options.hand_loss * off

    def _train_step(self, micro_batches):
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(options, self.step, self.steps_per_epoch)
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for k, (frames, labels, marks, hands) in enumerate(micro_batches):
            torch.manual_seed((options.seed * 1_000_003 + self.step) * 1009 + self.rank + k * self.world)
            frames, labels, marks, hands = (v.to(self.device, non_blocking=True) for v in (frames, labels, marks, hands))
            x = normalise(frames, self.mean, self.std).contiguous(memory_format=torch.channels_last)
            last = k == options.accumulate - 1
            with nullcontext() if last or self.world == 1 else self.model.no_sync():
                with torch.autocast(self.device.type, enabled=self.scaler.is_enabled()):
                    loss = self._loss(x, labels, marks, hands) / options.accumulate
                self.scaler.scale(loss).backward()
            total += float(loss.detach())
        self.scaler.unscale_(self.optimizer)
        if options.clip_gradient:
            nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], options.clip_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self._update_average()
        self.step += 1
        return total

    @torch.no_grad()
    def _update_average(self):
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        for slow, fast in zip(self.average.state_dict().values(), self.net.state_dict().values()):
            if slow.is_floating_point():
                slow.lerp_(fast, 1 - decay)
            else:
                slow.copy_(fast)

    # --- the run ----------------------------------------------------------------------------------------------------------

    def run(self, on_step=None, writer=None):
        """Train to the end; returns the last epoch's validation accuracy (None without validation clips).

        on_step : callable (step, steps, loss, clips per second), for progress bars.
        """
        options, total = self.options, self.total
        if self.step == total and not (self.folder / "final.pth").exists():
            self.write("final.pth")
        while self.step < total:
            epoch, first = divmod(self.step, self.steps_per_epoch)
            self._train_mode()
            micro, began = [], time.perf_counter()
            batches = Batches(self.data, self.transform, options, epoch, first, self.rank, self.world)
            for batch in read_batches(batches, self.workers, self.device.type == "cuda"):
                micro.append(batch)
                if len(micro) < options.accumulate:
                    continue
                loss = self._train_step(micro)
                micro = []
                if self.world > 1:  # all stop at the same step
                    shared = torch.tensor([loss, self.stop], dtype=torch.float64, device=self.device)
                    dist.all_reduce(shared)
                    loss, self.stop = float(shared[0]) / self.world, bool(shared[1])
                self.losses.append(loss)
                if not math.isfinite(loss):
                    raise self._diverged(f"loss {loss}", "a finite loss")
                if on_step:
                    clips = (self.step - epoch * self.steps_per_epoch - first) * options.batch
                    on_step(self.step, total, loss, clips / (time.perf_counter() - began))
                if writer:
                    writer.add_scalar("loss", loss, self.step)
                    writer.add_scalar("learning rate", self.optimizer.param_groups[0]["lr"], self.step)
                if (self.stop or self.step % self.save_every == 0) and self.step % self.steps_per_epoch:
                    self._write_state()
                    if self.stop:
                        raise KeyboardInterrupt
            self.history.append(float(np.mean(self.losses)))
            self.losses = []
            self._finish_epoch(epoch, writer)
            if self.stop and self.step < total:
                raise KeyboardInterrupt
        return self.accuracy

    def _finish_epoch(self, epoch, writer):
        self._check_weights()
        net = self.average or self.net
        if self.val is not None:
            if self.world > 1:  # batch norms' statistics are those of the first process, as they are saved
                for buffer in net.buffers():
                    dist.broadcast(buffer, 0)
            self.accuracy = evaluate_clips(net, self.val, self.mean, self.std, device=self.device, rank=self.rank, world=self.world)
            self.log(f"epoch {epoch + 1}/{self.options.epochs}: loss {self.history[-1]:.4f}, validation top-1 {self.accuracy:.2%}")
            if writer:
                writer.add_scalar("validation top-1", self.accuracy, self.step)
        if self.accuracy is not None and self.accuracy > self.best:
            self.best = self.accuracy
            self.write("best.pth")
        if self.step == self.total:
            self.write("final.pth")
        self._write_state()
        if self.world > 1:
            dist.barrier()

    def write(self, name):
        """The network as it is, with the last epoch's accuracy, as `folder / name`."""
        if self.rank == 0 and self.save:
            metrics = {"epoch": self.step // self.steps_per_epoch, "validation_top1": self.accuracy}
            self.save(self.folder / name, self.average or self.net, metrics)


@torch.no_grad()
def evaluate_clips(net, data, mean, std, *, device="cpu", batch=8, rank=0, world=1):
    """Top-1 accuracy of a network on clips, by the average of a clip's logits over its frames.

    A clip that cannot be read (None) does not count. Of several processes (`rank` of `world`) each takes its share; all get the
    accuracy over all clips.

    Raises
    ------
    InputError
        Logits that are no numbers, or not one readable clip.
    """
    was = net.training
    net.eval()
    labels, guess = answers(net, data, mean, std, device=device, batch=batch, rank=rank, world=world)
    right, seen = int((labels == guess).sum()), len(labels)
    net.train(was)
    if world > 1:
        counts = torch.tensor([right, seen], device=device)
        dist.all_reduce(counts)
        right, seen = counts.tolist()
    if not seen:
        raise InputError("not one validation clip can be read", found=f"{len(data)} clips, all unreadable", expected="readable clips",
                         do="check --val-data, or the clips that were held out")
    return right / seen


@torch.no_grad()
def answers(net, data, mean, std, *, device="cpu", batch=8, rank=0, world=1):
    """(labels, answers), int64 [N] each, of the clips that can be read, by the average of a clip's logits; see `evaluate_clips`."""
    labels, found, mine = [], [], range(rank, len(data), world)
    for first in range(0, len(mine), batch):
        items = [item for item in (data[i] for i in mine[first:first + batch]) if item is not None]
        if not items:
            continue
        frames = torch.from_numpy(np.stack([clip for clip, _ in items])).to(device)
        logits = net(normalise(frames, mean, std).contiguous(memory_format=torch.channels_last))
        if not torch.isfinite(logits).all():
            raise InputError("the network answers with what is no number", found="NaN or infinity among its logits",
                             expected="finite logits", do="lower --lr or lengthen --warmup-epochs: training has diverged")
        found += logits.view(len(items), -1, logits.shape[-1]).mean(1).argmax(1).cpu().tolist()
        labels += [label for _, label in items]
    return np.array(labels, np.int64), np.array(found, np.int64)
