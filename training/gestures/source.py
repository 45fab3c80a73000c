"""Rendered gestures as a source: test://LABEL. `tsm_edge.runtimes.sources` knows it by name."""
from tsm_edge.cli import choose
from tsm_edge.runtimes.sources import Source, flip_frame

from .clips import CLASSES, SPLITS, render_clip
from .labels import slug


class RenderedSource(Source):
    """A rendered gesture, over and over, by performers and before backgrounds that training has never seen.

    Parameters
    ----------
    label : str
        A gesture's name, however it is written.
    size : (width, height) or None
        Pixels; None: 640x480.
    fps : float or None
        None: 12.
    flip : str
        One of FLIPS.
    seed : int
        Of the first performance; each has the next one.
    seconds : float
        Of one performance.
    """

    def __init__(self, label, size=None, fps=None, flip="none", seed=SPLITS["test"][0], seconds=3.0):
        known = {slug(name): name for name in CLASSES}
        self.label = known.get(slug(label)) or choose(label.replace("_", " ").replace("-", " ").strip(), CLASSES, "gesture")
        self.fps, self.name = fps or 12.0, f"test://{self.label}"
        self.length = max(2, round(seconds * self.fps))  # frames of a performance
        self._size, self._flip, self._seed, self._clip, self._count = size or (640, 480), flip, seed, None, 0

    def read(self):
        at = self._count % self.length
        if at == 0:
            self._clip = render_clip(self.label, n_frames=self.length, size=self._size,
                                     seed=self._seed + self._count // self.length, fps=self.fps)
        self._count += 1
        return flip_frame(self._clip[at][:, :, ::-1], self._flip), (self._count - 1) / self.fps
