"""The ONNX step graph: names, shapes, content, bytes, and what onnxruntime makes of it."""
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
onnx = pytest.importorskip("onnx", reason="onnx (extra [export]) is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime (extra [export]) is not installed")

from torch import nn  # noqa: E402

from tsm_edge import create_model  # noqa: E402
from tsm_edge.errors import CheckFailedError, InputError  # noqa: E402
from tsm_edge.export.graph.write import METADATA_KEY, export_onnx  # noqa: E402
from tsm_edge.export.proof import traces  # noqa: E402
from tsm_edge.sensitive import image_like_frames, make_sensitive  # noqa: E402
from tsm_edge.shift import TemporalShift, insert_shifts  # noqa: E402
from tsm_edge.step import StepNetwork  # noqa: E402

MANIFEST = {"schema": 1, "name": "é", "classes": ["a", "b"], "files": [{"path": "x"}], "verification": {"status": "passed"}}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    torch.set_num_threads(1)


def sensitive_step(net, size):
    return StepNetwork(make_sensitive(net, 0, image_like_frames(16, size, 0)), size)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    step = sensitive_step(create_model("mobilenet_v2", 27, width=0.5, input_size=(96, 64)), (96, 64))
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return step, export_onnx(step, path, MANIFEST), path


def both(step, model, folder):
    """What torch and onnxruntime give over the same chained frames, each on its own caches. model : path or ModelProto."""
    if isinstance(model, onnx.ModelProto):
        onnx.save(model, folder / "both.onnx")
        model = folder / "both.onnx"
    inputs = image_like_frames(16, step.input_size, 0)
    return traces.step_trace(step, inputs), traces.onnx_trace(model, inputs)


def furthest(one, other):
    """Largest differences of two traces: of logits, of caches."""
    return (np.abs(one.logits - other.logits).max(),
            max((np.abs(one.caches[name] - other.caches[name]).max() for name in one.caches), default=0))


def assert_parity(step, model, folder):
    torch_trace, onnx_trace = both(step, model, folder)
    logits, caches = furthest(torch_trace, onnx_trace)
    tolerance = 1e-4 * max(1.0, np.abs(torch_trace.logits).max())
    assert np.ptp(torch_trace.logits, axis=0).max() >= 1000 * tolerance >= 1000 * logits
    assert (torch_trace.logits.argmax(1) == onnx_trace.logits.argmax(1)).all()
    assert caches <= 1e-4 * max([1.0, *(np.abs(value).max() for value in torch_trace.caches.values())])
    return logits


def test_inputs_and_outputs_are_named_in_execution_order_with_fixed_shapes(small):
    step, model, _ = small

    def ends(values):
        return [(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim), v.type.tensor_type.elem_type) for v in values]

    caches = [(f"cache.features.{i}.conv.0", spec.shape, 1) for i, spec in
              zip((3, 5, 6, 8, 9, 10, 12, 13, 15, 16), step.cache_specs)]
    assert ends(model.graph.input) == [("frame", (1, 3, 64, 96), 1), *caches]
    assert ends(model.graph.output) == [("logits", (1, 27), 1), *(("next_" + n, s, t) for n, s, t in caches)]


@pytest.mark.parametrize("name, options, size", [
    ("mobilenet_v2", {}, (128, 96)), ("mobilenet_v2", {"past": (1, 2), "width": 1.4}, (64, 64)),
    ("resnet18", {"fold_div": 4, "placement": "inplace"}, (64, 96)), ("resnet50", {"past": (0, 2)}, (64, 64))])
def test_onnxruntime_computes_what_torch_computes_over_sixteen_chained_frames(name, options, size, tmp_path):
    step = sensitive_step(create_model(name, 27, input_size=size, **options), size)
    export_onnx(step, tmp_path / "m.onnx")
    assert_parity(step, tmp_path / "m.onnx", tmp_path)


def test_the_graph_has_only_what_the_step_computes(small):
    _, model, _ = small
    ops = {}
    for node in model.graph.node:
        ops[node.op_type] = ops.get(node.op_type, 0) + 1
    assert ops == {"Conv": 52, "Clip": 35, "Slice": 20, "Concat": 10, "Add": 10, "ReduceMean": 1, "Gemm": 1}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names) and "013.features.3.conv.0.conv" in names
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    assert weights["features.3.conv.0.weight"] == (96, 16, 1, 1) and weights["classifier.bias"] == (27,)
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_the_file_passes_the_checker_and_strict_shape_inference(small):
    model = onnx.load(small[2])
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    known = {v.name for v in [*inferred.graph.value_info, *inferred.graph.output]}
    assert all(name in known for node in model.graph.node for name in node.output)


def test_the_manifest_travels_inside_without_files_and_verification(small):
    entry, = onnx.load(small[2]).metadata_props
    assert entry.key == METADATA_KEY == "tsm_edge.manifest"
    assert json.loads(entry.value) == {"schema": 1, "name": "é", "classes": ["a", "b"]}
    assert not export_onnx(small[0], None).metadata_props


def test_the_same_network_gives_the_same_bytes_in_another_process(small, tmp_path):
    code = f"""
import torch; torch.set_num_threads(1)
from tsm_edge import create_model
from tsm_edge.step import StepNetwork
from tsm_edge.export.graph.write import export_onnx
torch.manual_seed(0)
net = create_model("resnet18", 3, input_size=64)
export_onnx(StepNetwork(net), {str(tmp_path / "other.onnx")!r}, {MANIFEST!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONHASHSEED": "77", "PATH": ""})
    torch.manual_seed(0)
    net = create_model("resnet18", 3, input_size=64)
    hashes = set()
    for name in ("one.onnx", "two.onnx"):
        export_onnx(StepNetwork(net), tmp_path / name, MANIFEST)
        hashes.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    hashes.add(hashlib.sha256((tmp_path / "other.onnx").read_bytes()).hexdigest())
    assert len(hashes) == 1


class PreActivated(nn.Module):
    """Norms before convolutions, which cannot be folded; a module called twice; odd channels; a shift as a layer."""

    def __init__(self, c=21):
        super().__init__()
        self.stem = nn.Conv2d(3, c, 3, 2, 1)
        self.norm, self.conv, self.shift = nn.BatchNorm2d(c), nn.Conv2d(c, c, 3, padding=1), TemporalShift(past=(1, 3))
        self.fc = nn.Linear(c, 7)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv(self.norm(x).relu())
        x = nn.functional.max_pool2d(x, 2)
        x = x + self.conv(self.norm(x).relu()).sigmoid() * self.shift(x)
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_networks_of_a_users_own_are_written(tmp_path):
    net = PreActivated()
    insert_shifts(net, lambda name, module: module.conv if isinstance(module, PreActivated) else None)
    step = sensitive_step(net, (48, 32))
    model = export_onnx(step, tmp_path / "m.onnx")
    assert [i.name for i in model.graph.input] == ["frame", "cache.conv", "cache.conv.2", "cache.shift"]
    assert_parity(step, tmp_path / "m.onnx", tmp_path)


class Attends(nn.Module):
    """Attention, padding, an index and a split: shapes that ONNX says by computed constants."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(4, 4, 3)
        self.attention, self.fc = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        a, b = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect").chunk(2, 1)
        x = torch.cat([self.conv(a), b[:, :, 1:-1, 1:-1]], 1)
        tokens = x.flatten(2).transpose(1, 2)
        return self.fc(self.attention(tokens, tokens, tokens, need_weights=False)[0][:, 3])


def test_attention_padding_and_indices_have_fixed_shapes(tmp_path):
    from tsm_edge.export.graph.read import read_graph

    net = Attends()
    insert_shifts(net, lambda name, module: name == "conv", fold_div=2)
    step = sensitive_step(net, (48, 32))
    fast = torch.backends.mha.get_fastpath_enabled()
    export_onnx(step, tmp_path / "m.onnx")
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert_parity(step, tmp_path / "m.onnx", tmp_path)
    graph = read_graph(tmp_path / "m.onnx")
    assert all(name in graph.shapes for node in graph.nodes for name in node.outputs)
    assert {"Pad", "Gather"} <= {node.op for node in graph.nodes} and "Shape" not in {node.op for node in graph.nodes}


def test_what_onnx_lacks_is_refused_without_a_word_on_stdout(tmp_path, capfd):
    class Lacking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 15, 5)

        def forward(self, x):
            return self.fc(nn.functional.adaptive_avg_pool2d(self.conv(x), (5, 3)).flatten(1))

    with pytest.raises(InputError, match="adaptive_avg_pool2d"):
        export_onnx(StepNetwork(Lacking(), (48, 32)), tmp_path / "m.onnx")
    assert capfd.readouterr().out == "" and not list(tmp_path.iterdir())


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv(x)
        return self.fc((nn.functional.relu(x, inplace=True) + y).mean((2, 3)))


def test_changing_the_input_in_place_later_does_not_reach_the_next_cache(tmp_path):
    net = InPlace()
    insert_shifts(net, lambda name, module: module.conv if isinstance(module, InPlace) else None)
    step = sensitive_step(net, (32, 32))
    assert_parity(step, export_onnx(step, None), tmp_path)


def test_parity_sees_swapped_caches_and_a_constant_next_cache(small, tmp_path):
    step, model, _ = small
    good = assert_parity(step, model, tmp_path)
    swapped = onnx.ModelProto()
    swapped.CopyFrom(model)
    one, two = "cache.features.8.conv.0", "cache.features.9.conv.0"
    for node in swapped.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = {one: two, two: one}.get(name, name)
    torch_trace, bad = both(step, swapped, tmp_path)
    assert furthest(torch_trace, bad)[0] > max(100 * good, 1e-3 * np.abs(torch_trace.logits).max())

    frozen = onnx.ModelProto()
    frozen.CopyFrom(model)
    shape = step.cache_specs[0].shape
    value = onnx.numpy_helper.from_array(np.full(shape, 0.5, np.float32), "frozen")
    frozen.graph.initializer.append(value)
    for node in frozen.graph.node:
        if node.output[0] == "next_cache.features.3.conv.0":
            node.CopyFrom(onnx.helper.make_node("Identity", ["frozen"], list(node.output)))
    logits, caches = furthest(*both(step, frozen, tmp_path))
    assert logits > 100 * good and caches > 0.1


class Unwritable(nn.Module):
    def forward(self, x):
        return torch.special.i0(x).mean((2, 3))


class Useless(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift, self.conv = TemporalShift(), nn.Conv2d(3, 8, 1)

    def forward(self, x):
        x = self.conv(x)
        self.shift(x)
        return x.mean((2, 3))


def test_what_onnx_cannot_express_is_refused():
    with pytest.raises(InputError, match="cannot be written as ONNX") as error:
        export_onnx(StepNetwork(nn.Sequential(nn.Conv2d(3, 4, 1), Unwritable()), 32), None)
    assert "i0" in error.value.found and "opset 17" in error.value.expected and error.value.do


def test_a_shift_without_effect_is_refused():
    with pytest.raises(InputError, match="leaves something out") as error:
        export_onnx(StepNetwork(Useless(), 32), None)
    assert "cache.shift" in error.value.found and error.value.do


def test_a_graph_that_fails_onnx_checks_is_not_written(small, monkeypatch, tmp_path):
    def complain(*args, **kwargs):
        raise onnx.checker.ValidationError("Bad node\nmore")

    monkeypatch.setattr(onnx.checker, "check_model", complain)
    with pytest.raises(CheckFailedError, match="own checks") as error:
        export_onnx(small[0], tmp_path / "m.onnx")
    assert error.value.found == "Bad node" and error.value.exit_code == 1 and not (tmp_path / "m.onnx").exists()
