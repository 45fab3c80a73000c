"""What every engine gives: a Model (immutable, shared) and its Streams (one camera's state each).

The semantics are the C runtime's, in all engines: caches start at zero; with timestamps, a gap longer than the model
allows (or time that runs backwards) resets the stream, and a frame that comes more than a quarter of a period before
its due time is skipped.
"""
import math
import time
from typing import NamedTuple

import numpy as np

from tsm_edge.errors import InputError

from .events import GestureEvents
from .preprocess import Preprocessor, check_frame


class Result(NamedTuple):
    """What a step gave.

    label : str, index : int
        The class with the greatest score.
    score : float
        Its score, 0..1.
    scores, logits : float32 [classes]
        Softmax of the logits, and the logits. The caller's to keep.
    reset : bool
        The stream began anew before this frame: a gap in time.
    skipped : bool
        The frame came before its time and was left out; the other values are the last step's.
    timings : dict
        Milliseconds: "preprocess_ms", "step_ms".
    """

    label: str
    index: int  # type: ignore[assignment]
    score: float
    scores: np.ndarray
    logits: np.ndarray
    reset: bool
    skipped: bool
    timings: dict


class Model:
    """A loaded network. Thread-safe; make one stream for every camera.

    manifest : dict. classes : list of str. engine : str, the engine's name.
    note : str, why this engine was taken when it was not asked for; "" otherwise.
    threads : int or None, of a step (0: the engine decides; None: the model's own).
    """

    engine, threads = "", 0

    def __init__(self, manifest: dict) -> None:
        self.manifest, self.note = manifest, ""
        self.classes = list(manifest["classes"])
        self.cache_shapes = {cache["name"]: tuple(cache["shape"]) for cache in manifest["caches"]}
        size = manifest["input"]
        self.input_shape = (1, 3, size["height"], size["width"])

    def stream(self, colour: str = "RGB", *, max_gap_seconds: "float | None" = None, fps: "float | None" = None) -> "Stream":
        """A new stream, its caches zero.

        Parameters
        ----------
        colour : "RGB" or "BGR"
            Channel order of the frames that will come (OpenCV's are BGR).
        max_gap_seconds : float or None
            A longer gap between timestamps resets the stream; None: as the manifest says; 0: never.
        fps : float or None
            Frames that come faster are skipped; None: as the manifest says; 0: none are.

        Raises
        ------
        InputError
        """
        if colour not in ("RGB", "BGR"):
            raise InputError("unknown colour order", found=repr(colour), expected="RGB or BGR",
                             do="RGB is the default; OpenCV gives BGR")
        defaults = self.manifest.get("stream", {})
        values = []
        for name, given in (("max_gap_seconds", max_gap_seconds), ("fps", fps)):
            value = defaults.get(name, 0) if given is None else given
            if not isinstance(value, (int, float)) or not math.isfinite(value) or (given is not None and value < 0):
                raise InputError(f"{name} cannot be used", found=repr(value), expected="a number, 0 or more",
                                 do="leave it out for the model's own")
            values.append(max(0.0, float(value)))
        return self._stream(colour, *values)

    def _stream(self, colour, max_gap_seconds, fps):
        # of an engine whose step is a pure function, self._infer; see EngineStream
        return EngineStream(self, self._infer, colour, max_gap_seconds, fps)

    def events(self, fps: float = 0.0) -> GestureEvents:
        """A GestureEvents with the manifest's configuration. fps: of the source; 0: not known, the model's."""
        return GestureEvents.of(self, fps)

    def __repr__(self):
        return f"<tsm_edge Model {self.manifest.get('name', '')!r}, {self.engine}, {len(self.classes)} classes>"


class Stream:
    """One camera's state. To be used by one thread at a time.

    threads : int, how many threads a step uses (0: the engine decides).
    """

    threads = 0

    def __init__(self, model: Model) -> None:
        self.model = model

    def step(self, frame: np.ndarray, timestamp: "float | None" = None) -> Result:
        """Take one frame.

        Parameters
        ----------
        frame : uint8 [height, width, 3]
            Any size; channel order as given to `Model.stream`.
        timestamp : float or None
            Seconds, any origin. None: never skipped, never taken for a gap.

        Returns
        -------
        Result

        Raises
        ------
        InputError
        """
        raise NotImplementedError

    def step_tensor(self, x: np.ndarray) -> np.ndarray:
        """Take one frame that is already the network's input.

        Parameters
        ----------
        x : float32 [1, 3, height, width], normalised

        Returns
        -------
        float32 [classes]
            The logits.
        """
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the past: zero caches, no clock."""
        raise NotImplementedError

    def state(self) -> "dict[str, np.ndarray]":
        """The caches: {name: float32 [1, fold, h, w]}, copies."""
        raise NotImplementedError

    def restore(self, state: "dict[str, np.ndarray]") -> None:
        """Put back what `state()` gave, of this or another stream of the same model.

        Raises
        ------
        InputError
            Other names or shapes; the stream is then as it was.
        """
        raise NotImplementedError

    def attention(self) -> np.ndarray:
        """Where the network looked in the last step: evidence for every class at every place of the network's input.

        Returns
        -------
        float32 [classes, h, w]
            On the grid of the last feature map; its mean over h, w plus the classifier's bias is the logit.

        Raises
        ------
        InputError
            The engine is not torch (the others give logits only), the network does not end in global pooling and one
            linear layer, or no step was taken yet.
        """
        raise InputError("attention needs the network's last feature map",
                         found=f"the {self.model.engine} engine, which gives logits only",
                         expected="a checkpoint", do="load the checkpoint that it was made from")

    def close(self) -> None:
        """Free what the stream holds; also done when it is collected."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _check_tensor(self, x):
        shape = self.model.input_shape
        try:
            values = np.asarray(x, np.float32, order="C")
            found = f"shape {list(values.shape)}"
        except (TypeError, ValueError) as error:
            values, found = None, str(error)[:200]
        if values is None or values.shape != shape:
            raise InputError("this is no network input", found=found, expected=f"float32 {list(shape)}",
                             do="pass pictures to step(); they are resized and normalised there")
        return values

    def _check_state(self, state):
        want = self.model.cache_shapes
        try:
            state = {str(name): np.array(value, np.float32, order="C") for name, value in dict(state).items()}
        except (TypeError, ValueError) as error:
            raise InputError("this is no state", found=str(error)[:200], expected=f"a dict of {len(want)} arrays",
                             do="restore what state() of a stream of the same model gave") from error
        found = {name: value.shape for name, value in state.items()}
        if found != want:
            odd = sorted(set(found.items()) ^ set(want.items()))[:4]
            raise InputError("this state belongs to another model", found=f"{len(found)} caches; different: {odd}",
                             expected=f"{len(want)} caches as in the manifest",
                             do="restore what state() of a stream of the same model gave")
        return {name: state[name] for name in want}


def check_timestamp(timestamp: "float | None") -> "int | None":
    """Seconds (finite) or None -> nanoseconds or None."""
    if timestamp is None:
        return None
    if isinstance(timestamp, (int, float, np.number)) and math.isfinite(timestamp) and abs(timestamp) < 9e9:
        return int(round(float(timestamp) * 1e9))
    raise InputError("this is no timestamp", found=repr(timestamp), expected="seconds, less than 9e9",
                     do="divide milliseconds by 1000; leave it out where there is no clock")


class Clock:
    """When to reset and when to skip, by the frames' timestamps (the same rule as the C runtime's).

    The due time advances by one period for every frame taken and never lags more than one behind.
    """

    def __init__(self, max_gap_seconds, fps):
        self.max_gap = int(max_gap_seconds * 1e9) if 0 < max_gap_seconds < 1e9 else 0
        self.period = int(1e9 / fps) if 1e-6 < fps < 1e9 else 0
        self.forget()

    def forget(self):
        self.last, self.due = None, 0

    def watch(self, now, has_result):
        """(reset, skip) for a frame at `now` nanoseconds."""
        first = self.last is None
        reset = not first and (now < self.last or (self.max_gap > 0 and now - self.last > self.max_gap))
        skip = False
        if reset or first:
            self.due = now
        elif self.period and has_result and self.due - now > self.period // 4:
            skip = True
        self.last = now
        if not skip:
            if now > self.due and now - self.due >= self.period:
                self.due = now
            self.due += self.period
        return reset, skip


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32 [classes] -> float32 [classes], sums to 1."""
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


class EngineStream(Stream):
    """A stream in Python around a pure step function.

    Parameters
    ----------
    model : Model
    infer : callable
        (x float32 [1, 3, H, W], {cache name: array}) -> (logits float32 [classes], {cache name: array}).
    """

    def __init__(self, model, infer, colour, max_gap_seconds, fps):
        super().__init__(model)
        self._infer, self.threads = infer, model.threads
        self._preprocess = Preprocessor(model.manifest["input"], colour)
        self._clock = Clock(max_gap_seconds, fps)
        self._input = np.empty(model.input_shape, np.float32)
        self.reset()

    def reset(self) -> None:
        self._forget()
        self._clock.forget()

    def _forget(self):
        self._state = {name: np.zeros(shape, np.float32) for name, shape in self.model.cache_shapes.items()}
        self._last = None

    def step(self, frame: np.ndarray, timestamp: "float | None" = None) -> Result:
        check_frame(frame)
        now, reset = check_timestamp(timestamp), False
        if now is not None:
            reset, skip = self._clock.watch(now, self._last is not None)
            if skip:
                return self._result(self._last, False, True, 0.0, 0.0)
            if reset:
                self._forget()
        begin = time.perf_counter()
        self._preprocess(frame, out=self._input[0])
        middle = time.perf_counter()
        logits, self._state = self._infer(self._input, self._state)
        self._last = logits
        return self._result(logits, reset, False, middle - begin, time.perf_counter() - middle)

    def step_tensor(self, x: np.ndarray) -> np.ndarray:
        self._last, self._state = self._infer(self._check_tensor(x), self._state)
        return self._last.copy()

    def _result(self, logits, reset, skipped, preprocess_s, step_s):
        scores = softmax(logits)
        index = int(logits.argmax())
        return Result(self.model.classes[index], index, float(scores[index]), scores, logits.copy(), reset, skipped,
                      {"preprocess_ms": preprocess_s * 1e3, "step_ms": step_s * 1e3})

    def state(self) -> "dict[str, np.ndarray]":
        return {name: np.array(value, np.float32) for name, value in self._state.items()}

    def restore(self, state: "dict[str, np.ndarray]") -> None:
        self._state = self._check_state(state)
