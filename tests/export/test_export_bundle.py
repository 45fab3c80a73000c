"""One small network of a user's own, the whole way: Python call, verified bundle, loading, refusing, repeating."""
import dataclasses
import hashlib
import json
import os
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")
from own_net import OwnNet, own_net  # noqa: E402
from torch import nn  # noqa: E402

import tsm_edge  # noqa: E402
from tsm_edge.errors import CheckFailedError, InputError  # noqa: E402
from tsm_edge.export import export_bundle  # noqa: E402
from tsm_edge.export.bundle.golden import golden_count  # noqa: E402
from tsm_edge.export.bundle.write import notes_of  # noqa: E402
from tsm_edge.export.proof.step import prove_step  # noqa: E402
from tsm_edge.runtimes.bundle import open_bundle, read_golden  # noqa: E402
from tsm_edge.sensitive import image_like_frames  # noqa: E402
from tsm_edge.shift import insert_shifts  # noqa: E402
from tsm_edge.step import StepNetwork  # noqa: E402

SIZE = (48, 40)
OPTIONS = {"input_size": SIZE, "classes": ["left", "right", "nothing"], "trained": False, "name": "mine"}


def make_net():
    torch.set_num_threads(1)
    return own_net(SIZE)


def export(output, **options):
    return export_bundle(make_net(), "host", output, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return export(tmp_path_factory.mktemp("made") / "mine")


def test_the_bundle_is_verified_in_all_three_ways(made):
    verification = made.manifest["verification"]
    assert verification["status"] == "passed" and verification["frames"] == 16
    names = [check["name"] for check in verification["checks"]]
    assert names == ["step network vs clip network", "logits move", "tampered caches are caught", "ONNX vs torch",
                     "library vs torch"]
    for check in verification["checks"]:
        if check["max_abs_diff"] is not None:
            assert check["max_abs_diff"] <= check["tolerance"] == pytest.approx(1e-4 * max(1, check["max_abs_logit"]))


def test_the_bundle_holds_what_its_manifest_lists_and_no_more(made):
    found = {Path(base, file).relative_to(made.path).as_posix() for base, _, files in os.walk(made.path) for file in files}
    assert found == {entry["path"] for entry in made.manifest["files"]} | {"manifest.json"}
    assert {"model.onnx", "libtsm_model.so", "tsm_edge.h", "golden.npz", "README.md", "device/tsm_edge.pyz", "device/tsm_device.py"} \
        <= found
    for entry in made.manifest["files"]:
        data = (made.path / entry["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"])


def test_everything_a_person_looks_at_says_untrained(made):
    assert made.manifest["trained"] is False
    assert "UNTRAINED" in (made.path / "README.md").read_text() and "UNTRAINED" in made.report.verdict()
    assert tsm_edge.load(made.path).manifest["trained"] is False


def test_what_has_no_kernel_of_ours_is_listed(made):
    assert any("Tanh" in op for op in made.report.fallbacks)
    assert made.report.macs > 0 and made.report.cache_bytes == 2 * 2 * 20 * 24 * 4 and sum(made.report.kernels.values()) > 5


def test_the_loaded_bundle_computes_what_the_network_computes_on_other_frames(made):
    inputs = image_like_frames(5, SIZE, 99)
    net = make_net().eval()
    for module in net.modules():
        if hasattr(module, "n_segment"):
            module.n_segment = 5
    with torch.no_grad():
        expected = net(torch.from_numpy(inputs)).numpy()
    stream = tsm_edge.load(made.path, engine="native").stream()
    got = np.stack([stream.step_tensor(frame[None]) for frame in inputs])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * max(1, np.abs(expected).max()))


def test_golden_frames_lead_to_the_golden_logits(made):
    golden = read_golden(open_bundle(made.path))
    assert 3 <= len(golden["frames"]) <= 6 and golden["frames"].shape[1:3] != (SIZE[1], SIZE[0])
    stream = tsm_edge.load(made.path, engine="native").stream()
    for frame, logits in zip(golden["frames"], golden["logits"]):
        assert np.abs(stream.step(frame).logits - logits).max() <= 1e-3 * max(1, np.abs(logits).max())


def test_the_python_lines_in_the_readme_run_as_they_stand(made, monkeypatch):
    text = (made.path / "README.md").read_text()
    section = text[text.index("## From Python"):text.index("## Files")]
    monkeypatch.chdir(made.path.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for block in re.findall(r"(?:^    .*\n)+", section, re.M):
        names = {"camera": read_golden(open_bundle(made.path))["frames"]}
        exec(textwrap.dedent(block), names)
        assert names["result"].label in OPTIONS["classes"]
    assert len(re.findall(r"stream.step", section)) == 2


def test_a_second_export_replaces_the_bundle_with_the_same_bytes(made, monkeypatch):
    before = {entry["path"]: entry["sha256"] for entry in made.manifest["files"]}
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", os.environ.get("ZIG_GLOBAL_CACHE_DIR") or str(Path.home() / ".cache" / "zig"))
    monkeypatch.setenv("HOME", str(made.path.parent))
    again = export("~/mine")
    assert again.path == made.path
    after = {entry["path"]: entry["sha256"] for entry in again.manifest["files"]}
    same = [path for path in before if path != "README.md"]  # the time a frame took is in its table of checks
    assert {path: before[path] for path in same} == {path: after[path] for path in same}


def test_no_path_of_this_machine_is_inside_the_library(made):
    data = (made.path / "libtsm_model.so").read_bytes()
    assert str(Path.home()).encode() not in data and b"/tmp/" not in data and os.getcwd().encode() not in data


def test_the_network_is_left_as_it_is_also_after_a_refusal(tmp_path):
    net = make_net().train()
    net.a.eval()
    before = [module.training for module in net.modules()]
    assert len(set(before)) == 2
    with torch.no_grad():
        net.fc.weight *= 1e-6
    with pytest.raises(CheckFailedError):
        export_bundle(net, "host", tmp_path / "b", **OPTIONS)
    assert [module.training for module in net.modules()] == before


def test_a_network_without_shifts_has_a_note():
    assert notes_of(StepNetwork(OwnNet(), SIZE)) == ["nothing is shifted in this network: it judges every frame by itself"]
    assert notes_of(StepNetwork(make_net(), SIZE)) == []


def refused_without_trace(tmp_path, error, **options):
    with pytest.raises(error) as refusal:
        export(tmp_path / "b", **options)
    assert os.listdir(tmp_path) == []
    return refusal.value


def test_a_library_that_computes_something_else_is_never_written(tmp_path, monkeypatch):
    from tsm_edge.export.graph import to_ops as importing

    original = importing.import_onnx

    def wrong(model):
        program = original(model)
        at, conv = next((i, op) for i, op in enumerate(program.ops) if getattr(op, "splice", None) is not None)
        weight = conv.weight.copy()
        weight[:, 0] *= 1.05  # a channel that comes from the cache
        program.ops[at] = dataclasses.replace(conv, weight=weight)
        return program

    monkeypatch.setattr(importing, "import_onnx", wrong)
    error = refused_without_trace(tmp_path, CheckFailedError)
    assert error.exit_code == 1 and "library vs torch" in error.problem and "differ" in error.found


def test_an_onnx_file_that_computes_something_else_is_never_written(tmp_path, monkeypatch):
    from tsm_edge.export.graph import write

    original = write.export_onnx

    def wrong(step, path, manifest):
        with torch.no_grad():
            step.net.fc.bias += 0.01
        try:
            return original(step, path, manifest)
        finally:
            with torch.no_grad():
                step.net.fc.bias -= 0.01

    monkeypatch.setattr(write, "export_onnx", wrong)
    error = refused_without_trace(tmp_path, CheckFailedError)
    assert "ONNX vs torch" in error.problem and "torch.onnx.export" in error.do


def test_frames_that_do_not_move_the_logits_are_refused(tmp_path):
    net = make_net()
    with torch.no_grad():
        net.fc.weight *= 1e-6
    with pytest.raises(CheckFailedError) as error:
        export_bundle(net, "host", tmp_path / "b", **OPTIONS)
    assert "logits move" in error.value.problem and "--frames" in error.value.do and os.listdir(tmp_path) == []


def stubborn(monkeypatch, times):
    """Have the logits stand still the first `times` that they are looked at."""
    from tsm_edge.export.proof import traces

    looked, real = [], traces.check_movement

    def check(reference, *name):
        looked.append(reference)
        return real(dataclasses.replace(reference, logits=0 * reference.logits) if len(looked) <= times else reference, *name)

    monkeypatch.setattr(traces, "check_movement", check)


def test_other_frames_are_generated_where_the_logits_hardly_move(tmp_path, monkeypatch):
    from tsm_edge.export.bundle import golden

    stubborn(monkeypatch, 2)
    bundle = export(tmp_path / "b", seed=7)
    assert bundle.manifest["verification"]["status"] == "passed"
    recorded = read_golden(open_bundle(bundle.path))["frames"]
    assert np.array_equal(recorded, golden.verification_frames(bundle.manifest, seed=9)[: len(recorded)])


def test_frames_that_were_given_are_not_replaced(tmp_path, monkeypatch):
    stubborn(monkeypatch, 1)
    with pytest.raises(CheckFailedError, match="logits move"):
        export(tmp_path / "b", frames=image_like_frames(16, (60, 60), 3, "uint8"))


def test_wrong_class_lists_threads_precisions_and_sizes_are_refused(tmp_path):
    assert "2 names" in refused_without_trace(tmp_path, InputError, classes=["a", "b"]).found
    assert "1 to 64" in refused_without_trace(tmp_path, InputError, threads=0).expected
    assert "fp32" in refused_without_trace(tmp_path, InputError, precision="fp64").expected
    assert "input_size=(224, 224)" in refused_without_trace(tmp_path, InputError, input_size=None).do
    with pytest.raises(InputError) as error:
        export_bundle(make_net(), "jetson-nano", tmp_path / "b", **{**OPTIONS, "precision": "fp16"})
    assert "cannot compute in fp16" in error.value.problem and "raspberry-pi-5" in error.value.expected


@pytest.mark.parametrize("options, problem", [
    ({"threads": "2"}, "number of threads"), ({"threads": 1.5}, "number of threads"), ({"seed": -1}, "seed"), ({"seed": 2 ** 80}, "seed"),
    ({"input_size": "48x40"}, "input size"), ({"input_size": 0}, "input size"), ({"classes": "abc"}, "class names"),
    ({"std": [0, 0, 0]}, "std cannot be used"), ({"frames": [np.zeros((3, 3, 3)), np.zeros((4, 4, 3))]}, "frames to verify with"),
    ({"output": "afile/b"}, "cannot be written"), ({"target": None}, "unknown target")])
def test_wrong_arguments_are_refused_in_words(tmp_path, monkeypatch, options, problem):
    (tmp_path / "afile").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=problem):
        export_bundle(make_net(), **{"target": "host", "output": "b", **OPTIONS, **options})
    assert os.listdir(tmp_path) == ["afile"]


@pytest.mark.parametrize("kind", ["half", "double", "bfloat16"])
def test_weights_that_are_not_float32_are_refused(tmp_path, kind):
    with pytest.raises(InputError, match="cannot be exported as it is") as error:
        export_bundle(getattr(make_net(), kind)(), "host", tmp_path / "b", **OPTIONS)
    assert "stem.0.weight" in error.value.found and "net.float()" in error.value.do


class Batch(OwnNet):
    """The norm takes the statistics of the clip."""

    def __init__(self):
        super().__init__()
        self.stem[1] = nn.BatchNorm2d(19, track_running_stats=False)


class Chance(OwnNet):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x))


class Mean(OwnNet):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)


class Nan(OwnNet):
    def forward(self, x):
        return super().forward(x) * float("nan")


class Running(OwnNet):
    def forward(self, x):
        return super().forward(x).cumsum(0)


@pytest.mark.parametrize("kind, do", [(Batch, "stem.1 takes the statistics"), (Chance, "other answers each time"),
                                      (Mean, "leave the mean"), (Nan, "NaN"), (Running, "no shift")])
def test_a_network_that_cannot_step_hears_why(kind, do):
    torch.manual_seed(0)
    net, inputs = kind().eval(), image_like_frames(4, SIZE, 0)
    _, checks, advice = prove_step(net, StepNetwork(net, SIZE), inputs)
    assert [(check.name, check.status) for check in checks] == [("step network vs clip network", "failed")] and do in advice


def test_a_network_that_looks_into_the_future_is_refused_by_its_layer(tmp_path):
    net = OwnNet()
    insert_shifts(net, lambda name, block: name == "b", future=(0, 1), past=(1, 2))
    with pytest.raises(InputError) as error:
        export_bundle(net, "host", tmp_path / "b", **OPTIONS)
    assert "b" in error.value.found and os.listdir(tmp_path) == []


def test_without_an_emulator_the_bundle_is_written_but_not_called_passed(tmp_path, no_emulator):
    bundle = export_bundle(make_net(), "raspberry-pi-32bit", tmp_path / "b", **OPTIONS)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["verification"]["status"] == "not executed" and bundle.report.verdict().startswith("NOT VERIFIED")
    assert manifest["verification"]["checks"][-1]["status"] == "not executed"
    assert "Not everything was executed" in (tmp_path / "b" / "README.md").read_text()


def test_golden_keeps_fewer_frames_of_networks_with_large_caches():
    assert [golden_count(size) for size in (0, 108192, 2809856, 100 << 20)] == [6, 6, 3, 3]
