"""Poses and tracks: where a hand is at any time of a performance."""
import numpy as np

from .hand import POSE_SIZE
from .labels import MIRRORED

ABSENT_Y = 4.0  # hands, well below the lower edge
OPEN = (0.05, 0.03, 0.0, 0.02, 0.05)  # flex of thumb, index, middle, ring, little finger


def pose(x=0.0, y=0.0, z=0.0, *, yaw=0.0, pitch=0.0, roll=0.0, flex=OPEN, spread=0.2, thumb=0.5, elbow=(0.2, 1.7, 0.9)):
    """One pose row, float64 [16]; angles in degrees."""
    return np.array([x, y, z, *np.radians([yaw, pitch, roll]), *flex, spread, thumb, *elbow], float)


def changed(base, **new):
    """Copy of a pose with x, y, z, yaw, pitch, roll (degrees), flex, spread, thumb or elbow replaced."""
    out = base.copy()
    for key, value in new.items():
        if key in ("x", "y", "z"):
            out["xyz".index(key)] = value
        elif key in ("yaw", "pitch", "roll"):
            out[3 + ("yaw", "pitch", "roll").index(key)] = np.radians(value)
        else:
            out[{"flex": slice(6, 11), "spread": 11, "thumb": 12, "elbow": slice(13, 16)}[key]] = value
    return out


def mirrored(rows):
    """Pose rows [..., 16] seen in a mirror (to be drawn with the other hand)."""
    out = rows.copy()
    out[..., [0, 3, 5, 13]] *= -1
    return out


class Track:
    """Poses of one hand over time: key poses joined by minimum-jerk moves, and waves added between two times."""

    def __init__(self, start, handed=1):
        self.times, self.poses, self.waves, self.handed = [0.0], [start], [], handed

    @property
    def duration(self):
        return self.times[-1]

    def to(self, target, seconds):
        """Move to a pose within `seconds`."""
        self.times.append(self.times[-1] + float(seconds))
        self.poses.append(target)
        return self

    def hold(self, seconds):
        return self.to(self.poses[-1], seconds)

    def wave(self, start, end, function):
        """Add `function(seconds [k], fraction [k]) -> [k, 16]` between two times; it must be zero at both ends."""
        self.waves.append((start, end, function))
        return self

    def at(self, times):
        """Poses [n, 16] at times [n] (seconds); before the first and after the last the hand is still."""
        keys = np.asarray(self.times)
        rows = np.asarray(self.poses)
        i = np.clip(np.searchsorted(keys, times, "right") - 1, 0, max(len(keys) - 2, 0))
        j = np.minimum(i + 1, len(keys) - 1)
        u = np.clip((times - keys[i]) / np.maximum(keys[j] - keys[i], 1e-9), 0, 1)[:, None]
        out = rows[i] + (rows[j] - rows[i]) * smooth(u)
        for start, end, function in self.waves:
            inside = (times > start) & (times < end)
            if inside.any():
                t = times[inside] - start
                out[inside] += function(t, t / (end - start))
        return out


class Performance:
    """One gesture from rest to rest.

    Attributes
    ----------
    label : str
    hands : list of Track
    duration : float, seconds
    stroke : (float, float)
        When the movement (or the held pose) that names the gesture begins and ends.
    held : bool
        The gesture is a pose (or nothing): a part of the stroke shows it as well as the whole.
    shape : str or None
        Kind of photographed hand (people.KINDS) that can stand in for the drawn one.
    """

    def __init__(self, label, hands, stroke, held=False, shape=None):
        self.label, self.hands, self.stroke, self.held, self.shape = label, hands, stroke, held, shape
        self.duration = max(h.duration for h in hands)

    def mirrored(self):
        for hand in self.hands:
            hand.poses = [mirrored(p) for p in hand.poses]
            hand.waves = [(a, b, lambda t, u, f=f: mirrored(f(t, u))) for a, b, f in hand.waves]
            hand.handed = -hand.handed
        self.label = MIRRORED[self.label]
        return self


def smooth(u):
    """Share of the way after the share u of the time, in a minimum-jerk move (Flash and Hogan 1985)."""
    return u * u * u * (10 - 15 * u + 6 * u * u)


def fade(u, edge=0.18):
    """Weight 0 -> 1 -> 0 over u in [0, 1]."""
    v = np.clip(np.minimum(u, 1 - u) / edge, 0, 1)
    return v * v * (3 - 2 * v)


def sway(rng, scale):
    """A smooth, endless wander: returns `function(seconds [n]) -> [n, len(scale)]`."""
    scale = np.asarray(scale, float)
    rate = 2 * np.pi * rng.uniform(0.15, 1.3, (3, len(scale)))
    phase = rng.uniform(0, 2 * np.pi, (3, len(scale)))
    return lambda t: (np.sin(np.multiply.outer(t, rate) + phase).sum(1) / 1.7) * scale


def tremor(rng):
    """The small unrest of a living hand, for `Track.at(...) + tremor(times)`."""
    size = rng.uniform(0.3, 1.3)
    scale = np.array([0.02, 0.02, 0.03, 0.06, 0.05, 0.04, 0.04, 0.03, 0.03, 0.03, 0.03, 0.05, 0.05, 0.05, 0.05, 0.05])
    return sway(rng, scale[:POSE_SIZE] * size)
