"""Whole clips played to a model as a camera would give them: which events it makes of them."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tsm_edge.card import background_of


class Outcome(NamedTuple):
    """What became of one clip.

    label : class that is shown, None: nothing that the model has a name for, or a background class. events : [(seconds, label), ...],
    the starts. seconds : how long it was. result : "right" (an event of the label), "wrong" (events, none of them right), "none".
    mixed : beside a right event a wrong one.
    """

    path: str
    label: str | None
    events: list
    seconds: float
    result: str
    mixed: bool


def play(model, frames, fps, hold_last=0.0):
    """[(seconds, label), ...] of the events that start while a model sees a film.

    The stream is a new one; it takes and leaves frames by their times, as the demo's does.

    frames : uint8 [n, h, w, 3] RGB; fps : their rate; hold_last : so many seconds the last frame is shown again and again
    """
    events, found, stream = model.events(fps), [], model.stream()
    for i in range(len(frames) + round(hold_last * fps)):
        result = stream.step(np.ascontiguousarray(frames[min(i, len(frames) - 1)]), i / fps)
        if not result.skipped:
            found += [(e.start, e.label) for e in events.update(result, i / fps, i) if e.kind == "start"]
    stream.close()
    return found


def outcome(model, path, label, frames, fps, hold_last=0.0):
    """`Outcome` of one clip. label : index of its class, -1: nothing named."""
    rest = background_of(model.classes)
    merged = {int(a): int(b) for a, b in (model.manifest["events"].get("merge") or {}).items()}
    name = model.classes[merged.get(label, label)] if label >= 0 and label not in rest else None
    events = play(model, frames, fps, hold_last)
    right = [what == name for _, what in events]
    result = "right" if any(right) else "wrong" if events else "none"
    return Outcome(str(path), name, events, len(frames) / fps + hold_last, result, any(right) and not all(right))


def figures(outcomes):
    """Counts of outcomes.

    Returns
    -------
    dict
        clips, right, wrong, mixed, none : of clips with a named gesture; false_events, false_seconds, false_per_minute : of the others
        (false_per_minute is None without any).
    """
    named = [o for o in outcomes if o.label is not None]
    others = [o for o in outcomes if o.label is None]
    false, seconds = sum(len(o.events) for o in others), sum(o.seconds for o in others)
    return {"clips": len(named), **{kind: sum(o.result == kind for o in named) for kind in ("right", "wrong", "none")},
            "mixed": sum(o.mixed for o in named), "false_events": false, "false_seconds": seconds,
            "false_per_minute": 60 * false / seconds if seconds else None}


def sentence(found):
    """Figures in words."""
    text = ""
    if found["clips"]:
        text = (f"right event in {found['right']} of {found['clips']} clips ({found['right'] / found['clips']:.0%}"
                + (f", {found['mixed']} of them with a wrong one beside it" if found["mixed"] else "")
                + f"), wrong in {found['wrong']}, none in {found['none']}")
    if found["false_seconds"]:
        minutes = found["false_seconds"] / 60
        text += ("; " if text else "") + f"{found['false_events']} false events in {minutes:.1f} minutes of other things"
    return text


def table(outcomes):
    """Rows of text, one a clip, the first of them the header."""
    rows = [("clip", "shows", "event", "events")]
    for o in outcomes:
        rows.append((o.path, o.label or "-", o.result, ", ".join(f"{what} at {when:.1f} s" for when, what in o.events)))
    return rows
