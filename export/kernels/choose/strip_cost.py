"""How a fused block is cut up, and what that costs: the model behind the choice is bytes that come from beyond L2.

A strip needs memory for its input, for the rows of one panel, for the rows carried to the next strip and for its depthwise
outputs. As long as all that and the weights fit L2, the weights come in once and nothing else does. Small strips need
little memory, but each reads all weights again; and what is carried is copied twice for each strip.
"""
from __future__ import annotations

from dataclasses import dataclass

from tsm_edge.export.kernels.write import tile

from .choices import NONE

_L2_PART = 0.7  # of L2 that a block may fill: the rest is for weights that stream through, and for others
_COPY = 0.25  # a byte copied within L2, beside one from beyond
_WAITED = 3.0  # a byte of depthwise outputs that a thread makes while others wait
_COMPUTED = 1.5  # a byte of depthwise outputs computed for nothing, beside one from beyond


@dataclass(frozen=True)
class StripForm:
    """How a block is cut up.

    rows : output rows of a strip; all of them or more: the image is one strip. group : output rows that one panel of
    channels gets done before the next rows are expanded. tasks : independent parts that threads may take.
    """

    rows: int
    group: int
    tasks: int


def plane_tile(target, pixels, depth, channels, clip, narrow_last=False):
    """Shape of the register tile for a product from planes.

    Wide vectors take tiles of one vector: 14 results are stored while the next tile is on its way; with 28, stores come
    in bursts that the multiply-adds wait for. narrow_last : the last vector may be a narrow one; it joins the one before.
    """
    shape = tile.tile_shape(target, pixels, depth, channels, clip)
    if not target.fma_by_element and shape.rows > 8 and not (narrow_last and channels % target.lanes):
        return tile.TileShape(shape.rows, 1)
    return shape


def apart(target):
    """Whether threads work in caches of their own, so that moving data from one to another is what costs.

    ARM's DynamIQ clusters have an L2 for each core, too; what helps x86-64 has not been measured on one.
    """
    return target.arch == "x86_64"


def choose(op, shapes, target, choices=NONE):
    """The StripForm for a ops.InvertedResidual on `target`: the cheapest, but for what `choices` says."""
    sizes = _Sizes(op, shapes, target)
    form = min(_candidates(sizes, target), key=lambda form: (sizes.cost(form), sizes.uneven(form), -form.rows))
    if choices.strip is None and choices.group is None:
        return form
    rows = min(sizes.oh, choices.strip or form.rows)
    group = min(rows, choices.group or form.group)
    return _form(sizes, rows, group, target)


def _form(sizes, rows, group, target):
    """A strip is a whole number of groups."""
    if rows < sizes.oh:
        rows = -(-rows // group) * group
    if rows >= sizes.oh:
        return StripForm(sizes.oh, group, target.threads)
    return StripForm(rows, group, min(target.threads, -(-sizes.oh // rows)))


def _candidates(sizes, target):
    yield StripForm(sizes.oh, min(sizes.oh, 7), target.threads)
    for strips in range(2, sizes.oh + 1):
        rows = -(-sizes.oh // strips)
        for group in {min(sizes.group, rows), _divisor(rows, sizes.group) if sizes.apart else 0} - {0}:
            form = _form(sizes, rows, group, target)
            if form.rows < sizes.oh:
                yield form


def _divisor(rows, most):
    """The largest group, of two rows at least, that fills a strip of `rows` exactly; 0 if there is none."""
    return max((group for group in range(2, most + 1) if rows % group == 0), default=0)


class _Sizes:
    """Bytes of everything in a block."""

    def __init__(self, op, shapes, target):
        self.threads = target.threads
        height, width, mid = shapes[op.depthwise.x]
        self.oh, ow, _ = shapes[op.depthwise.out]
        oc = shapes[op.out][2]
        self.kh, _ = op.depthwise.weight.shape[2:]
        self.stride = op.depthwise.stride[0]
        conv = op.expand
        depth = conv.weight[0].size if conv else 0
        vectors = plane_tile(target, width, depth, mid, conv and conv.clip).vectors
        pitch = width + op.depthwise.padding[1] + op.depthwise.padding[3]
        self.weights = 4 * (mid * (depth + oc) + op.depthwise.weight.size)
        self.input_row = 4 * (conv.stride[0] * shapes[conv.x][1] * shapes[conv.x][2] if conv else 0)
        self.panel_row = 4 * pitch * vectors * target.lanes
        self.carried = 4 * (self.kh - self.stride) * pitch * mid if conv else 0
        self.middle_row = 4 * ow * mid
        self.out_panels = -(-oc // (target.lanes * vectors))
        # ARM's clusters share one L2 among their cores until those with dot products (DynamIQ) have their own
        self.shared = target.arch != "x86_64" and not target.dotprod
        self.apart = apart(target)
        self.l2 = target.l2_bytes
        # rows of a panel that stay in L1 from expansion to window
        self.group = max(1, min(7, (target.l1_bytes // self.panel_row - self.kh) // self.stride + 1))

    def scratch(self, form):
        """What one task has in use."""
        rows = (min(form.rows, self.oh) - 1) * self.stride + self.kh
        whole = form.rows >= self.oh
        return (rows * (self.input_row + self.panel_row) + min(form.rows, self.oh) * self.middle_row
                + (0 if whole else self.carried))

    def cost(self, form):
        """Bytes from beyond L2, more or less."""
        whole = form.rows >= self.oh
        used = self.scratch(form) * (form.tasks if self.shared and not whole else 1)
        strips = -(-self.oh // form.rows)
        passes = 1 if used + self.weights <= self.l2 else strips
        cost = passes * self.weights
        if not whole:
            cost += _COPY * 2 * strips * self.carried
        cost += _COMPUTED * (strips * form.rows - self.oh) * self.middle_row * (not whole)
        if self.apart:  # where memory is shared, it is what all wait for
            cost += _WAITED * self.uneven(form) * form.rows * self.middle_row
        # what does not fit is written out and, depthwise outputs, read once for each panel of the projection
        out = max(0.0, 1 - _L2_PART * self.l2 / used)
        return cost + out * self.oh * self.middle_row * (1 + self.out_panels)

    def uneven(self, form):
        """Strips that the slowest thread has more than an even share."""
        if form.rows >= self.oh:
            return 0
        strips = -(-self.oh // form.rows)
        return -(-strips // self.threads) - strips / self.threads
