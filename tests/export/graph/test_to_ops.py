"""import_onnx: the program computes what the graph computes, and fuses what can be fused."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import step_graphs as graphs  # noqa: E402
import step_runs as runs  # noqa: E402

from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.export.graph.ops import (  # noqa: E402
    Add,
    ApplySplice,
    Conv,
    Dense,
    Fallback,
    GlobalAveragePool,
    Layout,
    inputs_of,  # noqa: E402
)
from tsm_edge.export.graph.to_ops import import_onnx  # noqa: E402


def kinds(program):
    return [type(op).__name__ for op in program.ops]


def fell_back(program):
    return sorted({name for op in program.ops if isinstance(op, Fallback) for name in op.ops})


def assert_same_steps(expected, got):
    for frame, (a, b) in enumerate(zip(expected, got)):
        assert set(a) == set(b)
        for name in a:
            scale = max(1.0, float(np.abs(a[name]).max()))
            assert np.abs(a[name] - b[name]).max() <= 2e-5 * scale, (frame, name)
    assert len(expected) == len(got)


@pytest.mark.parametrize("name", graphs.CASES)
def test_program_computes_what_the_graph_computes_over_chained_frames(name):
    model, expected_fallbacks = graphs.CASES[name]()
    program = import_onnx(model)
    frames = runs.frames_for(model)
    got = runs.run_onnx(model, frames, lambda inputs: runs.run_program(program, inputs))
    assert_same_steps(runs.run_onnx(model, frames), got)
    assert fell_back(program) == sorted(expected_fallbacks)


def test_frames_differ_from_each_other_in_every_case():
    """Without that, a cache that is never read would pass the test above."""
    for name, make in graphs.CASES.items():
        model, _ = make()
        steps = runs.run_onnx(model, np.repeat(runs.frames_for(model, 1), 2, axis=0))
        if len(model.graph.input) > 1:  # the same frame twice: only the caches can make a difference
            assert np.abs(steps[0]["logits"] - steps[1]["logits"]).max() > 1e-3, name


def test_inverted_residual_becomes_three_convolutions_with_splice_clip_and_residual():
    program = import_onnx(graphs.residual_splice()[0])
    assert kinds(program) == ["Conv"] * 4 + ["GlobalAveragePool", "Dense"]
    stem, expand, depthwise, project = program.ops[:4]
    assert (expand.splice.start, expand.splice.stop, expand.x) == (0, 2, stem.out)
    assert expand.clip == depthwise.clip == (0.0, 6.0) and stem.clip == (0.0, float("inf")) and project.clip is None
    assert depthwise.groups == 48 and project.residual == stem.out
    assert program.shapes["cache.a"] == (9, 7, 2) and program.caches == [expand.splice]


def test_of_two_splices_in_a_row_the_second_melts_into_the_convolution():
    program = import_onnx(graphs.several_shifts_in_a_block()[0])
    first, second = program.ops[1:3]
    assert isinstance(first, ApplySplice) and isinstance(second, Conv)
    assert first.splice.cache == "cache.one" and second.splice.cache == "cache.two" and second.x == first.out
    assert second.residual == program.ops[0].out and second.clip == (0.0, float("inf"))


def test_splice_that_feeds_two_readers_stays_an_operation():
    program = import_onnx(graphs.inplace_shift()[0])
    assert kinds(program)[:3] == ["Conv", "ApplySplice", "Conv"]
    assert program.ops[2].residual == program.ops[1].out and program.ops[2].splice is None


def test_only_the_unclipped_unshared_convolution_takes_a_sum_in():
    program = import_onnx(graphs.adds_of_all_kinds()[0])
    adds = [op for op in program.ops if isinstance(op, Add)]
    taken = [op for op in program.ops if isinstance(op, Conv) and op.residual]
    assert len(adds) == 4 and len(taken) == 1 and taken[0].clip == (0.0, float("inf"))


def test_bounds_of_several_clips_meet():
    program = import_onnx(graphs.loose_norms_and_scales()[0])
    clips = [op.clip for op in program.ops if isinstance(op, Conv) and op.clip]
    assert clips == [(0.0, float(np.float32(1.1)))]


def test_elementwise_operations_need_no_layout_change_and_others_do():
    assert Layout not in map(type, import_onnx(graphs.squeeze_and_excite()[0]).ops)
    changed = [op for op in import_onnx(graphs.branches()[0]).ops if isinstance(op, Layout)]
    assert sorted(op.to for op in changed) == ["chw", "chw", "chw", "hwc"]


def test_a_gate_for_every_channel_is_computed_once_and_not_at_every_pixel():
    def groups(model):
        return [op.ops for op in import_onnx(model).ops if isinstance(op, Fallback)]

    assert groups(graphs.squeeze_and_excite()[0])[-2:] == [("HardSigmoid",), ("Mul",)]
    assert groups(graphs.other_activations()[0])[0] == ("Sigmoid", "Mul")  # x * sigmoid(x) is one loop


def test_layouts_are_changed_once_for_all_readers():
    program = import_onnx(graphs.upsampled()[0])
    written = [op.out for op in program.ops if isinstance(op, Layout)]
    assert len(written) == len(set(written))


@pytest.mark.parametrize("name", ["upsampled", "squeeze_and_excite", "branches", "next_cache_read_again"])
def test_fallbacks_hand_out_only_what_somebody_reads(name):
    program = import_onnx(graphs.CASES[name]()[0])
    read = {program.logits, *(splice.next_cache for splice in program.caches)}
    read.update(tensor for op in program.ops for tensor in inputs_of(op))
    assert not [out for op in program.ops if isinstance(op, Fallback) for out in op.outputs if out not in read]


def test_dropout_and_reshapes_disappear_and_dense_layers_take_their_bias_and_clip_in():
    program = import_onnx(graphs.dense_layers()[0])
    assert kinds(program) == ["Conv", "GlobalAveragePool", "Dense", "Dense", "Fallback"]
    assert program.ops[2].clip == (0.0, float("inf")) and np.abs(program.ops[2].bias).max() > 0
    same = import_onnx(graphs.same_padding()[0])
    assert kinds(same) == ["Conv", "Pool", "GlobalAveragePool", "Dense"]
    assert same.shapes[same.ops[2].out] == (8,)


def test_names_are_the_layers_that_the_weights_have():
    model, _ = graphs.no_caches()
    weight = model.graph.node[0].input[1]
    next(t for t in model.graph.initializer if t.name == weight).name = "features.0.conv.weight"
    model.graph.node[0].input[1] = "features.0.conv.weight"
    assert import_onnx(model).ops[0].name == "features.0.conv"


def test_weights_are_float32_and_contiguous():
    for op in import_onnx(graphs.dense_layers()[0]).ops:
        if isinstance(op, (Conv, Dense)):
            assert op.weight.dtype == op.bias.dtype == np.float32 and op.weight.flags.c_contiguous
    assert GlobalAveragePool in map(type, import_onnx(graphs.no_caches()[0]).ops)


# --- refusals ----------------------------------------------------------------------------------------------------------


def refused(model, *words):
    with pytest.raises(InputError) as error:
        import_onnx(model)
    text = str(error.value)
    assert error.value.found and error.value.expected and error.value.do
    for word in words:
        assert word in text, text


def test_graph_without_logits_is_refused():
    model, _ = graphs.no_caches()
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"
    refused(model, "not a step graph", "scores", "logits")


def test_cache_without_successor_is_refused_by_name():
    model, _ = graphs.residual_splice()
    del model.graph.output[1]
    refused(model, "cache.a", "next_cache")


def test_symbolic_size_is_refused():
    model, _ = graphs.no_caches()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    refused(model, "frame", "fixed")


def test_batch_is_refused():
    model, _ = graphs.no_caches()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    refused(model, "(2, 3, 9, 7)", "[1, 3, H, W]")


def test_data_dependent_shape_is_refused_by_operation():
    g = graphs.Graph()
    picked = g.op("NonZero", g.conv("frame", 3, 4))
    g.head(g.op("Add", g.conv("frame", 3, 4), g.op("Cast", g.op("ReduceMax", picked, keepdims=0), to=1)), 4)
    refused(g.model(), "NonZero", "not fixed")


def test_control_flow_is_refused_by_operation():
    from onnx import helper

    model, _ = graphs.no_caches()
    out = helper.make_tensor_value_info("o", 1, None)
    body = helper.make_graph([helper.make_node("Identity", ["logits"], ["o"])], "b", [], [out])
    model.graph.initializer.append(helper.make_tensor("yes", 9, [], [True]))
    model.graph.node.append(helper.make_node("If", ["yes"], ["unused"], name="choice", then_branch=body, else_branch=body))
    refused(model, "choice", "If", "decides at run time")


def test_file_that_is_no_onnx_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\xff not a model")
    refused(path, "model.onnx", "cannot be read as ONNX")


def test_the_steps_ends_are_float32_in_any_precision_whatever_they_are_called():
    model, _ = graphs.no_caches()
    for value in (*model.graph.input, *model.graph.output):
        value.name = {"frame": "picture", "logits": "answer"}.get(value.name, value.name)
    for node in model.graph.node:
        node.input[:] = ["picture" if name == "frame" else name for name in node.input]
        node.output[:] = ["answer" if name == "logits" else name for name in node.output]
    program = import_onnx(model, "picture", "answer")
    first, last = program.ops[0], program.ops[-1]
    assert isinstance(first, Conv) and first.x == "picture" and first.x_dtype == "float32"
    assert isinstance(last, Dense) and last.out == "answer" and last.out_dtype == "float32"
    inner = import_onnx(graphs.residual_splice()[0]).ops[1:-1]
    assert [op for op in inner if getattr(op, "x_dtype", None) or getattr(op, "out_dtype", None)] == []
