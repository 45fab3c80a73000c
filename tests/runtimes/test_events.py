"""Scores become events: hysteresis, hold, masks, and the published demo's smoothing as one configuration."""
import numpy as np
import pytest

from tsm_edge.card import JESTER_DEMO
from tsm_edge.errors import InputError
from tsm_edge.jester import CLASSES
from tsm_edge.runtimes.events import GestureEvents
from tsm_edge.runtimes.interface import Result

NAMES = ["nothing", "left", "right", "stop"]
BARE = {"window": 1, "hold": 1, "background": [0]}


def logits(index, strength=5.0, n=4):
    row = np.zeros(n)
    row[index] = strength
    return row


def feed(events, indices, **options):
    """[(kind, label, frame)] of single-class frames."""
    out = []
    for index in indices:
        out += events.update(logits(index, **options))
    out += events.finish()
    return [(e.kind, e.label, e.start_frame if e.kind == "start" else e.end_frame) for e in out]


def reference_smoothing(rows, masked=(7, 8, 21, 22, 3)):
    """The published demo's rule, from its description: label of every frame. rows: logits [T, 27]."""
    shown, labels = [2, 2], []
    for t in range(len(rows)):
        index = int(np.sum(rows[max(0, t - 11):t + 1], axis=0).argmax())
        if index in masked:
            index = shown[-1]
        if index == 0:
            index = 2
        if index != shown[-1] and shown[-1] != shown[-2]:
            index = shown[-1]
        shown.append(index)
        labels.append(index)
    return labels


@pytest.mark.parametrize("seed", range(8))
def test_one_configuration_is_the_published_demos_smoothing(seed):
    random = np.random.default_rng(seed)
    drift = np.cumsum(random.normal(size=(400, 27)), axis=0) * 0.3
    drift -= np.linspace(0, 0.9, 400)[:, None] * drift  # or one class wins in the end
    rows = drift + random.normal(size=drift.shape) * random.choice([0.5, 3])
    if seed % 2:  # masked and merged classes often on top
        rows[:, [0, 3, 7, 21]] += 2
    events, labels, seen = GestureEvents(CLASSES, JESTER_DEMO), [], []
    for row in rows:
        seen += events.update(row)
        labels.append(events.label_index)
    want = reference_smoothing(rows)
    assert labels == want and len(set(want)) > 2
    seen += events.finish()
    covered = np.full(len(rows), 2)
    for event in seen:
        if event.kind == "end":
            covered[event.start_frame:event.end_frame] = event.index
    assert covered.tolist() == want, "events cover exactly the frames of their label"


def test_an_event_spans_the_frames_of_its_label():
    assert feed(GestureEvents(NAMES, BARE), [0, 0, 1, 1, 1, 0, 2, 2]) == [
        ("start", "left", 2), ("end", "left", 5), ("start", "right", 6), ("end", "right", 8)]


def test_a_single_odd_frame_is_smoothed_away_by_the_window():
    events = GestureEvents(NAMES, {**BARE, "window": 4})
    assert feed(events, [0, 0, 0, 0, 1, 0, 0, 0]) == []


def test_hold_keeps_a_new_label_for_that_many_frames():
    changes = feed(GestureEvents(NAMES, {**BARE, "hold": 3}), [0, 1, 2, 2, 2, 0, 0])
    assert changes == [("start", "left", 1), ("end", "left", 4), ("start", "right", 4), ("end", "right", 7)]


def test_hysteresis_starts_at_on_and_ends_below_off():
    events, out = GestureEvents(NAMES, {**BARE, "on": 0.8, "off": 0.5}), []
    for score in (0.6, 0.7, 0.85, 0.6, 0.55, 0.4, 0.7, 0.9):
        odds = np.full(4, (1 - score) / 3)
        odds[1] = score
        out += [(e.kind, e.start_frame, e.end_frame, round(e.score, 2)) for e in events.update(np.log(odds))]
    assert out == [("start", 2, None, 0.85), ("end", 2, 5, 0.85), ("start", 7, None, 0.9)]


def test_merged_classes_are_judged_together():
    events = GestureEvents(NAMES, {**BARE, "merge": {"2": 1}, "on": 0.7})
    odds = np.array([0.05, 0.4, 0.5, 0.05])
    started, = events.update(np.log(odds))
    assert started.label == "left" and started.score == pytest.approx(0.9, abs=1e-6)


def result(index, reset=False, skipped=False):
    row = logits(index).astype(np.float32)
    return Result(NAMES[index], index, 1.0, row, row, reset, skipped, {})


def test_skipped_frames_change_nothing_and_a_reset_ends_the_event():
    events = GestureEvents(NAMES, {**BARE, "window": 3})
    started, = events.update(result(1), 1.0)
    assert events.update(result(2, skipped=True), 1.1) == [] and events.frame == 0
    ended, begun = events.update(result(2, reset=True), 9.0)
    assert (ended.kind, ended.label, ended.end) == ("end", "left", 1.0) and (begun.label, begun.start) == ("right", 9.0)


def test_times_are_the_frames_own_and_else_follow_the_rate():
    events = GestureEvents(NAMES, BARE, fps=10)
    events.update(logits(1))
    events.update(logits(1))
    ended, = events.update(logits(0))
    assert (ended.start, ended.end) == (0.0, pytest.approx(0.2))
    assert [e.start for e in GestureEvents(NAMES, BARE).over([(3.5, logits(1)), (3.6, logits(0))])] == [3.5, 3.5]


def test_a_models_events_follow_the_sources_rate_else_the_models(onnx_bundle):
    from tsm_edge.runtimes import load

    model = load(onnx_bundle)  # made for 15 frames a second
    for fps, period in ((0.0, 1 / 15), (4.0, 0.25)):
        events = model.events(fps)
        events.update(np.array([0, 9, 0, 0, 0]), 2.0)
        assert events.finish()[0].end == pytest.approx(2.0 + period)


def test_memory_does_not_grow_with_the_stream():
    events = GestureEvents(NAMES, {**BARE, "window": 12})
    for t in range(2000):
        events.update(logits(t % 4))
    assert len(events._logits) == 12 and len(vars(events)) < 25


@pytest.mark.parametrize("config", [{"window": 0}, {"hold": 0}, {"on": 0.2, "off": 0.5}, {"on": 2}, {"ignore": [9]},
                                    {"merge": {"0": 77}}, {"background": ["x"]}, {"merge": [1, 2]}, {"window": "many"}])
def test_configurations_that_cannot_be_are_refused(config):
    with pytest.raises(InputError) as error:
        GestureEvents(NAMES, config)
    assert error.value.found and "window" in error.value.expected and error.value.do
