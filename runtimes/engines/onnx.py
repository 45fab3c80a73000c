"""The step graph in onnxruntime."""
from pathlib import Path

import numpy as np

from tsm_edge.errors import BundleError, MissingComponentError
from tsm_edge.runtimes.bundle import parse_manifest
from tsm_edge.runtimes.interface import Model

MODEL = "model.onnx"


def import_engine():
    """The module onnxruntime.

    Raises
    ------
    MissingComponentError
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingComponentError("the onnxruntime engine is not installed", found=str(error),
                                    expected="the package onnxruntime",
                                    do="pip install 'tsm-edge[onnxruntime]'") from error
    return onnxruntime


class OnnxModel(Model):
    """A bundle's model.onnx, or an .onnx file that carries its manifest.

    Parameters
    ----------
    source : Bundle or path
    threads : int or None
        Threads of one step; None: onnxruntime decides.

    Raises
    ------
    MissingComponentError, BundleError
    """

    engine = "onnxruntime"

    def __init__(self, source, threads=None):
        engine = import_engine()
        bundle = source if hasattr(source, "manifest") else None
        path = bundle.file(MODEL) if bundle else Path(source)
        options = engine.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session = engine.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base
            raise BundleError(f"{path.name} cannot be loaded", found=str(error)[:300], expected="a step graph",
                              do="export it again") from error
        if bundle:
            manifest = bundle.manifest
        else:
            text = self._session.get_modelmeta().custom_metadata_map.get("tsm_edge.manifest")
            if text is None:
                raise BundleError(f"{path.name} carries no manifest", found="an ONNX file of another origin",
                                  expected="metadata tsm_edge.manifest", do="use a file that tsm-export wrote")
            manifest = parse_manifest(text.encode("utf-8"), f"the manifest in {path.name}", embedded=True)
        super().__init__(manifest)
        self.bundle, self.threads = bundle, threads or 0
        self._check_graph(path.name)
        self._outputs = ["logits", *("next_" + name for name in self.cache_shapes)]

    def _check_graph(self, name):
        want = {"frame": self.input_shape, **self.cache_shapes}
        found = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        outputs = {o.name for o in self._session.get_outputs()}
        missing = {"logits", *("next_" + cache for cache in self.cache_shapes)} - outputs
        if found != want or missing:
            odd = sorted(map(str, set(found.items()) ^ set(want.items())))[:4] or sorted(missing)[:4]
            raise BundleError(f"{name} does not fit the manifest", found=f"different: {', '.join(odd)}",
                              expected=f"frame {list(self.input_shape)}, {len(self.cache_shapes)} caches, "
                                       "logits and next caches",
                              do="export it again")

    def _infer(self, x, state):
        logits, *caches = self._session.run(self._outputs, {"frame": x, **state})
        return np.ascontiguousarray(logits[0], np.float32), dict(zip(self.cache_shapes, caches))
