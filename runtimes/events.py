"""Gesture events from a stream's results: what began when, and when it was over."""
import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tsm_edge.errors import InputError


class Event(NamedTuple):
    """A gesture that began (kind "start", end None) or is over (kind "end").

    start, end : seconds, of the first frame and of the first frame no longer. score : best smoothed score so far, 0..1.
    start_frame, end_frame : the same moments as frame numbers.
    """

    kind: str
    label: str
    index: int  # type: ignore[assignment]
    start: float
    end: "float | None"
    score: float
    start_frame: int
    end_frame: "int | None"


class GestureEvents:
    """Turns per-frame logits into gestures with a start, an end and a label.

    Each frame: the logits of the last `window` frames are summed and the greatest class is taken; an `ignore`d class
    counts as the label before it, a `merge`d one as the class it is merged into; the label changes only after it has
    stood for `hold` frames. A label outside `background` starts an event when its smoothed score reaches `on`, and ends
    it when the label changes or the score falls below `off`. window 12, hold 2, on = off = 0 is the smoothing of the
    published gesture demo.

    Parameters
    ----------
    classes : list of str
    config : dict or None
        The manifest's "events": window, hold, on, off, merge {index: index}, ignore [index], background [index].
    fps : float
        Frame rate for frames that come without a time.

    Raises
    ------
    InputError
        A configuration that cannot be.
    """

    def __init__(self, classes: "Sequence[str]", config: "dict | None" = None, fps: float = 0.0) -> None:
        config = config or {}
        self.classes = list(classes)
        n = len(self.classes)
        try:
            self.window, self.hold = int(config.get("window", 1)), int(config.get("hold", 1))
            self.on, self.off = float(config.get("on", 0.0)), float(config.get("off", 0.0))
            self.merge = {int(a): int(b) for a, b in dict(config.get("merge") or {}).items()}
            self.ignore = frozenset(int(i) for i in config.get("ignore") or ())
            self.background = frozenset(int(i) for i in config.get("background") or ())
            indices = set(self.merge) | set(self.merge.values()) | self.ignore | self.background
            good = 1 <= self.window <= 10000 and 1 <= self.hold <= 10000 and 0 <= self.off <= self.on <= 1 and \
                all(0 <= i < n for i in indices)
        except (TypeError, ValueError, AttributeError, OverflowError):
            good = False
        if not good:
            raise InputError("the events' configuration cannot be used", found=str(config)[:300],
                             expected="window and hold 1 to 10000, 0 <= off <= on <= 1, merge, ignore, background: class numbers "
                                      f"below {n}", do="correct \"events\" in manifest.json, or leave it out")
        self.period = 1.0 / fps if fps and fps > 0 else 1.0 / 30
        # A class is judged together with those that are merged into it.
        self._groups = {}  # type: dict[int, list[int]]
        for a, b in self.merge.items():
            self._groups.setdefault(b, []).append(a)
        self.reset()

    @classmethod
    def of(cls, model: Any, fps: float = 0.0) -> "GestureEvents":
        """With the configuration of a model's manifest. fps: of the source; 0: not known, the model's."""
        fps = fps or model.manifest.get("stream", {}).get("fps") or 0.0
        return cls(model.classes, model.manifest.get("events"), fps)

    def reset(self) -> None:
        """Forget everything, without an event."""
        self._logits = collections.deque(maxlen=self.window)  # type: collections.deque[np.ndarray]
        self.label_index = min(self.background) if self.background else -1
        self._held = self.hold  # the first change is allowed
        self.scores = np.zeros(len(self.classes), np.float32)  # smoothed
        self._open, self.frame, self.time = None, -1, None  # type: Event | None, int, float | None

    @property
    def label(self) -> str:
        """The smoothed label now; "" before the first frame."""
        return self.classes[self.label_index] if self.label_index >= 0 else ""

    @property
    def active(self) -> "Event | None":
        """The event that is going on, or None."""
        return self._open

    def update(self, result: Any, time: "float | None" = None, frame: "int | None" = None) -> "list[Event]":
        """Take one frame.

        Parameters
        ----------
        result : a stream's result, or its logits float [classes]
        time : float or None
            Seconds, never falling; None: one period after the last.
        frame : int or None
            Its number, for the events; None: one more than the last.

        Returns
        -------
        list of Event, most often empty
        """
        if getattr(result, "skipped", False):
            return []
        logits = np.asarray(getattr(result, "logits", result), np.float64).reshape(-1)
        events = []
        if getattr(result, "reset", False):
            events += self._end(self.time, self.frame)
            self._logits.clear()
        if time is None:
            time = 0.0 if self.time is None else self.time + self.period
        self.time, self.frame = time, self.frame + 1 if frame is None else frame
        self._logits.append(logits)
        mean = sum(self._logits) / len(self._logits)  # type: Any
        odds = np.exp(mean - mean.max())
        self.scores = (odds / odds.sum()).astype(np.float32)
        best = int(mean.argmax())
        if best in self.ignore and self.label_index >= 0:
            best = self.label_index
        best = self.merge.get(best, best)
        if best != self.label_index and self._held < self.hold:
            best = self.label_index
        self._held = self._held + 1 if best == self.label_index else 1
        self.label_index = best
        score = float(self.scores[best] + sum(self.scores[i] for i in self._groups.get(best, ())))
        if self._open and (self._open.index != best or score < self.off):
            events += self._end(time, self.frame)
        if self._open:
            self._open = self._open._replace(score=max(score, self._open.score))
        elif best not in self.background and score >= self.on:
            self._open = Event("start", self.classes[best], best, time, None, score, self.frame, None)
            events.append(self._open)
        return events

    def _end(self, time, frame):
        event, self._open = self._open, None
        return [event._replace(kind="end", end=time, end_frame=frame)] if event else []

    def finish(self) -> "list[Event]":
        """The stream is over: close the event that is going on, one period after the last frame."""
        return self._end(None if self.time is None else self.time + self.period, self.frame + 1)

    def over(self, results: "Iterable[Any]") -> "Iterator[Event]":
        """Iterate over the events of an iterable of results, or of (time, result) pairs."""
        for item in results:
            time, result = item if isinstance(item, tuple) and len(item) == 2 else (None, item)
            yield from self.update(result, time)
        yield from self.finish()
