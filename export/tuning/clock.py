"""Compile kernels and time them where they will run: in this process, or on a board through TVM's RPC tracker."""
from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import logging
import platform
import re
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tsm_edge.errors import InputError, MissingComponentError
from tsm_edge.export.kernels.write.base import ScratchArg, WeightArg
from tsm_edge.export.library import toolchain

ROUNDS, REPEATS = 5, 5
SESSION_SECONDS = 600  # after which a board's server gives up on us
TRACKER_SECONDS, BOARD_SECONDS = 10, 60  # how long to wait for the tracker's answer and for a board that is free
# the operands but the first are flushed from the caches before each run: as in a step, where a kernel's input has just
# been written and its weights were last read a frame ago
_COLD = "cache_flush_cpu_non_first_arg"


@dataclass(frozen=True)
class Timing:
    """seconds : the fastest run of each round. agrees : whether the results are those of the first kernel measured."""

    seconds: tuple[float, ...]
    agrees: bool = True

    @property
    def best(self):
        return min(self.seconds)


def parse_tracker(text):
    """"board-room:9190" -> ("board-room", 9190)."""
    match = re.fullmatch(r"(.+):(\d{1,5})", text.strip())
    if not match or not 0 < int(match[2]) < 65536:
        raise InputError("--rpc-tracker cannot be used", found=f"'{text}'", expected="HOST:PORT of TVM's RPC tracker",
                         do="start one with `python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port 9190`")
    return match[1], int(match[2])


def check_place(target, tracker=None, key=None):
    """Refuse a place where the target's kernels cannot be timed: another processor, no tracker, no board of that key.

    Raises
    ------
    InputError, MissingComponentError
    """
    if tracker is None:
        if not target.runs_here():
            raise InputError(f"kernels for {target.name} cannot be timed on this machine",
                             found=f"{platform.system()} {platform.machine()}", expected=f"{target.os} {target.arch}",
                             do="time them on the board: --rpc-tracker HOST:PORT --rpc-key KEY")
        return
    if not key:
        raise InputError("--rpc-tracker needs --rpc-key", found="no key", expected="the key of the board's RPC server",
                         do="give the KEY that `python -m tvm.exec.rpc_server --key KEY` was started with")
    keys = _keys(*tracker)
    if key not in keys:
        raise InputError(f"no board with the key '{key}' at the RPC tracker {tracker[0]}:{tracker[1]}",
                         found=", ".join(keys) or "no boards at all", expected=f"a server with --key {key}",
                         do=f"on the board: python -m tvm.exec.rpc_server --tracker HOST:{tracker[1]} --key {key}")


def _keys(host, port):
    """The keys of the servers that a tracker knows."""
    from tvm import rpc

    try:
        socket.create_connection((host, port), timeout=TRACKER_SECONDS).close()  # TVM's own client would try for minutes
        summary = _within(TRACKER_SECONDS, lambda: rpc.connect_tracker(host, port).summary())
    except (OSError, RuntimeError) as error:
        raise MissingComponentError(f"the RPC tracker {host}:{port} does not answer",
                                    found=_last_line(error), expected="a running TVM RPC tracker",
                                    do=f"python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port {port} --port-end {port + 1}") from error
    return sorted({item["key"].split(":", 1)[-1] for item in summary["server_info"]})


def _within(seconds, call):
    """What `call` gives, or TimeoutError: TVM's client has no deadlines. A call that is late is left to itself."""
    future = concurrent.futures.Future()

    def work():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        return future.result(seconds)
    except concurrent.futures.TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error


def _last_line(error):
    """Of TVM's errors, which begin with a traceback."""
    return (str(error).strip() or repr(error)).splitlines()[-1].strip()


@contextlib.contextmanager
def session(target, tracker=None, key=None):
    """A TVM RPC session where `target`'s kernels run, with as many threads as the target's default."""
    from tvm import rpc

    logging.getLogger("RPCServer").setLevel(logging.WARNING)  # else it tells of each file it loads
    if tracker is None:
        opened = rpc.LocalSession()
    else:
        opened = _board(tracker, key)
    opened.get_function("runtime.config_threadpool")(1, target.threads)
    yield opened


def _board(tracker, key):
    """A session on a board of that key, as soon as one is free."""
    from tvm import rpc

    try:
        return _within(BOARD_SECONDS, lambda: rpc.connect_tracker(*tracker).request(key, session_timeout=SESSION_SECONDS))
    except (OSError, RuntimeError) as error:
        host, port = tracker
        raise MissingComponentError(f"the RPC tracker {host}:{port} gives no board with the key '{key}'", found=_last_line(error),
                                    expected=f"a board that is on, connected and free within {BOARD_SECONDS} s",
                                    do=f"see who has it: python -m tvm.exec.query_rpc_tracker --host {host} --port {port}") from error


def measure(kernels, outputs, target, tracker=None, key=None, cc=None, rounds=ROUNDS):
    """Time kernels that compute the same, in turns, so that what disturbs the machine disturbs all.

    Parameters
    ----------
    kernels : list of Kernel; the first one's results are what the others' are compared with.
    outputs : set of names of the tensors that they write.
    tracker, key : as for `session`.

    Returns
    -------
    list of Timing, one for each kernel.

    Raises
    ------
    InputError
        The board cannot load them, or is gone. MissingComponentError: there is none.
    """
    with tempfile.TemporaryDirectory(prefix="tsm-tune-") as folder:
        library = _library(kernels, target, Path(folder), cc)
        try:
            with session(target, tracker, key) as opened:  # only now, so that others have the board while we compile
                opened.upload(str(library))
                try:
                    return _time(kernels, outputs, opened.load_module(library.name), opened.cpu(0), rounds)
                finally:
                    with contextlib.suppress(RuntimeError):  # the board is gone: what it was asked before has said so
                        opened.remove(library.name)
        except (OSError, RuntimeError) as error:
            if tracker is None:
                raise
            raise InputError(f"the board with the key '{key}' cannot run kernels for {target.name}", found=_last_line(error),
                             expected=f"a board with {target.os} {target.arch}, whose RPC server runs until the end",
                             do="look at the board and its server's output, then tune again") from error


def _library(kernels, target, folder, cc):
    """One shared library with all of them: nothing has to be compiled where it runs."""
    from tsm_edge.export.library.objects import compile_each

    names = compile_each([(None, kernel) for kernel in kernels], target, folder, hidden=False)
    compiler = toolchain.find_compiler(target, cc)
    toolchain.call(compiler, ["-shared", "-nostdlib", *names, "-o", "kernels.so"], folder, "linking kernels to time")
    # another name for other content: where one was loaded before, the same name would give it again
    digest = hashlib.sha256((folder / "kernels.so").read_bytes()).hexdigest()[:16]
    return (folder / "kernels.so").replace(folder / f"tsm_tune_{digest}.so")


def _time(kernels, outputs, module, device, rounds):
    inputs, calls = {}, []
    for kernel in kernels:
        calls.append(_arguments(kernel, outputs, inputs, device))
        module[kernel.symbol](*calls[-1][0])
    expected = {name: value.numpy() for name, value in calls[0][1].items()}
    agrees = [all(_agree(value.numpy(), expected[name]) for name, value in written.items()) for _, written in calls]
    timers = [module.time_evaluator(kernel.symbol, device, number=1, repeat=REPEATS, f_preproc=_COLD)
              for kernel in kernels]
    seconds = [[] for _ in kernels]
    for _ in range(rounds):
        for timer, (values, _), found in zip(timers, calls, seconds):
            found.append(float(min(timer(*values).results)))
    return [Timing(tuple(found), agree) for found, agree in zip(seconds, agrees)]


def _arguments(kernel, outputs, inputs, device):
    """(values in the order of the parameters, {name: value} of the outputs). inputs: those made before, by name."""
    import tvm

    rng, values, written = np.random.default_rng(0), [], {}
    for arg in kernel.args:
        if isinstance(arg, WeightArg):
            key = hashlib.sha256(arg.array.tobytes()).digest()
            array = arg.array
        elif isinstance(arg, ScratchArg) or arg.name in outputs:
            key, array = None, np.full(arg.shape, np.nan, arg.dtype)
        else:
            key, array = arg.name, rng.standard_normal(arg.shape).astype(arg.dtype)
        if key is None or key not in inputs:
            value = tvm.runtime.tensor(np.ascontiguousarray(array), device)
            if key is not None:
                inputs[key] = value
        values.append(value if key is None else inputs[key])
        if key is None and not isinstance(arg, ScratchArg):
            written[arg.name] = values[-1]
    return values, written


def _agree(got, expected):
    """Equal up to rounding: sums in another order."""
    tolerance = 1e-4 if expected.dtype == np.float32 else 3e-2
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    return bool((np.abs(got - expected) <= tolerance * max(1.0, np.abs(expected).max())).all())
