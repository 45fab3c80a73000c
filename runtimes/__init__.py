"""tsm_edge.runtimes: run a bundle. One interface, several engines; none is imported before it is asked for.

    model = tsm_edge.load("dist/nano")      # the compiled library if it is for this machine, else onnxruntime
    stream = model.stream()
    result = stream.step(frame)             # uint8 [height, width, 3]
"""
from __future__ import annotations

import importlib.util
from pathlib import Path

from tsm_edge.errors import BundleError, InputError, MissingComponentError

from .bundle import Bundle, open_bundle

BACKENDS = ("native", "onnxruntime", "tvm", "torch")
CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".bin")

__all__ = ["BACKENDS", "load"]


def load(path, backend=None, threads=None):
    """Load a bundle, a step graph or a checkpoint.

    Parameters
    ----------
    path : str, path or Bundle
        A bundle (folder, .zip or an opened Bundle), an .onnx file that tsm-export wrote, or a checkpoint (.pth, .pth.tar, .pt).
    backend : "native", "onnxruntime", "tvm", "torch" or None
        None: for a bundle native where its library is for this machine, else onnxruntime; onnxruntime for an .onnx
        file; torch for a checkpoint. `Model.note` says why native was not taken. "tvm" runs the library that
        `tsm-export --runtime tvm` added; of a bundle without it TVM compiles the step graph by itself, which is slow.
    threads : int or None
        Threads of one step; None: the model's own number.

    Returns
    -------
    tsm_edge.runtimes.interface.Model

    Raises
    ------
    MissingComponentError
        The engine is not installed; names the extra that brings it.
    BundleError, InputError
        The file cannot be used, or not by this back end.
    """
    from tsm_edge.cli import choose

    if backend is not None:
        choose(backend, BACKENDS, "back end")
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 64):
        raise InputError("the number of threads cannot be used", found=repr(threads), expected="1 to 64",
                         do="leave it out for the model's own")
    if isinstance(path, Bundle):
        return _load_bundle(path, backend, threads)
    path = Path(path)
    if path.suffix == ".onnx" and path.is_file():
        _only(path, backend, "onnxruntime", "an ONNX file")
        from tsm_edge.runtimes.engines.onnx import OnnxModel

        return OnnxModel(path, threads)
    if path.suffix in CHECKPOINTS and path.is_file():
        _only(path, backend, "torch", "a checkpoint")
        from tsm_edge.runtimes.engines.torch import TorchModel

        return TorchModel(path, threads)
    return _load_bundle(open_bundle(path), backend, threads)


def _only(path, backend, fits, what):
    if backend not in (None, fits):
        raise InputError(f"the {backend} back end cannot run {path.name}", found=what,
                         expected="a bundle" if backend != "torch" else "a checkpoint",
                         do=f"leave the back end out, or pass {fits}")


def _load_bundle(bundle, backend, threads):
    from .engines import native

    if backend == "torch":
        raise InputError("the torch back end cannot run a bundle", found=bundle.source, expected="a checkpoint",
                         do="load the checkpoint that the bundle was made from")
    note = ""
    if backend in (None, "native"):
        note = "" if backend else native.unfit(bundle)
        if not note:
            try:
                return native.NativeModel(bundle, threads)
            except BundleError as error:
                # A libc or a CPU that does not fit is passed over; what is damaged never is.
                if backend or "belong together" in error.problem:
                    raise
                note = f"{error.problem}: {error.found}"
        if importlib.util.find_spec("onnxruntime") is None:
            raise MissingComponentError("nothing here can run this bundle",
                                        found=f"{note}; onnxruntime is not installed",
                                        expected="a library for this machine, or onnxruntime",
                                        do="pip install 'tsm-edge[onnxruntime]', or export for this machine: "
                                           "tsm-export --target host")
    if backend == "tvm":
        from .engines import tvm_library

        if tvm_library.LIBRARY in bundle:
            return tvm_library.TvmLibraryModel(bundle, threads)
        from tsm_edge.runtimes.engines.tvm_relax import TvmModel

        return TvmModel(bundle, threads)
    from tsm_edge.runtimes.engines.onnx import OnnxModel

    model = OnnxModel(bundle, threads)
    model.note = note
    return model
