"""The demo's loop: capture, step, smooth, draw, show, record."""
import contextlib
import time
from typing import NamedTuple

import numpy as np

from tsm_edge.runtimes.capture import Capture
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
        Draws where the network looks; the model is then one of the torch engine.
    stop : callable
        Asked before every frame; True ends the run as "interrupted".

    Returns
    -------
    Outcome
    """
    loop, reason = _Loop(model, source, log, window, recorder, mirror, attention), None
    try:
        while reason is None:
            reason = "interrupted" if stop() else loop.turn(max_frames, silence)
    except KeyboardInterrupt:
        reason = "interrupted"
    finally:
        loop.close()
    return loop.outcome(reason)


class _Loop:
    """A run: what happens from one frame to the next, and what is counted."""

    def __init__(self, model, source, log, window, recorder, mirror, attention):
        self.source, self.log, self.window, self.recorder = source, log, window, recorder
        self.stream, self.events = model.stream("BGR"), model.events(source.fps)
        self.painter = _Painter(model, mirror, attention) if window or recorder else None
        self.stages, self.begin = Stages(), time.monotonic()
        self.heard = self.begin
        self.taken = self.frames = self.skipped = self.resets = 0
        self.capture = Capture(source)  # last: from here on a thread is inside OpenCV

    def turn(self, max_frames, silence):
        """Take the next frame if there is one; returns why the run is over, or None: it goes on."""
        frame = self.capture.next()
        if frame is None:
            return self._waited(silence)
        self.heard = time.monotonic()
        result = self._step(frame)
        if self.painter and not self._show(frame, result):
            return "key"
        if self.source.live and not result.skipped:
            self.stages.add("camera to result", (time.monotonic() - frame.taken) * 1e3)
        self.taken += 1
        return "frame limit" if self.taken == max_frames else None

    def _waited(self, silence):
        if self.capture.ended:
            return "source lost" if self.source.live else "end of file"
        if self.source.live and time.monotonic() - self.heard > silence:
            return "source lost"
        # keys work while a camera keeps us waiting, too
        return "key" if self.window and not self.window.poll() else None

    def _step(self, frame):
        self.stages.add("capture", frame.capture_s * 1e3)
        result = self.stream.step(frame.image, frame.time)
        self.skipped, self.resets = self.skipped + result.skipped, self.resets + result.reset
        if not result.skipped:
            self.frames += 1
            self.stages.add("preprocess", result.timings["preprocess_ms"])
            self.stages.add("step", result.timings["step_ms"])
            for event in self.events.update(result, frame.time, frame.index):
                self.log.write(event)
        return result

    def _show(self, frame, result):
        """Draw, record, show; False when the user wants to end."""
        with self._timed("overlay"):
            picture = self.painter.paint(frame, result, self.events, self.stream)
        if self.recorder:
            with self._timed("record"):
                self.recorder.write(picture, frame.time)
        if not self.window:
            return True
        if not self.source.live:
            time.sleep(min(1.0, max(0.0, self.begin + frame.time - time.monotonic())))
        return self.window.show(picture)

    @contextlib.contextmanager
    def _timed(self, stage):
        begin = time.perf_counter()
        yield
        self.stages.add(stage, (time.perf_counter() - begin) * 1e3)

    def close(self):
        """Let go of everything, the last first; of each, whatever another one raises."""
        with contextlib.ExitStack() as closing:
            if self.window:
                closing.callback(self.window.close)
            if self.recorder:
                closing.callback(self.recorder.close)
            closing.callback(self.log.close)
            closing.callback(lambda: [self.log.write(event) for event in self.events.finish()])
            closing.callback(self.stream.close)
            closing.callback(self.capture.close)

    def outcome(self, reason):
        """The Outcome of a run that is closed."""
        dropped = self.capture.dropped
        return Outcome(reason, self.frames, self.taken + dropped, dropped, self.skipped, self.resets, self.stages.rows(),
                       self.log.count, time.monotonic() - self.begin)


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
