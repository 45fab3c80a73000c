"""build_library: the compiled library computes what the graph computes, frame by frame, whatever kernels there are."""
import importlib.util
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

for package in ("onnx", "onnxruntime", "tvm", "ziglang"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} (extra [export]) is not installed", allow_module_level=True)
if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
    pytest.skip("libraries for this machine are made on Linux on x86-64 or aarch64", allow_module_level=True)

import step_graphs as graphs  # noqa: E402
import step_runs as runs  # noqa: E402

from tsm_edge.errors import CheckFailedError, InputError  # noqa: E402
from tsm_edge.export.graph.to_ops import import_onnx  # noqa: E402
from tsm_edge.export.kernels import calls  # noqa: E402
from tsm_edge.export.kernels.calls import choose_kernels  # noqa: E402
from tsm_edge.export.library import build as compiling  # noqa: E402
from tsm_edge.export.library import objects  # noqa: E402
from tsm_edge.export.library.archive import read_archive  # noqa: E402
from tsm_edge.export.library.build import build_library  # noqa: E402
from tsm_edge.export.library.elf import read_elf  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402


def without_kernels(monkeypatch):
    monkeypatch.setattr(calls, "build", lambda *arguments: None)
    monkeypatch.setattr(calls, "fuse", lambda program: program)


def build(model, folder, target="host", **manifest):
    program = import_onnx(model)
    target = get_target(target)
    chosen = choose_kernels(program, target, manifest.get("precision", "fp32"))
    return build_library(chosen, runs.manifest_for(program, **manifest), target, folder)


def assert_computes(model, library, frames=3):
    inputs = runs.frames_for(model, frames)
    expected, got = runs.run_onnx(model, inputs), runs.Library(library.path).run(model, inputs)
    for frame, (a, b) in enumerate(zip(expected, got)):
        assert set(a) == set(b)
        for name in a:
            scale = max(1.0, float(np.abs(a[name]).max()))
            assert np.abs(a[name] - b[name]).max() <= 5e-5 * scale, (frame, name)


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A network with ours and others' operations: model and library, built once."""
    model, _ = graphs.squeeze_and_excite()
    return model, build(model, tmp_path_factory.mktemp("odd"), classes=['a "b" \\c', "é?", "??=", "0", "1"])


QUICK = ("residual_splice", "several_shifts_in_a_block", "branches", "pools", "scalar_indices")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in graphs.CASES if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
def test_library_computes_what_the_graph_computes(name, tmp_path):
    model, _ = graphs.CASES[name]()
    assert_computes(model, build(model, tmp_path))


@pytest.mark.parametrize("name", ["several_shifts_in_a_block", pytest.param("residual_splice", marks=pytest.mark.slow),
                                  pytest.param("pools", marks=pytest.mark.slow)])
def test_without_a_single_kernel_of_ours_it_computes_the_same(name, tmp_path, monkeypatch):
    without_kernels(monkeypatch)
    model, _ = graphs.CASES[name]()
    library = build(model, tmp_path)
    assert set(library.kernels) == {"fallback"}
    assert_computes(model, library)


def test_library_with_fallbacks_names_them_and_computes_the_same(odd):
    model, library = odd
    assert library.chosen.fallbacks == ["HardSigmoid", "HardSwish (2)", "Mul"]
    assert_computes(model, library)


def test_report_adds_up(odd):
    _, library = odd
    assert library.path.name == "libtsm_model.so" and library.size == library.path.stat().st_size
    assert sum(library.kernels.values()) == len(library.plan.calls)
    # stem, expand, two convolutions on one pixel, project, classifier
    macs = 63 * (16 * 27 + 16 * 24 + 24 * 16) + 2 * 24 * 6 + 16 * 5
    assert library.macs == macs
    assert all(call.bytes > 0 and call.kernel.symbol and call.name for call in library.plan.calls)
    plan = library.plan
    assert plan.cache_bytes >= 4 * 9 * 7 * 2 and plan.arena_bytes % 64 == 0 and plan.weight_bytes % 64 == 0
    assert "apache-tvm" in library.compiler


def test_library_carries_names_and_manifest(odd):
    library = runs.Library(odd[1].path)
    assert library.classes() == ['a "b" \\c', "é?", "??=", "0", "1"]
    manifest = json.loads(library.info.manifest)
    assert manifest["name"] == library.info.name.decode() == "odd" and manifest["input"]["shorter_side"] == 256
    assert [round(v, 6) for v in library.info.mean] == [0.485, 0.456, 0.406]
    assert library.info.macs == odd[1].macs and library.info.arena_bytes == odd[1].plan.arena_bytes


def test_files_and_verification_are_not_embedded(tmp_path):
    model, _ = graphs.no_caches()
    library = build(model, tmp_path, files=[{"path": "secret-file"}], verification={"status": "passed"})
    text = library.path.read_bytes()
    assert b"secret-file" not in text and b"verification" not in text


def test_library_knows_nothing_of_the_machine_that_made_it(odd):
    data = odd[1].path.read_bytes()
    assert str(odd[1].path.parent).encode() not in data
    assert str(Path(compiling.__file__).resolve().parents[2]).encode() not in data
    assert str(Path.home()).encode() + b"/" not in data


def test_library_shows_only_the_runtimes_functions(odd):
    elf = read_elf(odd[1].path)
    assert elf.exported() and all(name.startswith("tsm_") for name in elf.exported())
    assert elf.soname == "libtsm_model.so" and not elf.rpath


BUILD_IN_ANOTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import step_graphs as graphs, step_runs as runs
from tsm_edge.export.kernels.calls import choose_kernels
from tsm_edge.export.library.build import build_library
from tsm_edge.export.graph.to_ops import import_onnx
from tsm_edge.export.targets.boards import get_target
program = import_onnx(graphs.CASES[sys.argv[2]]()[0])
target = get_target(sys.argv[3])
build_library(choose_kernels(program, target), runs.manifest_for(program), target, sys.argv[4])
"""


def test_equal_inputs_give_equal_bytes_in_another_process_and_folder(tmp_path):
    model, _ = graphs.squeeze_and_excite()
    here = build(model, tmp_path / "here").path.read_bytes()
    folder = tmp_path / "another" / "place"
    environment = {**__import__("os").environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", BUILD_IN_ANOTHER_PROCESS, str(Path(graphs.__file__).parent), "squeeze_and_excite", "host",
                    str(folder)], check=True, env=environment)  # its words are shown by pytest
    assert (folder / "libtsm_model.so").read_bytes() == here


def test_other_weights_give_another_library_from_the_same_folder(tmp_path):
    """A compiler's cache must not hand out the weights of the build before."""
    model, _ = graphs.no_caches()
    build(model, tmp_path)
    for weight in model.graph.initializer:
        values = np.frombuffer(weight.raw_data, np.float32) * np.float32(1.5)
        weight.raw_data = values.tobytes()
    assert_computes(model, build(model, tmp_path))


@pytest.mark.parametrize("target, machine", [
    ("jetson-nano", "aarch64"), ("raspberry-pi-32bit", "armv7l"),
    pytest.param("raspberry-pi-5", "aarch64", marks=pytest.mark.slow)])
def test_boards_get_shared_libraries_that_their_libc_can_load(target, machine, tmp_path):
    model, _ = graphs.residual_splice()
    library = build(model, tmp_path, target)
    elf = read_elf(library.path)
    assert elf.machine == machine and elf.kind == "shared" and not library.audit.problems
    page = get_target(target).page_size
    assert all(alignment >= page for alignment in elf.load_alignments)
    assert not any("tvm" in name for name in elf.needed)


def test_android_without_an_ndk_gets_an_archive_that_needs_no_libc_headers(tmp_path, monkeypatch):
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    model, _ = graphs.squeeze_and_excite()
    library = build(model, tmp_path, "android-arm64")
    assert library.path.name == "libtsm_model.a"
    members = dict(read_archive(library.path))
    assert set(members) == {"plan.o", *(f"kernel.{i:03d}.o" for i in range(library.functions))}
    assert "tsm_model_plan" in {s.name for s in read_elf(members["plan.o"]).symbols if s.defined}


def test_an_interrupted_compilation_begins_no_other_kernel(tmp_path, monkeypatch):
    begun = []

    def compile_one(functions, target, output, hidden):
        begun.append(output.name)
        time.sleep(0.02)
        raise KeyboardInterrupt

    monkeypatch.setattr(objects, "_compile", compile_one)
    monkeypatch.setattr(objects, "functions_of", lambda calls: {f"kernel{i:02d}": None for i in range(50)})
    monkeypatch.setattr(objects, "cpu_count", lambda: 2)
    with pytest.raises(KeyboardInterrupt):
        objects.compile_each([], get_target("host"), tmp_path)
    assert len(begun) < 10


def test_operation_that_tvm_does_not_know_is_refused_by_layer_and_name(tmp_path):
    g = graphs.Graph()
    x = g.conv("frame", 3, 8, 3)
    g.head(g.op("LpNormalization", x), 8)
    with pytest.raises(InputError) as error:
        build(g.model(), tmp_path)
    assert "LpNormalization" in str(error.value) and error.value.do


def test_library_that_asks_for_too_much_is_refused(tmp_path, monkeypatch):
    import dataclasses

    model, _ = graphs.no_caches()
    program = import_onnx(model)
    old = dataclasses.replace(get_target("host"), libc="glibc 2.3")
    monkeypatch.setattr(compiling.toolchain, "find_compiler", lambda target, cc=None: find(get_target("host")))
    with pytest.raises(CheckFailedError) as error:
        build_library(choose_kernels(program, old), runs.manifest_for(program), old, tmp_path)
    assert "newer than glibc 2.3" in error.value.found and error.value.do


find = compiling.toolchain.find_compiler
