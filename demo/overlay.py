"""What is drawn over the picture: the label, score bars, rates, and a banner where the network is untrained."""
from typing import NamedTuple

import numpy as np

from tsm_edge.runtimes.sources import import_cv2

WHITE, GREY, DIM = (255, 255, 255), (200, 196, 190), (150, 146, 140)  # BGR
PANEL, TRACK, ACCENT, AMBER = (28, 22, 18), (74, 66, 60), (180, 205, 60), (40, 170, 250)
TOP = 5


class View(NamedTuple):
    """What is to be seen.

    label : the smoothed label. active : a gesture is going on. note : a small line under the label.
    scores : float [classes], smoothed. camera_fps, model_fps, step_ms : 0 where not known. trained : bool.
    looks_for : the class whose attention is drawn, "" for none.
    """

    label: str
    active: bool
    note: str
    scores: np.ndarray
    camera_fps: float
    model_fps: float
    step_ms: float
    trained: bool
    looks_for: str = ""


class Pen:
    """Text and shapes in pixels on one picture size. OpenCV 5 has an outline font; before, its stroke font serves."""

    def __init__(self):
        self.cv2 = cv2 = import_cv2()
        self._face = cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None

    def text(self, image, text, x, y, size, colour, bold=False, align="left"):
        """Draw a line whose baseline begins (or, align="right", ends) at x, y; size is the font's height in pixels."""
        cv2, x, y = self.cv2, int(round(x)), int(round(y))
        if align == "right":
            x -= self.width(text, size, bold)
        if self._face is not None:
            cv2.putText(image, text, (x, y), colour, self._face, int(round(size)), 700 if bold else 450)
        else:
            scale, weight = size / 30.0, max(1, int(round(size / (14 if bold else 22))))
            plain = text.encode("ascii", "replace").decode()
            cv2.putText(image, plain, (x, y), cv2.FONT_HERSHEY_DUPLEX, scale, colour, weight, cv2.LINE_AA)

    def width(self, text, size, bold=False):
        """Pixels of a line."""
        cv2 = self.cv2
        if self._face is not None:
            return cv2.getTextSize((0, 0), text, (0, 0), self._face, int(round(size)), 700 if bold else 450)[2]
        weight = max(1, int(round(size / (14 if bold else 22))))
        return cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, size / 30.0, weight)[0][0]

    def fit(self, text, size, room, bold=False, least=8):
        """(text, size) so that the line fits `room` pixels: smaller first, then shortened; "" where there is no room."""
        if not text or room <= 0:
            return "", size
        width = self.width(text, size, bold)
        if width > room:
            size = max(least, int(size * room / width))
        while size - 1 >= least and self.width(text, size, bold) > room:
            size -= 1
        while len(text) > 2 and self.width(text, size, bold) > room:
            text = text[:-2].rstrip(" .…") + "…"
        return text, size

    def pill(self, image, x0, y0, x1, y1, colour, alpha=1.0, radius=None):
        """A filled rectangle with round corners, mixed with what lies under it."""
        cv2 = self.cv2
        x0, y0 = max(0, int(round(x0))), max(0, int(round(y0)))
        x1, y1 = min(image.shape[1], int(round(x1))), min(image.shape[0], int(round(y1)))
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        part = image[y0:y1, x0:x1]
        under = part.copy()
        r = int(min(radius if radius is not None else (y1 - y0) / 2, (y1 - y0) / 2, (x1 - x0) / 2))
        w, h = x1 - x0 - 1, y1 - y0 - 1
        if r < 2:
            part[:] = colour
        else:
            cv2.rectangle(part, (r, 0), (w - r, h), colour, -1)
            cv2.rectangle(part, (0, r), (w, h - r), colour, -1)
            for cx in (r, w - r):
                for cy in (r, h - r):
                    cv2.circle(part, (cx, cy), r, colour, -1, cv2.LINE_AA)
        if alpha < 1:
            part[:] = cv2.addWeighted(part, alpha, under, 1 - alpha, 0)


def heat_colours(strength):
    """uint8 [h, w] -> uint8 [h, w, 3] BGR: dark violet over red to light yellow, each step as bright as it is strong."""
    cv2 = import_cv2()
    return cv2.applyColorMap(strength, cv2.COLORMAP_INFERNO)


class Overlay:
    """Draws a View over frames, in place.

    Parameters
    ----------
    classes : list of str
    """

    def __init__(self, classes):
        self.classes, self.pen = classes, Pen()

    def draw(self, image, view):
        """Draw over `image`, uint8 [h, w, 3] BGR, contiguous; returns it."""
        height, width = image.shape[:2]
        unit = max(0.66, min(height / 480, width / 560))  # 1 for a 640x480 picture; below 0.66 nobody can read it
        gap = 12 * unit
        self._rates(image, view, unit, gap, width)
        wide = width >= 420 * unit and width >= 0.9 * height
        self._panel(image, view, unit, gap, width, height, wide)
        return image

    @staticmethod
    def _places(unit, height):
        """How many bars there is room for."""
        return max(1, min(TOP, int(height * 0.4 / (21 * unit)) - 1))

    def _rates(self, image, view, unit, gap, width):
        pen, size = self.pen, 14 * unit
        parts = [("camera", f"{view.camera_fps:.1f} fps"), ("model", f"{view.model_fps:.1f} fps"),
                 ("step", f"{view.step_ms:.1f} ms")]
        if width < 380 * unit:
            parts = parts[1:]
        # Columns as wide as they may become, so that they stand still while the numbers change.
        widths = [pen.width(name + " ", size) + pen.width("000.0 fps" if name != "step" else "000.0 ms", size, True)
                  for name, _ in parts]
        x, top, height = gap, gap, 26 * unit
        space = 14 * unit
        pen.pill(image, x, top, x + sum(widths) + space * (len(parts) + 1), top + height, PANEL, 0.66)
        base, lowest = top + height * 0.69, top + height
        x += space
        for (name, value), column in zip(parts, widths):
            pen.text(image, name, x, base, size, GREY)
            pen.text(image, value, x + column, base, size, WHITE, bold=True, align="right")
            x += column + space
        if not view.trained:
            text = "UNTRAINED: labels mean nothing"
            room = width - 2 * gap
            banner = pen.width(text, size, True) + 2 * space
            beside = x + gap + banner <= width - gap
            right, y = width - gap, top if beside else top + height + gap / 2
            lowest = y + height
            text, size = pen.fit(text, size, room - 2 * space, True)
            pen.pill(image, right - pen.width(text, size, True) - 2 * space, y, right, y + height, AMBER, 0.92)
            pen.text(image, text, right - space, y + height * 0.69, size, (20, 20, 20), bold=True, align="right")
        if view.looks_for:
            self._legend(image, view.looks_for, gap, lowest + gap / 2, unit, width)

    def _legend(self, image, name, left, top, unit, width):
        """What the heat over the picture means: from none to the most evidence for a class."""
        pen, space, height, ramp = self.pen, 14 * unit, 26 * unit, int(64 * unit)
        text, size = pen.fit(f"evidence for {name}", 14 * unit, width - 2 * left - 3 * space - ramp)
        right = left + 3 * space + pen.width(text, size) + ramp
        if not text or right > width or top + height > image.shape[0]:
            return  # no room
        pen.pill(image, left, top, right, top + height, PANEL, 0.66)
        pen.text(image, text, left + space, top + height * 0.69, size, WHITE)
        x, y, thick = int(right - space - ramp), int(top + height * 0.36), max(2, int(height * 0.28))
        image[y:y + thick, x:x + ramp] = heat_colours(np.linspace(0, 255, ramp).astype(np.uint8)[None])

    def _panel(self, image, view, unit, gap, width, height, wide):
        pen = self.pen
        row, places = 21 * unit, self._places(unit, height)
        bars = places * row
        panel = max(bars, 60 * unit) + 2 * gap if wide else bars + 3 * gap + 58 * unit
        top, left, right = height - gap - panel, gap, width - gap
        pen.pill(image, left, top, right, height - gap, PANEL, 0.72, radius=14 * unit)
        inner = left + 1.5 * gap
        split = left + (right - left) * 0.46 if wide else inner
        room = (split - inner - gap) if wide else (right - inner - 1.5 * gap)
        label, size = pen.fit(view.label or "waiting", 34 * unit, room, True, least=15 * unit)
        base = top + panel / 2 + 3 * unit if wide else top + gap + 30 * unit
        if view.active:
            pen.pill(image, left + 0.45 * gap, top + gap, left + 0.45 * gap + 5 * unit, height - 2 * gap, ACCENT)
        pen.text(image, label, inner, base, size, WHITE if view.active else GREY, bold=True)
        note, note_size = pen.fit(view.note, 14 * unit, room)
        pen.text(image, note, inner, base + 23 * unit, note_size, ACCENT if view.active else DIM)
        self._bars(image, view, unit, split if wide else inner, right - 1.5 * gap,
                   top + (panel - bars) / 2 if wide else height - 2 * gap - bars, row, places)

    def _bars(self, image, view, unit, left, right, top, row, places):
        pen, size = self.pen, 14 * unit
        order = np.argsort(-np.asarray(view.scores), kind="mergesort")[:places]  # stable
        names = left + (right - left) * 0.56
        percent = pen.width("100 %", size)
        track_left, track_right, thick = names + 8 * unit, right - percent - 8 * unit, 8 * unit
        for place, index in enumerate(order):
            score = float(view.scores[index])
            base = top + place * row + row * 0.72
            first = place == 0
            name, name_size = pen.fit(self.classes[index], size, names - left, first, least=11 * unit)
            pen.text(image, name, left, base, name_size, WHITE if first else GREY, bold=first)
            middle = base - size * 0.34
            if track_right - track_left > 4:
                pen.pill(image, track_left, middle - thick / 2, track_right, middle + thick / 2, TRACK)
                length = (track_right - track_left) * min(1.0, max(0.0, score))
                if score >= 0.005:
                    pen.pill(image, track_left, middle - thick / 2, track_left + max(thick, length), middle + thick / 2,
                             ACCENT if first else DIM)
            pen.text(image, f"{score * 100:.0f} %", right, base, size, WHITE if first else GREY, align="right")
