"""Tuning on a board: what happens between TVM's RPC tracker, its boards and us."""
import importlib.util
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

for package in ("onnx", "onnxruntime", "tvm", "ziglang"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} (extra [export]) is not installed", allow_module_level=True)
if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
    pytest.skip("kernels for this machine are made on Linux on x86-64 or aarch64", allow_module_level=True)

import small_program  # noqa: E402
from small_program import kernels_of  # noqa: E402

from tsm_edge.errors import InputError, MissingComponentError  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402
from tsm_edge.export.tuning import clock as measure  # noqa: E402
from tsm_edge.export.tuning import tuner as tuning  # noqa: E402

HOST = replace(get_target("host"), threads=1)


@pytest.fixture(scope="module")
def network():
    return small_program.network()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_tracker_that_is_not_there_is_named():
    port = free_port()
    with pytest.raises(MissingComponentError, match="does not answer") as error:
        measure.check_place(HOST, ("127.0.0.1", port), "board")
    assert error.value.do.endswith(f"--port {port} --port-end {port + 1}")  # TVM tries from one to the other, by default 9199


def test_a_port_that_accepts_but_never_speaks_is_named(monkeypatch):
    monkeypatch.setattr(measure, "TRACKER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(MissingComponentError, match="does not answer") as error:
            measure.check_place(HOST, ("127.0.0.1", silent.getsockname()[1]), "board")
    assert error.value.found == "no answer within 0.3 s"


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    """A tracker with one server of key "board", both TVM's own, on loopback: (host, port)."""
    for package in ("tornado", "cloudpickle"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package}, which TVM's RPC tracker and server need (extra [tune]), is not installed")
    folder, started = tmp_path_factory.mktemp("rpc"), []

    def start(module, port, *more):
        log = open(folder / f"{module}.log", "w")  # noqa: SIM115
        command = [sys.executable, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1", "--port", str(port), "--port-end",
                   str(port + 1), *more]
        environment = dict(os.environ, TVM_FFI_DISABLE_TORCH_C_DLPACK="1")  # else they import torch
        started.append((subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment), log))

    def wait(ready):
        for _ in range(600):
            try:
                if ready():
                    return
            except (OSError, MissingComponentError):
                pass
            assert all(process.poll() is None for process, _ in started), [p.read_text() for p in folder.glob("*.log")]
            time.sleep(0.2)
        pytest.fail(f"TVM's RPC servers did not start: {[p.read_text() for p in folder.glob('*.log')]}")

    port = free_port()
    try:
        start("rpc_tracker", port)
        wait(lambda: socket.create_connection(("127.0.0.1", port), timeout=1).close() is None)
        start("rpc_server", free_port(), "--tracker", f"127.0.0.1:{port}", "--key", "board")
        wait(lambda: "board" in measure._keys("127.0.0.1", port))
        yield "127.0.0.1", port
    finally:
        for process, log in started:
            os.killpg(process.pid, signal.SIGKILL)  # with the worker processes that TVM started
            process.wait()
            log.close()


def test_a_network_is_tuned_on_a_board_through_the_rpc_tracker(tmp_path, network, tracker):
    path = tmp_path / "board.jsonl"
    tuner = tuning.Tuner(path, candidates=2, tracker=tracker, key="board", rounds=2)
    tuner.check(HOST)
    said = []
    record = tuner.run(network[1], HOST, note=said.append)
    assert "board 'board'" in said[0] and record.measured_on == "RPC key board" and set(record.entries) == set(kernels_of(network[1], HOST))
    assert tuning.prepare(path, HOST).text() == record.text()
    with pytest.raises(InputError, match="no board with the key 'other'") as error:
        measure.check_place(HOST, tracker, "other")
    assert error.value.found == "board"


def test_a_board_that_does_not_come_is_named_and_not_waited_for(monkeypatch, network, tracker):
    monkeypatch.setattr(measure, "BOARD_SECONDS", 0.3)
    kernel = next(iter(kernels_of(network[1], HOST).values()))
    with pytest.raises(MissingComponentError, match="gives no board with the key 'nobody'") as error:
        measure.measure([kernel], set(), HOST, tracker, "nobody")
    assert error.value.found == "no answer within 0.3 s" and "query_rpc_tracker" in error.value.do


def test_a_board_of_another_processor_is_named(network, tracker):
    other = get_target("jetson-nano" if platform.machine() == "x86_64" else "raspberry-pi-32bit")
    kernel = next(iter(kernels_of(network[1], other).values()))
    with pytest.raises(InputError, match=f"the board with the key 'board' cannot run kernels for {other.name}") as error:
        measure.measure([kernel], set(), other, tracker, "board")
    assert "tsm_tune_" in error.value.found and "\n" not in error.value.found and other.arch in error.value.expected
