"""tsm_edge.runtimes: run a bundle. One interface, several engines; none is imported before it is asked for.

    model = tsm_edge.load("dist/nano")                     # the compiled library if it is for this machine, else onnxruntime
    stream = model.stream()
    result = stream.step(frame, time.monotonic())          # uint8 [height, width, 3]

The same files run on a board, zipped into the bundle (`tsm_edge.export.bundle.device`): all but the engine of checkpoints are
written for Python 3.6, numpy 1.13 and OpenCV 4.1.
"""
import importlib
import importlib.util
import os
from pathlib import Path

from tsm_edge.cli import choose
from tsm_edge.default import default_model
from tsm_edge.errors import BundleError, InputError, MissingComponentError

from .bundle import Bundle, open_bundle
from .interface import Model

ENGINES = ("native", "onnxruntime", "tvm", "torch")
CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".bin")
# engine -> module and class, called with (bundle, .onnx file or checkpoint, threads)
_ENGINES = {"native": ("native", "NativeModel"), "onnxruntime": ("onnx", "OnnxModel"), "tvm": ("tvm_library", "TvmLibraryModel"),
            "torch": ("torch", "TorchModel")}

__all__ = ["ENGINES", "load"]


def load(path: "str | os.PathLike[str] | Bundle | None" = None, engine: "str | None" = None, threads: "int | None" = None) -> "Model":
    """Load a bundle, a step graph or a checkpoint.

    Parameters
    ----------
    path : str, path, Bundle or None
        A bundle (folder, .zip or an opened Bundle), an .onnx file that tsm-export wrote, or a checkpoint (.pth, .pth.tar, .pt).
        None: on a board the bundle that this code came in; else the model that comes with the package.
    engine : "native", "onnxruntime", "tvm", "torch" or None
        None: for a bundle native where its library is for this machine, else onnxruntime; onnxruntime for an .onnx
        file; torch for a checkpoint. `Model.note` says why native was not taken. "tvm" runs the library that
        `tsm-export --runtime tvm` added.
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
        The file cannot be used, or not by this engine.
    """
    if engine is not None:
        choose(engine, ENGINES, "engine")
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= 64):
        raise InputError("the number of threads cannot be used", found=repr(threads), expected="1 to 64",
                         do="leave it out for the model's own")
    if isinstance(path, Bundle):
        return _load_bundle(path, engine, threads)
    path = default_model() if path is None else Path(path)
    for suffixes, fits, what in (((".onnx",), "onnxruntime", "an ONNX file"), (CHECKPOINTS, "torch", "a checkpoint")):
        if path.suffix in suffixes and path.is_file():
            if engine not in (None, fits):
                raise InputError(f"the {engine} engine cannot run {path.name}", found=what,
                                 expected="a bundle" if engine != "torch" else "a checkpoint",
                                 do=f"leave the engine out, or pass {fits}")
            return _open(fits, path, threads)
    return _load_bundle(open_bundle(path), engine, threads)


def _open(engine, source, threads):
    module, name = _ENGINES[engine]
    try:
        module = importlib.import_module("tsm_edge.runtimes.engines." + module)
    except ModuleNotFoundError as error:
        if not error.name.startswith("tsm_edge.runtimes"):
            raise
        raise MissingComponentError(f"{source} cannot be run here", found=f"a bundle's own runtime, which has no {engine}",
                                    expected="tsm-edge, installed", do="pip install 'tsm-edge[export]', or give a bundle") from error
    return getattr(module, name)(source, threads)


def _load_bundle(bundle, engine, threads):
    from tsm_edge.runtimes.engines import native

    if engine == "torch":
        raise InputError("the torch engine cannot run a bundle", found=bundle.source, expected="a checkpoint",
                         do="load the checkpoint that the bundle was made from")
    if engine is not None:
        return _open(engine, bundle, threads)
    note = native.unfit(bundle)
    if not note:
        try:
            return _open("native", bundle, threads)
        except BundleError as error:
            # A libc or a CPU that does not fit is passed over; what is damaged never is.
            if "belong together" in error.problem:
                raise
            note = f"{error.problem}: {error.found}"
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingComponentError("nothing here can run this bundle", found=f"{note}; onnxruntime is not installed",
                                    expected="a library for this machine, or onnxruntime",
                                    do="pip install 'tsm-edge[onnxruntime]', or export for this machine: tsm-export --target host")
    model = _open("onnxruntime", bundle, threads)
    model.note = note
    return model
