"""Where the network looks, as heat over the picture."""
import numpy as np

from tsm_edge.cli import choose
from tsm_edge.picture import seen
from tsm_edge.runtimes.sources import import_cv2

from .overlay import heat_colours

STRONGEST = 0.6  # how much of the picture the strongest heat covers
FADE = 0.95  # a step; the scale follows the strongest evidence lately, so that a weak frame is not blown up to full heat


class Heat:
    """Draws class activation maps over frames.

    Parameters
    ----------
    model : tsm_edge.runtimes Model
    name : str or None
        The class to show; None: the one that the last step found likeliest.

    Raises
    ------
    InputError
        No class of that name.
    """

    def __init__(self, model, name=None):
        self._classes, self._spec, self._cv2, self._scale = model.classes, model.manifest["input"], import_cv2(), 0.0
        self._fixed = None if name is None else self._classes.index(choose(name, self._classes, "class"))

    def paint(self, image, maps, result):
        """Draw over `image`, in place.

        Parameters
        ----------
        image : uint8 [h, w, 3] BGR
            The frame as the network got it, not mirrored.
        maps : float32 [classes, y, x]
            From `Stream.attention`.
        result : Result
            Of the same step.

        Returns
        -------
        str
            The shown class.
        """
        cv2, which = self._cv2, result.index if self._fixed is None else self._fixed
        evidence = np.ascontiguousarray(maps[which], np.float32)
        self._scale = max(self._scale * (1 if result.skipped else FADE), float(np.abs(evidence).max()), 1e-6)
        top, bottom, left, right = seen(*image.shape[:2], self._spec)
        part = image[top:bottom, left:right]
        strength = cv2.resize(evidence / self._scale, (right - left, bottom - top), interpolation=cv2.INTER_CUBIC)
        strength = np.clip(strength, 0, 1)
        weight = strength[..., None] * np.float32(STRONGEST)
        part[:] = np.rint(part * (1 - weight) + heat_colours((strength * 255).astype(np.uint8)) * weight)
        return self._classes[which]
