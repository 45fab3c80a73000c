"""Other engines running the same step graph: each takes a frame, carries its caches, returns logits.

Every peer is given what it is fastest with: its own file format made by its own converter, its own layout, output
buffers used as the next inputs where its interface allows, and the thread count asked for.
"""
from __future__ import annotations

import importlib
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsm_edge.errors import CheckFailedError, MissingComponentError


@dataclass(frozen=True)
class StepModel:
    """A step graph to run: onnx_path, its frame shape (1, 3, h, w) and caches as (name, shape [1, fold, h, w])."""

    onnx_path: Path
    frame_shape: tuple[int, ...]
    caches: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def inputs(self):
        return ["frame", *(name for name, _ in self.caches)]

    @property
    def outputs(self):
        return ["logits", *("next_" + name for name, _ in self.caches)]

    def zeros(self):
        return [np.zeros(shape, np.float32) for _, shape in self.caches]


def _need(module, package):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingComponentError(f"{package} is not installed", found=str(error), expected=f"the package {package}",
                                    do=f"pip install 'tsm-edge[bench]', or leave {package} out of --against") from None


class Peer:
    """One engine with the network loaded. `step(frame)` takes float32 [1,3,h,w] and returns logits [classes]."""

    name = ""
    package = ""

    def __init__(self, model: StepModel, workdir: Path, threads: int):
        raise NotImplementedError

    def step(self, frame):
        raise NotImplementedError

    def reset(self):
        raise NotImplementedError

    @classmethod
    def version(cls):
        from importlib.metadata import version

        return version(cls.package)


class OnnxRuntime(Peer):
    name, package = "onnxruntime", "onnxruntime"

    def __init__(self, model, workdir, threads):
        ort = _need("onnxruntime", self.package)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(model.onnx_path), options, providers=["CPUExecutionProvider"])
        self.model = model
        self.reset()

    def reset(self):
        self.caches = self.model.zeros()

    def step(self, frame):
        logits, *self.caches = self.session.run(self.model.outputs, dict(zip(self.model.inputs, [frame, *self.caches])))
        return logits[0]


class OpenVino(Peer):
    name, package = "openvino", "openvino"

    def __init__(self, model, workdir, threads):
        ov = _need("openvino", self.package)
        core = ov.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                    "INFERENCE_PRECISION_HINT": "f32"}
        self.request = core.compile_model(core.read_model(model.onnx_path), "CPU", settings).create_infer_request()
        self.model = model
        self.reset()

    def reset(self):
        self.caches = self.model.zeros()

    def step(self, frame):
        result = self.request.infer(dict(zip(self.model.inputs, [frame, *self.caches])), share_inputs=True)
        self.caches = [result[name] for name in self.model.outputs[1:]]
        return result["logits"][0]


class Ncnn(Peer):
    name, package = "ncnn", "ncnn"

    def __init__(self, model, workdir, threads):
        self.ncnn = _need("ncnn", self.package)
        pnnx = _need("pnnx", "pnnx").EXEC_PATH
        source = workdir / "ncnn.onnx"
        source.write_bytes(model.onnx_path.read_bytes())
        _convert([pnnx, source.name, "fp16=0"], workdir, workdir / "ncnn.ncnn.param", self.name)
        self.net = self.ncnn.Net()
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(self.net.opt, option, False)  # its default halves the precision of what is compared
        self.net.opt.num_threads = threads
        self.net.load_param(str(workdir / "ncnn.ncnn.param"))
        self.net.load_model(str(workdir / "ncnn.ncnn.bin"))
        self.model = model
        self.reset()

    def reset(self):
        self.caches = [c[0] for c in self.model.zeros()]

    def step(self, frame):
        extractor = self.net.create_extractor()
        for i, value in enumerate([frame[0], *self.caches]):
            # cloned where planes are no multiple of 16 bytes: numpy's lie close, ncnn reads them apart
            mat = self.ncnn.Mat(np.ascontiguousarray(value))
            extractor.input(f"in{i}", mat if value.shape[-1] * value.shape[-2] % 4 == 0 else mat.clone())
        logits = np.array(extractor.extract("out0")[1]).reshape(-1)
        self.caches = [np.array(extractor.extract(f"out{i + 1}")[1]) for i in range(len(self.caches))]
        return logits


# MNN's converter reports its use to its makers, and for that pip-installs a package of theirs which replaces protobuf by
# an older one: both are kept from happening.
_MNN_CONVERT = ("import sys; sys.modules['MNN.tools.utils.log'] = None; "
                "from MNN.tools.mnnconvert import convert; convert(['mnnconvert', *sys.argv[1:]])")


def mnn_file(onnx_path, workdir):
    """Convert an ONNX file with MNN's own converter; returns the path of the new file in `workdir`."""
    _need("MNN", "MNN")
    target = workdir / "model.mnn"
    _convert([sys.executable, "-c", _MNN_CONVERT, "-f", "ONNX", "--modelFile", str(Path(onnx_path).resolve()),
              "--MNNModel", str(target), "--bizCode", "tsm"], workdir, target, "mnn")
    return target


class Mnn(Peer):
    name, package = "mnn", "MNN"

    def __init__(self, model, workdir, threads):
        MNN = _need("MNN", self.package)
        target = mnn_file(model.onnx_path, workdir)
        self.MNN, self.nn = MNN, MNN.nn
        manager = MNN.nn.create_runtime_manager(({"backend": "CPU", "precision": "high", "numThread": threads},))
        self.net = MNN.nn.load_module_from_file(str(target), model.inputs, model.outputs, runtime_manager=manager,
                                                shape_mutable=False)
        self.model = model
        self.reset()

    def _variable(self, array):
        return self.MNN.expr.const(array, list(array.shape), self.MNN.expr.data_format.NCHW)

    def reset(self):
        self.caches = [self._variable(c) for c in self.model.zeros()]

    def step(self, frame):
        logits, *caches = self.net.forward([self._variable(frame), *self.caches])
        result = np.array(logits.read()).reshape(-1)
        # Copies: an output's memory is used again by the next call.
        self.caches = [self._variable(np.array(c.read()).reshape(shape)) for c, (_, shape) in zip(caches, self.model.caches)]
        return result


class LiteRt(Peer):
    name, package = "litert", "ai-edge-litert"

    def __init__(self, model, workdir, threads):
        interpreter = _need("ai_edge_litert.interpreter", self.package)
        path = workdir / "model.tflite"
        if not (_reuse and path.exists()):
            import onnx

            from tsm_edge.export.graph.to_ops import import_onnx

            from .litert_model import write_litert

            path.write_bytes(write_litert(import_onnx(onnx.load(str(model.onnx_path)))))
        self.run = interpreter.Interpreter(model_path=str(path), num_threads=threads)
        self.run.allocate_tensors()
        self.inputs = [d["index"] for d in self.run.get_input_details()]
        self.outputs = [d["index"] for d in self.run.get_output_details()]
        self.model = model
        self.reset()

    def reset(self):
        self.caches = [c.transpose(0, 2, 3, 1).copy() for c in self.model.zeros()]

    def step(self, frame):
        return self.step_channels_last(frame.transpose(0, 2, 3, 1))

    def step_channels_last(self, frame):
        for index, value in zip(self.inputs, [frame, *self.caches]):
            self.run.set_tensor(index, value)
        self.run.invoke()
        logits, *self.caches = [self.run.get_tensor(index) for index in self.outputs]
        return logits.reshape(-1)


_reuse = False


@contextmanager
def reuse_conversions():
    """Within: a converted file that is already in the work folder is taken as it is."""
    global _reuse
    _reuse, before = True, _reuse
    try:
        yield
    finally:
        _reuse = before


def _convert(command, workdir, product, name):
    if _reuse and product.exists():
        return
    run = subprocess.run(command, cwd=workdir, capture_output=True, encoding="utf-8", errors="replace")
    if run.returncode or not product.exists():
        lines = (run.stdout + run.stderr).strip().splitlines()[-5:]
        raise CheckFailedError(f"{name}'s converter failed on the step graph", found=" | ".join(lines) or "no output",
                               expected=product.name, do=f"leave {name} out of --against")


PEERS = {peer.name: peer for peer in (OnnxRuntime, OpenVino, Ncnn, Mnn, LiteRt)}
