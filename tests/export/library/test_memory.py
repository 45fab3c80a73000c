"""make_plan: what lives at the same time never shares memory, what does not does; plan.c says the same."""
import numpy as np
import pytest

from tsm_edge.export.graph.ops import Add, Program, Splice
from tsm_edge.export.kernels.write.base import Kernel, ScratchArg, TensorArg, WeightArg
from tsm_edge.export.library import memory as planning
from tsm_edge.export.library.memory import ALIGNMENT, SLACK, make_plan, place
from tsm_edge.export.library.plan_c import embedded_manifest, needed_hwcap, write_plan
from tsm_edge.export.targets.boards import get_target

MANIFEST = {"name": "m", "classes": ["a"], "trained": True, "input": {
    "width": 4, "height": 4, "colour": "BGR", "resize": "squash", "shorter_side": 0, "filter": "bilinear",
    "mean": [0.5, 0.25, 1], "std": [1, 2, 3]}, "stream": {"fps": 12.5, "max_gap_seconds": 1.0}, "threads": 3}


def overlaps(spans, offsets):
    """Pairs that are alive together and share bytes."""
    bad = []
    for i, (a, size_a, first_a, last_a) in enumerate(spans):
        for b, size_b, first_b, last_b in spans[i + 1:]:
            together = first_a <= last_b and first_b <= last_a
            shared = offsets[a] < offsets[b] + size_b and offsets[b] < offsets[a] + size_a
            if together and shared:
                bad.append((a, b))
    return bad


@pytest.mark.parametrize("seed", range(20))
def test_random_lifetimes_never_overlap_and_are_aligned(seed):
    random = np.random.default_rng(seed)
    spans = []
    for key in range(60):
        first = int(random.integers(0, 40))
        spans.append((key, int(random.integers(1, 5000)), first, first + int(random.integers(0, 8))))
    offsets, total = place(spans)
    assert not overlaps(spans, offsets)
    assert all(offset % ALIGNMENT == 0 for offset in offsets.values())
    assert total >= max(offsets[key] + size for key, size, _, _ in spans) + SLACK
    alive = [sum(planning.round_up(s) for _, s, f, l in spans if f <= t <= l) for t in range(50)]
    assert total <= 1.5 * max(alive) + SLACK, "far more memory than is alive at once"


def test_chain_of_equal_tensors_takes_two_places():
    spans = [(i, 640, i, i + 1) for i in range(10)]
    _, total = place(spans)
    assert total == 2 * 640 + SLACK


def kernel(*args, symbol="k"):
    return Kernel(symbol, "test", None, args, 10)


def tensor(name, *shape, dtype="float32"):
    return TensorArg(name, shape, dtype)


def small_program():
    """frame -> t -> u -> logits, one cache."""
    splice = Splice("cache.a", "next_cache.a", 0, 1)
    shapes = {"frame": (4, 4, 3), "t": (4, 4, 8), "u": (4, 4, 8), "logits": (1,), "cache.a": (4, 4, 1),
              "next_cache.a": (4, 4, 1)}
    program = Program([], shapes, caches=[splice])
    weight = np.arange(10, dtype=np.float32)

    class Op(Add):
        pass

    first = Op("one", "frame", "cache.a", "t")
    second, third = Op("two", "t", "t", "u"), Op("three", "u", "t", "logits")
    writes = Op("four", "t", "t", "next_cache.a")
    calls = [
        (first, kernel(tensor("frame", 48), tensor("cache.a", 16), WeightArg(weight), ScratchArg((100,)), tensor("t", 128))),
        (second, kernel(tensor("t", 16, 8), WeightArg(weight.copy()), tensor("u", 128))),
        (writes, kernel(tensor("t", 128), tensor("next_cache.a", 16), symbol="w")),
        (third, kernel(tensor("u", 128), tensor("t", 128), WeightArg(weight + 1), tensor("logits", 1))),
    ]
    return program, calls


def test_ends_lie_in_their_own_blocks_and_the_rest_in_the_arena():
    program, calls = small_program()
    plan = make_plan(calls, program)
    spaces = [[operand.space for operand in call.operands] for call in plan.calls]
    assert spaces == [["frame", "cache", "weights", "arena", "arena"], ["arena", "weights", "arena"],
                      ["arena", "next_cache"], ["arena", "arena", "weights", "logits"]]
    t, u = plan.calls[3].operands[1], plan.calls[3].operands[0]
    assert t.offset != u.offset and plan.calls[0].operands[4].offset == t.offset
    scratch = plan.calls[0].operands[3]
    assert scratch.offset != t.offset and scratch.shape == (100,)


def test_equal_weights_are_kept_once_and_others_are_not():
    program, calls = small_program()
    plan = make_plan(calls, program)
    first, second, other = plan.calls[0].operands[2], plan.calls[1].operands[1], plan.calls[3].operands[2]
    assert first.offset == second.offset != other.offset
    assert plan.weights[other.offset:other.offset + 40] == (np.arange(10, dtype=np.float32) + 1).tobytes()
    assert plan.weight_bytes == 64 + 64 + SLACK


def test_bytes_of_a_call_leave_scratch_out_and_count_a_tensor_once():
    program, calls = small_program()
    plan = make_plan(calls, program)
    assert plan.calls[0].bytes == 4 * (48 + 16 + 10 + 128)


def test_caches_begin_at_multiples_of_64_with_slack_behind_the_last():
    program, calls = small_program()
    program.caches.append(Splice("cache.b", "next_cache.b", 0, 1))
    program.shapes.update({"cache.b": (3, 3, 1), "next_cache.b": (3, 3, 1)})
    op, last = calls[2]
    calls[2] = (op, kernel(*last.args, tensor("next_cache.b", 9)))
    object.__setattr__(op, "outputs", ("next_cache.a", "next_cache.b"))
    object.__setattr__(op, "inputs", ("t",))
    plan = make_plan(calls, program)
    assert [(c.name, c.offset, c.height, c.width, c.channels) for c in plan.caches] == [
        ("cache.a", 0, 4, 4, 1), ("cache.b", 64, 3, 3, 1)]
    assert plan.cache_bytes == 128 + SLACK
    assert plan.calls[2].operands[2].offset == 64


def test_reading_what_nobody_wrote_is_an_error():
    program, calls = small_program()
    with pytest.raises(ValueError, match="reads u, which nothing before it writes"):
        make_plan([calls[0], calls[2], calls[3]], program)


def test_forgotten_cache_is_an_error():
    program, calls = small_program()
    with pytest.raises(ValueError, match="no kernel writes next_cache.a"):
        make_plan([calls[0], calls[1], calls[3]], program)


def test_kernels_that_disagree_on_a_size_are_an_error():
    program, calls = small_program()
    op, second = calls[1]
    calls[1] = (op, kernel(tensor("t", 127), tensor("u", 128)))
    with pytest.raises(ValueError, match="t has 508 bytes here and 512 elsewhere"):
        make_plan(calls, program)


def test_half_precision_caches_are_planned_as_such():
    program, calls = small_program()
    op, first = calls[0]
    args = [tensor("cache.a", 16, dtype="float16") if getattr(a, "name", "") == "cache.a" else a for a in first.args]
    calls[0] = (op, kernel(*args))
    op, last = calls[2]
    calls[2] = (op, kernel(last.args[0], tensor("next_cache.a", 16, dtype="float16")))
    plan = make_plan(calls, program)
    assert plan.caches[0].dtype == "float16" and plan.cache_bytes == 64 + SLACK
    assert "{\"cache.a\", 1, 4, 4, 2, 16, 0u}" in write_plan(plan, MANIFEST, get_target("raspberry-pi-5"))


def test_plan_c_says_what_the_manifest_says():
    program, calls = small_program()
    text = write_plan(make_plan(calls, program), MANIFEST, get_target("jetson-nano"))
    for part in (".resize = 1, .shorter_side = 0", ".antialias = 0, .colour = 1", "{0.5f, 0.25f, 1.0f}", ".fps = 12.5",
                 ".default_threads = 3", ".trained = 1", ".num_caches = 1u, .num_calls = 4u, .num_operands = 14u",
                 ".hwcap = 0u"):
        assert part in text, part


def test_text_that_c_would_misread_is_escaped():
    program, calls = small_program()
    manifest = dict(MANIFEST, classes=['"', "\\", "??/", "é", "1\n2"])
    text = write_plan(make_plan(calls, program), manifest, get_target("host"))
    rows = text[text.index("classes[]"):].splitlines()[1:6]
    assert rows == ['  "\\042",', '  "\\134",', '  "\\077\\077/",', '  "\\303\\251",', '  "1\\0122",']


def test_embedded_manifest_leaves_files_and_verification_out_and_does_not_depend_on_order():
    a = embedded_manifest({"name": "m", "files": [1], "verification": {}, "classes": ["x"]})
    assert a == embedded_manifest({"classes": ["x"], "name": "m"}) == '{"classes":["x"],"name":"m"}'


def test_cpu_features_of_the_target_are_asked_for():
    assert needed_hwcap(get_target("jetson-nano")) == 0
    assert needed_hwcap(get_target("raspberry-pi-5")) == (1 << 9) | (1 << 10) | (1 << 20)
    assert needed_hwcap(get_target("raspberry-pi-32bit")) == (1 << 12) | (1 << 16)


def chain(in_place, *, also_later=False):
    """frame -> t -> u (in place of t, where allowed) -> v -> logits, without caches."""
    shapes = {"frame": (4, 4, 3), **{n: (4, 4, 8) for n in "tuv"}, "logits": (1,)}
    program = Program([], shapes)
    steps = [("frame", "t"), ("t", "u"), ("u", "v"), ("v", "logits")]
    calls = []
    for a, b in steps:
        size = {"frame": 48, "logits": 1}
        args = [tensor(a, size.get(a, 128)), tensor(b, size.get(b, 128))]
        if also_later and b == "logits":
            args.insert(0, tensor("t", 128))
        calls.append((Add(a + b, a, a, b), Kernel("k", "test", None, tuple(args), 0, (a,) if in_place else ())))
    return program, calls


def arena_offset(plan, call, position):
    operand = plan.calls[call].operands[position]
    assert operand.space == "arena"
    return operand.offset


def test_kernels_that_work_in_place_get_one_place():
    program, calls = chain(True)
    plan = make_plan(calls, program)
    assert plan.arena_bytes == 4 * 128 + SLACK
    assert arena_offset(plan, 1, 0) == arena_offset(plan, 1, 1) == arena_offset(plan, 2, 1) == 0
    program, calls = chain(False)
    plan = make_plan(calls, program)
    assert plan.arena_bytes == 2 * 4 * 128 + SLACK
    assert arena_offset(plan, 1, 0) != arena_offset(plan, 1, 1)


def test_input_that_is_read_later_is_not_written_over():
    program, calls = chain(True, also_later=True)
    plan = make_plan(calls, program)
    t = arena_offset(plan, 0, 1)
    assert arena_offset(plan, 1, 1) != t and arena_offset(plan, 2, 1) != t and arena_offset(plan, 3, 0) == t
    assert arena_offset(plan, 1, 1) == arena_offset(plan, 2, 1), "the others still share"


def test_ends_are_never_written_over():
    program, calls = chain(True)
    plan = make_plan(calls, program)
    assert plan.calls[0].operands[0].space == "frame" and plan.calls[3].operands[1].space == "logits"


def test_plan_of_a_real_program_keeps_every_value_until_it_was_read():
    """Each call writes a number of its own into its outputs; readers must find the number of the right call."""
    random = np.random.default_rng(3)
    for _ in range(20):
        names, calls, made = ["frame"], [], 0
        shapes = {"frame": (4, 4, 3), "logits": (1,)}
        for index in range(25):
            out = "logits" if index == 24 else f"t{index}"
            shapes[out] = (1,) if out == "logits" else (4, 4, 1)
            reads = list(dict.fromkeys(str(n) for n in random.choice(names[-6:], 2)))
            size = {"frame": 48, "logits": 1}
            args = [tensor(n, size.get(n, 16)) for n in (*reads, out)] + [ScratchArg((int(random.integers(1, 40)),))]
            allowed = tuple(n for n in reads if random.random() < 0.5)
            calls.append((Add(f"op{index}", reads[0], reads[-1], out), Kernel("k", "test", None, tuple(args), 0, allowed)))
            names.append(out)
        plan = make_plan(calls, Program([], shapes))
        memory, written = {}, {"frame": -1}
        for index, (call, (op, kernel_)) in enumerate(zip(plan.calls, calls)):
            arena = [(o, a) for o, a in zip(call.operands, kernel_.args) if o.space == "arena"]
            for operand, arg in arena:
                if isinstance(arg, TensorArg) and arg.name != op.out:
                    got = {memory[b] for b in range(operand.offset, operand.offset + planning.arg_bytes(arg))}
                    assert got == {written[arg.name]}, (index, arg.name)
            for operand, arg in arena:
                if isinstance(arg, ScratchArg) or arg.name == op.out:
                    value = index if isinstance(arg, TensorArg) else "scratch"
                    memory.update({b: value for b in range(operand.offset, operand.offset + planning.arg_bytes(arg))})
            if op.out != "logits":
                written[op.out] = index
            made += 1
        assert made == 25
