"""Each peer runs the same step graph: chained logits equal onnxruntime's own, and tsm-bench refuses what differs."""
import argparse
import json

import numpy as np
import pytest

from tsm_edge.benchmarks import cli, engines, peers
from tsm_edge.errors import CheckFailedError, InputError

MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "ncnn": "ncnn", "mnn": "MNN", "litert": "ai_edge_litert"}
SIZES = ((64, 64), (71, 53))  # width, height; in the second, planes are no multiple of 16 bytes


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def model(request, tmp_path_factory):
    torch = pytest.importorskip("torch")
    import tsm_edge
    from tsm_edge.export.graph.write import export_onnx
    from tsm_edge.sensitive import image_like_frames, make_sensitive
    from tsm_edge.step import StepNetwork

    torch.set_num_threads(1)
    net = tsm_edge.create_model("mobilenet_v2", 7, width=0.35, input_size=request.param).eval()
    make_sensitive(net, 0, image_like_frames(8, request.param, 0))
    step = StepNetwork(net, input_size=request.param)
    path = tmp_path_factory.mktemp("peers") / "model.onnx"
    export_onnx(step, path, {})
    return peers.StepModel(path, (1, 3, *request.param[::-1]), tuple((s.name, tuple(s.shape)) for s in step.cache_specs))


@pytest.fixture(scope="module")
def expected(model):
    """Logits of six chained frames by onnxruntime, called directly."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(model.onnx_path), providers=["CPUExecutionProvider"])
    caches = {name: np.zeros(shape, np.float32) for name, shape in model.caches}
    out = []
    for frame in cli._frames(6, *model.frame_shape[:1:-1]):
        values = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"frame": frame, **caches})))
        caches = {name: values["next_" + name] for name in caches}
        out.append(values["logits"][0])
    return np.stack(out)


@pytest.mark.parametrize("name", list(peers.PEERS))
def test_peer_carries_its_caches_and_computes_the_step_graph(name, model, expected, tmp_path):
    pytest.importorskip(MODULES[name], reason=f"{name} is not installed (pip install 'tsm-edge[bench]')")
    assert np.ptp(expected, axis=0).max() > 1e-3 * 1000  # the frames really move the logits
    peer = peers.PEERS[name](model, tmp_path, 1)
    for _ in range(2):  # again after a reset
        peer.reset()
        out = np.stack([np.asarray(peer.step(f)).reshape(-1) for f in cli._frames(6, *model.frame_shape[:1:-1])])
        np.testing.assert_allclose(out, expected, atol=1e-3 * max(1, np.abs(expected).max()))


def test_converting_for_mnn_installs_nothing(model, tmp_path, monkeypatch):
    pytest.importorskip("MNN", reason="MNN is not installed (pip install 'tsm-edge[bench]')")
    for name in ("pip", "pip3"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/called'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    peers.PEERS["mnn"](model, tmp_path, 1)
    assert (tmp_path / "model.mnn").exists() and not (tmp_path / "called").exists()


def test_an_engine_that_forgets_its_caches_is_refused(model, tmp_path):
    class Forgetful(peers.OnnxRuntime):
        def step(self, frame):
            self.reset()
            return super().step(frame)

    both = {engines.OURS: peers.OnnxRuntime(model, tmp_path, 1), "forgetful": Forgetful(model, tmp_path, 1)}
    with pytest.raises(CheckFailedError) as error:
        cli._agreement(both, cli._frames(6, *model.frame_shape[:1:-1]), 1e-3)
    assert "forgetful" in error.value.problem and error.value.exit_code == 1


def test_a_mistyped_engine_is_refused_with_the_nearest_name():
    with pytest.raises(InputError) as error:
        engines.check_names(["onnxruntme"])
    assert "did you mean 'onnxruntime'" in error.value.do


def test_json_holds_ours_and_the_ratio_to_each_peer(bench_bundle, tmp_path):
    args = argparse.Namespace(threads=1, rounds=2, steps=2, warmup=1, fps=0.0, no_kernels=False)
    result = json.loads(json.dumps(cli.bench(bench_bundle, ["onnxruntime"], [], args, tmp_path)))
    peer = result["peers"][0]
    assert peer["name"] == "onnxruntime" and peer["ratio"] > 0 and peer["p50_ms"] > 0 and result["ours"]["ratio"] == 1
    assert result["ours"]["peak_memory_mib"] > 10 and result["ours"]["first_result_ms"] > 0
    assert sum(k["macs"] for k in result["kernels"]) > 0 and all(k["ms"] > 0 for k in result["kernels"])


@pytest.fixture(scope="module")
def bench_bundle(tmp_path_factory):
    pytest.importorskip("tvm")
    from tsm_edge.export import export_bundle
    from tsm_edge.export.networks import with_random_weights
    from tsm_edge.runtimes.bundle import open_bundle

    net = with_random_weights("mobilenet_v2", 5, width=0.35, input_size=(64, 64))
    folder = tmp_path_factory.mktemp("bench") / "bundle"
    export_bundle(net, target="host", output=folder)
    return open_bundle(folder)


@pytest.mark.parametrize("option, value", [("--warmup", "-1"), ("--fps", "-5"), ("--fps", "nan"), ("--fps", "inf"), ("--fps", "1e-9"),
                                           ("--rounds", "0"), ("--steps", "0"), ("--threads", "0")])
def test_numbers_that_no_run_can_use_are_refused(option, value):
    with pytest.raises(InputError, match=f"(?s){option} cannot be used.*found.*expected.*do"):
        cli._main(["no-such-bundle", f"{option}={value}"])


def test_lists_of_engines_may_have_spaces_and_repeats():
    assert cli._listed(" ncnn, mnn,,ncnn ,") == ["ncnn", "mnn"] and cli._listed("") == []
    with pytest.raises(InputError, match="(?s)model.onnx cannot be timed.*bundle"):
        cli._main(["dist/model.onnx", "--against", "all,"])
