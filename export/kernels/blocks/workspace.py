"""What the parts of a fused block share: its sizes, the kernel's parameters, and the planes that lie between the parts."""
from __future__ import annotations

from tsm_edge.export.kernels.choose import strip_cost
from tsm_edge.export.kernels.write import planes
from tsm_edge.export.kernels.write.base import ScratchArg, TensorArg, WeightArg
from tsm_edge.export.kernels.write.emit import Emitter


class Workspace:
    """Of an ops.InvertedResidual that is cut up as `form` says.

    Parameters come in the order in which `tensor`, `constant` and `scratch` are called; `declare` makes the last of them.
    """

    def __init__(self, op, shapes, target, form, dtype):
        self.op, self.shapes, self.target, self.form = op, shapes, target, form
        self.e, self.args, self.lanes = Emitter(dtype), [], target.lanes
        depthwise = op.depthwise
        self.height, self.width, self.mid = shapes[depthwise.x]
        self.oh, self.ow, self.oc = shapes[op.out]
        self.window = planes.Window(*depthwise.weight.shape[2:], *depthwise.stride)
        self.top, self.left = depthwise.padding[:2]
        self.vectors = -(-self.mid // self.lanes)
        self.whole = form.rows >= self.oh
        # all threads read one copy of the input, each having made a part of it; else each makes its own
        self.shared = self.whole and (form.tasks == 1 or not strip_cost.apart(target))
        # planes of one panel: as many rows as a strip's windows look at
        self.pitch = max(self.left + self.width, self.window.columns(self.ow))
        self.strip_rows = self.window.rows(form.rows)
        if self.whole:
            self.strip_rows = max(self.strip_rows, self.top + self.height)
        self.carried = self.window.kh - self.window.stride_y  # rows that the next strip's windows look at again

    # --- parameters ---

    def tensor(self, name, tensor_name, size, dtype=None):
        self.args.append(TensorArg(tensor_name, (size,)))
        return self.e.param(name, size, dtype)

    def constant(self, name, array, dtype=None):
        self.args.append(WeightArg(array))
        return self.e.param(name, array.size, dtype)

    def scratch(self, name, size, shared=False, dtype=None):
        """(buffer, distance of the tasks' parts in it: 0 where they share one)."""
        total = size if shared else size * self.form.tasks
        self.args.append(ScratchArg((total,)))
        return self.e.param(name, total, dtype), 0 if shared else size

    def declare(self, panel_vectors, carries):
        """The planes of one panel, those that strips hand on (if any are), and those of the depthwise outputs."""
        row = self.pitch * self.lanes
        self._work = self.scratch("work", panel_vectors * self.strip_rows * row), self.strip_rows * row, row
        if carries:
            self._carry = self.scratch("carry", self.vectors * self.carried * row), self.carried * row, row
        row = self.ow * self.lanes
        plane = self.form.rows * row
        self._middle = self.scratch("middle", self.vectors * plane, shared=self.whole), plane, row

    # --- planes ---

    def place(self, scratch, slot, plane, row):
        """The Planes of one scratch buffer that belong to task `slot`."""
        buffer, size = scratch
        return planes.Planes(buffer, self.e.bind(slot * size) if size else 0, plane, row, self.lanes)

    def work(self, slot):
        """Rows of one panel of channels, with the border: what the window slides over."""
        scratch, plane, row = self._work
        return self.place(scratch, slot, plane, row)

    def carry(self, slot):
        """The last rows of all panels of a strip."""
        scratch, plane, row = self._carry
        return self.place(scratch, slot, plane, row)

    def middle(self, slot):
        """The strip's depthwise outputs."""
        scratch, plane, row = self._middle
        return self.place(scratch, slot, plane, row)

    def plane_of(self, group, panel):
        """Number of the first plane of a panel."""
        return group.start // self.lanes + panel * len(group.chunks)

    def claim(self, group, panel, slot, number, total):
        """Write into a share, `number` of `total`, of the places of a panel's depthwise outputs.

        Other threads read them last, and a core gets a line for itself long after it asked: what is written here is
        nothing, but when the outputs come, the lines are there.
        """
        if self.shared or not self.whole:
            return
        middle, pixels = self.middle(slot), self.oh * self.ow
        count = -(-pixels // total)
        first = self.e.bind(planes.minimum(number * count, pixels - count))
        for plane in range(len(group.chunks)):
            line = self.e.bind(middle.at(self.plane_of(group, panel) + plane, 0, first))
            for i in range(count):
                self.e.store(middle.buffer, line + i * self.lanes, planes.zero(1, self.e.dtype), 1)
