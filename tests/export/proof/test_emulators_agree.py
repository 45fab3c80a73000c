"""Compiled networks under both emulators: the same bytes, and what onnxruntime computes."""
import importlib.util
import shutil

import numpy as np
import pytest

for package in ("onnx", "onnxruntime", "tvm", "ziglang", "unicorn"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} (extra [export]) is not installed", allow_module_level=True)

import step_graphs as graphs  # noqa: E402
import step_runs as runs  # noqa: E402

from tsm_edge.export.graph.to_ops import import_onnx  # noqa: E402
from tsm_edge.export.kernels.calls import choose_kernels  # noqa: E402
from tsm_edge.export.library.build import build_library  # noqa: E402
from tsm_edge.export.proof import on_target  # noqa: E402
from tsm_edge.export.targets.boards import TARGETS  # noqa: E402


@pytest.mark.parametrize("board, precision, cpu", [("jetson-nano", "fp32", "cortex-a57"), ("raspberry-pi-5", "fp16", "max"),
                                                   ("raspberry-pi-32bit", "fp32", "cortex-a7")])
def test_a_compiled_network_gives_the_same_bytes_under_both(tmp_path, monkeypatch, board, precision, cpu):
    model, _ = graphs.residual_splice()
    target, program = TARGETS[board], import_onnx(model)
    manifest = runs.manifest_for(program, precision=precision)
    shapes = {splice.cache: program.shapes[splice.cache] for splice in program.caches}
    manifest["caches"] = [{"name": name, "shape": [1, channels, height, width]} for name, (height, width, channels) in shapes.items()]
    library = build_library(choose_kernels(program, target, precision), manifest, target, tmp_path / "library")
    command, frames = on_target.build_replay(library, target, tmp_path, static=True), runs.frames_for(model, 6)

    def run():
        prefix, how = on_target.emulator(target, static=True)
        return on_target.run_frames(prefix, command, frames, manifest, tmp_path, 1)[0], how

    usual, usually = run()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    got, how = run()
    assert how.startswith("under unicorn 2.") and how.endswith(f"CPU {cpu}")
    allowed = {"fp32": 5e-5, "fp16": 3e-2}[precision]
    for frame, expected in enumerate(runs.run_onnx(model, frames)):
        for name, values in {"logits": got.logits[frame], **{"next_" + name: cache[frame] for name, cache in got.caches.items()}}.items():
            right = expected[name][0]
            assert np.abs(values - right).max() <= allowed * max(1.0, np.abs(right).max()), (frame, name)
    if "qemu" not in usually:
        pytest.skip(f"qemu is not installed: {usually}")
    assert got.logits.tobytes() == usual.logits.tobytes()
    assert {name: cache.tobytes() for name, cache in got.caches.items()} == {name: cache.tobytes() for name, cache in usual.caches.items()}
