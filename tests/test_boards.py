"""Boards' own software runs a bundle of the packaged model: Python 3.6 with JetPack's numpy and OpenCV, Debian's for ARM under QEMU."""
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")
cv2 = pytest.importorskip("cv2", reason="OpenCV (extra [demo]) is not installed")

from tsm_edge.errors import MissingComponentError  # noqa: E402

pytestmark = pytest.mark.slow
JETPACK = ("numpy==1.13.3", "opencv-python-headless==4.1.1.26")  # of JetPack 4.6, on PyPI for x86-64
DEBIAN = ("python3", "python3-numpy", "python3-opencv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a clip of a swipe, and the events that the demo here finds in it with a bundle for this machine in host/."""
    from tsm_edge.default import default_checkpoint
    from tsm_edge.export import export_bundle
    from tsm_edge.export.networks import from_checkpoint

    folder = tmp_path_factory.mktemp("boards")
    for target in ("host", "jetson-nano"):
        export_bundle(from_checkpoint(default_checkpoint()), target, folder / target)
    gestures = [sys.executable, "-c", "from tsm_edge.training.cli import gestures_main; gestures_main()"]
    subprocess.run([*gestures, "video", "--label", "swiping-left", "--split", "test", "--size", "640x480", "--output", folder / "clip.mp4"],
                   check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "tsm_edge.demo.cli", folder / "host", "--source", folder / "clip.mp4", "--headless", "--events",
                    folder / "events.jsonl"], check=True, capture_output=True)
    return folder


def python_3_6(folder):
    """The command of a Python 3.6 with what JetPack brings."""
    found = shutil.which("python3.6") or ""  # pyenv's stands for those that lie beside it, and need not run itself
    candidates = [found, *sorted(Path(found).parent.parent.glob("versions/3.6.*/bin/python3.6"))] if found else []
    runs = [path for path in candidates if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0]
    if not runs or platform.machine() != "x86_64":
        pytest.skip("no Python 3.6 for x86-64 on this machine")
    subprocess.run([runs[0], "-m", "venv", folder / "jetpack"], check=True)
    python = folder / "jetpack" / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "-q", "--only-binary=:all:", *JETPACK], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"JetPack's versions cannot be fetched: {done.stderr.strip().splitlines()[-1]}")
    return [python]


def debian_for_arm(folder):
    """The command of Debian's Python for AArch64 under QEMU as a Jetson Nano's processor."""
    from tsm_edge.benchmarks.arm.userland import arm_python

    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is missing (apt-get install qemu-user)")
    try:
        return arm_python(Path.home() / ".cache" / "tsm-edge" / "arm-opencv", DEBIAN).command(["qemu-aarch64", "-cpu", "cortex-a57"])
    except MissingComponentError as error:
        pytest.skip(f"{error.problem}: {error.found}")


BOARDS = [pytest.param(python_3_6, "host", "3.6", id="python-3.6"), pytest.param(debian_for_arm, "jetson-nano", "3.", id="debian-arm64")]


@pytest.mark.parametrize("python, target, version", BOARDS)
def test_a_boards_python_verifies_the_bundle_and_recognises_the_swipe(folder, tmp_path, python, target, version, capsys):
    command, bundle = python(tmp_path), folder / target

    def run(*arguments):
        done = subprocess.run([*map(str, command), *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        with capsys.disabled():
            print(f"\n{' '.join(map(str, arguments))}\n{done.stderr}{done.stdout}", end="")
        return done.stdout, done.stderr

    program = bundle / "device" / "tsm_edge.pyz"
    found = run("-c", "import sys, numpy, cv2; print(sys.version.split()[0], numpy.__version__, cv2.__version__)")[0].split()
    assert found[0].startswith(version) and (python is not python_3_6 or found[1:] == ["1.13.3", "4.1.1"])
    assert run(program, "verify")[0].strip().splitlines()[-1].startswith("PASSED gestures by native on")
    out, err = run(program, "demo", "--source", folder / "clip.mp4", "--headless", "--events", "-", "--output", "film.mp4")
    assert cv2.VideoCapture(str(tmp_path / "film.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 36 and "PASSED end of file" in err
    here = (json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines())
    there = (json.loads(line) for line in out.splitlines())
    seen, wanted = ([(one["event"], one["label"], one["start_frame"], one.get("end_frame")) for one in events] for events in (there, here))
    assert seen == wanted and [one[:2] for one in seen] == [("start", "Swiping Left"), ("end", "Swiping Left")]
    assert "step p50" in run(program, "bench", "--steps", 5)[0]
