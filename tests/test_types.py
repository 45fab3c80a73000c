"""Type hints hold where the package is installed: mypy finds nothing in it, and knows what a caller gets."""
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy (extra [test]) is not installed")

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("export", "runtimes", "demo", "training", "benchmarks")
CALLER = '''
import time
import numpy as np
import tsm_edge
from tsm_edge.export import export_bundle
from tsm_edge.shift import insert_shifts

frame = np.zeros((48, 64, 3), np.uint8)
model = tsm_edge.load("dist/nano")
result = model.stream("BGR").step(frame, time.monotonic())
reveal_type(result.label)
reveal_type(result.scores)
net = tsm_edge.create_model("mobilenet_v2", 27)
reveal_type(insert_shifts(net, lambda name, block: True))
reveal_type(export_bundle(net, "jetson-nano").path)
export_bundle(net, 3)
model.stream(fps="30")
'''


@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """mypy(*arguments) -> its lines, where every room lies in tsm_edge, as it does once installed."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "tsm_edge").mkdir()
    try:
        for file in (ROOT / "tsm_edge").iterdir():
            (folder / "tsm_edge" / file.name).symlink_to(file)
        for room in ROOMS:
            (folder / "tsm_edge" / room).symlink_to(ROOT / room, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")

    config = (ROOT / "setup.cfg").read_text(encoding="utf-8")  # torch's own hints take longest: left to `mypy` itself
    (folder / "mypy.cfg").write_text(config + "\n[mypy-torch.*]\nfollow_imports = skip\n", encoding="utf-8")

    def run(*arguments):
        command = [sys.executable, "-m", "mypy", "--config-file", "mypy.cfg", "--follow-imports", "silent"]
        done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
        assert not done.stderr, done.stderr
        return done.stdout.splitlines()

    return run


def test_core_runtimes_and_the_face_of_the_export_are_clean(mypy):
    core = [f"tsm_edge.{file.stem}" for file in (ROOT / "tsm_edge").glob("*.py") if file.stem != "__init__"]
    modules = ["tsm_edge", *core, "tsm_edge.export", "tsm_edge.export.networks", "tsm_edge.export.pipeline"]
    said = mypy("-p", "tsm_edge.runtimes", *(part for module in modules for part in ("-m", module)))
    assert re.search(r"no issues found in (\d+)", said[-1]) and int(re.search(r"\d+", said[-1])[0]) > 30, "\n".join(said)


def test_a_caller_is_told_what_it_gets_and_what_it_does_wrong(mypy, tmp_path):
    (tmp_path / "caller.py").write_text(CALLER)
    told = [line.split(": ", 1)[1] for line in mypy(str(tmp_path / "caller.py"))[:-1]]
    assert [re.search(r'"([\w.]+)', line)[1] for line in told[:4]] == ["str", "numpy.ndarray", "list", "pathlib.Path"], told
    assert len(told) == 6 and '"export_bundle" has incompatible type "int"' in told[4] and '"stream" of "Model"' in told[5], told
