"""Rendered gestures: an articulated hand performs Jester's 27 labels before any background. Numpy and OpenCV only.

>>> from tsm_edge.training.gestures.clips import render_clip
>>> clip = render_clip("Swiping Left", n_frames=36, size=(128, 128), seed=7, fps=12)   # uint8 [36, 128, 128, 3] RGB

Everything follows from the seed. The seed's range is the split (see `split_of`), and the splits never share a kind of
background. Directions are the performer's own, before a camera that does not mirror (motion.py has the details).
"""
from typing import NamedTuple

import cv2
import numpy as np

from tsm_edge.cli import choose
from tsm_edge.errors import InputError

from . import people
from . import photos as photographs
from .cutouts import CutOut, moments
from .draw import Camera, Look, hand_parts, paint
from .labels import CLASSES, CORE_CLASSES, MIRRORED, REVERSED  # noqa: F401
from .motion import Actor
from .scene import FAMILIES, Lens, Mover, Person, Skin, background, recompressed
from .targets import TARGETS, hand_targets  # noqa: F401
from .track import ABSENT_Y, Performance, Track, pose, sway, tremor

SPLITS = {"train": (0, 100_000_000), "val": (100_000_000, 110_000_000), "test": (110_000_000, 120_000_000)}
"""Seeds [first, end) of each split."""


def split_of(seed):
    """Name of the split a seed belongs to: "train", "val" or "test".

    Raises
    ------
    InputError
    """
    for name, (first, end) in SPLITS.items():
        if first <= seed < end:
            return name
    raise InputError("seed outside all splits", found=seed, expected=SPLITS, do="pick a seed from one of these ranges")


class Setting(NamedTuple):
    """What else than drawn backgrounds and square pictures there is.

    photos : folders of photographs, behind three of four hands.
    people : a file of people.py: its scenes are photographs too, its hands stand in for half of the drawn ones that they can.
    cameras : the pictures are drawn as cameras are shaped (4:3, 16:9, some upright) and squashed to the size asked for.
    others : gestures that are performed as "Doing other things", half of the times.
    """

    photos: tuple = ()
    people: str = ""
    cameras: bool = False
    others: tuple = ()


PLAIN = Setting()
"""Nothing else."""

SHAPES = (4 / 3, 16 / 9, 3 / 4, 9 / 16)
"""Of cameras, width over height; drawn as often as `_OFTEN` says."""
_OFTEN = (0.48, 0.42, 0.05, 0.05)


def _check(size, fps):
    w, h = size
    if not (16 <= w <= 4096 and 16 <= h <= 4096):
        raise InputError("picture size out of range", found=f"{w}x{h}", expected="16 to 4096 a side", do="pick another")
    if not 0 < fps <= 1000:
        raise InputError("frame rate out of range", found=fps, expected="more than 0, at most 1000", do="pick another")


class Stage:
    """One performer before one background and one camera. Turns poses at given times into pictures.

    Parameters
    ----------
    rng : numpy Generator
    size : (int, int)
        Width, height of the pictures.
    split : str
        Which background families may be used.
    calm : bool
        The easy picture: a soft background, nothing that moves but the hand, a good camera.
    setting : Setting
    wild : int or None
        Seed of a camera that is carried about, with cuts, and more things that move.
    """

    def __init__(self, rng, size, split="train", calm=False, setting=PLAIN, wild=None):
        self.size = w, h = size
        scale = 2 if max(w, h) <= 192 else 1  # small pictures are drawn at twice the size
        H = h * scale
        W = round(H * SHAPES[rng.choice(len(SHAPES), p=_OFTEN)]) if setting.cameras else w * scale
        self.drawn = W, H
        self.look = Look(rng)
        focal = H * rng.uniform(1.05, 1.25)
        distance = float(np.exp(rng.uniform(np.log(2.0), np.log(6.0))))  # a hand is 0.19 to 0.58 of the picture's height
        self.half_w, self.half_h = W / focal * distance / 2, H / focal * distance / 2
        self.camera = Camera(focal, (W / 2, H / 2), distance)
        self.margin = mx, my = int(W * 0.08), int(H * 0.08)
        self.family = FAMILIES[split][rng.integers(len(FAMILIES[split]))]
        self.people = people.load(setting.people) if setting.people else None
        self.real = self.people is not None and rng.random() < 0.5
        photo = bool(setting.photos or setting.people) and not calm and rng.random() < 0.75
        self.living = None  # what moves the canvas, if anything does
        if photo:
            part = photographs.window(rng, self._photograph(rng, setting), H + 2 * my, W + 2 * mx)
            self.canvas = photographs.recoloured(rng, part) if rng.random() < 0.6 else part
            self.living = photographs.Living(rng, self.canvas)
        else:
            self.canvas = background(rng, self.family, H + 2 * my, W + 2 * mx)
        self.overlay = photographs.Overlay(rng, W, H) if rng.random() < 0.12 else None
        shaky = rng.choice([0.0, 0.15, 1.0], p=[0.4, 0.4, 0.2])
        self.shake = sway(rng, [W * 0.018 * shaky, H * 0.018 * shaky])
        pan = rng.choice([0.0, 1.0], p=[0.8, 0.2])
        self.pan = sway(rng, [mx * 0.7 * pan, my * 0.7 * pan])
        self.person = Person(rng, self.look, W, H) if rng.random() < (0.25 if photo else 0.75) else None
        self.movers = [Mover(rng, W, H) for _ in range(rng.choice([0, 1, 2], p=[0.6, 0.25, 0.15]))]
        self.flicker = sway(rng, [rng.choice([0.0, 8.0], p=[0.7, 0.3])])
        self.shutter = rng.uniform(0.2, 0.9)  # fraction of the frame time during which light is gathered
        self.tremors = [tremor(rng), tremor(rng)]
        self.chance = int(rng.integers(2 ** 62))  # of the photographed hand
        self.skin = Skin(rng, W, H) if rng.random() < 0.6 else None
        self.codec = rng.random() < 0.2
        self.lens = Lens(rng, w, h, np.random.default_rng(rng.integers(2 ** 63)))
        if calm:
            self._calm_down()
        elif wild is not None:
            self._go_wild(np.random.default_rng(wild), setting, photo)

    def _calm_down(self):
        def still(t):
            return np.zeros((len(t), 2))

        self.canvas = cv2.GaussianBlur(self.canvas, (0, 0), self.canvas.shape[1] * 0.08)
        self.shake = self.pan = self.flicker = still
        self.person, self.movers, self.overlay, self.skin, self.codec = None, [], None, None, False
        self.lens.blur, self.lens.noise, self.lens.vignette, self.lens.quality = 0, None, None, 0

    def _go_wild(self, rng, setting, photo):
        height, width = self.canvas.shape[:2]
        cuts = rng.choice([0, 1, 2], p=[0.5, 0.3, 0.2])
        more = [photographs.window(rng, self._photograph(rng, setting), height, width) if photo else
                background(rng, self.family, height, width) for _ in range(cuts)]
        self.living = photographs.Wild(rng, [self.canvas, *more])
        self.movers += [Mover(rng, *self.drawn) for _ in range(rng.integers(0, 4))]

    def _photograph(self, rng, setting):
        """One of the photographs; of people, where there are some, three times out of four."""
        scenes, others = self.people.scenes if self.people else (), photographs.load(setting.photos) if setting.photos else ()
        many = scenes if len(scenes) and (rng.random() < 0.75 or not others) else others
        return many[rng.integers(len(many))]

    def poses(self, track, index, local, times):
        return track.at(local) + self.tremors[index](times)

    def render(self, performance, local, times, fps):
        """Pictures uint8 [n, h, w, 3] at `local` seconds of a performance; `times` is the stage's own clock."""
        W, H = self.drawn
        n = len(times)
        hands = []
        for k, track in enumerate(performance.hands):
            now = self.poses(track, k, local, times)
            frames, elbows = hand_parts(now, track.handed, self.look, self.camera)
            hands.append((frames, elbows, track.handed, self._ghosts(track, k, local, times, fps, now)))
        cut = self._cut_out(performance)
        if cut:
            stops = moments(lambda t: self.poses(performance.hands[0], 0, t, np.interp(t, local, times)), local, fps, self.shutter)
            # a held pose is turned from how it was photographed, a palm from upright
            roll = 0.0 if performance.shape == "palm" else performance.hands[0].at(np.array([np.mean(performance.stroke)]))[0, 5]
        shake, pan, flicker = self.shake(times), self.pan(times), self.flicker(times)[:, 0]
        out = np.empty((n, self.size[1], self.size[0], 3), np.uint8)
        mx, my = self.margin
        for i, t in enumerate(times):
            x, y = np.clip(np.round(shake[i] + pan[i]).astype(int), (-mx, -my), (mx, my)) + (mx, my)
            picture = (self.living.at(t) if self.living else self.canvas)[y:y + H, x:x + W].copy()
            for mover in self.movers:
                mover.draw(picture, t)
            if self.person is not None:
                self.person.draw(picture, t)
                for frames, elbows, handed, _ in hands:
                    if frames[i] and not cut:
                        self._upper_arm(picture, t, elbows[i], handed)
            parts = [p for frames, *_ in hands for p in frames[i]]
            if parts and cut:
                picture = cut.draw(picture, stops[i], hands[0][2], self.camera, roll)
            elif parts:
                plain = picture.copy()
                paint(picture, parts)
                if any(i in ghosts for _, _, _, ghosts in hands):
                    picture = self._smear(picture, plain, hands, i)
                if self.skin:
                    picture = self.skin(picture, plain, hands[0][1][i])
            if self.overlay:
                self.overlay.draw(picture)
            if self.drawn != self.size:
                picture = cv2.resize(picture, self.size, interpolation=cv2.INTER_AREA)
            if flicker[i]:
                picture = cv2.convertScaleAbs(picture, alpha=1 + flicker[i] / 128)
            out[i] = self.lens(picture)
        return recompressed(out, fps) if self.codec else out

    def _cut_out(self, performance):
        """The photographed hand for this performance, or None: then it is drawn."""
        fitting = self.people.of(performance.shape) if self.real and performance.shape else ()
        if not fitting:
            return None
        rng = np.random.default_rng(self.chance)
        return CutOut(rng, self.people, fitting[rng.integers(len(fitting))], self.look)

    def _ghosts(self, track, index, local, times, fps, now):
        """Parts of fast hands at other moments of the exposure: {frame: [parts, ...]}."""
        early = self.poses(track, index, local - 0.5 * self.shutter / fps, times)
        late = self.poses(track, index, local + 0.5 * self.shutter / fps, times)
        pixels = np.abs(late[:, :3] - early[:, :3]).max(1) * self.camera.focal / self.camera.distance
        fast = np.flatnonzero((pixels > 0.02 * self.camera.centre[1] * 2) & (now[:, 1] < self.half_h + 0.8))
        if not len(fast):
            return {}
        sides = [hand_parts(p[fast], track.handed, self.look, self.camera)[0] for p in (early, late)]
        return {int(i): [sides[0][k], sides[1][k]] for k, i in enumerate(fast)}

    def _smear(self, picture, plain, hands, i):
        mixed = picture
        for side, weight in ((0, 0.5), (1, 1 / 3)):
            ghost = plain.copy()
            paint(ghost, [p for frames, _, _, ghosts in hands for p in (ghosts[i][side] if i in ghosts else frames[i])])
            mixed = cv2.addWeighted(mixed, 1 - weight, ghost, weight, 0)
        return mixed

    def _upper_arm(self, picture, t, elbow, handed):
        # A right hand (handed 1) belongs to the shoulder at the picture's left.
        shoulder = self.person.shoulder(t, -handed)
        ends = [tuple(int(v) for v in np.clip(p, -4000, 4000)) for p in (shoulder, elbow)]
        cv2.line(picture, *ends, (self.look.sleeve * 0.85).tolist(), max(2, int(self.person.unit * 0.75)))


def _rng(seed, *more):
    return np.random.default_rng([int(seed), *more])


def render_clip(label, n_frames=36, size=(128, 128), seed=0, fps=12.0, *, info=False, variety=1.0, setting=PLAIN):
    """Render one clip of one gesture.

    The stroke lies wholly inside the clip; if the clip is shorter, a movement is sped up, of a held pose a part is shown.

    Parameters
    ----------
    label : str
        One of `CLASSES`.
    n_frames, fps : int, float
        Length and frame rate.
    size : (int, int)
        Width, height.
    seed : int
        Decides everything; its range decides the split.
    info : bool
        Also return {"stroke": (start, end) seconds in the clip, "family": str, "split": str, "handed": int,
        "targets": float32 [n_frames, 20], see targets.py}.
    variety : float
        Share of clips with everything that makes pictures hard (0..1). The others are calm: a soft background,
        nothing that moves but the hand, a good camera. Training may begin with little variety.
    setting : Setting
        Photographs, cameras' shapes, more movements that are none.

    Returns
    -------
    frames : uint8 array [n_frames, height, width, 3], RGB

    Raises
    ------
    InputError
    """
    choose(label, CLASSES, "gesture")
    _check(size, fps)
    split = split_of(seed)
    rng = _rng(seed, CLASSES.index(label))
    restless = _rng(seed, 998, CLASSES.index(label))  # of every second clip of other things, and every third of nothing
    often = {"Doing other things": 0.5, "No gesture": 0.33}.get(label, 0.0)
    stage = Stage(rng, size, split, calm=_rng(seed, 999).random() >= variety, setting=setting,
                  wild=int(restless.integers(2 ** 62)) if restless.random() < often else None)
    show = Actor(rng, stage.half_w, stage.half_h, setting.others).perform(label)
    length = n_frames / fps
    start, end = show.stroke
    speed = max(1.0, (end - start) / (0.94 * length))
    if show.held and speed > 1:  # a part of it
        speed = 1.0
        first = rng.uniform(start - 0.5 * length, end - 0.5 * length)
    else:
        # Where in the performance the clip begins: the stroke is always inside; mostly the coming and going too.
        span = show.duration / speed - length
        first = rng.uniform(min(0.0, span), max(0.0, span)) + rng.uniform(-0.3, 0.3)
        first = min(max(first, end / speed - length), start / speed)
    times = np.arange(n_frames) / fps
    frames = stage.render(show, (times + first) * speed, times, fps / speed)
    if not info:
        return frames
    stroke = max(0.0, start / speed - first), min(length, end / speed - first)
    targets = hand_targets(show, (times + first) * speed, speed / fps, stage.camera)
    return frames, {"stroke": stroke, "family": stage.family, "split": split, "handed": show.hands[0].handed,
                    "targets": targets}


class Performer:
    """An endless stream: gestures with rest between them, before one background, by one person.

    Iterate over it for frames (uint8 [h, w, 3] RGB); `intervals` tells what has been shown so far.

    Parameters
    ----------
    labels : iterable of str
        What to perform, in this order; the stream ends after the last. Use `itertools.cycle` for an endless one.
    size, fps, seed
        As in `render_clip`.
    rest : (float, float)
        Shortest and longest rest between two gestures, seconds.
    setting
        As in `render_clip`.

    Attributes
    ----------
    intervals : list of dict
        {"label", "start", "end", "begin", "finish"} in seconds: start and end of the stroke, begin and finish of the
        whole performance (rest to rest). Background labels are listed too.
    """

    def __init__(self, labels, size=(128, 128), fps=12.0, seed=0, rest=(0.7, 2.0), setting=PLAIN):
        _check(size, fps)
        self.labels, self.fps, self.rest, self.size = labels, float(fps), rest, size
        rng = _rng(seed, 1000)
        self.stage = Stage(rng, size, split_of(seed), setting=setting)
        self.actor = Actor(rng, self.stage.half_w, self.stage.half_h, setting.others)
        self.intervals, self.n_frames = [], 0
        self._clock = 0.0  # where the next performance begins

    def _show(self, show):
        """Yield the frames that fall into a performance which begins at the clock."""
        begin, self._clock = self._clock, self._clock + show.duration
        first, last = self.n_frames, int(np.ceil(self._clock * self.fps - 1e-9))
        for chunk in range(first, last, 32):
            times = np.arange(chunk, min(chunk + 32, last)) / self.fps
            for frame in self.stage.render(show, times - begin, times, self.fps):
                self.n_frames += 1
                yield frame

    def _idle(self):
        seconds = self.actor.between(*self.rest)
        return Performance("rest", [Track(pose(y=ABSENT_Y)).hold(seconds)], (0, seconds))

    def __iter__(self):
        yield from self._show(self._idle())
        for label in self.labels:
            show = self.actor.perform(choose(label, CLASSES, "gesture"))
            begin = self._clock
            self.intervals.append({"label": label, "start": begin + show.stroke[0], "end": begin + show.stroke[1],
                                   "begin": begin, "finish": begin + show.duration})
            yield from self._show(show)
            yield from self._show(self._idle())


def render_stream(labels, size=(128, 128), fps=12.0, seed=0, rest=(0.7, 2.0)):
    """Render a whole untrimmed stream at once.

    Returns
    -------
    frames : uint8 array [n, h, w, 3], RGB
    intervals : list of dict, as in `Performer`
    """
    performer = Performer(labels, size, fps, seed, rest)
    frames = list(performer)
    return np.stack(frames), performer.intervals


class GestureDataset:
    """Rendered clips as a map-style data set (works with torch's DataLoader, needs no torch).

    Item i is `(clip, class index)`: clip uint8 [n_segment, h, w, 3], taken at equal steps from a clip of `seconds`.

    Parameters
    ----------
    split : str
        "train", "val" or "test".
    clips_per_class : int
    classes : sequence of str
        Labels and their order; the class index counts in it.
    n_segment, size, seconds : int, (int, int), float
    seed : int
        Offset inside the split's seeds: another seed, other clips.
    transform : callable, optional
        Applied to `(clip, index)`.
    """

    def __init__(self, split="train", clips_per_class=100, classes=CLASSES, n_segment=8, size=(128, 128), seconds=3.0,
                 seed=0, transform=None, variety=1.0, setting=PLAIN):
        choose(split, SPLITS, "split")
        self.classes = [choose(name, CLASSES, "gesture") for name in classes]
        self.clips_per_class, self.n_segment, self.size, self.seconds = clips_per_class, n_segment, size, seconds
        self.first, end = SPLITS[split]
        self.first += seed * 1_000_000
        if self.first + clips_per_class > end:
            raise InputError("seed outside the split", found=seed, expected=f"below {(end - self.first) // 1_000_000}",
                             do="use a smaller seed")
        self.transform, self.variety, self.setting = transform, variety, setting

    def __len__(self):
        return len(self.classes) * self.clips_per_class

    def seed_of(self, index):
        return self.first + index // len(self.classes)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(index)
        target = index % len(self.classes)
        item = render_clip(self.classes[target], self.n_segment, self.size, self.seed_of(index),
                           self.n_segment / self.seconds, variety=self.variety, setting=self.setting), target
        return item if self.transform is None else self.transform(*item)
