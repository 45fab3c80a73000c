"""Kernels to object files: the one place that compiles, for exports, tests and measurements."""
from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from tsm_edge.errors import MissingComponentError

from . import archive

STACK_BYTES = 255 << 20  # of a compiling thread: TVM's passes go as deep as an unrolled kernel is long; Windows allows no 256


def import_tvm():
    try:
        import tvm
    except ImportError as error:
        raise MissingComponentError("compiling needs the package apache-tvm", found=str(error),
                                    expected="apache-tvm>=0.27,<0.28", do="pip install 'tsm-edge[export]'") from error
    return tvm


def functions_of(calls):
    """The TensorIR functions of calls, by symbol."""
    functions = {}
    for _, kernel in calls:
        functions.setdefault(kernel.symbol, kernel.func.with_attr("global_symbol", kernel.symbol))
    return {symbol: functions[symbol] for symbol in sorted(functions)}


def compile_each(calls, target, folder, hidden=True):
    """Compile the TensorIR functions of `calls`, each into an object file of its own, on all cores.

    One file per function, however many cores there are: the same functions give the same bytes everywhere.

    Parameters
    ----------
    calls : list of (operation, Kernel)
    target : Target
    folder : Path
    hidden : no library made of them shows the functions; they are called from within.

    Returns
    -------
    list of str
        Names of the object files in `folder`, in the order of the functions' symbols.
    """
    functions = functions_of(calls)
    for old in folder.glob("kernel.*.o"):
        old.unlink()
    names = {symbol: f"kernel.{number:03d}.o" for number, symbol in enumerate(functions)}
    compiling = target.tvm_target()
    usual = threading.stack_size(STACK_BYTES)
    try:
        with ThreadPoolExecutor(max_workers=cpu_count()) as pool:  # TVM compiles without Python's lock
            jobs = [pool.submit(_compile, {symbol: function}, compiling, folder / names[symbol], hidden)
                    for symbol, function in functions.items()]
            try:
                for job in jobs:
                    job.result()
            except BaseException:  # Ctrl-C as well: what is compiled now comes to its end, no other begins
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        threading.stack_size(usual)
    return list(names.values())


def cpu_count():
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_functions(functions, target):
    """TensorIR functions by symbol -> TVM's compiled module, with the settings that every kernel is compiled with.

    target : as `Target.tvm_target` gives it.
    """
    tvm = import_tvm()
    # TVM's storage rewrite moves a buffer that belongs to one thread of a parallel launch out of the launch, where all
    # threads share it. Our kernels place their buffers themselves.
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": True}):
        return tvm.compile(tvm.IRModule(functions), target=target).mod


def _compile(functions, target, output, hidden=True):
    compile_functions(functions, target).write_to_file(str(output), "o")
    if hidden:
        output.write_bytes(archive.hide_symbols(output.read_bytes()))


def assembly(calls, target):
    """The machine code of the kernels as text, by symbol: for reading."""
    def text(function):
        return compile_functions({"main": function}, compiling).inspect_source("asm")

    functions, compiling = functions_of(calls), target.tvm_target()
    usual = threading.stack_size(STACK_BYTES)
    try:
        with ThreadPoolExecutor(max_workers=1) as thread:  # for its stack
            return dict(zip(functions, thread.map(text, functions.values())))
    finally:
        threading.stack_size(usual)
