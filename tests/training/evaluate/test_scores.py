"""Figures against naive loops and cases made by hand."""
import math

import numpy as np
import pytest

from tsm_edge.training.evaluate.scores import clip_logits, confusion, match_events, per_class, top_k

RNG = np.random.default_rng(4)
LOGITS, LABELS = RNG.normal(size=(60, 7, 6)).astype(np.float32), RNG.integers(0, 6, 60)


@pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.5, 1.0])
def test_clip_logits_average_the_first_frames(part):
    n = max(1, math.ceil(part * 7))
    for i in range(60):
        wanted = [sum(float(LOGITS[i, t, c]) for t in range(n)) / n for c in range(6)]
        assert np.allclose(clip_logits(LOGITS, part)[i], wanted, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_counts_labels_among_the_greatest(k):
    whole, right = LOGITS.mean(1), 0
    for row, label in zip(whole, LABELS):
        right += sum(value > row[label] for value in row) < k
    assert top_k(whole, LABELS, k) == pytest.approx(right / 60)


def test_confusion_and_classes_equal_counting():
    whole = LOGITS.mean(1)
    answers = [max(range(6), key=lambda c: row[c]) for row in whole]
    table = confusion(whole, LABELS)
    names = [f"c{i}" for i in range(6)]
    for truth in range(6):
        for answer in range(6):
            assert table[truth, answer] == sum(a == answer and t == truth for a, t in zip(answers, LABELS))
    for i, row in enumerate(per_class(table, names)):
        hits = sum(a == t == i for a, t in zip(answers, LABELS))
        assert row["class"] == names[i] and row["clips"] == sum(LABELS == i)
        assert row["recall"] == pytest.approx(hits / sum(LABELS == i))
        assert row["precision"] == pytest.approx(hits / answers.count(i))


def test_a_class_without_clips_has_no_recall():
    rows = per_class(np.array([[2, 0], [0, 0]]), ["a", "b"])
    assert rows[1]["recall"] is None and rows[1]["precision"] is None and rows[0]["confused_with"] is None


TRUTH = [{"label": "left", "start": 2.0, "end": 3.0}, {"label": "right", "start": 6.0, "end": 7.0}]


@pytest.mark.parametrize("found, exactly, recognised, false, delay", [
    ([(2.8, "left"), (7.5, "right")], 1.0, 1.0, 0, 0.15),          # early by 0.2 s, late by 0.5 s
    ([], 0.0, 0.0, 0, None),
    ([(2.8, "left")], 0.5, 0.5, 0, -0.2),
    ([(2.8, "right"), (7.0, "right")], 0.5, 0.5, 1, 0.0),           # a wrong answer
    ([(2.8, "left"), (3.4, "left"), (7.0, "right")], 0.5, 1.0, 1, -0.1),  # doubled
    ([(2.5, "right"), (2.9, "left"), (7.0, "right")], 0.5, 1.0, 1, -0.05),  # wrong first, then right
    ([(0.5, "left"), (2.9, "left"), (7.0, "right"), (9.0, "left")], 1.0, 1.0, 2, -0.05),  # where nothing was performed
    ([(4.5, "left"), (4.6, "left")], 0.5, 0.5, 1, 1.5),             # the last moment that counts, and after it
])
def test_events_are_matched_as_by_hand(found, exactly, recognised, false, delay):
    result = match_events(TRUTH, found, 30.0)
    assert (result["exactly_one"], result["recognised"], result["false_events"]) == (exactly, recognised, false)
    assert result["false_per_minute"] == 2 * false and result["gestures"] == 2
    assert result["delay"] == (None if delay is None else pytest.approx(delay))


def test_an_event_goes_to_the_gesture_of_its_label_where_two_claim_it():
    close = [{"label": "left", "start": 2.0, "end": 3.0}, {"label": "right", "start": 3.5, "end": 4.5},
             {"label": "right", "start": 5.0, "end": 6.0}]
    result = match_events(close, [(2.9, "left"), (4.2, "right"), (5.5, "right")], 60.0)
    assert result["exactly_one"] == 1.0 and result["false_events"] == 0
    assert match_events(close, [(2.9, "left"), (4.2, "left")], 60.0)["false_events"] == 1  # doubled, not the next one's


def test_a_stream_without_gestures_has_false_events_only():
    result = match_events([], [(1.0, "left")], 60.0)
    assert result["exactly_one"] is None and result["false_per_minute"] == 1.0
