"""The way of a new user: own labels recorded, the model fine-tuned, exported, and recognising in the demo."""
import json
import shutil
import subprocess
import sys

import pytest

for _name in ("torch", "cv2", "onnx", "onnxruntime", "tvm"):
    pytest.importorskip(_name, reason=f"{_name} (extras [train] and [export]) is not installed")

LABELS = {"swipe-left": "swiping-left", "swipe-right": "swiping-right", "No gesture": "no-gesture"}
START = """
import sys
from pathlib import Path
from tsm_edge import default
if sys.argv[1]:
    default.DEFAULT_CHECKPOINT = Path(sys.argv[1])
from importlib import import_module
import_module(sys.argv[2]).main(sys.argv[3:])
"""


@pytest.mark.slow
def test_own_gestures_from_recording_to_the_demo(tiny, checkpoint, tmp_path):
    def run(module, *argv, default=""):
        done = subprocess.run([sys.executable, "-c", START, str(default), f"tsm_edge.{module}", *map(str, argv)], cwd=tmp_path,
                              env=tiny.environment(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert any(text.strip().split("\n")[-1].startswith("PASSED") for text in (done.stdout, done.stderr))
        return done.stdout

    shipped = checkpoint(classes=("Swiping Left", "Swiping Right", "Thumb Up", "No gesture"), size=64, frames=8, fps=8 / 3)
    for label, gesture in LABELS.items():
        run("training.record", "--label", label, "--output", "clips/", "--source", f"test://{gesture}", "--headless")
    run("training.train", "--init", "default", "--data", "clips/", "--output", "runs/mine", "--epochs", 25, "--optimizer", "adamw",
        "--lr", 0.02, "--threads", 1, default=shipped)
    if not shutil.which("gcc") and not shutil.which("cc"):
        pytest.importorskip("ziglang", reason="no C compiler")
    run("export.cli", "--checkpoint", "runs/mine/final.pth", "--target", "host", "--output", "dist/mine")
    manifest = json.loads((tmp_path / "dist" / "mine" / "manifest.json").read_text())
    assert manifest["classes"] == sorted(LABELS, key=str.lower) and manifest["trained"]
    assert manifest["stream"]["fps"] == pytest.approx(8 / 3, abs=0.01) and manifest["events"]["background"] == [0]
    found = json.loads(run("training.evaluate", "dist/mine", "--data", "clips/", "--json"))
    own = json.loads(run("training.evaluate", "runs/mine/final.pth", "--data", "clips/", "--json"))
    assert found["backend"] == "native" and found["clips"] == 30 and found["confusion"] == own["confusion"]
    assert found["top1"] == own["top1"] == own["clip_top1"]
    run("demo.cli", "dist/mine", "--source", "clips/swipe-left/0000.mp4", "--headless", "--events", "events.jsonl")
    assert (tmp_path / "events.jsonl").exists()


@pytest.mark.slow
def test_export_without_a_checkpoint_takes_the_default_model(tiny, checkpoint, tmp_path):
    shipped = checkpoint(classes=("Swiping Left", "Swiping Right"), size=64, frames=8, fps=8 / 3)
    argv = [sys.executable, "-c", START, str(shipped), "tsm_edge.export.cli", "--target", "host", "--output", str(tmp_path / "b")]
    done = subprocess.run(argv, env=tiny.environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "checkpoint=default" in done.stderr, done.stdout + done.stderr
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["classes"] == ["Swiping Left", "Swiping Right"]


def test_without_the_default_model_the_export_says_what_to_do(monkeypatch, tmp_path):
    from tsm_edge import default
    from tsm_edge.errors import InputError
    from tsm_edge.export import cli

    monkeypatch.setattr(default, "DEFAULT_CHECKPOINT", tmp_path / "gestures.pth")
    assert default.find_default() is None
    with pytest.raises(InputError, match="no weights were named") as error:
        cli._main(["--target", "host", "--output", str(tmp_path / "x")])
    assert "--random-weights" in error.value.do
    (tmp_path / "gestures.pth").write_bytes(b"x")
    assert default.find_default() == tmp_path / "gestures.pth"
