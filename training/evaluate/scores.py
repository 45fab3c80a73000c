"""Figures from per-frame logits: accuracy, early recognition, confusion, events on a stream. Plain numpy."""
from __future__ import annotations

import numpy as np

from tsm_edge.errors import InputError


def finite(logits):
    """The logits as they are; networks whose weights diverged give none that can be compared.

    Raises
    ------
    InputError
    """
    if not np.isfinite(logits).all():
        raise InputError("the network's answers are no numbers", found=f"{np.mean(~np.isfinite(logits)):.0%} of the logits NaN or infinite",
                         expected="finite logits", do="train it again with a lower --lr: its weights have diverged")
    return logits


def clip_logits(per_frame, part=1.0):
    """Mean over the first `part` of the frames: [N, T, classes] -> [N, classes]."""
    frames = per_frame.shape[1]
    return per_frame[:, : max(1, int(np.ceil(part * frames - 1e-9)))].mean(1)


def top_k(logits, labels, k):
    """Share of rows whose label is among the k greatest: logits [N, classes], labels [N]."""
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return float((best == np.asarray(labels)[:, None]).any(1).mean())


def confusion(logits, labels):
    """Counts int64 [classes, classes]: row the truth, column the answer."""
    n = logits.shape[1]
    table = np.zeros((n, n), np.int64)
    np.add.at(table, (np.asarray(labels), logits.argmax(1)), 1)
    return table


def per_class(table, classes):
    """Rows of {class, clips, recall, precision, confused_with} of a confusion table."""
    rows = []
    for i, name in enumerate(classes):
        wrong = table[i].copy()
        wrong[i] = 0
        rows.append({
            "class": name, "clips": int(table[i].sum()),
            "recall": float(table[i, i] / table[i].sum()) if table[i].sum() else None,
            "precision": float(table[i, i] / table[:, i].sum()) if table[:, i].sum() else None,
            "confused_with": classes[int(wrong.argmax())] if wrong.max() > 0 else None,
        })
    return rows


def match_events(truth, found, seconds, *, lead=0.0, lag=1.5):
    """Compare the events of a stream with what was performed.

    An event belongs to the performed gesture during which (from `lead` seconds before its start to `lag` after its end) it
    starts; where two claim it, to one of its own label that has no event yet, else to one of its own label, else to the
    one that ended first.

    Parameters
    ----------
    truth : list of {"label", "start", "end"}, seconds, in order
    found : list of (time, label): starts of events, in order
    seconds : float
        Length of the stream.

    Returns
    -------
    dict
        exactly_one : share of gestures with exactly one event and that one right; recognised : with a right event at all;
        false_events, false_per_minute : wrong, doubled, or outside any gesture; delay : median seconds from the gesture's
        end to its first right event (negative: before it ended).
    """
    claims = [[] for _ in truth]
    false = 0
    for time, label in found:
        owners = [i for i, t in enumerate(truth) if t["start"] - lead <= time <= t["end"] + lag]
        if not owners:
            false += 1
        else:
            mine = [i for i in owners if truth[i]["label"] == label]
            waiting = [i for i in mine if all(other != label for _, other in claims[i])]
            claims[(waiting or mine or owners)[0]].append((time, label))
    exact, right, delays = 0, 0, []
    for t, mine in zip(truth, claims):
        good = [time for time, label in mine if label == t["label"]]
        exact += len(mine) == 1 and len(good) == 1
        right += bool(good)
        false += len(mine) - min(1, len(good))
        if good:
            delays.append(good[0] - t["end"])
    return {"gestures": len(truth), "seconds": float(seconds), "exactly_one": exact / len(truth) if truth else None,
            "recognised": right / len(truth) if truth else None, "false_events": false,
            "false_per_minute": 60 * false / seconds, "delay": float(np.median(delays)) if delays else None}
