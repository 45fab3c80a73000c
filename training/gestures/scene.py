"""The picture around the hand: backgrounds, the performer, moving things, the camera's faults."""
import os
import tempfile

import cv2
import numpy as np

from .track import sway

FAMILIES = {"train": ("room", "noise", "shapes", "gradient", "stripes"), "val": ("bricks", "bokeh"),
            "test": ("cells", "marble")}
"""Kinds of background of each split: none is shared."""


def noise(rng, height, width, octaves=4, grain=4):
    """Smooth value noise, float32 [h, w] in 0..1."""
    out = np.zeros((height, width), np.float32)
    total = 0.0
    for k in range(octaves):
        cells = grain * 2 ** k
        small = rng.random((cells + 1, cells + 1), dtype=np.float32)
        out += cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) * 0.5 ** k
        total += 0.5 ** k
    return np.clip(out / total, 0, 1)


def _blend(field, first, second):
    return first + field[..., None] * (second - first)


def _colour(rng, low=20, high=235):
    grey = rng.uniform(low, high)
    return np.clip(grey + rng.uniform(-1, 1, 3) * rng.choice([12, 60]), 0, 255).astype(np.float32)


def _room(rng, h, w):
    wall = _blend(noise(rng, h, w, 2, 2), _colour(rng, 90, 230), _colour(rng, 90, 230))
    for _ in range(rng.integers(2, 7)):
        bw, bh = rng.uniform(0.08, 0.45) * w, rng.uniform(0.1, 0.7) * h
        x, y = rng.uniform(-0.1, 1) * w, rng.uniform(-0.1, 0.9) * h
        first, last = (int(x), int(y)), (int(x + bw), int(y + bh))
        cv2.rectangle(wall, first, last, _colour(rng).tolist(), -1)
        cv2.rectangle(wall, first, last, _colour(rng, 10, 90).tolist(), max(1, w // 100))
        for k in range(rng.integers(0, 5)):  # shelves, panes
            yy = int(y + bh * (k + 1) / 5)
            cv2.line(wall, (first[0], yy), (last[0], yy), _colour(rng, 10, 120).tolist(), max(1, w // 120))
    floor = int(rng.uniform(0.75, 1.1) * h)
    if floor < h:
        wall[floor:] = _blend(noise(rng, h - floor, w, 3), _colour(rng, 30, 160), _colour(rng, 30, 160))
    return wall


def _noise(rng, h, w):
    return _blend(noise(rng, h, w, int(rng.integers(2, 6)), int(rng.integers(2, 9))), _colour(rng), _colour(rng))


def _gradient(rng, h, w):
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:1:h * 1j, 0:1:w * 1j].astype(np.float32)
    field = np.clip((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.5, 0, 1).astype(np.float32)
    return _blend(field, _colour(rng), _colour(rng))


def _shapes(rng, h, w):
    out = _gradient(rng, h, w)
    for _ in range(rng.integers(5, 30)):
        centre, size = rng.uniform(0, 1, 2) * (w, h), rng.uniform(0.03, 0.25) * w
        corners = centre + rng.uniform(-1, 1, (rng.integers(3, 7), 2)) * size
        cv2.fillConvexPoly(out, cv2.convexHull(corners.astype(np.int32)), _colour(rng).tolist())
    return out


def _stripes(rng, h, w):
    angle, count = rng.uniform(0, np.pi), rng.uniform(4, 16)
    y, x = np.mgrid[0:1:h * 1j, 0:1:w * 1j]
    wave = np.sin(2 * np.pi * count * (x * np.cos(angle) + y * np.sin(angle)))
    field = (0.5 + 0.5 * np.clip(wave * rng.uniform(1, 8), -1, 1)).astype(np.float32)
    return _blend(field, *(c := (_colour(rng, 60, 200)), c + rng.uniform(-60, 60, 3).astype(np.float32)))


def _bricks(rng, h, w):
    out = np.empty((h, w, 3), np.float32)
    out[:] = _colour(rng, 80, 200)
    brick, rows = _colour(rng, 60, 200), int(rng.integers(6, 14))
    size = h / rows
    for r in range(rows + 1):
        for c in range(-1, int(w / size / 2) + 2):
            x, y = (c + 0.5 * (r % 2)) * size * 2, r * size
            cv2.rectangle(out, (int(x + 1), int(y + 1)), (int(x + size * 2 - 2), int(y + size - 2)),
                          (brick + rng.uniform(-18, 18)).tolist(), -1)
    return out


def _bokeh(rng, h, w):
    out = _noise(rng, h, w) * 0.6
    for _ in range(rng.integers(10, 40)):
        layer = out.copy()
        centre = tuple(int(v) for v in rng.uniform(0, 1, 2) * (w, h))
        cv2.circle(layer, centre, int(rng.uniform(0.02, 0.1) * w), _colour(rng, 100, 255).tolist(), -1)
        out = out * 0.6 + layer * 0.4
    return cv2.GaussianBlur(out, (0, 0), w * 0.01)


def _cells(rng, h, w):
    points = rng.uniform(0, 1, (int(rng.integers(8, 40)), 2)).astype(np.float32)
    hh, ww = h // 4 + 1, w // 4 + 1
    y, x = np.mgrid[0:1:hh * 1j, 0:1:ww * 1j].astype(np.float32)
    nearest = ((x[..., None] - points[:, 0]) ** 2 + (y[..., None] - points[:, 1]) ** 2).argmin(-1)
    colours = np.stack([_colour(rng, 40, 220) for _ in points])
    return cv2.resize(colours[nearest], (w, h), interpolation=cv2.INTER_LINEAR)


def _marble(rng, h, w):
    field = noise(rng, h, w, 5, 3)
    x = np.linspace(0, 1, w, dtype=np.float32)
    veins = 0.5 + 0.5 * np.sin((x * rng.uniform(2, 8) + field * rng.uniform(2, 6)) * 2 * np.pi)
    return _blend(veins.astype(np.float32), _colour(rng, 80, 240), _colour(rng, 30, 220))


_MAKERS = {"room": _room, "noise": _noise, "shapes": _shapes, "gradient": _gradient, "stripes": _stripes,
           "bricks": _bricks, "bokeh": _bokeh, "cells": _cells, "marble": _marble}


def background(rng, family, height, width):
    """A background of one family, uint8 RGB [height, width, 3]."""
    picture = _MAKERS[family](rng, height, width)
    grain = rng.normal(0, rng.uniform(0, 6), (height, width, 1)).astype(np.float32)
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), width * rng.uniform(0.002, 0.015))
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


class Person:
    """Head and shoulders of the performer, behind the hands."""

    def __init__(self, rng, look, width, height):
        self.look, self.unit = look, height * rng.uniform(0.11, 0.2)  # unit: half the head's height
        self.x = width * (0.5 + rng.uniform(-0.18, 0.18))
        self.y = height * rng.uniform(0.12, 0.42)
        self.sway = sway(rng, [self.unit * rng.uniform(0.02, 0.25), self.unit * 0.06])
        self.hair, self.hood = (look.hair * rng.uniform(0.5, 1.2)).tolist(), rng.uniform(1.05, 1.3)
        self.long_hair = rng.random() < 0.35
        self.skin = (look.skin * (look.ambient * 0.45 + 0.45)).tolist()
        self.dark = [c * 0.55 for c in self.skin]
        self.shirt = look.sleeve
        self.wide = rng.uniform(1.9, 2.6)

    def place(self, t):
        dx, dy = self.sway(np.array([t]))[0]
        return self.x + dx, self.y + dy

    def shoulder(self, t, side):
        x, y = self.place(t)
        return x + side * self.wide * 0.85 * self.unit, y + 2.3 * self.unit

    def draw(self, picture, t):
        x, y = self.place(t)
        u = self.unit
        height = picture.shape[0]

        def disc(cx, cy, rx, ry, colour):
            cv2.ellipse(picture, ((float(cx), float(cy)), (2 * float(rx), 2 * float(ry)), 0.0), colour, -1)

        if self.long_hair:
            disc(x, y + 0.5 * u, 1.05 * u, 1.7 * u, self.hair)
        w = self.wide * u
        body = np.array([[x - 0.45 * u, y + 1.35 * u], [x + 0.45 * u, y + 1.35 * u], [x + w * 0.85, y + 1.85 * u],
                         [x + w, y + 2.5 * u], [x + w * 1.02, height + u], [x - w * 1.02, height + u],
                         [x - w, y + 2.5 * u], [x - w * 0.85, y + 1.85 * u]])
        cv2.fillPoly(picture, [np.round(body).astype(np.int32)], self.shirt.tolist())
        cv2.fillPoly(picture, [np.round(body * [0.9, 1] + [0.1 * x, 0.25 * u]).astype(np.int32)],
                     (self.shirt * 0.92).tolist())
        disc(x, y + 1.1 * u, 0.38 * u, 0.7 * u, self.dark)
        disc(x, y - 0.12 * u, 0.82 * u, self.hood * u * 0.98, self.hair)
        disc(x, y + 0.08 * u, 0.72 * u, 0.95 * u, self.skin)
        for side in (-1, 1):
            disc(x + side * 0.28 * u, y - 0.05 * u, 0.1 * u, 0.06 * u, (235, 235, 235))
            disc(x + side * 0.28 * u, y - 0.05 * u, 0.05 * u, 0.06 * u, (30, 25, 25))
            disc(x + side * 0.28 * u, y - 0.22 * u, 0.15 * u, 0.03 * u, self.hair)
        disc(x, y + 0.2 * u, 0.09 * u, 0.16 * u, self.dark)
        disc(x, y + 0.55 * u, 0.24 * u, 0.06 * u, (150, 70, 70))


class Mover:
    """A thing that crosses the background: a ball, a box."""

    def __init__(self, rng, width, height):
        self.start = rng.uniform(-0.2, 1.2, 2) * (width, height)
        angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.5) * width
        self.speed = speed * np.array([np.cos(angle), 0.35 * np.sin(angle)])
        self.size = rng.uniform(0.04, 0.16, 2) * height
        self.turn, self.box = rng.uniform(-90, 90), rng.random() < 0.5
        self.colour = _colour(rng).tolist()
        self.span = np.array([width, height]) * 1.6

    def draw(self, picture, t):
        centre = (self.start + self.speed * t) % self.span - self.span * 0.19
        shape = (tuple(map(float, centre)), tuple(map(float, 2 * self.size)), float(self.turn * t))
        if self.box:
            cv2.fillConvexPoly(picture, np.round(cv2.boxPoints(shape)).astype(np.int32), self.colour)
        else:
            cv2.ellipse(picture, shape, self.colour, -1)


class Skin:
    """Unevenness of what is drawn as hands: folds, stains, cloth. It multiplies the pixels that were painted."""

    def __init__(self, rng, width, height):
        strength = rng.uniform(0.05, 0.3)
        field = noise(rng, height, width, int(rng.integers(3, 6)), int(rng.integers(6, 24)))
        self.field = np.repeat(((1 + strength * (2 * field - 1)) * 128).clip(0, 255).astype(np.uint8)[..., None], 3, 2)

    def __call__(self, painted, plain, shift):
        """uint8 [h, w, 3] with the texture where `painted` differs from `plain`; it moves by `shift` (x, y) pixels."""
        mask = cv2.absdiff(painted, plain).max(2) > 0
        field = np.roll(self.field, (int(shift[1]), int(shift[0])), (0, 1))
        return np.where(mask[..., None], cv2.multiply(painted, field, scale=1 / 128), painted)


def recompressed(frames, fps):
    """The clip after an encoder and a decoder of video (MPEG-4 part 2, OpenCV's own): blocks, and errors that last over frames.

    frames : uint8 [n, h, w, 3], RGB; sides are cut to even numbers for the encoder. Returned as they are where it does not work.
    """
    n, h, w, _ = frames.shape
    out = frames.copy()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "clip.mp4")
        writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), fps, (w // 2 * 2, h // 2 * 2))
        for frame in frames:
            writer.write(np.ascontiguousarray(frame[: h // 2 * 2, : w // 2 * 2, ::-1]))
        writer.release()
        reader = cv2.VideoCapture(path)
        for i in range(n):
            good, frame = reader.read()
            if not good:
                return frames
            out[i, : h // 2 * 2, : w // 2 * 2] = frame[:, :, ::-1]
        reader.release()
    return out


class Lens:
    """What camera and codec do to a finished picture: blur, white balance, gamma, vignette, flicker, noise, JPEG."""

    def __init__(self, rng, width, height, t_rng):
        self.rng = t_rng
        self.blur = rng.uniform(0.3, 1.1) * max(width, height) / 160 if rng.random() < 0.45 else 0
        dim = rng.random() < 0.15
        gain = (rng.uniform(0.3, 0.65) if dim else rng.uniform(0.65, 1.15)) * rng.uniform(0.85, 1.15, 3)
        gamma = rng.uniform(0.7, 1.4)
        x = np.arange(256) / 255
        curve = x[:, None] ** gamma * gain + rng.uniform(-0.03, 0.06)
        self.table = np.clip(curve * 255, 0, 255).astype(np.uint8)[None]
        sigma = rng.uniform(2, 10) if dim else rng.uniform(0, 7) if rng.random() < 0.6 else 0
        self.noise = None
        if sigma > 0.7:
            bank = rng.normal(0, sigma, (height + 32, width + 32, 3))
            self.noise = np.round(bank).astype(np.int16)
        self.vignette = None
        if rng.random() < 0.3:
            y, x = np.mgrid[-1:1:height * 1j, -1:1:width * 1j]
            field = 1 - rng.uniform(0.1, 0.4) * np.clip(x * x + y * y, 0, 2) / 2
            self.vignette = np.repeat((field * 255)[..., None], 3, 2).astype(np.uint8)
        self.quality = int(rng.integers(20, 90)) if rng.random() < 0.4 else 0

    def __call__(self, picture):
        if self.blur:
            picture = cv2.GaussianBlur(picture, (0, 0), self.blur)
        picture = cv2.LUT(picture, self.table)
        if self.vignette is not None:
            picture = cv2.multiply(picture, self.vignette, scale=1 / 255)
        if self.noise is not None:
            h, w = picture.shape[:2]
            y, x = self.rng.integers(0, 33, 2)
            picture = cv2.add(picture, self.noise[y:y + h, x:x + w], dtype=cv2.CV_8U)
        if self.quality:
            _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
        return picture
