"""A bundle's library for TVM's runtime: our compiled kernels, called by TVM's virtual machine."""
import os
import shutil
import threading
from pathlib import Path

import numpy as np

from tsm_edge.errors import BundleError, MissingComponentError
from tsm_edge.runtimes.interface import Model

from .native import mappable, unfit

LIBRARY, ENTRY = "model_tvm.so", "main"


def import_runtime():
    """The module tvm, with its runtime and virtual machine.

    TVM reads its thread pool's settings from the environment when the first step runs. Unless somebody has set them: it shall
    not bind the caller to a core (all threads made later, other engines' too, would share that one), and may use all CPUs (by
    itself it takes half of them on a PC); how many it does use is said for each model.

    Raises
    ------
    MissingComponentError
    """
    try:
        import tvm
        import tvm.runtime.vm
    except ImportError as error:
        raise MissingComponentError("the tvm engine is not installed", found=str(error), expected="the package apache-tvm",
                                    do="pip install 'tsm-edge[export]', or apache-tvm alone") from error
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))
    return tvm


class StepLibrary:
    """The stateless step of such a library.

    Parameters
    ----------
    path : path
    threads : int
        Of one step.

    Raises
    ------
    MissingComponentError, BundleError
    """

    _pool = threading.local()  # TVM has a pool of workers for each thread that calls it: how many of them work

    def __init__(self, path, threads=1):
        tvm = import_runtime()
        try:
            machine = tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
            self._run = machine[ENTRY]
        except Exception as error:  # TVM's errors have no common base
            raise BundleError(f"{Path(path).name} cannot be loaded", found=f"{type(error).__name__}: {error}"[:300],
                              expected="a library that tsm-export --runtime tvm wrote, and the TVM it was written with",
                              do="install the release of apache-tvm in the manifest's toolchain, or export again") from error
        self._configure = tvm.get_global_func("runtime.config_threadpool")
        self._tensor, self.threads = tvm.runtime.tensor, threads
        self._lock = threading.Lock()  # the virtual machine runs one step at a time

    def __call__(self, frame, state):
        """One step.

        Parameters
        ----------
        frame : float32 [1, 3, h, w], contiguous
        state : dict
            Caches by name, in execution order: float32 [1, fold, h, w].

        Returns
        -------
        (float32 [classes], dict)
            Logits, and the next caches.
        """
        with self._lock:
            if getattr(self._pool, "threads", 0) != self.threads:
                self._configure(1, self.threads)  # 1: the fast cores first
                self._pool.threads = self.threads
            out = self._run(self._tensor(frame), *(self._tensor(value) for value in state.values()))
            logits, *caches = (np.array(value.numpy()) for value in out)
        return logits[0], dict(zip(state, caches))


class TvmLibraryModel(Model):
    """A bundle's model_tvm.so in TVM's virtual machine.

    Raises
    ------
    MissingComponentError, BundleError
    """

    engine = "tvm"

    def __init__(self, bundle, threads=None):
        super().__init__(bundle.manifest)
        import_runtime()
        reason = unfit(bundle, LIBRARY)
        if reason:
            raise BundleError("the bundle's library for TVM cannot run here", found=reason, expected=f"{LIBRARY} for this machine",
                              do="export with --runtime tvm (for this machine: --target host), or take another engine")
        path = Path(mappable(bundle.file(LIBRARY), bundle.files[LIBRARY][1]))
        self.bundle, self.threads = bundle, threads or bundle.manifest["threads"]
        try:
            self._infer = StepLibrary(path, self.threads)
        finally:
            if path.parent.name.startswith("tsm-library-"):
                shutil.rmtree(path.parent, ignore_errors=True)  # the mapping stays
        self._try()

    def _try(self):
        """One step: does the library belong to the manifest?"""
        zeros = {name: np.zeros(shape, np.float32) for name, shape in self.cache_shapes.items()}
        try:
            logits, caches = self._infer(np.zeros(self.input_shape, np.float32), zeros)
            found = logits.shape, {name: value.shape for name, value in caches.items()}
        except Exception as error:  # TVM's errors have no common base
            found = str(error)[:300]
        if found != ((len(self.classes),), self.cache_shapes):
            raise BundleError("library and manifest do not belong together", found=str(found)[:300],
                              expected=f"{len(self.classes)} logits and {len(self.cache_shapes)} caches as in the manifest",
                              do="export the bundle again")
