"""The way of a new user: own labels recorded, the model fine-tuned, exported, and recognising in the demo."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

for _name in ("torch", "cv2", "onnx", "onnxruntime", "tvm"):
    pytest.importorskip(_name, reason=f"{_name} (extras [train] and [export]) is not installed")

LABELS = {"swipe-left": "swiping-left", "swipe-right": "swiping-right", "No gesture": "no-gesture"}


@pytest.mark.slow
def test_own_gestures_from_recording_to_the_demo(tiny, tmp_path):
    def run(command, *argv):
        done = subprocess.run([Path(sys.executable).with_name(command), *map(str, argv)], cwd=tmp_path, env=tiny.environment(),
                              capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        assert any(text.strip().split("\n")[-1].startswith(("PASSED", "MEASURED")) for text in (done.stdout, done.stderr))
        return done.stdout

    for label, gesture in LABELS.items():
        run("tsm-record", "--label", label, "--output", "clips/", "--source", f"test://{gesture}", "--headless")
    run("tsm-train", "--init", "default", "--data", "clips/", "--output", "runs/mine", "--threads", 1)
    if not shutil.which("gcc") and not shutil.which("cc"):
        pytest.importorskip("ziglang", reason="no C compiler")
    run("tsm-export", "--checkpoint", "runs/mine/final.pth", "--target", "host", "--output", "dist/mine")
    manifest = json.loads((tmp_path / "dist" / "mine" / "manifest.json").read_text())
    assert manifest["classes"] == sorted(LABELS, key=str.lower) and manifest["trained"]
    assert manifest["stream"]["fps"] == 8.0 and manifest["events"]["background"] == [0]
    found = json.loads(run("tsm-eval", "dist/mine", "--data", "clips/", "--sampling", "rate", "--stream", 120, "--json"))
    own = json.loads(run("tsm-eval", "runs/mine/final.pth", "--data", "clips/", "--json"))
    assert found["engine"] == "native" and found["clips"] == 30 and found["confusion"] == own["confusion"]
    assert found["top1"] == own["top1"] == own["clip_top1"] > 0.9
    assert found["stream"]["exactly_one"] > 0.7 and found["stream"]["false_per_minute"] <= 2
    events = []
    for k in range(4):
        run("tsm-demo", "dist/mine", "--source", f"clips/swipe-left/{k:04d}.mp4", "--headless", "--events", "events.jsonl")
        events += [json.loads(line) for line in open(tmp_path / "events.jsonl")]
    assert {event["label"] for event in events if event["event"] == "start"} == {"swipe-left"}


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
