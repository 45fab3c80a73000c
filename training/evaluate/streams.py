"""Long untrimmed streams: what a model's events make of them, and which settings of the events answer best."""
from __future__ import annotations

import itertools
import math

import numpy as np

from tsm_edge.card import background_of
from tsm_edge.errors import InputError

from . import scores


class AnsweredStream:
    """A model's logits over a stream, beside what was performed.

    logits : float32 [N, classes], of every frame
    intervals : list of {"label", "start", "end"}, seconds
    """

    def __init__(self, logits, intervals, classes, fps):
        self.logits, self.intervals, self.classes, self.fps = scores.finite(logits), intervals, classes, fps

    def figures(self, settings):
        """`scores.match_events` of the events that these settings give."""
        from tsm_edge.runtimes.events import GestureEvents

        events, found = GestureEvents(self.classes, settings, self.fps), []
        for i, logits in enumerate(self.logits):
            found += [(e.start, e.label) for e in events.update(logits, i / self.fps) if e.kind == "start"]
        return _matched(performed(self.intervals, self.classes, settings), found, len(self.logits) / self.fps)

    def best_settings(self, settings):
        """(settings, their figures): window, hold, on and off that answer best, all else as it is.

        Best: most gestures with exactly one right event, each false event a minute as bad as 3 % of them; of equals, the
        shortest delay.

        Raises
        ------
        InputError
            Nothing to choose by: the stream holds no whole gesture.
        """
        if not self.figures(settings)["gestures"]:
            raise InputError("the stream holds no whole gesture", found=f"{len(self.logits) / self.fps:.1f} seconds",
                             expected="a gesture, and 1.5 seconds after it", do="give a longer --stream, and clips that are no background")

        def value(figures):
            return figures["exactly_one"] - 0.03 * figures["false_per_minute"], -(figures["delay"] or 0)

        windows = sorted({max(1, round(seconds * self.fps)) for seconds in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)})
        holds = sorted({max(1, round(seconds * self.fps)) for seconds in (0.0, 0.25, 0.5)})
        tried = [{**settings, "window": w, "hold": h, "on": on, "off": off}
                 for w, h, on, off in itertools.product(windows, holds, (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0.1, 0.2, 0.3, 0.5))
                 if off <= on]
        results = [self.figures(config) for config in tried]
        best = max(range(len(tried)), key=lambda i: value(results[i]))
        return tried[best], results[best]


def rendered(model, seconds, size, seed=0, split="test"):
    """A rendered stream of joined gestures with rest between them, pictures of `size` (w, h), stepped by a model. Where the model
    has a class of other things, one performance in five is of them, and an event there is a false one.

    Every minute another performer goes on before another background, so that one scene does not decide the figures.
    """
    from tsm_edge.training.gestures.clips import SPLITS, Performer, Setting
    from tsm_edge.training.gestures.labels import left_out, slug

    fps = model.manifest.get("stream", {}).get("fps") or 12.0
    rest = background_of(model.classes)
    gestures = [name for i, name in enumerate(model.classes) if i not in rest]
    if not gestures:
        raise InputError("the model knows no gesture", found=", ".join(model.classes), expected="a class that is no background",
                         do="leave --stream out")
    gestures += [name for name in model.classes if slug(name) == "doing-other-things"] * max(1, len(gestures) // 4)
    order = np.random.default_rng([seed, 55]).permutation(np.arange(int(seconds) + 1) % len(gestures))
    frames, intervals = max(1, round(seconds * fps)), []
    logits, stream = [], model.stream(max_gap_seconds=0, fps=0)
    scene_frames, scenes = round(60 * fps), itertools.count()
    while len(logits) < frames:
        scene = next(scenes)
        mine = [gestures[i] for i in np.roll(order, -scene * 20)]
        first = SPLITS[split][0] + 7_000_000 + 1000 * seed + scene
        performer, begin = Performer(mine, size, fps, first, setting=Setting(others=left_out(model.classes))), len(logits)
        for frame in performer:
            logits.append(_step(stream, frame))
            at_rest = (len(logits) - begin) / fps > performer.intervals[-1]["finish"] if performer.intervals else True
            if len(logits) - begin >= scene_frames and at_rest or len(logits) >= frames:
                break
        intervals += [{**t, "start": t["start"] + begin / fps, "end": t["end"] + begin / fps} for t in performer.intervals]
    stream.close()
    return AnsweredStream(np.array(logits, np.float32), intervals, model.classes, fps)


def joined(model, clips, seconds, seed=0):
    """The same of whole clips one after the other in random order, again from the first where they are fewer than `seconds`."""
    fps, intervals = model.manifest.get("stream", {}).get("fps") or clips.fps, []
    rng = np.random.default_rng([seed, 55])

    def frames():
        count = 0
        while count < seconds * fps:
            for i in rng.permutation(len(clips)):
                clip = clips.film(int(i), math.ceil(seconds * fps) - count)
                intervals.append({"label": clips.classes[clips.labels[i]], "start": count / fps, "end": (count + len(clip)) / fps})
                count += len(clip)
                yield from clip
                if count >= seconds * fps:
                    return

    stream = model.stream(max_gap_seconds=0, fps=0)
    logits = [_step(stream, frame) for frame in frames()]
    stream.close()
    return AnsweredStream(np.array(logits, np.float32), intervals, model.classes, fps)


def sentence(figures):
    """Figures of a stream in words."""
    delay = "-" if figures["delay"] is None else f"{figures['delay']:+.2f} s"
    shares = [f"{figures[k]:.0%}" if figures["gestures"] else "-" for k in ("exactly_one", "recognised")]
    return (f"stream of {figures['seconds'] / 60:.1f} minutes, {figures['gestures']} gestures: exactly one right event {shares[0]}, "
            f"recognised {shares[1]}, false events {figures['false_per_minute']:.2f} a minute, "
            f"median delay from the gesture's end {delay}")


def _step(stream, frame):
    return np.array(stream.step(np.ascontiguousarray(frame)).logits)


def performed(intervals, classes, settings):
    """What an event should have come of, as these settings name it: no background, and merged classes by the other's name."""
    merged = {classes[int(a)]: classes[int(b)] for a, b in (settings.get("merge") or {}).items()}
    rest = {classes[int(i)] for i in settings.get("background") or ()}
    named = [{**t, "label": merged.get(t["label"], t["label"])} for t in intervals]
    return [t for t in named if t["label"] not in rest]


def _matched(gestures, found, length):
    """Gestures that had time to be answered, against the events until then."""
    truth = [t for t in gestures if t["end"] + 1.5 <= length]
    until = min([length] + [t["start"] for t in gestures[len(truth):]])
    return scores.match_events(truth, [f for f in found if f[0] < until], length)
