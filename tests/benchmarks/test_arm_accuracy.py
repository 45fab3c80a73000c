"""The drift of an ARM library beside MNN's."""
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")

from tsm_edge.benchmarks import peers  # noqa: E402
from tsm_edge.benchmarks.arm import accuracy  # noqa: E402
from tsm_edge.errors import CheckFailedError, InputError  # noqa: E402
from tsm_edge.export.bundle.describe import describe  # noqa: E402
from tsm_edge.export.graph.write import export_onnx  # noqa: E402
from tsm_edge.export.networks import with_random_weights  # noqa: E402
from tsm_edge.export.proof.traces import Trace, onnx_trace  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402
from tsm_edge.step import StepNetwork  # noqa: E402


def test_differences_are_pooled_over_frames_and_caches():
    want = Trace(np.zeros((2, 2)), {"cache.a": np.zeros((2, 1, 1, 1)), "cache.b": np.zeros((2, 3, 1, 1))})
    got = Trace(np.array([[3.0, 0], [0, -4]]), {"cache.a": np.full((2, 1, 1, 1), 2.0), "cache.b": np.zeros((2, 3, 1, 1))})
    assert accuracy.errors(want, got) == {"logits_max": 4, "logits_rms": 2.5, "caches_max": 2, "caches_rms": 1}
    got.caches["cache.b"][0, 0] = np.nan
    assert accuracy.errors(want, got)["caches_rms"] == np.inf


def test_mnn_carries_its_caches_as_onnxruntime_does(tmp_path):
    """The worker that runs under the emulator, run here in float32."""
    pytest.importorskip("MNN", reason="MNN (extra [bench]) is not installed")
    net = with_random_weights("mobilenet_v2", 5, width=0.35, input_size=(64, 64)).eval()
    step = StepNetwork(net, input_size=(64, 64)).eval()
    manifest = describe(net, step, get_target("host"), 5, name=None, classes=None, input_size=(64, 64), precision="fp32")
    export_onnx(step, tmp_path / "model.onnx", manifest)
    inputs = np.random.default_rng(0).standard_normal((5, 3, 64, 64)).astype(np.float32)
    shapes = {cache["name"]: np.array(cache["shape"]) for cache in manifest["caches"]}
    np.savez(tmp_path / "frames.npz", inputs=inputs, **shapes)
    model = peers.mnn_file(tmp_path / "model.onnx", tmp_path)
    worker = accuracy.Path(accuracy.__file__).with_name("mnn_worker.py")
    done = subprocess.run([sys.executable, worker, model, tmp_path / "frames.npz", tmp_path / "out.npz", "high"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split().count("frame") == 5, done.stderr
    got = np.load(tmp_path / "out.npz")
    off = accuracy.errors(onnx_trace(tmp_path / "model.onnx", inputs), Trace(got["logits"], {name: got[name] for name in shapes}))
    assert off["logits_max"] < 1e-3 and off["caches_max"] < 1e-3, off


def export(target, output, **options):
    from tsm_edge.export import export_bundle

    net = with_random_weights("mobilenet_v2", 5, width=0.35, input_size=(64, 64))
    return export_bundle(net, target, output, **options)


def test_a_bundle_for_another_architecture_is_refused(tmp_path):
    export("host", tmp_path / "host")
    with pytest.raises(InputError, match="(?s)AArch64.*found:.*host.*expected:.*do:.*jetson-nano"):
        accuracy._main([str(tmp_path / "host")])
    with pytest.raises(InputError, match="(?s)--frames.*found: *1.*2 or more"):
        accuracy._main([str(tmp_path / "host"), "--frames", "1"])


def test_the_verdict_is_about_drift_not_about_rounding():
    def result(precision, *engines):
        return {"precision": precision, "engines": [dict(zip(("logits_max", "logits_rms", "caches_rms"), e)) for e in engines]}

    accuracy._require(result("fp32", (9e-5, 9e-6, 1e-6), (8e-5, 8e-6, 1e-7)), 1e-3)
    accuracy._require(result("fp16", (0.9, 0.1, 0.1), (0.5, 0.2, 0.2)), 1e-3)
    for bad in (result("fp32", (2e-3, 1e-6, 0)), result("fp16", (0.9, 0.1, 0.3), (0.5, 0.2, 0.2)),
                result("fp16", (np.inf, np.inf, np.inf)), result("fp32", (np.nan, np.nan, 0))):
        with pytest.raises(CheckFailedError):
            accuracy._require(bad, 1e-3)


@pytest.mark.slow
def test_half_precision_drifts_by_as_much_as_its_export_found(tmp_path, capsys):
    for tool, package in (("qemu-aarch64", "qemu-user"), ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu")):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing (apt-get install {package})")
    made = export("raspberry-pi-5", tmp_path / "half", precision="fp16")
    found = next(c for c in made.manifest["verification"]["checks"] if c["name"] == "library vs torch")["max_abs_diff"]
    assert accuracy._main([str(tmp_path / "half"), "--frames", "16", "--json"]) == 0
    (ours,) = json.loads(capsys.readouterr().out)["engines"]
    assert ours["logits_max"] == pytest.approx(found, rel=0.02) and 0 < ours["logits_rms"] < ours["logits_max"]
