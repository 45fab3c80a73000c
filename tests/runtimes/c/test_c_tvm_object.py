"""Objects as TVM writes them find the runtime's workspace, parallel launch and error call at link time."""
import re

import numpy as np
import pytest

PLAN = """
#include "tsm_plan.h"
int __tvm_ffi_scale(void *, const tsm_ffi_any *, int32_t, tsm_ffi_any *);
int __tvm_ffi_chain(void *, const tsm_ffi_any *, int32_t, tsm_ffi_any *);
static const tsm_plan_operand operands[] = {
    {TSM_IN_FRAME, 2, 32, 3, 0, {20, 28, SHAPE}}, {TSM_IN_ARENA, 2, 32, 3, 0, {20, 28, 3}},
    {TSM_IN_ARENA, 2, 32, 3, 0, {20, 28, 3}}, {TSM_IN_LOGITS, 2, 32, 1, 0, {20}}};
static const tsm_plan_call calls[] = {{"scale", "k", __tvm_ffi_scale, 0, 2, 0, 0}, {"chain", "k", __tvm_ffi_chain, 2, 2, 0, 0}};
static const char *const classes[20] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q",
                                        "r", "s", "t"};
const tsm_plan tsm_model_plan = {.version = 1, .num_classes = 20, .classes = classes, .height = 20, .width = 28, .resize = 1,
    .std = {1, 1, 1}, .arena_bytes = 20 * 28 * 3 * 4, .num_calls = 2, .num_operands = 4, .calls = calls, .operands = operands};
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """kernels.o: `scale` (2 x + 1, parallel rows) and `chain` (row sums through a buffer that needs workspace)."""
    tvm = pytest.importorskip("tvm")
    from tvm import te

    x = te.placeholder((20, 28, 3), name="x")
    y = te.compute((20, 28, 3), lambda i, j, k: x[i, j, k] * 2.0 + 1.0, name="y")
    scale = te.create_prim_func([x, y]).with_attr("global_symbol", "scale")
    z = te.compute((20, 28, 3), lambda i, j, k: x[i, j, k] * 3.0, name="z")
    j, k = te.reduce_axis((0, 28), "j"), te.reduce_axis((0, 3), "k")
    total = te.compute((20,), lambda i: te.sum(z[i, j, k], axis=[j, k]), name="total")
    chain = te.create_prim_func([x, total]).with_attr("global_symbol", "chain")
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"scale": scale, "chain": chain}))
    schedule.parallel(schedule.get_loops(schedule.get_sblock("y", func_name="scale"))[0])
    schedule.parallel(schedule.get_loops(schedule.get_sblock("total", func_name="chain"))[0])
    library = tvm.compile(schedule.mod, target=tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu"}))
    path = tmp_path_factory.mktemp("tvm") / "kernels.o"
    library.mod.write_to_file(str(path), "o")
    return path


STATE_PLAN = """
#include "tsm_plan.h"
int __tvm_ffi_state(void *, const tsm_ffi_any *, int32_t, tsm_ffi_any *);
static const tsm_plan_operand operands[] = {{TSM_IN_LOGITS, 2, 32, 1, 0, {600}}};
static const tsm_plan_call calls[] = {{"state", "k", __tvm_ffi_state, 0, 1, 0, 0}};
static const char *const classes[600];
const tsm_plan tsm_model_plan = {.version = 1, .num_classes = 600, .classes = classes, .height = 20, .width = 28, .resize = 1,
    .std = {1, 1, 1}, .num_calls = 1, .num_operands = 1, .calls = calls, .operands = operands};
"""


def test_what_a_kernel_keeps_for_each_thread_is_not_shared(kit, tmp_path):
    pytest.importorskip("tvm")
    from tvm import tirx

    from tsm_edge.export.kernels.write.base import Kernel
    from tsm_edge.export.kernels.write.emit import Emitter
    from tsm_edge.export.library.objects import compile_each
    from tsm_edge.export.targets.boards import get_target

    # Anything may have changed for all the compiler knows, as after a tile of assembly: `seen` is read again from memory.
    clobber = ("define void @clobber(ptr %x) {\n"
               'call void asm sideeffect "", "~{memory}"()\nret void\n}\n')
    e = Emitter()
    out = e.param("out", 600)
    with e.each_thread():  # out[i] = how many came before in the same thread; counted slowly, so that threads meet
        seen = e.vector(1, "float32")
        seen.set(tirx.const(0.0, "float32"))
        with e.loop(600, "parallel") as i:
            e.store(out, i, seen.get())
            with e.loop(2000):
                seen.set(seen.get() + tirx.const(1 / 2048, "float32"))
                e.call_llvm("clobber", clobber, [(out, 0)])
            seen.set(seen.get() + tirx.const(48 / 2048, "float32"))
    kernel = Kernel("state", "state", e.function("state"), (), 0)
    name, = compile_each([(None, kernel)], get_target("host"), tmp_path)
    toy = link(kit, tmp_path / name, tmp_path, None, plan=STATE_PLAN)
    assert toy.create() == (0, "")
    for threads in (1, 2, 4):
        stream = toy.stream(threads=threads)
        share = -(-600 // threads)
        for _ in range(10):
            status, result = stream.step_tensor(kit.toy_frames(1)[0])
            assert status == 0
            got = np.ctypeslib.as_array(result.logits, (600,))
            assert np.array_equal(got, np.arange(600) % share)
        stream.close()


def link(kit, kernels, folder, compiler, shape="3", plan=PLAN):
    (folder / "plan.c").write_text(plan.replace("SHAPE", shape))
    library = folder / "libtvm.so"
    kit.run([*(compiler or kit.host_compiler()), "-std=gnu99", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-I", kit.RUNTIME, kernels,
             folder / "plan.c", *kit.SOURCES, f"-Wl,--version-script={kit.RUNTIME / 'tsm_edge.map'}", "-Wl,-z,defs", "-o",
             library, "-lm", "-lpthread"])
    return kit.Toy(library)


@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_kernels_use_our_workspace_and_threads(kernels, kit, tmp_path, compiler):
    symbols = kit.run(["nm", kernels])
    assert re.findall(r"U (.*)", symbols) == ["TVMFFIErrorSetRaisedFromCStrParts"]
    assert len(re.findall(r"V __TVMBackend(AllocWorkspace|FreeWorkspace|ParallelLaunch)", symbols)) == 3
    if compiler == "zig":
        pytest.importorskip("ziglang")
        import sys

        command = (sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu.2.27")
    else:
        command = ("gcc",)
    toy = link(kit, kernels, tmp_path, command)
    assert toy.create() == (0, "") and toy.info().scratch_bytes >= 20 * 28 * 3 * 4
    for threads in (1, 2, 5):
        stream = toy.stream(threads=threads)
        for frame in kit.toy_frames(5):
            status, result = stream.step_tensor(frame)
            assert status == 0, stream.error()
            want = ((frame.astype(np.float64) * 2 + 1) * 3).sum(axis=(0, 2))
            got = np.ctypeslib.as_array(result.logits, (20,))
            assert np.max(np.abs(got - want)) < 1e-4 * np.max(np.abs(want))
        stream.close()


def test_a_kernels_complaint_reaches_the_caller(kernels, kit, tmp_path):
    toy = link(kit, kernels, tmp_path, None, shape="2")
    status, message = toy.create()
    assert status == 9 and "ValueError" in message and "x.shape[2]" in message and "3" in message
    assert not toy.model
