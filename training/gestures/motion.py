"""How each gesture moves: tracks of poses over time.

A performance starts and ends at rest (hands below the picture or lying still at its lower edge). Between them the hand
comes in, makes the stroke that names the gesture, and goes away. **Coming and going are made alike and never retrace
the stroke**: a swipe to the left is entered from below on the right and left to below on the left, with a relaxed hand,
so that the film run backwards is a swipe to the right and the way home is no swipe at all.

Left, right, clockwise are those of the picture as the viewer sees it: "Swiping Left" ends at a smaller column.
"Zooming In" opens the hand, "Zooming Out" closes it; "Pushing" comes nearer to the camera, "Pulling" goes away;
"Rolling Forward" goes down at the front, nearest to the camera.
"""
import numpy as np

from .hand import POSE_SIZE
from .labels import MIRRORED
from .track import ABSENT_Y, OPEN, Performance, Track, changed, fade, pose

#       thumb, index, middle, ring, little
RELAXED = (0.35, 0.30, 0.36, 0.42, 0.46)
FIST = (0.85, 0.97, 0.97, 0.97, 0.97)
TWO = (0.9, 0.0, 0.0, 0.92, 0.92)
BUNCH = (0.62, 0.60, 0.58, 0.60, 0.64)
THUMB_ONLY = (0.0, 0.98, 0.98, 0.98, 0.98)
PINCH_CLOSED = (0.62, 0.56, 0.93, 0.95, 0.95)
PINCH_OPEN = (0.0, 0.05, 0.93, 0.95, 0.95)
POINT = (0.8, 0.0, 0.95, 0.95, 0.95)


class Actor:
    """Draws performances at random. `half_w`, `half_h`: half of the visible field at the usual distance, in hands."""

    def __init__(self, rng, half_w=1.5, half_h=1.5):
        self.rng, self.half_w, self.half_h = rng, half_w, half_h

    # small helpers
    def between(self, low, high):
        return float(self.rng.uniform(low, high))

    def chance(self, p):
        return bool(self.rng.random() < p)

    def angles(self, yaw=12, pitch=12, roll=10):
        return {"yaw": self.between(-yaw, yaw), "pitch": self.between(-pitch, pitch), "roll": self.between(-roll, roll)}

    def elbow(self):
        return (self.between(0.0, 0.6), self.between(1.3, 1.8), self.between(0.3, 1.1))

    def centre(self, x=0.35, y=0.25):
        return {"x": self.between(-x, x) * self.half_w, "y": self.between(-y, y) * self.half_h,
                "z": self.between(-0.2, 0.2)}

    def begin(self, first, handed=1, side=None):
        """A track that rises, relaxed, from below to `first`. `side`: from that far beside it."""
        relaxed = changed(first, flex=self.loose(), spread=0.1, y=self.half_h + 1.0)
        relaxed[2] += self.between(0.0, 0.3)
        relaxed[0] += self.between(-0.25, 0.25) if side is None else side
        if side is not None:
            relaxed[1] = first[1] + self.between(-0.2, 0.25)
        relaxed[3:6] += np.radians(self.rng.uniform(-25, 25, 3))
        track = Track(changed(relaxed, y=ABSENT_Y), handed)
        track.to(relaxed, 0.05).to(first, self.between(0.3, 0.6))
        return track

    def loose(self):
        return tuple(np.clip(np.add(RELAXED, self.between(-0.2, 0.25)), 0, 1))

    def end(self, track, side=None):
        """The way home, made like the way in."""
        other = self.begin(track.poses[-1], track.handed, side)
        seconds = np.diff(other.times)[::-1]
        for target, s in zip(other.poses[::-1][1:], seconds):
            track.to(target, s)
        return track

    def pause(self, low=0.06, high=0.4):
        return self.between(low, high)

    # strokes
    def travel(self, label, first, last, seconds, sides=(None, None)):
        """Rise to `first`, move to `last` within `seconds`, go home."""
        track = self.begin(first, side=sides[0]).hold(self.pause())
        start = track.duration
        track.to(last, seconds)
        stroke = (start, track.duration)
        self.end(track.hold(self.pause()), sides[1])
        return Performance(label, [track], stroke)

    def swipe(self, label, flex, reach, seconds, **shape):
        across = label.endswith(("Left", "Right"))
        sign = -1 if label.endswith(("Left", "Up")) else 1
        half = self.half_w if across else self.half_h
        a = sign * min(half * self.between(*reach), 1.35)
        drift = self.rng.uniform(-0.12, 0.12, 4) * self.half_h
        middle = self.between(-0.15, 0.15) * half
        place = self.centre(0.3, 0.22)
        base = pose(**place, **self.angles(30, 20, 15), flex=flex, elbow=self.elbow(), **shape)
        lean = self.between(-22, 22) * sign
        first, last = base.copy(), base.copy()
        axis, other = (0, 1) if across else (1, 0)
        first[axis], last[axis] = middle - a, middle + a
        first[other] += drift[0]
        last[other] += drift[1]
        tilt = 5 if across else 4  # a swipe turns the hand somewhat, with the move or against it
        first[tilt] -= np.radians(lean)
        last[tilt] += np.radians(lean)
        # Across: in and out from below. Up and down: in and out by the side, so that neither is an up or down stroke.
        sides = (None, None) if across else tuple(s * (self.half_w + 0.9) for s in self.rng.choice([-1, 1], 2))
        return self.travel(label, first, last, self.between(*seconds), sides)

    def approach(self, label, flex, **shape):
        nearer = label.startswith("Pushing")
        far, near = self.between(0.25, 0.7), self.between(-1.0, -0.65)
        back = 180 if self.chance(0.35) else 0
        angle = self.angles(25, 15, 15)
        angle["yaw"] += back
        place = self.centre(0.3, 0.15)
        a = pose(**{**place, "z": far}, **angle, flex=flex, elbow=self.elbow(), **shape)
        b = changed(a, z=near, x=a[0] + self.between(-0.1, 0.1), y=a[1] + self.between(-0.15, 0.15))
        b[3:6] += np.radians(self.rng.uniform(-10, 10, 3))
        return self.travel(label, *((a, b) if nearer else (b, a)), self.between(0.4, 1.0))

    def zoom(self, label, closed, opened):
        into = label.startswith("Zooming In")
        base = pose(**self.centre(), **self.angles(35, 25, 25), elbow=self.elbow())
        a = changed(base, flex=np.clip(np.add(closed, self.rng.uniform(-0.06, 0.06, 5)), 0, 1), spread=0.0,
                    thumb=self.between(0.3, 0.5))
        b = changed(base, flex=np.clip(np.add(opened, self.rng.uniform(-0.03, 0.08, 5)), 0, 1),
                    spread=self.between(0.8, 1.2), thumb=self.between(0.9, 1.1))
        return self.travel(label, *((a, b) if into else (b, a)), self.between(0.4, 1.0))

    def turn(self, label):
        sign = -1 if label.endswith("Counterclockwise") else 1
        sweep = self.between(45, 70)
        grip = self.between(0.12, 0.4)
        base = pose(**self.centre(), yaw=self.between(-15, 15), pitch=self.between(15, 65), spread=self.between(0.5, 1),
                    thumb=self.between(0.6, 1), flex=(grip * 0.6, grip, grip, grip, grip),
                    elbow=(self.between(-0.2, 0.4), self.between(0.8, 1.5), self.between(0.9, 1.5)))
        middle = self.between(-15, 15)
        return self.travel(label, changed(base, roll=middle - sign * sweep), changed(base, roll=middle + sign * sweep),
                           self.between(0.45, 0.95))

    def roll(self, label):
        sign = 1 if label.endswith("Forward") else -1
        turns, rate = self.between(1.75, 3.0), self.between(1.2, 2.0)
        seconds, start = turns / rate, self.between(0, 2 * np.pi)
        tall, deep = self.between(0.28, 0.42), self.between(0.5, 0.75)
        fingers = self.between(0.1, 0.5)
        place = self.centre(0.2, 0.15)
        hands = []
        two = self.chance(0.65)
        for k in range(1 + two):
            side = 1 - 2 * k
            base = pose(**place, yaw=180 + self.between(-15, 15), pitch=self.between(-15, 15),
                        roll=side * (82 + self.between(-14, 14)), flex=(0.2, fingers, fingers, fingers, fingers),
                        elbow=(-side * self.between(1.2, 1.6), self.between(0.3, 0.8), self.between(0.2, 0.6)),
                        thumb=0.3, spread=0.0)
            base[0] -= side * 0.28 * two
            base[1] += 0.1 * self.half_h
            # Drawn as the other hand when k = 1: a mirrored pose has its roll and elbow turned already.
            track = self.begin(base, handed=side)
            begin = track.duration
            phase = start + np.pi * k

            def circle(t, u, phase=phase):
                angle = phase + sign * 2 * np.pi * rate * t
                out = np.zeros((len(t), POSE_SIZE))
                weight = fade(u, 0.12)
                out[:, 1] = -tall * np.cos(angle) * weight
                out[:, 2] = -deep * np.sin(angle) * weight
                out[:, 4] = -0.35 * np.sin(angle) * weight
                return out

            track.wave(begin, begin + seconds, circle).hold(seconds + self.pause(0, 0.1))
            hands.append((self.end(track), begin))
        if two:  # both must start to roll together
            late = hands[0][1] - hands[1][1]
            shift = hands[0 if late < 0 else 1][0]
            shift.times = [shift.times[0]] + [t + abs(late) for t in shift.times[1:]]
            shift.waves = [(a + abs(late), b + abs(late), f) for a, b, f in shift.waves]
        begin = max(b for _, b in hands)
        return Performance(label, [h for h, _ in hands], (begin, begin + seconds))

    def shake(self, label):
        seconds, rate, size = self.between(0.9, 1.7), self.between(1.7, 3.0), self.between(18, 32)
        base = pose(**self.centre(0.35, 0.2), **self.angles(20, 12, 12), flex=OPEN, spread=self.between(0.2, 0.7),
                    elbow=self.elbow())
        slide = self.between(0.1, 0.22)
        track = self.begin(base)
        begin = track.duration
        phase = self.rng.choice([0, np.pi])

        def wag(t, u):
            out = np.zeros((len(t), POSE_SIZE))
            swing = np.sin(2 * np.pi * rate * t + phase) * fade(u, 0.12)
            out[:, 5], out[:, 0] = np.radians(size) * swing, slide * swing
            return out

        track.wave(begin, begin + seconds, wag).hold(seconds)
        return Performance(label, [self.end(track)], (begin, begin + seconds))

    def drum(self, label):
        seconds, rate = self.between(1.0, 1.8), self.between(1.6, 2.8)
        base = pose(**self.centre(0.3, 0.2), yaw=self.between(-20, 20), pitch=self.between(5, 55),
                    roll=self.between(-20, 20), flex=(0.2, 0.15, 0.15, 0.15, 0.15), spread=self.between(0.5, 1.0),
                    elbow=self.elbow())
        track = self.begin(base)
        begin = track.duration
        order = np.array([0.5, 0, 1, 2, 3]) * self.rng.choice([-1, 1]) * 2 * np.pi / self.between(4, 5.5)
        depth = np.array([0.12, 0.42, 0.42, 0.42, 0.42]) * self.between(0.8, 1.15)

        def taps(t, u):
            out = np.zeros((len(t), POSE_SIZE))
            lift = 0.5 - 0.5 * np.cos(2 * np.pi * rate * t[:, None] - order)
            out[:, 6:11] = depth * lift ** 1.3 * fade(u, 0.1)[:, None]
            return out

        track.wave(begin, begin + seconds, taps).hold(seconds)
        return Performance(label, [self.end(track)], (begin, begin + seconds))

    def still(self, label, held, seconds):
        """A pose that is raised, held and lowered."""
        track = self.begin(held)
        begin = max(track.duration - 0.1, 0.0)
        track.hold(seconds)
        end = track.duration
        return Performance(label, [self.end(track)], (begin, end))

    def thumb(self, label):
        up = label.endswith("Up")
        # The fist lies on its side, palm or back to the camera; the thumb points up, or down.
        back = self.chance(0.4)
        roll = (-90 if up else 90) * (-1 if back else 1)
        base = pose(**self.centre(), yaw=(180 if back else 0) + self.between(-22, 22), pitch=self.between(-15, 20),
                    roll=roll + self.between(-14, 14), flex=THUMB_ONLY, spread=0.0,
                    thumb=self.between(1.1, 1.5),  # square to the fingers
                    elbow=(-np.sign(roll) * self.between(0.8, 1.4), self.between(0.3, 0.9) * (1 if up else 0.3),
                           self.between(0.5, 1.1)))
        return self.still(label, base, self.between(0.7, 1.6))

    def stop(self, label):
        base = pose(**self.centre(0.35, 0.2), **self.angles(14, 10, 10), flex=OPEN, spread=self.between(0.0, 0.35),
                    thumb=self.between(0.2, 0.7), elbow=self.elbow())
        return self.still(label, base, self.between(0.8, 1.7))

    def nothing(self, label):
        seconds = self.between(1.6, 3.2)
        if self.chance(0.55):
            return Performance(label, [Track(pose(y=ABSENT_Y)).hold(seconds)], (0.0, seconds))
        # A hand that lies still at the lower edge.
        low = pose(self.between(-0.8, 0.8) * self.half_w, self.half_h + self.between(-0.3, 0.15),
                   self.between(0, 0.3), yaw=self.between(0, 360), pitch=self.between(-40, 40),
                   roll=self.between(-60, 60), flex=self.loose(), elbow=self.elbow())
        track = Track(changed(low, y=self.half_h + 1.2)).to(low, self.between(0.4, 0.9))
        begin = track.duration
        track.hold(seconds)
        return Performance(label, [track.to(track.poses[0], self.between(0.4, 0.9))], (begin, begin + seconds))

    def other(self, label):
        """Movements that are none of the named ones: wandering, scratching, circling, grasping, pointing."""
        rng = self.rng
        kind = rng.choice(["wander", "scratch", "circle", "grasp", "point", "raise"])
        # A flat hand that only rises is a stop sign: the open hand is left to circling and grasping.
        flex = {"point": POINT, "scratch": RELAXED, "raise": (RELAXED, FIST, POINT)[rng.integers(3)]}.get(
            kind, (OPEN, RELAXED, FIST, POINT)[rng.integers(4)])
        base = pose(**self.centre(0.4, 0.3), **self.angles(60, 30, 40), flex=flex, spread=self.between(0, 0.5),
                    elbow=self.elbow())
        if kind == "scratch":
            base[1] = -self.between(0.3, 0.7) * self.half_h
            base[2] = 0.3
            base[3] += np.pi * self.chance(0.6)
        track = self.begin(base)
        begin = track.duration
        seconds = self.between(1.0, 1.8)
        if kind == "wander":
            seconds, points = 0.0, rng.integers(3, 6)
            for _ in range(points):
                target = base.copy()
                target[:2] = rng.uniform(-0.6, 0.6, 2) * (self.half_w, self.half_h)
                target[2] = self.between(-0.3, 0.4)
                target[3:6] += np.radians(rng.uniform(-40, 40, 3))
                target[6:11] = np.clip(rng.uniform(0.3, 0.8) + rng.uniform(-0.15, 0.15, 5), 0, 1)
                track.to(target, self.between(0.35, 0.6))
        elif kind == "raise":
            track.hold(0.02)
        else:
            rate, size = self.between(0.8, 1.6), self.between(0.25, 0.45)
            if kind == "grasp":  # open and shut at least twice, or it would be a zoom
                rate = self.between(2.2, 3.2) / seconds

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

            track.wave(begin, begin + seconds, move).hold(seconds)
        end = track.duration
        return Performance(label, [self.end(track)], (begin * 0.5, end))

    # choice
    def perform(self, label):
        """A new random performance of `label`."""
        left = self.chance(0.5)  # left-handed people make the mirrored label's mirror image
        name = MIRRORED[label] if left else label
        show = self._stroke(name)
        return show.mirrored() if left else show

    def _stroke(self, name):
        if name.startswith("Swiping"):
            return self.swipe(name, OPEN, (0.42, 0.7), (0.35, 0.85), spread=self.between(0, 0.4))
        if name.startswith("Sliding"):
            return self.swipe(name, TWO, (0.32, 0.58), (0.35, 0.9), spread=self.between(0, 0.6), thumb=0.1)
        if name.endswith(("Hand Away", "Hand In")):
            return self.approach(name, OPEN, spread=self.between(0, 0.5))
        if name.startswith(("Pushing", "Pulling")):
            return self.approach(name, TWO, spread=self.between(0, 0.6), thumb=0.1)
        if name.startswith("Zooming"):
            return self.zoom(name, *((BUNCH, OPEN) if name.endswith("Full Hand") else (PINCH_CLOSED, PINCH_OPEN)))
        for start, make in (("Turning", self.turn), ("Rolling", self.roll), ("Shaking", self.shake),
                            ("Drumming", self.drum), ("Thumb", self.thumb), ("Stop", self.stop),
                            ("No gesture", self.nothing), ("Doing other", self.other)):
            if name.startswith(start):
                return make(name)
        raise KeyError(name)
