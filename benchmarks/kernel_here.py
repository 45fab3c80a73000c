"""Run one kernel on this machine with numpy arrays: for tests and for measuring."""
from __future__ import annotations

import numpy as np

from tsm_edge.export.kernels.write.base import ScratchArg, WeightArg
from tsm_edge.export.library.objects import compile_functions, functions_of


def compile_kernel(kernel, target):
    """The kernel as a TVM module whose function `kernel.symbol` can be called."""
    return compile_functions(functions_of([(None, kernel)]), target.tvm_target())


def evaluate(kernel, tensors, target):
    """Run `kernel`.

    Parameters
    ----------
    kernel : Kernel built for `target`, which must be able to run here.
    tensors : dict of tensor name -> float32 array, for the kernel's inputs. Their shapes are not looked at.

    Returns
    -------
    dict of tensor name -> flat array, for the tensors that are not in `tensors`. Those and the scratch memory were NaN
    before, so that what is never written shows.
    """
    import tvm

    values, results = [], {}
    for arg in kernel.args:
        if isinstance(arg, WeightArg):
            array = arg.array
        elif isinstance(arg, ScratchArg):
            array = np.full(arg.shape, np.nan, arg.dtype)
        elif arg.name in tensors:
            array = np.ascontiguousarray(tensors[arg.name], arg.dtype).reshape(arg.shape)
        else:
            array = np.full(arg.shape, np.nan, arg.dtype)
        value = tvm.runtime.tensor(array)
        values.append(value)
        if not isinstance(arg, (WeightArg, ScratchArg)) and arg.name not in tensors:
            results[arg.name] = value
    compile_kernel(kernel, target)[kernel.symbol](*values)
    return {name: value.numpy() for name, value in results.items()}
