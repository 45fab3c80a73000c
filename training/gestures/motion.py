"""How each gesture moves: tracks of poses over time.

A performance starts and ends at rest (hands below the picture or lying still at its lower edge). Between them the hand
comes in, makes the stroke that names the gesture, and goes away. **Coming and going are made alike**: a swipe to the left
is entered from below at its beginning and left to below at its end, with a relaxed hand, so that the film run backwards
is a swipe to the right and the way home is no swipe at all. Up and down strokes are entered and left by the side, or from
below, slower than the stroke and with a hand that is not flat.

Left, right, clockwise are the performer's own, filmed by a camera that does not mirror, as Jester has them (Materzynska et
al., "The Jester Dataset", 2019, and its clips): "Swiping Left" ends at a greater column of the picture, "Clockwise" is
counterclockwise for who looks at it. "Zooming In" opens the hand, "Zooming Out" closes it; "Pushing" comes nearer to the
camera, "Pulling" goes away; "Rolling Forward" goes down at the front, nearest to the camera.

Real strokes last 0.2 to 0.8 seconds. Some people move the whole hand, others turn the lower arm about the elbow (`swing`);
some wait before and after the stroke, some hold a pose for seconds.
"""
import numpy as np

from .hand import POSE_SIZE
from .labels import MIRRORED
from .others import RELAXED, nothing, other
from .track import ABSENT_Y, OPEN, Performance, Track, changed, fade, pose, smooth

#       thumb, index, middle, ring, little
TWO = (0.9, 0.0, 0.0, 0.92, 0.92)
BUNCH = (0.62, 0.60, 0.58, 0.60, 0.64)
THUMB_ONLY = (0.0, 0.98, 0.98, 0.98, 0.98)
PINCH_CLOSED = (0.62, 0.56, 0.93, 0.95, 0.95)
PINCH_OPEN = (0.0, 0.05, 0.93, 0.95, 0.95)


class Actor:
    """Draws performances at random.

    half_w, half_h : half of the visible field at the usual distance, in hands.
    others : gestures that are performed as "Doing other things", half of the times.
    """

    def __init__(self, rng, half_w=1.5, half_h=1.5, others=()):
        self.rng, self.half_w, self.half_h, self.others = rng, half_w, half_h, tuple(others)

    # small helpers
    def between(self, low, high):
        return float(self.rng.uniform(low, high))

    def chance(self, p):
        return bool(self.rng.random() < p)

    def angles(self, yaw=12, pitch=12, roll=10):
        return {"yaw": self.between(-yaw, yaw), "pitch": self.between(-pitch, pitch), "roll": self.between(-roll, roll)}

    def elbow(self):
        return (self.between(0.0, 0.6), self.between(1.3, 1.8), self.between(0.3, 1.1))

    def lasting(self, least, most):
        """Seconds, short ones as likely as long ones: log-uniform."""
        return float(np.exp(self.between(np.log(least), np.log(most))))

    def centre(self, x=0.35, y=0.25):
        if self.chance(0.15):  # nearer to the picture's edge, partly outside
            x, y = 1.7 * x, 1.7 * y
        return {"x": self.between(-x, x) * self.half_w, "y": self.between(-y, y) * self.half_h,
                "z": self.between(-0.2, 0.2)}

    def begin(self, first, handed=1, side=None, slow=None):
        """A track that rises, relaxed, from below to `first`. `side`: from that column instead. `slow`: within so many seconds."""
        relaxed = changed(first, flex=self.loose(), spread=0.1, y=self.half_h + self.between(0.45, 1.1))
        if self.chance(0.3):  # the shape is made before the hand is seen
            relaxed[6:13] = first[6:13]
        relaxed[2] += self.between(0.0, 0.3)
        relaxed[0] = relaxed[0] + self.between(-0.25, 0.25) if side is None else side
        if side is not None:
            relaxed[1] = first[1] + self.between(-0.2, 0.25)
        relaxed[3:6] += np.radians(self.rng.uniform(-25, 25, 3))
        track = Track(changed(relaxed, y=ABSENT_Y), handed)
        track.to(relaxed, 0.05).to(first, self.lasting(0.25, 0.8) if slow is None else slow)
        return track

    def loose(self):
        return tuple(np.clip(np.add(RELAXED, self.between(-0.2, 0.25)), 0, 1))

    def end(self, track, side=None, slow=None):
        """The way home, made like the way in."""
        other = self.begin(track.poses[-1], track.handed, side, slow)
        seconds = np.diff(other.times)[::-1]
        for target, s in zip(other.poses[::-1][1:], seconds):
            track.to(target, s)
        return track

    def pause(self, low=0.04, high=0.35):
        return self.between(low, high) if self.chance(0.65) else self.between(high, 1.4)

    # strokes
    def travel(self, label, first, last, seconds, sides=(None, None), slow=(None, None), way=None):
        """Rise to `first`, move to `last` within `seconds`, go home.

        slow : how many times slower than the stroke the hand comes and goes, up and down; None: as it likes.
        way : None, straight; or callable, shares of the stroke [n] -> poses [n, 16], from `first` to `last`.
        """
        pace = seconds / max(0.3, abs(last[1] - first[1]))  # of a stroke up or down, seconds a hand
        slow = [times and times * pace * (self.half_h + 0.8 - row[1]) for times, row in zip(slow, (first, last))]
        track = self.begin(first, side=sides[0], slow=slow[0]).hold(self.pause())
        start = track.duration
        track.to(last, seconds)
        if way is not None:
            def bend(t, u):
                v = smooth(u)
                return way(v) - (first + (last - first) * v[:, None])

            track.wave(start, track.duration, bend)
        stroke = (start, track.duration)
        self.end(track.hold(self.pause()), sides[1], slow[1])
        return Performance(label, [track], stroke)

    def _ways_in(self, label):
        """(sides, slow) of `travel` for a stroke, so that coming and going are no strokes themselves."""
        if label.endswith(("Left", "Right")):
            return (None, None), (None, None)
        # Up and down: by the side, or from below, slower than the stroke.
        if self.chance(0.5):
            return tuple(s * (self.half_w + 0.9) for s in self.rng.choice([-1, 1], 2)), (None, None)
        return (None, None), (self.between(1.4, 2.2), self.between(1.4, 2.2))

    def swing(self, label, flex, seconds, **shape):
        """The lower arm turns about the elbow: across through the front, or from upright to hanging."""
        across = label.endswith(("Left", "Right"))
        sign = -1 if label.endswith(("Right", "Up")) else 1
        length = self.between(1.2, 1.5)
        a, b = (-self.between(30, 85), self.between(30, 85)) if across else (-self.between(50, 88), self.between(15, 75))
        a, b = (np.radians(v) for v in ((a, b) if sign > 0 else (b, a)))
        tilt = np.radians(self.between(5, 45) if across else self.between(-30, 30))
        flick = np.radians(self.between(-25, 25))
        yaw = np.radians(self.between(0, 360))
        lift = self.between(0.3, 0.9) if across else self.between(-0.5, 0.35)
        place = self.centre(0.25, 0.12)
        elbow = np.array([place["x"] - 0.3 * sign * across, place["y"] + lift, place["z"] + 0.5 * length])
        base = pose(flex=flex, **shape)

        def way(v):
            angle, bent = a + (b - a) * v, flick * (2 * v - 1)
            out = np.repeat(base[None], len(v), 0)
            if across:
                arm, hand = (np.stack([np.sin(t) * np.cos(tilt), np.full(len(v), -np.sin(tilt)), -np.cos(t) * np.cos(tilt)], 1)
                             for t in (angle, angle + bent))
                out[:, 4], out[:, 5] = np.arcsin(-hand[:, 2]), np.arctan2(hand[:, 0], -hand[:, 1])
            else:
                arm, hand = (np.stack([-np.sin(t) * np.sin(tilt), np.sin(t) * np.cos(tilt), -np.cos(t)], 1)
                             for t in (angle, angle + bent))
                out[:, 4], out[:, 5] = np.pi / 2 + angle + bent, tilt  # from upright over the front to hanging
            out[:, 3] = yaw
            out[:, :3] = elbow + length * arm + 0.38 * hand
            out[:, 13:16] = -length * arm
            return out

        ends = way(np.array([0.0, 1.0]))
        return self.travel(label, ends[0], ends[1], seconds, *self._ways_in(label), way=way)

    def swipe(self, label, flex, reach, seconds, **shape):
        seconds = self.lasting(*seconds)
        if self.chance(0.45):
            return self.swing(label, flex, seconds, **shape)
        across = label.endswith(("Left", "Right"))
        sign = -1 if label.endswith(("Right", "Up")) else 1
        half = self.half_w if across else self.half_h
        a = sign * min(half * self.between(*reach), self.between(0.9, 1.6))
        drift = self.rng.uniform(-0.12, 0.12, 4) * self.half_h
        middle = self.between(-0.15, 0.15) * half
        place = self.centre(0.3, 0.22)
        angle = self.angles(60, 30, 20)
        aside = self.rng.choice([0, 0, 60, -60, 90, -90])  # fingers up, or to the side
        angle["roll"] += aside
        elbow = self.elbow() if not aside else (-np.sin(np.radians(aside)) * 1.5, self.between(0.2, 0.8), self.between(0.3, 0.9))
        base = pose(**place, **angle, flex=flex, elbow=elbow, **shape)
        lean = self.between(-30, 30) * sign
        first, last = base.copy(), base.copy()
        axis, other = (0, 1) if across else (1, 0)
        first[axis], last[axis] = middle - a, middle + a
        first[other] += drift[0]
        last[other] += drift[1]
        tilt = 5 if across else 4  # a swipe turns the hand somewhat, with the move or against it
        first[tilt] -= np.radians(lean)
        last[tilt] += np.radians(lean)
        show = self.travel(label, first, last, seconds, *self._ways_in(label))
        show.shape = "palm" if flex is OPEN and not aside else None
        return show

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
        show = self.travel(label, *((a, b) if nearer else (b, a)), self.lasting(0.25, 0.9))
        show.shape = "palm" if flex is OPEN and not back else None
        return show

    def zoom(self, label, closed, opened):
        into = label.startswith("Zooming In")
        base = pose(**self.centre(), **self.angles(35, 25, 25), elbow=self.elbow())
        a = changed(base, flex=np.clip(np.add(closed, self.rng.uniform(-0.06, 0.06, 5)), 0, 1), spread=0.0,
                    thumb=self.between(0.3, 0.5))
        b = changed(base, flex=np.clip(np.add(opened, self.rng.uniform(-0.03, 0.08, 5)), 0, 1),
                    spread=self.between(0.8, 1.2), thumb=self.between(0.9, 1.1))
        return self.travel(label, *((a, b) if into else (b, a)), self.between(0.4, 1.0))

    def turn(self, label):
        sign = 1 if label.endswith("Counterclockwise") else -1
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

    def still(self, label, held, seconds, shape=None):
        """A pose that is raised, held and lowered."""
        track = self.begin(held)
        begin = max(track.duration - 0.1, 0.0)
        track.hold(seconds)
        end = track.duration
        return Performance(label, [self.end(track)], (begin, end), held=True, shape=shape)

    def thumb(self, label):
        up = label.endswith("Up")
        # The fist lies on its side, palm or back to the camera; the thumb points up, or down.
        back = self.chance(0.4)
        roll = (-90 if up else 90) * (-1 if back else 1)
        base = pose(**self.centre(), yaw=(180 if back else 0) + self.between(-28, 28), pitch=self.between(-18, 22),
                    roll=roll + self.between(-18, 18), flex=THUMB_ONLY, spread=0.0,
                    thumb=self.between(1.1, 1.5),  # square to the fingers
                    elbow=(-np.sign(roll) * self.between(0.8, 1.4), self.between(0.3, 0.9) * (1 if up else 0.3),
                           self.between(0.5, 1.1)))
        return self.still(label, base, self.lasting(0.6, 3.5), "up" if up else "down")

    def stop(self, label):
        base = pose(**self.centre(0.35, 0.2), **self.angles(25, 15, 18), flex=OPEN, spread=self.between(0.0, 0.5),
                    thumb=self.between(0.2, 0.7), elbow=self.elbow())
        return self.still(label, base, self.lasting(0.6, 3.5), "palm")

    # choice
    def perform(self, label):
        """A new random performance of `label`."""
        left = self.chance(0.5)  # left-handed people make the mirrored label's mirror image
        name = MIRRORED[label] if left else label
        if label == "Doing other things" and self.others and self.chance(0.5):
            name = self.others[self.rng.integers(len(self.others))]
        show = self._stroke(name)
        show = show.mirrored() if left else show
        show.label = label
        return show

    def _stroke(self, name):
        if name.startswith("Swiping"):
            return self.swipe(name, OPEN, (0.35, 0.7), (0.2, 0.8), spread=self.between(0, 0.4))
        if name.startswith("Sliding"):
            return self.swipe(name, TWO, (0.32, 0.58), (0.2, 0.8), spread=self.between(0, 0.6), thumb=0.1)
        if name.endswith(("Hand Away", "Hand In")):
            return self.approach(name, OPEN, spread=self.between(0, 0.5))
        if name.startswith(("Pushing", "Pulling")):
            return self.approach(name, TWO, spread=self.between(0, 0.6), thumb=0.1)
        if name.startswith("Zooming"):
            return self.zoom(name, *((BUNCH, OPEN) if name.endswith("Full Hand") else (PINCH_CLOSED, PINCH_OPEN)))
        for start, make in (("Turning", self.turn), ("Rolling", self.roll), ("Shaking", self.shake),
                            ("Drumming", self.drum), ("Thumb", self.thumb), ("Stop", self.stop)):
            if name.startswith(start):
                return make(name)
        if name == "No gesture":
            return nothing(self)
        if name == "Doing other things":
            return other(self)
        raise KeyError(name)
