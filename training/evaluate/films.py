"""Whole clips played to a model as a camera would give them: which events it makes of them."""
from __future__ import annotations

from contextlib import closing
from typing import NamedTuple

import numpy as np

from tsm_edge.cli import columns
from tsm_edge.errors import InputError
from tsm_edge.runtimes.events import GestureEvents


class Outcome(NamedTuple):
    """What became of one clip.

    label : class that it shows, None: nothing that has a name. answer : class that top-1 counts, None: it was not asked. whole : class
    with the greatest mean of logits over all frames that the model took. events : [(seconds, label), ...], the starts.
    seconds : how long it was; steps : how many frames the model took. other : an event is a false one, whatever it is called (nothing
    that has a name, or a background class). result : "right" (an event of the label), "wrong" (events, none of them right), "none";
    mixed : beside a right event a wrong one.
    """

    path: str
    label: str | None
    answer: str | None
    whole: str
    events: list
    seconds: float
    steps: int
    other: bool
    result: str
    mixed: bool


def play(model, film, hold_last=0.0):
    """What a model answers to the frames of a film: [(logits [classes], seconds, number of the frame), ...] of those that it took.

    The stream is a new one; it takes and leaves frames by their times, as the demo's does.

    film : clips.Film; hold_last : so many seconds the last frame is shown again and again
    """
    found = []

    def held():
        for frame, time in film:
            yield frame, time
        for i in range(round(hold_last * film.fps)):
            yield frame, time + (i + 1) / film.fps

    with closing(model.stream()) as stream:
        for i, (frame, time) in enumerate(held()):
            result = stream.step(frame, time)
            if not result.skipped:
                found.append((np.array(result.logits), time, i))
    return found


def outcome(model, item, film, hold_last=0.0, answer=None):
    """`Outcome` of one clip. item : listing.Item; answer : see there."""
    answers = play(model, film, hold_last)
    return judged(model.classes, item, answers, film.seconds + hold_last, model.manifest["events"], answer)


def judged(classes, item, answers, seconds, rule, answer=None):
    """`Outcome` of a clip that was played. answers : of `play`; rule : settings of the events."""
    index = {int(a): int(b) for a, b in (rule.get("merge") or {}).items()}.get(item.label, item.label)
    other = item.label < 0 or index in [int(i) for i in rule.get("background") or ()]
    gestures, events, total = GestureEvents(classes, rule), [], np.zeros(len(classes))
    for logits, time, i in answers:
        events += [(e.start, e.label) for e in gestures.update(logits, time, i) if e.kind == "start"]
        total += logits
    right = [not other and what == classes[index] for _, what in events]
    result = "right" if any(right) else "wrong" if events else "none"
    label = classes[item.label] if item.label >= 0 else None
    return Outcome(str(item.path), label, answer, classes[int(total.argmax())], events, seconds, len(answers), other,
                   result, any(right) and not all(right))


def outcomes(model, whole, fps=None, hold_last=0.0, answers=None):
    """[`Outcome`, ...] of clips.Films as a camera of `fps` gives them (None: the files' own frames). What cannot be read is left out
    of them from then on.

    answers : {path: class}, see `Outcome`
    """
    return _each(whole, lambda item: outcome(model, item, whole.film(item.path, fps), hold_last, (answers or {}).get(item.path)))


def _each(whole, made):
    """[`made(item)`, ...] of clips.Films; what cannot be read is left out of them from then on."""
    out = []
    for item in list(whole.items):
        try:
            out.append(made(item))
        except InputError as error:
            whole.leave_out({item.path: f"{error.problem}: {error.found}"})
    if not out:
        raise InputError("no clip can be played", found="; ".join(list(whole.bad.values())[:3]), expected="readable clips",
                         do="check paths and formats")
    return out


THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def best_threshold(model, whole, hold_last=1.0):
    """(settings of the events, figures with them, figures as it was): `on` as it answers best on clips.Films, all else as it is.

    Best: most clips with right events alone, each clip with a wrong event and each false event as bad as one of them is good; of
    equals, the nearest to what stands.
    """
    rule = model.manifest["events"]

    def played(item):
        film = whole.film(item.path)
        answers = play(model, film, hold_last)
        return item, answers, film.seconds + hold_last

    clips = _each(whole, played)

    def found(on):
        return figures([judged(model.classes, *clip, {**rule, "on": on, "off": min(on, rule["off"])}) for clip in clips])

    tried = {on: found(on) for on in {*THRESHOLDS, rule["on"]}}

    def value(on):
        f = tried[on]
        return f["right"] - f["wrong"] - f["mixed"] - f["false_events"], -abs(on - rule["on"])

    best = max(tried, key=value)
    return {**rule, "on": best, "off": min(best, rule["off"])}, tried[best], tried[rule["on"]]


def figures(outcomes):
    """Counts of outcomes.

    Returns
    -------
    dict
        clips, right, wrong, mixed, none : of clips with a named gesture; false_events, false_seconds, false_per_minute : of the others
        (false_per_minute is None without any); whole_top1 : share of clips of classes whose `whole` is right (None without any);
        steps_per_second : how many frames the model took.
    """
    named, others = [o for o in outcomes if not o.other], [o for o in outcomes if o.other]
    false, seconds = sum(len(o.events) for o in others), sum(o.seconds for o in others)
    whole = [o.whole == o.label for o in outcomes if o.label is not None]
    return {"clips": len(named), **{kind: sum(o.result == kind for o in named) for kind in ("right", "wrong", "none")},
            "mixed": sum(o.mixed for o in named), "false_events": false, "false_seconds": seconds,
            "false_per_minute": 60 * false / seconds if seconds else None, "whole_top1": sum(whole) / len(whole) if whole else None,
            "steps_per_second": sum(o.steps for o in outcomes) / sum(o.seconds for o in outcomes)}


def sentence(found):
    """Figures in words."""
    text = ""
    if found["clips"]:
        text = (f"right event in {found['right']} of {found['clips']} clips ({found['right'] / found['clips']:.0%}"
                + (f", {found['mixed']} of them with a wrong one beside it" if found["mixed"] else "")
                + f"), wrong in {found['wrong']}, none in {found['none']}")
    if found["false_seconds"]:
        seconds = found["false_seconds"]
        length = f"{seconds / 60:.1f} minutes" if seconds >= 30 else f"{seconds:.0f} seconds"
        text += ("; " if text else "") + f"{found['false_events']} false events in {length} of other things"
    return text


def by_rate(own, rates):
    """Lines of a table, a row a camera: figures of the files as they are, and {frames a second: figures}."""
    rows = [("camera", "taken a second", "top-1 of whole clips", "right event", "wrong", "none", "false a minute")]
    for name, found in [("as filmed", own), *((f"{fps} fps", found) for fps, found in rates.items())]:
        share = "-" if found["whole_top1"] is None else f"{found['whole_top1']:.0%}"
        right = f"{found['right']} of {found['clips']}" if found["clips"] else "-"
        false = "-" if found["false_per_minute"] is None else f"{found['false_per_minute']:.1f}"
        rows.append((name, f"{found['steps_per_second']:.1f}", share, right, str(found["wrong"]), str(found["none"]), false))
    return columns(rows)


def per_clip(results):
    """Lines of a table, a row a clip: dicts of `Outcome`, or path, label and answer alone (networks that see whole clips)."""
    played = any("events" in row for row in results)
    rows = [("clip", "shows", "answer", *(("event", "events") if played else ()))]
    for row in results:
        named = (row["path"], row["label"] or "-", row["answer"] or "-")
        events = ", ".join(f"{what} at {when:.1f} s" for when, what in row["events"]) if played else ""
        rows.append((*named, *(("false" if row["other"] and row["events"] else row["result"], events) if played else ())))
    return columns(rows)
