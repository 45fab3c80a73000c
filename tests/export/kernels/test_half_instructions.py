"""What a step in half precision costs on a core that computes in it."""
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")

from tsm_edge.benchmarks.arm.count import count  # noqa: E402
from tsm_edge.export.bundle.describe import describe  # noqa: E402
from tsm_edge.export.graph.to_ops import import_onnx  # noqa: E402
from tsm_edge.export.graph.write import export_onnx  # noqa: E402
from tsm_edge.export.kernels.calls import choose_kernels  # noqa: E402
from tsm_edge.export.library.build import build_library  # noqa: E402
from tsm_edge.export.networks import with_random_weights  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402
from tsm_edge.step import StepNetwork  # noqa: E402


@pytest.mark.slow
def test_a_step_in_half_precision_takes_at_most_50_million_instructions(tmp_path):
    for tool, package in (("qemu-aarch64", "qemu-user"), ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"), ("cc", "gcc")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing (apt-get install {package})")
    target = replace(get_target("raspberry-pi-5"), threads=1)
    net = with_random_weights()
    step = StepNetwork(net.eval(), input_size=(224, 224)).eval()
    manifest = describe(net, step, target, 27, name=None, classes=None, input_size=(224, 224), precision="fp16")
    export_onnx(step, tmp_path / "model.onnx", manifest)
    library = build_library(choose_kernels(import_onnx(tmp_path / "model.onnx"), target, "fp16"), manifest, target, tmp_path / "library")
    counts = count(library.path, cpu=target.emulator_cpu, steps=1)
    total, fma = counts.instructions, counts.by_class()["fma"]
    print(f"{total / 1e6:.2f} M instructions, {fma / 1e6:.2f} M of them multiply-adds")
    # 267.9 + 10.8 M products by lane at 8 (the frame's at 4) an instruction: fewer would be another network
    assert 36e6 < fma and total <= 50e6
