"""What people do when they perform no gesture: nothing, or other things."""
import numpy as np

from .hand import POSE_SIZE
from .track import ABSENT_Y, OPEN, Performance, Track, changed, fade, pose

#       thumb, index, middle, ring, little
RELAXED = (0.35, 0.30, 0.36, 0.42, 0.46)
FIST = (0.85, 0.97, 0.97, 0.97, 0.97)
POINT = (0.8, 0.0, 0.95, 0.95, 0.95)
KINDS = ("wander", "scratch", "circle", "grasp", "point", "raise", "pose", "reach")


def nothing(actor):
    """No hand in the picture, or one that lies still at its lower edge."""
    label, seconds = "No gesture", actor.between(1.6, 3.2)
    if actor.chance(0.5):
        return Performance(label, [Track(pose(y=ABSENT_Y)).hold(seconds)], (0.0, seconds), held=True)
    low = pose(actor.between(-0.8, 0.8) * actor.half_w, actor.half_h + actor.between(-0.3, 0.15),
               actor.between(0, 0.3), yaw=actor.between(0, 360), pitch=actor.between(-40, 40),
               roll=actor.between(-60, 60), flex=actor.loose(), elbow=actor.elbow())
    track = Track(changed(low, y=actor.half_h + 1.2)).to(low, actor.between(0.4, 0.9))
    begin = track.duration
    track.hold(seconds)
    return Performance(label, [track.to(track.poses[0], actor.between(0.4, 0.9))], (begin, begin + seconds), held=True)


def _shape(actor, kind):
    """Flex of the fingers. A flat hand that only rises is a stop sign: the open hand is left to circling and grasping."""
    rng = actor.rng
    if kind == "point":
        return POINT
    if kind == "scratch":
        return RELAXED
    if kind in ("raise", "reach"):
        return (RELAXED, FIST, POINT)[rng.integers(3)]
    if kind == "pose":  # any fingers, but neither all nor the thumb alone
        shut = rng.random(5) < 0.5
        shut[1:] = shut[1:] if 0 < shut[1:].sum() < 4 else (0, 0, 1, 1)
        return tuple(np.where(shut, 0.95, 0.03))
    return (OPEN, RELAXED, FIST, POINT)[rng.integers(4)]


def other(actor):
    """Movements that are none of the named ones."""
    rng = actor.rng
    kind = rng.choice(KINDS)
    flex = _shape(actor, kind)
    base = pose(**actor.centre(0.4, 0.3), **actor.angles(60, 30, 40), flex=flex, spread=actor.between(0, 0.5),
                elbow=actor.elbow())
    if kind == "scratch":
        base[1] = -actor.between(0.3, 0.7) * actor.half_h
        base[2] = 0.3
        base[3] += np.pi * actor.chance(0.6)
    track = actor.begin(base)
    begin = track.duration
    if kind == "wander":
        _wander(actor, track, base)
    elif kind == "raise":
        track.hold(0.02)
    elif kind == "pose":
        track.hold(actor.lasting(0.6, 3.0))
    elif kind == "reach":  # to something at the side, and back: slowly
        aside = changed(base, x=rng.choice([-1, 1]) * actor.half_w * actor.between(0.6, 1.1), z=actor.between(-0.2, 0.5))
        track.to(aside, actor.between(0.7, 1.4)).hold(actor.between(0.1, 0.8)).to(base, actor.between(0.7, 1.4))
    else:
        _busy(actor, track, kind, flex)
    shape = "other" if kind == "pose" else None
    return Performance("Doing other things", [actor.end(track)], (begin * 0.5, track.duration), shape=shape)


def _wander(actor, track, base):
    rng = actor.rng
    for _ in range(rng.integers(3, 6)):
        target = base.copy()
        target[:2] = rng.uniform(-0.6, 0.6, 2) * (actor.half_w, actor.half_h)
        target[2] = actor.between(-0.3, 0.4)
        target[3:6] += np.radians(rng.uniform(-40, 40, 3))
        target[6:11] = np.clip(rng.uniform(0.3, 0.8) + rng.uniform(-0.15, 0.15, 5), 0, 1)
        track.to(target, actor.between(0.35, 0.6))


def _busy(actor, track, kind, flex):
    """Circle, scratch, grasp or point, on the spot."""
    seconds = actor.between(1.0, 1.8)
    rate, size = actor.between(0.8, 1.6), actor.between(0.25, 0.45)
    if kind == "grasp":  # open and shut at least twice, or it would be a zoom
        rate = actor.between(2.2, 3.2) / seconds

    def move(t, u):
        out = np.zeros((len(t), POSE_SIZE))
        angle = 2 * np.pi * rate * t
        weight = fade(u)
        if kind == "circle":
            out[:, 0], out[:, 1] = size * np.cos(angle) * weight, size * np.sin(angle) * weight
        elif kind == "scratch":
            rub = np.sin(2 * angle) * weight
            out[:, 1], out[:, 7:11] = 0.1 * rub, 0.2 * rub[:, None]
        elif kind == "grasp":
            out[:, 6:11] = ((0.5 - 0.5 * np.cos(angle)) * weight * (-0.5 if flex is FIST else 0.6))[:, None]
        else:
            out[:, 0], out[:, 2] = 0.1 * np.sin(angle) * weight, 0.3 * np.sin(angle + 1) * weight
        return out

    begin = track.duration
    track.wave(begin, begin + seconds, move).hold(seconds)
