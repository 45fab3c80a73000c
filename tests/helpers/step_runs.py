"""Step graphs run frame by frame: by onnxruntime, as programs in plain numpy, as compiled libraries through their C interface."""
import ctypes

import numpy as np
from c_toy import ModelInfo


def frames_for(model, count=3, seed=1):
    """float32 [count, 3, H, W]."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(seed).normal(size=(count, *shape[1:])).astype(np.float32)


def run_onnx(model, frames, evaluate=None):
    """Chain onnxruntime (or `evaluate(inputs) -> outputs`, by name) over frames: list of {output: array} a frame."""
    if evaluate is None:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]

        def evaluate(inputs):
            return dict(zip(names, session.run(names, inputs)))

    state = {i.name: np.zeros([d.dim_value for d in i.type.tensor_type.shape.dim], np.float32)
             for i in model.graph.input if i.name != "frame"}
    steps = []
    for frame in frames:
        steps.append(evaluate({"frame": frame[None], **state}))
        state = {name: steps[-1]["next_" + name] for name in state}
    return steps


def run_program(program, inputs):
    """One step of a program in plain numpy. inputs and outputs by ONNX name, channels first."""
    tensors = {}
    for name, value in inputs.items():
        tensors[name] = value[0].transpose(1, 2, 0)
    for op in program.ops:
        _RUN[type(op).__name__](op, tensors, program.shapes)
    for name, value in tensors.items():
        assert value.shape == tuple(program.shapes[name]), (name, value.shape, program.shapes[name])
    outputs = {splice.next_cache: tensors[splice.next_cache].transpose(2, 0, 1)[None] for splice in program.caches}
    return {program.logits: tensors[program.logits][None], **outputs}


def _clip(x, clip):
    return x if clip is None else np.clip(x, *clip)


def _spliced(x, splice, tensors):
    if splice is None:
        return x
    tensors[splice.next_cache] = x[:, :, splice.start:splice.stop].copy()
    x = x.copy()
    x[:, :, splice.start:splice.stop] = tensors[splice.cache]
    return x


def _padded(x, padding, value=0.0):
    top, left, bottom, right = padding
    return np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=value)


def _conv(op, tensors, shapes):
    x = _padded(_spliced(tensors[op.x], op.splice, tensors), op.padding).astype(np.float64)
    oc, per_group, kh, kw = op.weight.shape
    height, width = ((n - k) // s + 1 for n, k, s in zip(x.shape[:2], (kh, kw), op.stride))
    out = np.zeros((height, width, oc))
    for o in range(oc):
        first = o // (oc // op.groups) * per_group
        for dy in range(kh):
            for dx in range(kw):
                part = x[dy:dy + (height - 1) * op.stride[0] + 1:op.stride[0],
                         dx:dx + (width - 1) * op.stride[1] + 1:op.stride[1], first:first + per_group]
                out[:, :, o] += part @ op.weight[o, :, dy, dx].astype(np.float64)
    out += op.bias
    if op.residual:
        out += tensors[op.residual]
    tensors[op.out] = _clip(out, op.clip).astype(np.float32)


def _dense(op, tensors, shapes):
    tensors[op.out] = _clip(op.weight @ tensors[op.x] + op.bias, op.clip).astype(np.float32)


def _pool(op, tensors, shapes):
    nothing = -np.inf if op.kind == "max" else np.nan
    x = _padded(tensors[op.x], op.padding, nothing)
    height, width, channels = shapes[op.out]
    out = np.empty((height, width, channels), np.float32)
    for y in range(height):
        for z in range(width):
            window = x[y * op.stride[0]:y * op.stride[0] + op.kernel[0], z * op.stride[1]:z * op.stride[1] + op.kernel[1]]
            out[y, z] = window.max((0, 1)) if op.kind == "max" else np.nanmean(window, (0, 1))
    tensors[op.out] = out


def _global_average(op, tensors, shapes):
    tensors[op.out] = tensors[op.x].mean((0, 1)).reshape(shapes[op.out])


def _add(op, tensors, shapes):
    tensors[op.out] = _clip(tensors[op.a] + tensors[op.b], op.clip)


def _apply_splice(op, tensors, shapes):
    tensors[op.out] = _spliced(tensors[op.x], op.splice, tensors)


def _layout(op, tensors, shapes):
    tensors[op.out] = tensors[op.x].transpose((2, 0, 1) if op.to == "chw" else (1, 2, 0))


def _fallback(op, tensors, shapes):
    import onnxruntime

    session = onnxruntime.InferenceSession(op.model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {i.name: tensors[name].reshape(i.shape) for i, name in zip(session.get_inputs(), op.inputs)}
    for name, value in zip(op.outputs, session.run(None, inputs)):
        tensors[name] = value.reshape(shapes[name])


_RUN = {"Conv": _conv, "Dense": _dense, "Pool": _pool, "GlobalAveragePool": _global_average, "Add": _add,
        "ApplySplice": _apply_splice, "Layout": _layout, "Fallback": _fallback}


class Library:
    """The stateless step of a compiled library: frame and caches in, logits and caches out."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(str(path))
        self.lib.tsm_model_class_name.restype = ctypes.c_char_p
        self.lib.tsm_model_step_error.restype = ctypes.c_char_p
        self.model = ctypes.c_void_p()
        words = ctypes.create_string_buffer(300)
        options = (ctypes.c_size_t * 3)(24, ctypes.addressof(words), 300)
        assert self.lib.tsm_model_create(options, ctypes.byref(self.model)) == 0, words.value
        self.info = ModelInfo()
        assert self.lib.tsm_model_get_info(self.model, ctypes.byref(self.info)) == 0

    def block(self, size):
        size = max(size, 64)  # a network without caches has blocks of nothing, yet they need an address
        raw = np.zeros(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start:start + size]

    def classes(self):
        names = [self.lib.tsm_model_class_name(self.model, i) for i in range(self.info.num_classes)]
        return [name.decode() for name in names]

    def run(self, model, frames):
        """Chained steps, like run_onnx."""
        info, lib, point = self.info, self.lib, ctypes.c_void_p
        frame, logits = self.block(info.frame_bytes), self.block(info.logits_bytes)
        caches, after = self.block(info.cache_bytes), self.block(info.cache_bytes)
        workspace = self.block(info.workspace_bytes)
        shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input[1:]}
        steps = []
        for values in frames:
            values = np.ascontiguousarray(values)
            assert lib.tsm_model_frame_from_nchw(self.model, point(values.ctypes.data), point(frame.ctypes.data)) == 0
            blocks = [point(b.ctypes.data) for b in (frame, caches, after, logits, workspace)]
            status = lib.tsm_model_step(self.model, *blocks)
            assert status == 0, lib.tsm_model_step_error(self.model, blocks[-1])
            out = {"logits": logits[:4 * info.num_classes].view(np.float32).copy()[None]}
            for index, (name, shape) in enumerate(shapes.items()):
                value = np.empty(shape, np.float32)
                assert lib.tsm_model_cache_to_nchw(self.model, index, point(after.ctypes.data),
                                                   point(value.ctypes.data)) == 0
                out["next_" + name] = value
            caches, after = after, caches
            steps.append(out)
        return steps


def manifest_for(program, **more):
    """The least manifest a library needs."""
    height, width, _ = program.shapes[program.frame]
    classes = [f"class {i}" for i in range(program.shapes[program.logits][0])]
    return {"name": "odd", "trained": False, "classes": classes, "precision": "fp32", "threads": 1, "input": {
        "width": width, "height": height, "colour": "RGB", "resize": "crop", "shorter_side": 256, "filter": "antialias",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, **more}
