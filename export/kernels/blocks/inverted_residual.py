"""expand -> depthwise -> project (1x1) in one kernel: the expanded activation lives in L1 and L2 only.

The image is worked through in strips of output rows. Within a strip, the expanded channels come in panels of a few
vectors: expand the strip's new rows of one panel, slide the depthwise window over them while they are in L1, next panel.
What the windows of the next strip look at again (two rows, for 3x3 with stride 1) is carried along, so every expanded row
is computed once. Then the strip's depthwise outputs are projected. With one strip for the whole image (small images, many
channels), panels of channels are what threads share; otherwise strips are, each thread carrying its own rows.

All that is in between lies in planes, one for each vector of channels (planes.py), with a zero border around the rows.
The bias of the depthwise convolution is moved behind its clip, where it becomes part of the projection's bias: see _biases.
"""
from __future__ import annotations

import contextlib

import numpy as np
from tvm import tirx

from tsm_edge.export.kernels.choose import strip_cost
from tsm_edge.export.kernels.choose.choices import NONE
from tsm_edge.export.kernels.write import planes, sweep, tile
from tsm_edge.export.kernels.write.base import Kernel
from tsm_edge.export.kernels.write.names import clip_name

from . import expand
from .workspace import Workspace


def matches(op, shapes):
    """Whether `op` (a ops.InvertedResidual) is one that this module builds."""
    depthwise, project, first = op.depthwise, op.project, op.expand
    channels = depthwise.weight.shape[0]
    return (depthwise.weight.shape[1] == 1 and depthwise.groups == channels == shapes[depthwise.x][2]
            and depthwise.weight.shape[2] >= depthwise.stride[0]
            and depthwise.residual is None and depthwise.splice is None
            and expand.is_pointwise(project) and project.splice is None
            and (first is None or _expands(first, depthwise)))


def _expands(conv, depthwise):
    """Whether a block's first convolution is one that expand.py has."""
    if conv.groups != 1 or conv.residual is not None:
        return False
    if conv.splice is not None:  # each input row must be looked at, so that the next cache is whole
        return expand.is_pointwise(conv) and depthwise.stride == (1, 1)
    return True


def build(op, shapes, target, dtype="float32", form=None, choices=NONE):
    """The kernel of a ops.InvertedResidual.

    Parameters
    ----------
    op : ops.InvertedResidual for which `matches` holds.
    shapes : dict of tensor name -> (h, w, c).
    form : strip_cost.StripForm; None takes the choices', or the cost model's.
    choices : Choices of tile, panel, strip and group.

    Returns
    -------
    Kernel, or None if the operation is not offered.
    """
    if not matches(op, shapes):
        return None
    form = form or strip_cost.choose(op, shapes, target, choices)
    return _Builder(Workspace(op, shapes, target, form, dtype), choices).kernel()


def _biases(op, dtype, moved):
    """Move the depthwise bias b behind the clip: clip(s + b, low, high) = clip(s, low - b, high - b) + b.

    moved : what the expanded values lack (see expand.py), or None.

    Returns
    -------
    (limits, bias): [low - b, high - b], each (channels,), infinite or not; the projection's bias + weight @ b.
    """
    bias = op.depthwise.bias.astype(np.float64)
    if moved is not None:
        bias = bias + op.depthwise.weight[:, 0].astype(np.float64).sum((1, 2)) * moved
    bias = bias.astype(dtype).astype(np.float64)  # as rounded, so that a clipped value stays exact
    limits = [end - bias for end in op.depthwise.clip or (-np.inf, np.inf)]
    weight = op.project.weight[:, :, 0, 0].astype(np.float64)
    return limits, (op.project.bias + weight @ bias).astype("float32")


class _Builder:
    def __init__(self, space, choices):
        self.space, self.op, self.form, self.choices = space, space.op, space.form, choices
        self.e, self.target, self.lanes, self.window = space.e, space.target, space.lanes, space.window
        self.expand = expand.stage(space, choices.panel)
        self.groups = self.expand.groups
        self.carries = space.carried > 0 and self.expand.carries and not space.whole
        self.out_shape = tile.TileShape(*choices.tile) if choices.tile else strip_cost.plane_tile(
            self.target, min(self.form.rows, space.oh) * space.ow, space.mid, space.oc, self.op.project.clip, narrow_last=True)
        self.out_groups = tile.split_channels(space.oc, self.lanes, self.out_shape.vectors)

    def depthwise_weights(self):
        """Per vector of channels: the taps, then the limits."""
        op, lanes = self.op.depthwise, self.lanes
        limits, self.project_bias = _biases(self.op, self.e.dtype, self.expand.moved_bias)
        self.limits = [bool(np.isfinite(limit).all()) for limit in limits]
        taps = op.weight[:, 0].reshape(self.space.mid, -1).T
        rows = np.concatenate([taps] + [limit[None] for limit, there in zip(limits, self.limits) if there])
        padded = np.zeros((rows.shape[0], self.space.vectors * lanes), "float32")
        padded[:, :self.space.mid] = rows
        self.depthwise_rows = rows.shape[0]
        return padded.reshape(-1, self.space.vectors, lanes).transpose(1, 0, 2).reshape(-1)

    def symbol(self):
        op, space, form = self.op, self.space, self.form
        d = op.depthwise
        text = f"inverted_residual_{space.height}x{space.width}_{self.expand.depth}_{space.mid}_{space.oc}"
        text += f"_k{self.window.kh}x{self.window.kw}_s{d.stride[0]}{d.stride[1]}_p{'_'.join(map(str, d.padding))}"
        text += f"_e{self.expand.key()}_d{clip_name(d.clip)}_p{clip_name(op.project.clip)}"
        return f"{text}{'_add' if op.project.residual else ''}_r{form.rows}_g{form.group}_t{form.tasks}{self.choices.suffix()}"

    def kernel(self):
        space, op = self.space, self.op
        out_pixels = space.oh * space.ow
        self.expand.declare()
        self.depthwise_w = space.constant("depthwise_weights", self.depthwise_weights())
        self.project_w = space.constant("project_weights", tile.pack_panels(
            op.project.weight[:, :, 0, 0].T, self.project_bias, self.out_groups))
        self.residual = None
        if op.project.residual:
            self.residual = space.tensor("residual", op.project.residual, out_pixels * space.oc)
        self.out = space.tensor("out", op.out, out_pixels * space.oc)
        space.declare(max(len(group.chunks) for group in self.groups), self.carries)
        (self.one_strip if space.whole else self.many_strips)()
        macs = self.expand.macs + out_pixels * space.mid * (self.window.kh * self.window.kw + space.oc)
        symbol = self.symbol()
        return Kernel(symbol, "inverted_residual", self.e.function(symbol), tuple(space.args), macs)

    # --- the loops ---

    def one_strip(self):
        """The whole image at once: threads share panels of channels, then the projection."""
        e, space, tasks = self.e, self.space, self.form.tasks
        bottom = space.top + space.height
        if space.shared:
            self.expand.fetch(0, space.top, bottom, 0, 0)
            with e.loop(tasks, "parallel") as task:
                self.panels(task, e.bind(task))
        else:
            with self.each_task() as (task, fresh, slot):
                with e.when(equal(fresh.get(), 1)):
                    self.expand.fetch(slot, space.top, bottom, 0, bottom)
                    fresh.set(integer(0))
                self.expand.keep(*self.share(task, space.height))
                self.panels(task, slot)
        self.project(0, 0, space.oh, "parallel")

    def panels(self, task, slot):
        """A task's panels of channels: expansion and depthwise convolution, all rows."""
        e, space = self.e, self.space
        bottom = space.top + space.height
        for group in self.groups:
            first, last = self.share(task, group.count)
            with e.loop(last - first) as number:
                panel = e.bind(first + number)
                border = self.expand.border(group, panel)
                self.fill_rows(border, slot, 0, space.top)
                self.fill_sides(border, slot, space.top, bottom)
                self.expand.image(group, panel, slot)
                self.fill_rows(border, slot, bottom, space.strip_rows)
                for start, count, size in tile.split_rows(space.oh, self.form.group):
                    with e.loop(count) as index:
                        y = e.bind(start + index * size)
                        self.slide(group, panel, slot, e.bind(y * self.window.stride_y), y, size)

    @contextlib.contextmanager
    def each_task(self):
        """`with self.each_task() as (task, fresh, slot):` for each task; threads take contiguous ones.

        fresh : register, 1 until set to something else in this thread. slot : the thread's place in scratch, for all of them.
        """
        e = self.e
        with e.each_thread():
            fresh, slot = e.vector(1, "int32"), e.vector(1, "int32")
            fresh.set(integer(1))
            slot.set(integer(0))
            with e.loop(self.form.tasks, "parallel") as task:
                with e.when(equal(fresh.get(), 1)):
                    slot.set(task)
                yield task, fresh, e.bind(slot.get())

    def share(self, task, count):
        """The part [first, last) of `count` things that is task number `task`'s."""
        tasks = self.form.tasks
        if tasks == 1:
            return 0, count
        return tuple(self.e.bind(tirx.floordiv((task + i) * count, tasks)) for i in (0, 1))

    def many_strips(self):
        """Strip after strip; each thread has its own contiguous strips and carries rows from one to the next."""
        e, form = self.e, self.form
        strips = -(-self.space.oh // form.rows)
        if form.tasks == 1:
            with e.loop(strips) as strip:
                self.strip(strip, e.bind(equal(strip, 0)), 0)
            return
        with self.each_task() as (task, fresh, slot):
            first, last = self.share(task, strips)
            with e.loop(last - first) as number:
                self.strip(e.bind(first + number), e.bind(equal(fresh.get(), 1)), slot)
                fresh.set(integer(0))

    def strip(self, strip, fresh, slot):
        """Output rows [strip * rows, + rows). fresh: nothing was carried here from the strip before."""
        e, space, form, step = self.e, self.space, self.form, self.window.stride_y
        origin = e.bind(strip * (form.rows * step))  # row of the padded image that is row 0 of the planes
        inside = (e.bind(planes.maximum(0, space.top - origin)), e.bind(space.top + space.height - origin))
        start = e.bind(tirx.if_then_else(fresh, 0, space.carried)) if self.carries else 0
        begin = e.bind(planes.maximum(start, inside[0]))
        end = e.bind(planes.maximum(begin, planes.minimum(space.strip_rows, inside[1])))
        owned = e.bind(tirx.if_then_else(equal(strip, 0), 0, space.carried))  # rows above are another thread's
        self.expand.fetch(slot, begin, end, origin, owned)
        for group in self.groups:
            with e.loop(group.count) as panel:
                border = self.expand.border(group, panel)
                if self.carries:
                    with e.when(tirx.Not(fresh)):
                        self.copy_carry(group, panel, slot, back=True)
                for part in range(form.rows // form.group):
                    done = part * form.group * step
                    low = done + space.carried if part else start
                    high = done + self.window.rows(form.group)
                    begin = e.bind(planes.maximum(low, inside[0]))
                    end = e.bind(planes.maximum(begin, planes.minimum(high, inside[1])))
                    self.fill_rows(border, slot, low, begin)
                    self.fill_sides(border, slot, begin, end)
                    self.expand.rows(group, panel, slot, begin, end, origin)
                    self.fill_rows(border, slot, end, high)
                    self.slide(group, panel, slot, done, part * form.group, form.group)
                if self.carries:
                    self.copy_carry(group, panel, slot, back=False)
        last = space.oh % form.rows
        self.e.choose(strip < space.oh // form.rows if last else True,
                      lambda: self.project(slot, strip, form.rows), lambda: self.project(slot, strip, last))

    # --- parts ---

    def fill_sides(self, border, slot, first, last):
        """What stands left and right of the image, in the rows [first, last)."""
        space = self.space
        right = space.pitch - space.left - space.width
        if space.left or right:
            self.fill_columns(border, slot, first, last, ((0, space.left), (space.left + space.width, right)))

    def fill_rows(self, border, slot, first, last):
        """What stands above and below the image: the rows [first, last)."""
        if not isinstance(first, int) or not isinstance(last, int) or last > first:
            self.fill_columns(border, slot, first, last, ((0, self.space.pitch),))

    def fill_columns(self, border, slot, first, last, columns):
        e, work = self.e, self.space.work(slot)
        with e.loop(last - first) as number:
            row = e.bind(work.at(0, first + number))
            for plane, value in enumerate(border):
                for start, count in columns:
                    place = row + (plane * work.plane + start * self.lanes)
                    planes.fill(e, work.buffer, place, count, value, self.lanes)

    def copy_carry(self, group, panel, slot, back):
        """The last rows of a strip are the first of the next one."""
        e, space = self.e, self.space
        work, carry = space.work(slot), space.carry(slot)
        count, row = space.carried * space.pitch, 0 if back else self.form.rows * self.window.stride_y
        first = e.bind(space.plane_of(group, panel))
        for plane in range(len(group.chunks)):
            near, far = (work.buffer, e.bind(work.at(plane, row))), (carry.buffer, e.bind(carry.at(first + plane)))
            source, out = (far, near) if back else (near, far)
            planes.copy(e, *source, *out, count, self.lanes)

    def slide(self, group, panel, slot, row, y, rows):
        """Depthwise outputs [y, y + rows) of the strip, from row `row` of the planes on."""
        e, space, lanes = self.e, self.space, self.lanes
        work, middle = space.work(slot), space.middle(slot)
        first = e.bind(space.plane_of(group, panel))
        kh, kw = self.window.kh, self.window.kw
        with e.loop(len(group.chunks)) as plane:
            weights = e.bind((first + plane) * (self.depthwise_rows * lanes))
            band = [planes.Planes(buffer.buffer, e.bind(at), buffer.plane, buffer.row, lanes)
                    for buffer, at in ((work, work.at(plane, row)), (middle, middle.at(first + plane, y)))]
            if planes.written_out_band(e, self.target, band[0], self.window, (self.depthwise_w, weights), self.limits,
                                       rows, space.ow, band[1]):
                return
            rows_of = [e.bind(e.load(self.depthwise_w, weights + i * lanes, lanes), "t")
                       for i in range(self.depthwise_rows)]
            taps = [rows_of[ky * kw:ky * kw + kw] for ky in range(kh)]
            limits = rows_of[kh * kw:]
            for start, count, size in tile.split_rows(space.ow, planes.slide_width(self.target, self.window)):
                with e.loop(count) as index:
                    x = e.bind(start + index * size)
                    source = planes.Planes(work.buffer, e.bind(work.at(plane, row, x * self.window.stride_x)),
                                           work.plane, work.row, lanes)
                    place = planes.Planes(middle.buffer, e.bind(middle.at(first + plane, y, x)), 0, middle.row, lanes)

                    def store(y_, x_, value, place=place):
                        ends = list(limits)
                        if self.limits[0]:
                            value = tirx.Max(value, ends.pop(0))
                        if self.limits[1]:
                            value = tirx.Min(value, ends.pop(0))
                        e.store(place.buffer, place.at(0, y_, x_), value, lanes)

                    planes.slide(e, source, 0, self.window, taps, rows, size, store)

    def project(self, slot, strip, rows, kind="serial"):
        """The strip's depthwise outputs through the projection: `rows` rows of the output."""
        e, space, op = self.e, self.space, self.op.project
        middle = space.middle(slot)
        origin = e.bind(strip * (self.form.rows * space.ow))

        def body(block, index, group, panel):
            _, pixel = block.place(index)
            pixel = e.bind(pixel)
            at = e.bind(tile.panel_offset(group, panel, space.mid))
            place = e.bind((origin + pixel) * space.oc + group.channel(panel))
            steps = tuple(i * space.oc for i in range(block.width))
            first = planes.Planes(middle.buffer, e.bind(middle.at(0, 0, pixel)), middle.plane, middle.row, self.lanes)
            source = planes.Source(first, planes.pixels(first, 1, block.width), space.mid, first.plane)
            planes.compute_rows(e, self.target, group, source, self.project_w, at, tile.Rows(self.out, place, steps),
                                op.clip, tile.Rows(self.residual, place, steps) if op.residual else None)

        image = sweep.blocks(1, rows * space.ow, self.out_shape.rows)
        if kind == "parallel":
            sweep.over_panels(e, image, self.out_groups, body)
            return
        for group in self.out_groups:
            with e.loop(group.count) as panel:
                for block in image:
                    with e.loop(block.count) as index:
                        body(block, index, group, panel)


def integer(value):
    return tirx.IntImm("int32", value)


def equal(a, b):
    """a == b as an expression, of ints too."""
    return tirx.EQ(*(integer(value) if isinstance(value, int) else value for value in (a, b)))
