"""The demo's loop: capture, step, smooth, draw, show, record."""
from __future__ import annotations

import contextlib
import time
from typing import NamedTuple

import numpy as np

from tsm_edge.runtimes.capture import Capture
from tsm_edge.runtimes.events import GestureEvents
from tsm_edge.runtimes.sources import import_cv2

from .overlay import Overlay, View
from .timing import Rate, Stages

SILENCE_SECONDS = 10.0  # a live source that gives nothing for so long is lost


class Outcome(NamedTuple):
    """How a run ended.

    reason : "end of file", "key", "frame limit", "interrupted" or "source lost". frames : stepped frames. read : frames the
    source gave. dropped : never looked at. skipped : left out by the model's frame rate. resets : the stream began anew.
    stages : rows of Stages. events : how many gestures ended. seconds : of the run.
    """

    reason: str
    frames: int
    read: int
    dropped: int
    skipped: int
    resets: int
    stages: list
    events: int
    seconds: float


def run(model, source, *, log, window=None, recorder=None, max_frames=None, mirror=False, silence=SILENCE_SECONDS,
        attention=None, stop=lambda: False):
    """Run a model over a source until it ends.

    Parameters
    ----------
    model : tsm_edge.runtimes Model
    source : Source
        Closed at the end.
    log : EventLog
    window : Window or None
        None: nothing is shown.
    recorder : VideoRecorder or None
    max_frames : int or None
        Take no more frames than this.
    mirror : bool
        Show and record the picture mirrored; the network sees it as it is.
    silence : float
        Seconds without a frame after which a live source is lost.
    attention : Heat or None
        Draws where the network looks; the model is then one of the torch back end.
    stop : callable
        Asked before every frame; True ends the run as "interrupted".

    Returns
    -------
    Outcome
    """
    stream = model.stream("BGR")
    events = GestureEvents.of(model, source.fps)
    painter = _Painter(model, mirror, attention) if window or recorder else None
    stages, begin, last_frame = Stages(), time.monotonic(), time.monotonic()
    taken = frames = skipped = resets = 0
    reason = "end of file"
    capture = Capture(source)
    try:
        while True:
            if stop():
                reason = "interrupted"
                break
            frame = capture.next()
            if frame is None:
                if capture.ended:
                    reason = "source lost" if source.live else "end of file"
                    break
                if source.live and time.monotonic() - last_frame > silence:
                    reason = "source lost"
                    break
                if window and not window.poll():  # keys work while a camera keeps us waiting, too
                    reason = "key"
                    break
                continue
            last_frame = time.monotonic()
            stages.add("capture", frame.capture_s * 1e3)
            result = stream.step(frame.image, frame.time)
            skipped, resets = skipped + result.skipped, resets + result.reset
            if not result.skipped:
                frames += 1
                stages.add("preprocess", result.timings["preprocess_ms"])
                stages.add("step", result.timings["step_ms"])
                for event in events.update(result, frame.time, frame.index):
                    log.write(event)
            if painter:
                drawn = time.perf_counter()
                picture = painter.paint(frame, result, events, stream)
                stages.add("overlay", (time.perf_counter() - drawn) * 1e3)
                if recorder:
                    drawn = time.perf_counter()
                    recorder.write(picture, frame.time)
                    stages.add("record", (time.perf_counter() - drawn) * 1e3)
                if window:
                    if not source.live:
                        time.sleep(min(1.0, max(0.0, begin + frame.time - time.monotonic())))
                    if not window.show(picture):
                        reason = "key"
                        break
            if source.live and not result.skipped:
                stages.add("camera to result", (time.monotonic() - frame.taken) * 1e3)
            taken += 1
            if taken == max_frames:
                reason = "frame limit"
                break
    except KeyboardInterrupt:
        reason = "interrupted"
    finally:
        with contextlib.ExitStack() as closing:  # the last first; each of them, whatever another one raises
            if window:
                closing.callback(window.close)
            if recorder:
                closing.callback(recorder.close)
            closing.callback(log.close)
            closing.callback(lambda: [log.write(event) for event in events.finish()])
            closing.callback(stream.close)
            closing.callback(capture.close)
    return Outcome(reason, frames, taken + capture.dropped, capture.dropped, skipped, resets, stages.rows(), log.count,
                   time.monotonic() - begin)


class _Painter:
    """Makes the View of each frame."""

    def __init__(self, model, mirror, attention):
        self._overlay, self._mirror, self._attention = Overlay(model.classes), mirror, attention
        self._trained = bool(model.manifest.get("trained", False))
        self._camera, self._model, self._step_ms, self._last = Rate(), Rate(), 0.0, None

    def paint(self, frame, result, events, stream):
        """A copy of the frame with everything drawn over it."""
        now = time.monotonic()
        self._camera.tick(frame.taken)
        if not result.skipped:
            self._model.tick(now)
            step = result.timings["step_ms"]
            self._step_ms = step if self._step_ms == 0 else 0.9 * self._step_ms + 0.1 * step
        active = events.active
        if active:
            note, self._last = f"for {frame.time - active.start:.1f} s", (active.label, frame.time)
        elif self._last and 0 <= frame.time - self._last[1] < 30:
            note = f"last: {self._last[0]}, {frame.time - self._last[1]:.0f} s ago"
        else:
            note = ""
        image = np.array(frame.image, order="C")  # the source may use its buffer again
        looks_for = self._attention.paint(image, stream.attention(), result) if self._attention else ""
        if self._mirror:
            image = np.ascontiguousarray(image[:, ::-1])
        view = View(active.label if active else events.label, active is not None, note, events.scores, self._camera.value,
                    self._model.value, self._step_ms, self._trained, looks_for)
        return self._overlay.draw(image, view)


def quiet_threads():
    """OpenCV's own threads only get in the way of the network's."""
    import_cv2().setNumThreads(1)
