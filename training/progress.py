"""What is seen of a training while it runs, and how it is stopped: bar, curves, Ctrl-C."""
from __future__ import annotations

import signal
import sys
from contextlib import contextmanager


@contextmanager
def stopping(trainer, say):
    """Ctrl-C (or a scheduler's SIGTERM) ends the run after the step that is under way, its state saved; twice: at once."""
    def ask(*_):
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True
        say("\nstopping after this step")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt:
        say(f"the state of step {trainer.saved} is in {trainer.folder / 'last.pt'}: the same command goes on from there")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Curves:
    """TensorBoard's curves in `folder`, from `step` on; where they cannot be written training goes on without them."""

    def __init__(self, folder, step):
        self._writer = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
        except ImportError:
            print("note: no TensorBoard curves (pip install 'tsm-edge[train]')", file=sys.stderr)
        except OSError as error:
            self._give_up(error)

    def add_scalar(self, *args):
        try:
            if self._writer:
                self._writer.add_scalar(*args)
        except OSError as error:
            self._give_up(error)

    def close(self):
        try:
            if self._writer:
                self._writer.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error):
        self._writer = None
        print(f"note: no more TensorBoard curves: {error}", file=sys.stderr)


class Progress:
    """A bar on a terminal, a line every tenth of the run elsewhere, nothing on the other processes."""

    def __init__(self, show):
        self.show, self.bar = show, None

    def __enter__(self):
        if self.show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.bar = Progress(TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
                                TextColumn("{task.fields[rate]:.1f} clips/s"), TimeRemainingColumn(), console=Console(stderr=True))
            self.bar.start()
            self.task = self.bar.add_task("", total=None, loss=float("nan"), rate=0.0)
        return self

    def update(self, step, total, loss, rate):
        if self.bar:
            self.bar.update(self.task, completed=step, total=total, loss=loss, rate=rate)
        elif self.show and (step == 1 or step % max(1, total // 50) == 0):
            print(f"step {step}/{total} loss {loss:.4f} {rate:.1f} clips/s", file=sys.stderr, flush=True)

    def __exit__(self, *exc):
        if self.bar:
            self.bar.stop()
