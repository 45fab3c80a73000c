"""The preprocessing rule of a manifest: uint8 picture -> resize, crop, normalise -> float32 network input.

`preprocess` is the plain reference: two matrices of filter taps, in double precision. `Preprocessor` computes the same
quickly, with tables that are kept from frame to frame. The C runtime computes it too; all are equal within rounding.

The rule: half-pixel centres; scale and crop as `tsm_edge.picture` has them; the filter is a triangle whose half-width is the
scale where it shrinks ("antialias", at least 1) or always 1 ("bilinear"), normalised at the borders; nothing is rounded on
the way.
"""
import numpy as np

from tsm_edge.errors import InputError
from tsm_edge.picture import geometry


def check_frame(frame: np.ndarray) -> None:
    """Refuse what is no picture.

    Raises
    ------
    InputError
        Not uint8 [height, width, 3].
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 \
            or not 1 <= frame.shape[0] <= 16384 or not 1 <= frame.shape[1] <= 16384:
        found = f"{frame.dtype} {list(frame.shape)}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise InputError("this is no frame", found=found, expected="numpy uint8 [height, width, 3], sides 1..16384",
                         do="convert it first; network inputs that are ready go through step_tensor")


def taps_matrix(size, scaled, offset, outputs, antialias=True):
    """Resize one axis as a matrix.

    Parameters
    ----------
    size : int
        Samples of the source.
    scaled : int
        Samples after scaling, of which [offset, offset + outputs) are kept.
    antialias : bool
        Widen the triangle by the scale when shrinking; else two taps.

    Returns
    -------
    float64 [outputs, size]
        Rows sum to 1.
    """
    scale = size / scaled
    half = max(1.0, scale) if antialias else 1.0
    centre = (np.arange(outputs) + offset + 0.5) * scale - 0.5  # [outputs], in source samples
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(size) - centre[:, None]) / half)
    return weights / weights.sum(axis=1, keepdims=True)


def matrices(height, width, spec):
    """The rule's two matrices for a source of height x width: float64 [H, height] and [W, width]."""
    scaled_h, scaled_w, top, left = geometry(height, width, spec)
    antialias = spec["filter"] == "antialias"
    return (taps_matrix(height, scaled_h, top, spec["height"], antialias),
            taps_matrix(width, scaled_w, left, spec["width"], antialias))


def preprocess(frame: np.ndarray, spec: dict, colour: str = "RGB") -> np.ndarray:
    """One frame by the rule: the reference.

    Parameters
    ----------
    frame : uint8 [h, w, 3]
    spec : dict
        The manifest's "input": width, height, resize, shorter_side, filter, mean, std. The network takes RGB.
    colour : "RGB" or "BGR"
        Channel order of `frame`.

    Returns
    -------
    float32 [3, height, width], normalised
    """
    check_frame(frame)
    rows, columns = matrices(frame.shape[0], frame.shape[1], spec)
    if colour == "BGR":
        frame = frame[:, :, ::-1]
    planes = frame.transpose(2, 0, 1).astype(np.float64)  # [3, h, w]
    resized = rows @ planes @ columns.T  # [3, H, W], 0..255
    mean, std = (np.asarray(spec[key], np.float64)[:, None, None] for key in ("mean", "std"))
    return ((resized / 255 - mean) / std).astype(np.float32)


class _Axis:
    """A taps matrix without its zeros: the weights of every output, tap by tap."""

    def __init__(self, matrix):
        used = np.flatnonzero(matrix.any(axis=0))
        self.first, self.last = int(used[0]), int(used[-1]) + 1  # source samples that are looked at
        matrix = matrix[:, self.first:self.last]
        start = (matrix != 0).argmax(axis=1)
        taps = int((matrix != 0).sum(axis=1).max())
        index = start[:, None] + np.arange(taps)
        inside = index < matrix.shape[1]
        index = np.where(inside, index, matrix.shape[1] - 1)
        weights = np.where(inside, matrix[np.arange(len(matrix))[:, None], index], 0)
        self.index = np.ascontiguousarray(index.T)  # [taps, outputs]; weights [taps, outputs, 1, 1]
        self.weights = np.ascontiguousarray(weights.T.astype(np.float32))[:, :, None, None]


class Preprocessor:
    """The rule, quick: tables are made once for a picture size.

    Parameters
    ----------
    spec : dict
        The manifest's "input".
    colour : "RGB" or "BGR"
        Channel order of the frames that will come.
    """

    def __init__(self, spec, colour="RGB"):
        self.spec, self.colour, self._size = spec, colour, None
        mean, std = (np.asarray(spec[key], np.float64) for key in ("mean", "std"))
        self._order = slice(None, None, -1 if colour == "BGR" else 1)
        self._scale = (1 / (255 * std)).astype(np.float32)[:, None, None]
        self._bias = (-mean / std).astype(np.float32)[:, None, None]

    def _prepare(self, height, width):
        rows, columns = matrices(height, width, self.spec)
        self._rows, self._columns = rows, columns = _Axis(rows), _Axis(columns)
        tall, wide, used = self.spec["height"], self.spec["width"], columns.last - columns.first
        self._by_row, self._row_part = (np.empty((tall, used, 3), np.float32) for _ in range(2))
        self._turned = np.empty((used, tall, 3), np.float32)
        self._by_column, self._column_part = (np.empty((wide, tall, 3), np.float32) for _ in range(2))
        self._size = (height, width)

    def __call__(self, frame, out=None):
        """Preprocess uint8 [h, w, 3] into float32 [3, height, width] (`out`, or a new array)."""
        check_frame(frame)
        if frame.shape[:2] != self._size:
            self._prepare(*frame.shape[:2])
        rows, columns = self._rows, self._columns
        source = frame[rows.first:rows.last, columns.first:columns.last]
        for tap, (index, weights) in enumerate(zip(rows.index, rows.weights)):
            np.multiply(source[index], weights, out=self._row_part if tap else self._by_row)  # [H, w, 3]
            if tap:
                self._by_row += self._row_part
        # Turned, so that the second pass, too, moves whole rows; no matrix product, whose threads would get in the way of
        # the network's.
        np.copyto(self._turned, self._by_row.transpose(1, 0, 2))  # [w, H, 3]
        for tap, (index, weights) in enumerate(zip(columns.index, columns.weights)):
            part = self._column_part if tap else self._by_column
            np.take(self._turned, index, axis=0, out=part, mode="clip")  # [W, H, 3]
            part *= weights
            if tap:
                self._by_column += part
        out = np.empty((3, *self._by_column.shape[1::-1]), np.float32) if out is None else out
        np.multiply(self._by_column.transpose(2, 1, 0)[self._order], self._scale, out=out)
        out += self._bias
        return out
