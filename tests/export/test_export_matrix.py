"""Every kind of target with both networks, and the widths and input sizes that people use: each export proves itself."""
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")

from tsm_edge.export.proof import on_target  # noqa: E402
from tsm_edge.export.targets.boards import TARGETS  # noqa: E402

KINDS = ["host", "jetson-nano", "raspberry-pi-4", "raspberry-pi-32bit", "android-arm64"]
# under an emulator ResNet-50 takes a small input: its layers are the same, its pictures smaller
CASES = [(target, "mobilenet_v2", 1.0, 224) for target in KINDS]
CASES += [(target, "resnet50", None, 224 if target == "host" else 64) for target in KINDS]
CASES += [("jetson-nano", "mobilenet_v2", width, 224) for width in (0.5, 1.4)]
CASES += [("host", "mobilenet_v2", width, 224) for width in (0.5, 1.4)]
CASES += [("host", "mobilenet_v2", 1.0, size) for size in (128, 160, 192, 256)]
CASES += [("jetson-nano", "mobilenet_v2", 1.0, size) for size in (128, 160, 192, 256)]
CASES += [("host", "resnet18", None, 112), ("raspberry-pi-5", "mobilenet_v2", 1.0, 128),
          ("jetson-orin-nano", "mobilenet_v2", 0.5, 128), ("jetson-xavier-nx", "mobilenet_v2", 0.5, 128),
          ("android-arm64-dotprod", "mobilenet_v2", 0.5, 128), ("galaxy-note8", "mobilenet_v2", 0.5, 128),
          ("pixel-1", "mobilenet_v2", 0.5, 128), ("raspberry-pi-3", "mobilenet_v2", 0.5, 128),
          ("jetson-tx2", "mobilenet_v2", 0.5, 128)]


@pytest.mark.slow
@pytest.mark.parametrize("target, arch, width, size", CASES)
def test_the_export_proves_itself(tmp_path, target, arch, width, size):
    report = export(tmp_path, target, arch, width, size)
    library = report["checks"][-1]
    assert library["max_abs_diff"] <= 1e-4 * max(1, library["max_abs_logit"])
    if target == "jetson-nano" and (arch, size, width) == ("mobilenet_v2", 224, 1.0):
        assert sum(f["size"] for f in report["files"] if f["path"] != "model.onnx") <= 20e6


@pytest.mark.slow
@pytest.mark.parametrize("target", ["raspberry-pi-5", "android-arm64-dotprod"])
def test_half_precision_costs_no_more_than_a_few_times_its_rounding(tmp_path, target):
    report = export(tmp_path, target, "mobilenet_v2", 1.0, 128, "--precision", "fp16")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["precision"] == "fp16" and report["cache_bytes"] * 2 == 4 * sum(
        c["shape"][1] * c["shape"][2] * c["shape"][3] for c in manifest["caches"])
    tolerances = manifest["verification"]["tolerances"]
    assert set(tolerances) == {"logits", *(c["name"] for c in manifest["caches"])} and max(tolerances.values()) <= 0.25


def export(tmp_path, target, arch, width, size, *more):
    """One export by the installed command; its report, once it has passed."""
    if on_target.emulator(TARGETS[target], static=True)[0] is None:
        pytest.skip(on_target.emulator(TARGETS[target], static=True)[1])
    command = [os.path.join(os.path.dirname(sys.executable), "tsm-export"), "--target", target, "--random-weights", "--arch",
               arch, "--input-size", f"{size}x{size}", "--output", str(tmp_path / "bundle"), "--json", *more]
    command += ["--width", str(width)] if width else []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    library = report["checks"][-1]
    print(f"{target} {arch} {width or ''} {size}: {library['max_abs_diff']:.2g} of {library['tolerance']:.2g}, "
          f"{library['argmax_flips']} flips, library {report['library_bytes'] / 1e6:.1f} MB, {report['seconds']:.0f} s")
    assert report["status"] == "passed" and library["name"] == "library vs torch" and library["frames"] == 16
    assert not report["fallbacks"]
    return report
