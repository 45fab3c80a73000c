"""The board's runner: one file, Python 3.6 and numpy, the same results as the package's back ends."""
import ast
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tsm_edge.runtimes
from tsm_edge.runtimes.device import tsm_device

DEVICE = Path(tsm_edge.runtimes.__file__).parent / "device"
STANDARD = {"argparse", "collections", "ctypes", "hashlib", "io", "json", "math", "os", "platform", "struct", "sys", "time",
            "zipfile", "signal", "threading", "__future__"}


@pytest.fixture
def board(native_bundle, toys, tmp_path):
    """A bundle with its device folder, as it is copied onto a board."""
    folder = shutil.copytree(native_bundle, tmp_path / "board")
    shutil.copytree(DEVICE, folder / "device", ignore=shutil.ignore_patterns("__pycache__"))
    return toys.seal(folder)


def run(board, *arguments, script="tsm_device.py"):
    done = subprocess.run([sys.executable, "-I", board / "device" / script, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("path", sorted(DEVICE.glob("*.py")), ids=lambda path: path.name)
def test_files_for_the_board_run_on_python_3_6(path):
    pytest.importorskip("vermin", reason="vermin (extra [test]) is not installed")
    command = [sys.executable, "-c", "import vermin; vermin.main()", "-t=3.6-", "--no-tips", "--violations", "--eval-annotations"]
    done = subprocess.run([*command, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", sorted(DEVICE.glob("*.py")), ids=lambda path: path.name)
def test_files_for_the_board_import_numpy_and_each_other_only(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    allowed = STANDARD | {"numpy"} | ({"tsm_device", "cv2"} if path.name == "demo.py" else set())
    assert names <= allowed


def test_the_runner_gives_the_recorded_logits(board, toys):
    golden, model = toys.golden(), tsm_device.load(board)
    stream = model.stream()
    for t, frame in enumerate(golden["frames"]):
        result = stream.step(frame)
        assert np.abs(result.logits - golden["logits"][t]).max() < 1e-4
        assert result.label == toys.CLASSES[golden["logits"][t].argmax()]
    state = stream.state()
    other = model.stream()
    other.restore(state)
    assert np.array_equal(other.step(golden["frames"][0]).logits, stream.step(golden["frames"][0]).logits)


def test_import_to_first_result_takes_less_than_a_second_of_work(board):
    """Processor time, which a busy machine does not lengthen; there is nothing to wait for but the disk."""
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, tsm_device; "
            "r = tsm_device.load().stream().step(np.zeros((480, 640, 3), np.uint8)); print(r.label, 'tsm_edge' in sys.modules)")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-I", "-c", code, board / "device"], stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.split()[1] == "False"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_verify_passes_on_its_own_machine(board):
    code, out, err = run(board, "--verify")
    assert code == 0 and out.strip().splitlines()[-1].startswith("PASSED"), err
    assert "UNTRAINED" in out and "cache.b" in out
    report = json.loads(run(board, "--verify", "--bench", "5", "--json")[1])
    assert report["status"] == "passed" and report["bench"]["p50_ms"] > 0


def test_verify_fails_with_exit_code_1_when_the_library_computes_something_else(board, toys):
    np.savez_compressed(board / "golden.npz", **{**toys.golden(), "logits": toys.golden()["logits"] * 1.01})
    toys.seal(board)
    code, out, _ = run(board, "--verify")
    assert code == 1 and "FAILED" in out.strip().splitlines()[-1]


@pytest.mark.parametrize("spoil, words", [
    (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
    (lambda f: (f / "manifest.json").write_text('{"schema": 7}'), "schema 7"),
    (lambda f: (f / "manifest.json").unlink(), "no bundle"),
    (lambda f: (f / "golden.npz").write_bytes(b"12345678"), "damaged"),
    (lambda f: (f / "libtsm_model.so").unlink(), "missing"),
    (lambda f: (f / "device" / "demo.py").write_bytes(bytes((f / "device" / "demo.py").stat().st_size)), "sha256"),
])
def test_damaged_bundles_are_refused_with_exit_code_2(board, spoil, words):
    spoil(board)
    code, _, err = run(board)
    assert code == 2 and words in err and all(part in err for part in ("found:", "expected:", "do:"))


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a\\b"])
def test_paths_out_of_the_bundle_are_refused(board, path):
    manifest = json.loads((board / "manifest.json").read_text())
    manifest["files"][0]["path"] = path
    (board / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = run(board)
    assert code == 2 and "out of the bundle" in err


def test_a_library_for_another_machine_is_named(board, toys):
    data = bytearray((board / "libtsm_model.so").read_bytes())
    data[18:20] = b"\x28\x00"
    data[4] = 1
    (board / "libtsm_model.so").write_bytes(data)
    toys.seal(board)
    code, _, err = run(board)
    assert code == 2 and "arm, 32 bits" in err and "cannot run on this machine" in err


def test_timestamps_reset_and_skip_as_in_the_package(board):
    stream, frame = tsm_device.load(board).stream(), np.zeros((30, 40, 3), np.uint8)
    got = [(r.reset, r.skipped) for r in (stream.step(frame, t) for t in (0, 0.01, 0.07, 5.0))]
    assert got == [(False, False), (False, True), (False, False), (True, False)]


def test_wrong_frames_are_refused(board):
    stream = tsm_device.load(board).stream()
    for bad in (np.zeros((3, 4)), np.zeros((3, 4, 3)), None):
        with pytest.raises(tsm_device.DeviceError):
            stream.step(bad)
    with pytest.raises(tsm_device.DeviceError):
        stream.step_tensor(np.zeros((1, 3, 2, 2), np.float32))
    with pytest.raises(tsm_device.DeviceError):
        stream.restore({"cache.a": np.zeros(3)})
