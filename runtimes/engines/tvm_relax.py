"""The step graph in TVM's virtual machine, by TVM's own legalisation: no tuned kernels, a reference that shares no code
with the compiled library. Compiles for this machine when it is opened. For bundles without a library for TVM's runtime."""
from __future__ import annotations

import threading
import warnings

import numpy as np

from tsm_edge.errors import BundleError, MissingComponentError
from tsm_edge.runtimes.interface import EngineStream, Model


def import_engine():
    """The modules tvm and onnx.

    Raises
    ------
    MissingComponentError
    """
    try:
        import onnx
        import tvm
        import tvm.relax.frontend.onnx  # noqa: F401
    except ImportError as error:
        raise MissingComponentError("the tvm back end is not installed", found=str(error),
                                    expected="the packages apache-tvm and onnx", do="pip install 'tsm-edge[export]'") from error
    return tvm, onnx


class TvmModel(Model):
    """A bundle's model.onnx in TVM's virtual machine.

    Parameters
    ----------
    bundle : Bundle
    threads : int or None
        Not used: untuned kernels run on one thread.

    Raises
    ------
    MissingComponentError, BundleError
    """

    backend = "tvm"

    def __init__(self, bundle, threads=None):
        tvm, onnx = import_engine()
        super().__init__(bundle.manifest)
        path = bundle.file("model.onnx")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it renames inputs; they are passed by position
                graph = onnx.load(str(path), load_external_data=False)
                executable = tvm.compile(tvm.relax.frontend.onnx.from_onnx(graph), target="llvm")
        except Exception as error:  # TVM's errors have no common base
            raise BundleError(f"TVM cannot compile {path.name}", found=str(error)[:300], expected="a step graph",
                              do="use another back end") from error
        names = [value.name for value in graph.graph.input]
        if names != ["frame", *self.cache_shapes]:
            raise BundleError(f"{path.name} does not fit the manifest", found=f"inputs {names[:4]}, ...",
                              expected="frame and the caches in the manifest's order", do="export it again")
        outputs = [value.name for value in graph.graph.output]
        self._order = [outputs.index(name) for name in ("logits", *("next_" + name for name in self.cache_shapes))]
        self._tensor = tvm.runtime.tensor
        self._run = tvm.relax.VirtualMachine(executable, tvm.cpu())["main"]
        self._lock = threading.Lock()  # the virtual machine runs one step at a time
        self.bundle, self.threads = bundle, 1
        self.note = "the bundle holds no model_tvm.so, so TVM compiled model.onnx with its own, untuned schedules"

    def _infer(self, x, state):
        with self._lock:
            out = self._run(self._tensor(x), *(self._tensor(value) for value in state.values()))
            values = [np.array(out[i].numpy()) for i in self._order]
        return values[0][0], dict(zip(self.cache_shapes, values[1:]))

    def _stream(self, colour, max_gap_seconds, fps):
        stream = EngineStream(self, self._infer, colour, max_gap_seconds, fps)
        stream.threads = 1
        return stream
