"""Rendered gestures as a source: test://LABEL."""
from __future__ import annotations

from tsm_edge.cli import choose
from tsm_edge.errors import MissingComponentError
from tsm_edge.runtimes.sources import Source, flip_frame

TEST_SEED = 110_000_000  # performers and backgrounds that training has never seen


class TestSource(Source):
    """A rendered gesture, test://LABEL, over and over: frames of the training package's generator."""

    __test__ = False  # no test class, though its name begins like one

    def __init__(self, label, size=None, fps=None, flip="none", seed=None, seconds=3.0):
        try:
            from tsm_edge.training.gestures.clips import CLASSES, render_clip
        except ImportError as error:
            raise MissingComponentError("the gesture renderer cannot be loaded", found=str(error),
                                        expected="tsm_edge.training.gestures.clips with OpenCV",
                                        do="pip install 'tsm-edge[train]'") from error
        exact = {name.lower(): name for name in CLASSES}
        wanted = label.replace("_", " ").replace("-", " ").strip()
        self.label = exact.get(wanted.lower()) or choose(wanted, CLASSES, "gesture")
        self._render, self._size, self._flip, self.fps = render_clip, size or (640, 480), flip, fps or 12.0
        self._seed = TEST_SEED if seed is None else seed
        self._length = max(2, round(seconds * self.fps))
        self.name, self._clip, self._count = f"test://{self.label}", None, 0

    def read(self):
        at = self._count % self._length
        if at == 0:
            self._clip = self._render(self.label, n_frames=self._length, size=self._size,
                                      seed=self._seed + self._count // self._length, fps=self.fps)
        self._count += 1
        return flip_frame(self._clip[at][:, :, ::-1], self._flip), (self._count - 1) / self.fps
