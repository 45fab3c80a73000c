"""expand (1x1) -> depthwise -> project (1x1) in one kernel: the expanded activation lives in L1 and L2 only.

The image is worked through in strips of output rows. Within a strip, the expanded channels come in panels of a few
vectors: expand the strip's new rows of one panel, slide the depthwise window over them while they are in L1, next panel.
What the windows of the next strip look at again (two rows, for 3x3 with stride 1) is carried along, so every expanded row
is computed once. Then the strip's depthwise outputs are projected. With one strip for the whole image (small images, many
channels), panels of channels are what threads share; otherwise strips are, each thread carrying its own rows.

All that is in between lies in planes, one for each vector of channels (planes.py), with a zero border around the rows.
The bias of the depthwise convolution is moved behind its clip, where it becomes part of the projection's bias: see _biases.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from tsm_edge.export.kernels import planes, sweep, tile
from tsm_edge.export.kernels.base import Kernel, ScratchArg, TensorArg, WeightArg
from tsm_edge.export.kernels.emit import Emitter
from tsm_edge.export.kernels.names import clip_name, splice_name


@dataclass(frozen=True)
class Form:
    """How a block is cut up.

    rows : output rows of a strip. group : output rows that one panel of channels gets done before the next rows are
    expanded. tasks : independent parts that threads may take.
    """

    rows: int
    group: int
    tasks: int

    def describe(self, op, shapes):
        """One line for reports."""
        height, width, mid = shapes[op.depthwise.x]
        oh = shapes[op.out][0]
        bytes_saved = 4 * 2 * (height * width * mid * bool(op.expand) + shapes[op.depthwise.out][0] *
                               shapes[op.depthwise.out][1] * mid)
        how = ("by panels of channels, image whole" if self.rows >= oh else
               f"by strips of {self.rows} rows, {self.group} at a time")
        return f"{how}, {self.tasks} tasks; {bytes_saved / 2**20:.2f} MiB stay in the caches"


def matches(op, shapes):
    """Whether `op` (a program.InvertedResidual) is one that this module builds."""
    depthwise, project, expand = op.depthwise, op.project, op.expand
    kh, _ = depthwise.weight.shape[2:]
    channels = depthwise.weight.shape[0]
    return (depthwise.weight.shape[1] == 1 and depthwise.groups == channels == shapes[depthwise.x][2]
            and kh >= depthwise.stride[0] and depthwise.residual is None and depthwise.splice is None
            and _is_pointwise(project) and project.splice is None
            and (expand is None or (_is_pointwise(expand) and expand.residual is None
                                    and (expand.splice is None or depthwise.stride == (1, 1)))))


def _is_pointwise(op):
    return op.groups == 1 and tuple(op.weight.shape[2:]) == (1, 1) and op.stride == (1, 1) and not any(op.padding)


def choose(op, shapes, target):
    """The Form for `op` on `target`, from its cache sizes."""
    width = shapes[op.depthwise.x][1]
    oh, ow, channels = shapes[op.depthwise.out]
    kh, kw = op.depthwise.weight.shape[2:]
    stride = op.depthwise.stride[0]
    row = ow * channels * 4  # bytes of one row of depthwise outputs
    if oh * row <= target.l2_bytes // 4:
        return Form(oh, min(oh, 7), target.threads)
    pitch = (width + op.depthwise.padding[1] + op.depthwise.padding[3]) * 4
    # rows of a panel that stay in L1 between expansion and window; depthwise outputs of a strip that stay in L2
    panel = pitch * tile.tile_shape(target).vectors * target.lanes
    group = max(1, min(7, (target.l1_bytes // panel - kh) // stride + 1))
    carried = (kh - stride) * pitch * channels if op.expand else 0
    most = max(1, (target.l2_bytes // 4 - carried) // row)
    strips = -(-oh // min(most, 14))
    if target.threads > 1:
        strips = -(-strips // target.threads) * target.threads
    rows = -(-oh // strips)
    group = min(group, rows)
    rows = -(-rows // group) * group
    return Form(rows, group, min(target.threads, -(-oh // rows)))


def build(op, shapes, target, precision="fp32", form=None):
    """The kernel of a program.InvertedResidual.

    Parameters
    ----------
    op : program.InvertedResidual for which `matches` holds.
    shapes : dict of tensor name -> (h, w, c).
    form : Form; None takes the cost model's.

    Returns
    -------
    Kernel, or None if the operation or the precision is not offered.
    """
    if precision != "fp32" or not matches(op, shapes):
        return None
    return _Builder(op, shapes, target, form or choose(op, shapes, target)).kernel()


def _biases(op):
    """Move the depthwise bias b behind the clip: clip(s + b, low, high) = clip(s, low - b, high - b) + b.

    Returns
    -------
    (limits, bias): [low - b, high - b] without infinite ends, each (channels,); the projection's bias + weight @ b.
    """
    bias = op.depthwise.bias.astype(np.float64)
    ends = op.depthwise.clip or (-np.inf, np.inf)
    limits = [end - bias for end in ends]
    weight = op.project.weight[:, :, 0, 0].astype(np.float64)
    return limits, (op.project.bias + weight @ bias).astype("float32")


class _Builder:
    def __init__(self, op, shapes, target, form):
        self.op, self.target, self.form = op, target, form
        self.lanes = lanes = target.lanes
        depthwise, expand = op.depthwise, op.expand
        self.height, self.width, self.mid = shapes[depthwise.x]
        self.ic = shapes[expand.x][2] if expand else self.mid
        self.oh, self.ow, self.oc = shapes[op.out]
        kh, kw = depthwise.weight.shape[2:]
        self.window = planes.Window(kh, kw, *depthwise.stride)
        self.top, self.left = depthwise.padding[:2]
        self.splice = expand.splice if expand else None
        self.fold = self.splice.stop - self.splice.start if self.splice else 0
        self.vectors = -(-self.mid // lanes)
        whole = form.rows >= self.oh
        self.shape = tile.tile_shape(target, self.width * (self.height if whole else 1), self.ic, self.vectors * lanes,
                                     expand and expand.clip)
        self.out_shape = tile.tile_shape(target, min(form.rows, self.oh) * self.ow, self.mid, self.oc, op.project.clip)
        self.groups = tile.split_channels(self.vectors * lanes, lanes, self.shape.vectors)
        self.out_groups = tile.split_channels(self.oc, lanes, self.out_shape.vectors)
        # planes of one panel: as many rows as a strip's windows look at
        self.pitch = max(self.left + self.width, self.window.columns(self.ow))
        self.strip_rows = self.window.rows(form.rows)
        self.carried = kh - self.window.stride_y
        self.whole = form.rows >= self.oh
        if self.whole:
            self.strip_rows = max(self.strip_rows, self.top + self.height)
        self.panel_vectors = max(len(group.chunks) for group in self.groups)
        self.e = Emitter()

    # --- weights ---

    def depthwise_weights(self):
        """Per vector of channels: the taps, then the limits."""
        op, lanes = self.op.depthwise, self.lanes
        limits, self.project_bias = _biases(self.op)
        self.limits = [not np.isinf(end) for end in (op.clip or (-np.inf, np.inf))]
        taps = op.weight[:, 0].reshape(self.mid, -1).T
        rows = np.concatenate([taps] + [limit[None] for limit, kept in zip(limits, self.limits) if kept])
        padded = np.zeros((rows.shape[0], self.vectors * lanes), "float32")
        padded[:, :self.mid] = rows
        self.depthwise_rows = rows.shape[0]
        return padded.reshape(-1, self.vectors, lanes).transpose(1, 0, 2).reshape(-1)

    def expand_weights(self):
        matrix = np.zeros((self.ic, self.vectors * self.lanes), "float32")
        bias = np.zeros(self.vectors * self.lanes, "float32")
        matrix[:, :self.mid] = self.op.expand.weight[:, :, 0, 0].T
        bias[:self.mid] = self.op.expand.bias
        return tile.pack_panels(matrix, bias, self.groups)

    # --- the kernel ---

    def symbol(self):
        op, form = self.op, self.form
        d = op.depthwise
        text = f"inverted_residual_{self.height}x{self.width}_{self.ic}_{self.mid}_{self.oc}"
        text += f"_k{self.window.kh}x{self.window.kw}_s{d.stride[0]}{d.stride[1]}_p{'_'.join(map(str, d.padding))}"
        text += f"_e{clip_name(op.expand.clip)}{splice_name(self.splice)}" if op.expand else ""
        text += f"_d{clip_name(d.clip)}_p{clip_name(op.project.clip)}" + ("_add" if op.project.residual else "")
        return f"{text}_r{form.rows}_g{form.group}_t{form.tasks}"

    def kernel(self):
        e, op = self.e, self.op
        args = []

        def param(name, arg, size):
            args.append(arg)
            return e.param(name, size)

        def tensor(name, tensor_name, size):
            return param(name, TensorArg(tensor_name, (size,)), size)

        def constant(name, array):
            return param(name, WeightArg(array), array.size)

        def scratch(name, size):
            return param(name, ScratchArg((size,)), size)

        pixels, out_pixels = self.height * self.width, self.oh * self.ow
        lanes, tasks = self.lanes, self.form.tasks
        self.x = tensor("x", op.x, pixels * self.ic)
        if self.fold:
            self.cache = tensor("cache", self.splice.cache, pixels * self.fold)
            self.next_cache = tensor("next_cache", self.splice.next_cache, pixels * self.fold)
        if op.expand:
            self.expand_w = constant("expand_weights", self.expand_weights())
        self.depthwise_w = constant("depthwise_weights", self.depthwise_weights())
        self.project_w = constant("project_weights", tile.pack_panels(op.project.weight[:, :, 0, 0].T,
                                                                      self.project_bias, self.out_groups))
        self.residual = tensor("residual", op.project.residual, out_pixels * self.oc) if op.project.residual else None
        self.out = tensor("out", op.out, out_pixels * self.oc)

        self.packed_plane = self.strip_rows * self.width * lanes
        self.work_plane = self.strip_rows * self.pitch * lanes
        self.carry_plane = self.carried * self.pitch * lanes
        self.middle_plane = self.form.rows * self.ow * lanes
        sizes = {"packed": -(-self.ic // lanes) * self.packed_plane if op.expand else 0,
                 "work": self.panel_vectors * self.work_plane,
                 "carry": 0 if self.whole or not op.expand else self.vectors * self.carry_plane,
                 "middle": self.vectors * self.middle_plane}
        shared = ("packed", "middle") if self.whole else ()
        self.scratch = {name: (scratch(name, size * (1 if name in shared else tasks)), 0 if name in shared else size)
                        for name, size in sizes.items() if size}
        (self.one_strip if self.whole else self.many_strips)()
        macs = out_pixels * self.mid * (self.window.kh * self.window.kw + self.oc)
        macs += pixels * self.ic * self.mid if op.expand else 0
        symbol = self.symbol()
        return Kernel(symbol, "inverted_residual", e.function(symbol), tuple(args), macs)

    def place(self, name, slot, plane, row):
        """The Planes of one scratch buffer that belong to task `slot`."""
        buffer, size = self.scratch[name]
        return planes.Planes(buffer, self.e.bind(slot * size) if size else 0, plane, row, self.lanes)

    def packed(self, slot):
        return self.place("packed", slot, self.packed_plane, self.width * self.lanes)

    def work(self, slot):
        return self.place("work", slot, self.work_plane, self.pitch * self.lanes)

    def carry(self, slot):
        return self.place("carry", slot, self.carry_plane, self.pitch * self.lanes)

    def middle(self, slot):
        return self.place("middle", slot, self.middle_plane, self.ow * self.lanes)

    # --- the loops ---

    def one_strip(self):
        """The whole image at once: threads share rows of the input, then panels of channels, then the projection."""
        e, form, whole_rows = self.e, self.form, tile.split_rows(self.oh, self.form.group)
        if self.op.expand:
            with e.loop(self.height, "parallel") as y:
                self.pack(self.packed(0), e.bind(y + self.top), y)
        with e.loop(form.tasks, "parallel") as task:
            slot = e.bind(task)
            self.borders(slot)
            for group in self.groups:
                first, last = (e.bind(tirx.floordiv((task + i) * group.count, form.tasks)) if form.tasks > 1
                               else i * group.count for i in (0, 1))
                with e.loop(last - first) as number:
                    panel = e.bind(first + number)
                    self.fill_rows(group, slot, 0, self.top)
                    self.expand_image(group, panel, slot)
                    self.fill_rows(group, slot, self.top + self.height, self.strip_rows)
                    for start, count, size in whole_rows:
                        with e.loop(count) as index:
                            self.slide(group, panel, slot, 0, e.bind(start + index * size), size)
        self.project(0, 0, self.oh, "parallel")

    def many_strips(self):
        """Strip after strip; each thread has its own contiguous strips and carries rows from one to the next."""
        e, form = self.e, self.form
        strips = -(-self.oh // form.rows)
        if form.tasks == 1:
            self.borders(0)
            with e.loop(strips) as strip:
                self.strip(strip, e.bind(equal(strip, 0)), 0)
            return
        with e.each_thread():
            fresh, slot = e.vector(1, "int32"), e.vector(1, "int32")
            fresh.set(integer(1))
            slot.set(integer(0))
            with e.loop(form.tasks, "parallel") as task:
                with e.when(equal(fresh.get(), 1)):
                    slot.set(task)
                    self.borders(e.bind(slot.get()))
                mine = e.bind(slot.get())
                first, last = (e.bind(tirx.floordiv((task + i) * strips, form.tasks)) for i in (0, 1))
                with e.loop(last - first) as number:
                    self.strip(e.bind(first + number), e.bind(equal(fresh.get(), 1)), mine)
                    fresh.set(integer(0))

    def strip(self, strip, fresh, slot):
        """Output rows [strip * rows, + rows). fresh: nothing was carried here from the strip before."""
        e, form, step = self.e, self.form, self.window.stride_y
        origin = e.bind(strip * (form.rows * step))  # row of the padded image that is row 0 of the planes
        inside = (e.bind(planes.maximum(0, self.top - origin)), e.bind(self.top + self.height - origin))
        start = e.bind(tirx.if_then_else(fresh, 0, self.carried)) if self.op.expand else 0
        if self.op.expand:
            packed = self.packed(slot)
            begin = e.bind(planes.maximum(start, inside[0]))
            with e.loop(planes.minimum(self.strip_rows, inside[1]) - begin) as number:
                row = e.bind(begin + number)
                owned = tirx.Or(tirx.GE(row, integer(self.carried)), equal(strip, 0))  # else another thread's strip keeps it
                self.pack(packed, row, e.bind(origin + row - self.top), owned)
        for group in self.groups:
            with e.loop(group.count) as panel:
                if self.carried and self.op.expand:
                    with e.when(tirx.Not(fresh)):
                        self.copy_carry(group, panel, slot, back=True)
                for part in range(form.rows // form.group):
                    done = part * form.group * step
                    low = done + self.carried if part or not self.op.expand else start
                    if not self.op.expand and not part:
                        low = 0
                    high = done + self.window.rows(form.group)
                    begin = e.bind(planes.maximum(low, inside[0]))
                    end = e.bind(planes.maximum(begin, planes.minimum(high, inside[1])))
                    self.fill_rows(group, slot, low, begin)
                    self.expand_rows(group, panel, slot, begin, end, origin)
                    self.fill_rows(group, slot, end, high)
                    self.slide(group, panel, slot, done, part * form.group, form.group)
                if self.carried and self.op.expand:
                    self.copy_carry(group, panel, slot, back=False)
        last = self.oh % form.rows
        self.e.choose(strip < self.oh // form.rows if last else True,
                      lambda: self.project(slot, strip, form.rows), lambda: self.project(slot, strip, last))

    # --- parts ---

    def pack(self, packed, row, y, owned=True):
        """One row of the input, with the cache spliced in, into planes; its own spliced channels go to the next cache."""
        e, width, ic, fold, lanes = self.e, self.width, self.ic, self.fold, self.lanes
        out = planes.Planes(packed.buffer, e.bind(packed.at(0, row)), packed.plane, packed.row, lanes)
        planes.pack_row(e, self.x, e.bind(y * (width * ic)), (ic, ic), out, width)
        if not fold:
            return
        start, stop = self.splice.start, self.splice.stop
        with e.loop(width) as x:
            pixel = e.bind(y * width + x)
            at = start
            while at < stop:
                count = min(stop, (at // lanes + 1) * lanes) - at
                tile.copy(e, self.cache, pixel * fold + (at - start), out.buffer,
                          out.at(at // lanes, 0, x) + at % lanes, count, lanes)
                at += count
        with e.when(owned):
            with e.loop(width) as x:
                pixel = e.bind(y * width + x)
                tile.copy(e, self.x, pixel * ic + start, self.next_cache, pixel * fold, fold, lanes)

    def borders(self, slot):
        """Zeros left and right of the rows of one panel; they stay."""
        e, work = self.e, self.work(slot)
        right = self.pitch - self.left - self.width
        with e.loop(self.panel_vectors) as plane, e.loop(self.strip_rows) as row:
            planes.fill(e, work.buffer, work.at(plane, row), self.left, planes.zero(self.lanes), self.lanes)
            planes.fill(e, work.buffer, work.at(plane, row, self.left + self.width), right, planes.zero(self.lanes),
                        self.lanes)

    def fill_rows(self, group, slot, first, last):
        """Zeros for the rows [first, last) that lie outside the image."""
        e, work = self.e, self.work(slot)
        if isinstance(first, int) and isinstance(last, int) and last <= first:
            return
        with e.loop(last - first) as number, e.loop(len(group.chunks)) as plane:
            place = e.bind(work.at(plane, first + number, self.left))
            planes.fill(e, work.buffer, place, self.width, planes.zero(self.lanes), self.lanes)

    def copy_carry(self, group, panel, slot, back):
        """The last rows of a strip are the first of the next one."""
        e, work, carry = self.e, self.work(slot), self.carry(slot)
        count, row = self.carried * self.pitch, 0 if back else self.form.rows * self.window.stride_y
        first = e.bind(self.plane_of(group, panel))
        for plane in range(len(group.chunks)):
            source, target = e.bind(work.at(plane, row)), e.bind(carry.at(first + plane))
            if back:
                planes.copy(e, carry.buffer, target, work.buffer, source, count, self.lanes)
            else:
                planes.copy(e, work.buffer, source, carry.buffer, target, count, self.lanes)

    def plane_of(self, group, panel):
        """Number of the first plane of a panel."""
        return group.start // self.lanes + panel * len(group.chunks)

    def expand_image(self, group, panel, slot):
        if not self.op.expand:
            return self.expand_rows(group, panel, slot, self.top, self.top + self.height, 0)
        for block in sweep.blocks(self.height, self.width, self.shape.rows):
            with self.e.loop(block.count) as index:
                y, x = block.place(index)
                self.expand_tile(group, panel, slot, self.e.bind(y + self.top), x, block.height, block.width)

    def expand_rows(self, group, panel, slot, begin, end, origin):
        """Rows [begin, end) of the planes of one panel."""
        e = self.e
        with e.loop(end - begin) as number:
            row = e.bind(begin + number)
            if self.op.expand:
                for start, count, size in tile.split_rows(self.width, self.shape.rows):
                    with e.loop(count) as index:
                        self.expand_tile(group, panel, slot, row, e.bind(start + index * size), 1, size)
            else:
                work = self.work(slot)
                out = planes.Planes(work.buffer, e.bind(work.at(0, row, self.left)), work.plane, work.row, self.lanes)
                pixel = e.bind((origin + row - self.top) * (self.width * self.ic) + group.channel(panel))
                channels = min(group.width, self.mid)
                planes.pack_row(e, self.x, pixel, (channels, self.ic), out, self.width)

    def expand_tile(self, group, panel, slot, row, x, tall, wide):
        e = self.e
        packed, work = self.packed(slot), self.work(slot)
        at = e.bind(tile.panel_offset(group, panel, self.ic))
        source = planes.Planes(packed.buffer, e.bind(packed.at(0, row, x)), packed.plane, packed.row, self.lanes)
        out = planes.Planes(work.buffer, e.bind(work.at(0, row, x + self.left)), work.plane, work.row, self.lanes)
        planes.compute(e, self.target, group, source, (tall, wide), self.ic, self.expand_w, at, out,
                       self.op.expand.clip)

    def slide(self, group, panel, slot, row, y, rows):
        """Depthwise outputs [y, y + rows) of the strip, from row `row` of the planes on (plus y's in a whole image)."""
        e, lanes = self.e, self.lanes
        work, middle = self.work(slot), self.middle(slot)
        first = e.bind(self.plane_of(group, panel))
        row = e.bind(y * self.window.stride_y) if self.whole else row
        kh, kw = self.window.kh, self.window.kw
        with e.loop(len(group.chunks)) as plane:
            weights = e.bind((first + plane) * (self.depthwise_rows * lanes))
            band = [planes.Planes(buffer.buffer, e.bind(at), buffer.plane, buffer.row, lanes)
                    for buffer, at in ((work, work.at(plane, row)), (middle, middle.at(first + plane, y)))]
            if planes.written_out_band(e, self.target, band[0], self.window, (self.depthwise_w, weights), self.limits,
                                       rows, self.ow, band[1]):
                return
            rows_of = [e.bind(e.load(self.depthwise_w, weights + i * lanes, lanes), "t")
                       for i in range(self.depthwise_rows)]
            taps = [rows_of[ky * kw:ky * kw + kw] for ky in range(kh)]
            limits = rows_of[kh * kw:]
            for start, count, size in tile.split_rows(self.ow, planes.slide_width(self.target, self.window)):
                with e.loop(count) as index:
                    x = e.bind(start + index * size)
                    source = planes.Planes(work.buffer, e.bind(work.at(plane, row, x * self.window.stride_x)),
                                           work.plane, work.row, lanes)
                    place = planes.Planes(middle.buffer, e.bind(middle.at(first + plane, y, x)), 0, middle.row, lanes)

                    def store(y_, x_, value):
                        ends = list(limits)
                        if self.limits[0]:
                            value = tirx.Max(value, ends.pop(0))
                        if self.limits[1]:
                            value = tirx.Min(value, ends.pop(0))
                        e.store(place.buffer, place.at(0, y_, x_), value, lanes)

                    planes.slide(e, source, 0, self.window, taps, rows, size, store)

    def project(self, slot, strip, rows, kind="serial"):
        """The strip's depthwise outputs through the projection: `rows` rows of the output."""
        e, op, middle = self.e, self.op.project, self.middle(slot)
        origin = e.bind(strip * (self.form.rows * self.ow))

        def body(block, index, group, panel):
            _, pixel = block.place(index)
            pixel = e.bind(pixel)
            at = e.bind(tile.panel_offset(group, panel, self.mid))
            place = e.bind((origin + pixel) * self.oc + group.channel(panel))
            steps = tuple(i * self.oc for i in range(block.width))
            source = planes.Planes(middle.buffer, e.bind(middle.at(0, 0, pixel)), middle.plane, middle.row, self.lanes)
            planes.compute_rows(e, self.target, group, source, block.width, self.mid, self.project_w, at,
                                tile.Rows(self.out, place, steps), op.clip,
                                tile.Rows(self.residual, place, steps) if op.residual else None)

        image = sweep.blocks(1, rows * self.ow, self.out_shape.rows)
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
