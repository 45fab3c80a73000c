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
            "zipfile", "signal", "threading", "__future__", "contextlib", "re"}


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
    for bad in (np.full((1, 3, 20, 28), "x"), [[1], [1, 2]], None):
        with pytest.raises(tsm_device.DeviceError, match="network input"):
            stream.step_tensor(bad)
    for bad in ({"cache.a": np.zeros(3)}, None, [1], {"cache.a": "x"}, 5):
        with pytest.raises(tsm_device.DeviceError):
            stream.restore(bad)
    for bad in (1e12, float("nan"), float("inf"), "now"):
        with pytest.raises(tsm_device.DeviceError, match="milliseconds"):
            stream.step(np.zeros((30, 40, 3), np.uint8), bad)


@pytest.mark.parametrize("rows, columns", [(1, 40), (30, 1), (30, 40), (1, 1)])
def test_frames_are_taken_however_they_lie_in_memory(board, rows, columns):
    """Views with rows far apart, backwards, and single rows, of which numpy may say any stride."""
    stream = tsm_device.load(board).stream()
    frame = np.random.RandomState(0).randint(0, 256, (rows, columns, 3)).astype(np.uint8)
    want = stream.preprocess(frame)
    views = [np.zeros((2 * rows, columns + 7, 3), np.uint8)[::2, :columns], np.zeros((rows, columns, 3), np.uint8)[::-1],
             np.zeros((rows, columns, 6), np.uint8)[:, :, ::2]]
    if rows == 1:
        views.append(np.lib.stride_tricks.as_strided(np.zeros((1, columns, 3), np.uint8), (1, columns, 3), (7, 3, 1)))
    else:  # pages that are not touched cost nothing
        views.append(np.zeros((rows, 20000000), np.uint8)[:, 5:5 + 3 * columns].reshape(rows, columns, 3))
    for view in views:
        view[:] = frame
        assert np.array_equal(stream.preprocess(view), want) and stream.step(view).index >= 0


@pytest.mark.parametrize("arguments, words", [(("--bench", 0), "--bench"), (("--bench", -5), "--bench"), (("--threads", 65), "threads"),
                                              (("--threads", -1), "threads")])
def test_numbers_that_cannot_be_are_refused(board, arguments, words):
    code, out, err = run(board, *arguments)
    assert code == 2 and words in err and "found:" in err and out == ""


def change(path, value):
    """A function that sets a part of a manifest."""
    def spoil(manifest):
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value
    return spoil


@pytest.mark.parametrize("path, value", [
    (["stream"], None), (["stream", "fps"], "fast"), (["caches"], [1]), (["caches", 0, "shape"], None), (["caches", 0, "name"], 5),
    (["input", "width"], float("inf")), (["input", "mean"], None), (["input"], []), (["classes"], "abc"), (["classes"], 5),
    (["files", 0], "x"), (["files", 0, "path"], "\0"), (["files", 0, "path"], "x" * 5000)])
def test_hostile_manifests_are_refused_in_words(board, path, value):
    manifest = json.loads((board / "manifest.json").read_text())
    change(path, value)(manifest)
    (board / "manifest.json").write_text(json.dumps(manifest).replace("Infinity", "1e400"))
    with pytest.raises(tsm_device.DeviceError):
        tsm_device.load(board)


def test_a_manifest_that_cannot_be_read_is_refused_in_words(board, monkeypatch):
    (board / "manifest.json").write_text("[" * 100000)
    with pytest.raises(tsm_device.DeviceError, match="cannot be read"):
        tsm_device.load(board)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tsm_device.io, "open", refuse)
    with pytest.raises(tsm_device.DeviceError, match="Permission denied"):
        tsm_device.load(board)


@pytest.mark.parametrize("path, value", [(["events", "on"], None), (["events", "merge"], [1]), (["events", "window"], 10 ** 30),
                                         (["events", "hold"], float("inf")), (["events"], [1]), (["events", "ignore"], 3)])
def test_event_settings_that_cannot_be_are_refused_in_words(board, toys, path, value):
    manifest = toys.manifest()
    change(path, value)(manifest)
    toys.seal(board, events=manifest["events"])
    with pytest.raises(tsm_device.DeviceError, match="events' configuration"):
        tsm_device.load(board).events()


def test_events_follow_the_sources_rate(board, toys):
    model, logits = tsm_device.load(board), np.array([0, 9, 0, 0, 0])
    for fps, period in ((0.0, 1 / 15), (4.0, 0.25)):
        events = model.events(fps)
        events.update(logits, 2.0)
        assert events.finish()[0].end == pytest.approx(2.0 + period)


@pytest.mark.parametrize("path, value", [
    (["input", "mean"], [0.0, 0.0, 0.0]), (["input", "std"], [1.0, 1.0, 1.0]), (["input", "resize"], "squash"),
    (["input", "shorter_side"], 40), (["input", "filter"], "bilinear"), (["precision"], "fp16"), (["trained"], True)])
def test_a_manifest_that_was_changed_does_not_belong_to_its_library(board, toys, path, value):
    from tsm_edge.errors import BundleError

    manifest = toys.manifest()
    change(path, value)(manifest)
    toys.seal(board, **manifest)
    with pytest.raises(tsm_device.DeviceError, match=f"(?s)belong together.*{path[-1]}"):
        tsm_device.load(board)
    for backend in (None, "native"):
        with pytest.raises(BundleError, match=f"(?s)belong together.*{path[-1]}"):
            tsm_edge.runtimes.load(board, backend)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_recording_that_is_not_finite_never_passes(board, toys, value):
    golden = toys.golden()
    golden["cache.b"][2].flat[3] = golden["logits"][0, 0] = value
    np.savez_compressed(board / "golden.npz", **golden)
    toys.seal(board)
    failed = {row["name"] for row in tsm_device.verify(tsm_device.load(board)) if row["status"] != "passed"}
    assert failed == {"logits", "cache.b", "logits from frames"}
