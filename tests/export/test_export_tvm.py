"""--runtime tvm: our kernels in a library for TVM's own runtime, from the export to the loaded model."""
import hashlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")
pytest.importorskip("ziglang", reason="ziglang (extra [export]) is not installed")
from own_net import own_net  # noqa: E402

import tsm_edge  # noqa: E402
from tsm_edge.errors import BundleError, CheckFailedError, InputError, MissingComponentError  # noqa: E402
from tsm_edge.export import export_bundle  # noqa: E402
from tsm_edge.export.bundle.report import lines  # noqa: E402
from tsm_edge.export.library import relax  # noqa: E402
from tsm_edge.export.library.elf import read_elf  # noqa: E402
from tsm_edge.export.proof import relax_check  # noqa: E402
from tsm_edge.export.targets.boards import TARGETS, get_target  # noqa: E402
from tsm_edge.manifest import Manifest, validate  # noqa: E402
from tsm_edge.sensitive import image_like_frames, make_sensitive  # noqa: E402
from tsm_edge.shift import set_segments  # noqa: E402

SIZE, ODD = (64, 48), (35, 27)
LIBRARY = "model_tvm.so"


def odd_net():
    torch.manual_seed(0)
    return own_net(ODD)


def small_mobilenet():
    torch.manual_seed(0)
    net = tsm_edge.create_model("mobilenet_v2", num_classes=5, width=0.25, input_size=64).eval()
    return make_sensitive(net, 0, image_like_frames(16, SIZE, 0))


NETWORKS = {"mobilenet": (small_mobilenet, SIZE, 5), "odd": (odd_net, ODD, 3)}


def export(name, output, **options):
    torch.set_num_threads(1)
    make, size, classes = NETWORKS[name]
    return export_bundle(make(), options.pop("target", "host"), output, input_size=size, trained=False, name=name,
                         classes=[f"class {i}" for i in range(classes)], runtime="tvm", **options)


@pytest.fixture(scope="module", params=NETWORKS)
def made(request, tmp_path_factory):
    return export(request.param, tmp_path_factory.mktemp("made") / request.param)


def test_the_library_is_proven_like_the_native_one(made):
    checks = {check["name"]: check for check in made.manifest["verification"]["checks"]}
    assert made.manifest["verification"]["status"] == "passed" and made.manifest["runtime"] == "tvm"
    check = checks["TVM library vs torch"]
    assert check["status"] == "passed" and check["frames"] == 16 and "virtual machine" in check["detail"]
    assert check["max_abs_diff"] <= check["tolerance"] == checks["library vs torch"]["tolerance"]
    assert any("TVM library vs torch" in line and "passed" in line for line in lines(made.report))
    assert LIBRARY in (made.path / "README.md").read_text()


def test_logits_and_caches_are_torchs_over_chained_frames(made):
    make, size, _ = NETWORKS[made.manifest["name"]]
    inputs = image_like_frames(8, size, 99)
    with torch.no_grad():
        expected = set_segments(make().eval(), 8)(torch.from_numpy(inputs)).numpy()
    stream = tsm_edge.load(made.path, engine="tvm").stream()
    native = tsm_edge.load(made.path, engine="native").stream()
    for frame, logits in zip(inputs, expected):
        ours, theirs = stream.step_tensor(frame[None]), native.step_tensor(frame[None])
        assert np.abs(ours - logits).max() <= 1e-4 * max(1, np.abs(expected).max())
        assert np.abs(ours - theirs).max() <= 1e-5 * max(1, np.abs(theirs).max())
        mine, other = stream.state(), native.state()
        assert list(mine) == list(other) == [cache["name"] for cache in made.manifest["caches"]]
        for name, values in mine.items():
            np.testing.assert_allclose(values, other[name], rtol=0, atol=1e-5 * max(1, np.abs(other[name]).max()))
    assert np.ptp(expected, axis=0).max() > 0.1


def test_the_kernels_inside_are_those_of_the_native_library(made):
    told, elf = made.manifest["tvm"], read_elf(made.path / LIBRARY)
    exported = {name[len("__tvm_ffi_"):] for name in elf.exported() if name.startswith("__tvm_ffi_")}
    assert exported - {"main", "_library_bin"} == set(told["functions"])
    ends = 1 + 2 * len(made.manifest["caches"])  # the frame and each cache change layout on the way in, caches on the way out
    assert {kind: n for kind, n in told["kernels"].items() if kind != "layout"} == \
        {kind: n for kind, n in made.report.kernels.items() if kind != "layout"}
    assert told["kernels"]["layout"] == made.report.kernels.get("layout", 0) + ends
    assert told["fallbacks"] == made.report.fallbacks == (["Tanh"] if made.manifest["name"] == "odd" else [])
    assert told["kernels"].get("fallback", 0) == len(told["fallbacks"])
    assert any(name.startswith("inverted_residual_") for name in told["functions"])


def test_other_numbers_of_threads_give_the_same(made):
    size = NETWORKS[made.manifest["name"]][1]
    inputs = image_like_frames(3, size, 5)
    streams = [tsm_edge.load(made.path, engine="tvm", threads=threads).stream() for threads in (1, 2)]
    for frame in inputs:
        first, second = (stream.step_tensor(frame[None]) for stream in streams)
        np.testing.assert_array_equal(first, second)
    assert [stream.threads for stream in streams] == [1, 2]


def test_the_caller_is_not_bound_to_a_core(made):
    """TVM would bind the calling thread when its pool starts, and every thread made later with it."""
    code = ("import os, sys, numpy, tsm_edge; before = os.sched_getaffinity(0)\n"
            "stream = tsm_edge.load(sys.argv[1], engine='tvm', threads=2).stream()\n"
            "stream.step_tensor(numpy.zeros(stream.model.input_shape, 'float32'))\n"
            "assert os.sched_getaffinity(0) == before")
    subprocess.run([sys.executable, "-c", code, str(made.path)], check=True)


def test_tsm_verify_replays_it(made):
    done = subprocess.run([sys.executable, "-m", "tsm_edge.runtimes.verify", str(made.path), "--engine", "tvm", "--json"],
                          capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["engine"] == "tvm" and report["status"] == "passed" and not report["note"]


def test_a_benchmark_shows_it_beside_the_native_library(made):
    from tsm_edge.benchmarks.engines import with_tvm
    from tsm_edge.runtimes.bundle import open_bundle

    assert with_tvm(open_bundle(made.path), []) == ["tvm"]
    assert with_tvm(open_bundle(made.path), ["tvm", "onnxruntime"]) == ["tvm", "onnxruntime"]


def test_a_library_of_another_network_is_refused(made, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(made.path, other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["classes"].append("one more")
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="do not belong together"):
        tsm_edge.load(other, engine="tvm")
    (other / LIBRARY).unlink()  # it is mapped
    (other / LIBRARY).write_bytes(b"\x7fELF" + bytes(100))
    entry = next(e for e in manifest["files"] if e["path"] == LIBRARY)
    entry.update(size=104, sha256=hashlib.sha256(b"\x7fELF" + bytes(100)).hexdigest())
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="cannot run here|cannot be loaded"):
        tsm_edge.load(other, engine="tvm")


def test_without_tvm_the_package_to_install_is_named(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "tvm", None)
    with pytest.raises(MissingComponentError) as error:
        tsm_edge.load(made.path, engine="tvm")
    assert "apache-tvm" in error.value.expected and error.value.exit_code == 2


def test_a_tvm_library_that_computes_something_else_is_never_written(tmp_path, monkeypatch):
    original = relax.make_plan

    def wrong(calls, program, placing):
        plan = original(calls, program, placing)
        values = np.frombuffer(plan.weights, np.float32).copy()
        values[np.abs(values) > 1e-3] *= 1.01
        return type(plan)(plan.calls, plan.caches, plan.arena_bytes, plan.cache_bytes, values.tobytes())

    monkeypatch.setattr(relax, "make_plan", wrong)
    with pytest.raises(CheckFailedError) as error:
        export("odd", tmp_path / "b")
    assert "TVM library vs torch" in error.value.problem and not (tmp_path / "b").exists()


def test_for_a_board_it_is_linked_but_never_called_passed(tmp_path, no_emulator):  # the native library is not the matter here
    bundle = export("odd", tmp_path / "b", target="jetson-nano")
    check = bundle.manifest["verification"]["checks"][-1]
    assert check["name"] == "TVM library vs torch" and check["status"] == "not executed"
    assert bundle.manifest["verification"]["status"] == "not executed" and bundle.report.verdict().startswith("NOT VERIFIED")
    elf = read_elf(tmp_path / "b" / LIBRARY)
    assert elf.machine == "aarch64" and elf.soname == LIBRARY and not elf.rpath
    with pytest.raises(BundleError) as error:
        tsm_edge.load(tmp_path / "b", engine="tvm")
    assert "aarch64" in error.value.found


@pytest.mark.parametrize("options, words", [
    (["--target", "android-arm64", "--runtime", "tvm"], "android-arm64"),
    (["--target", "raspberry-pi-5", "--runtime", "tvm", "--precision", "fp16"], "fp16"),
    (["--target", "host", "--runtime", "tmv"], "tvm"),
    (["--target", "jetson-nano", "--tvm-runtime", "wheels"], "--runtime tvm"),
])
def test_what_cannot_be_is_refused_by_name(options, words, tmp_path):
    done = subprocess.run([sys.executable, "-m", "tsm_edge.export.cli", "--random-weights", "--output", str(tmp_path / "b"), *options],
                          capture_output=True, text=True)
    assert done.returncode == 2 and words in done.stderr
    assert all(part in done.stderr for part in ("found:", "expected:", "do:")) and not (tmp_path / "b").exists()


def test_the_runtime_for_a_board_is_looked_at_before_the_work(tmp_path):
    (tmp_path / "lib").mkdir()
    for name in relax_check.RUNTIME_FILES:
        shutil.copyfile(host_runtime()[name], tmp_path / "lib" / name)
    with pytest.raises(InputError) as error:
        export("odd", tmp_path / "b", target="jetson-nano", tvm_runtime=tmp_path)
    assert "for aarch64" in error.value.found and platform.machine() in error.value.found and not (tmp_path / "b").exists()


def host_runtime():
    """TVM's runtime for this machine, by file name."""
    import tvm
    import tvm_ffi

    folders = Path(tvm.__file__).parent, Path(tvm_ffi.__file__).parent
    return {name: next(path for folder in folders for path in folder.rglob(name)) for name in relax_check.RUNTIME_FILES}


def test_tvms_runtime_alone_runs_it_without_python(made, tmp_path):
    """The program that checks boards' libraries under an emulator, here without one: bit for bit what the engine gives."""
    from tsm_edge.runtimes.bundle import open_bundle, read_golden

    golden = read_golden(open_bundle(made.path))
    files = [host_runtime()[name] for name in relax_check.RUNTIME_FILES]
    trace = relax_check.run_vm_frames([], made.path / LIBRARY, get_target("host"), made.manifest, golden["inputs"], 2, tmp_path, files)
    stream = tsm_edge.load(made.path, engine="tvm").stream()
    for at, x in enumerate(golden["inputs"]):
        np.testing.assert_array_equal(stream.step_tensor(x[None]), trace.logits[at])
        for name, values in stream.state().items():
            np.testing.assert_array_equal(values[0], trace.caches[name][at])
    with pytest.raises(RuntimeError, match="exit code"):
        relax_check.run_vm_frames([], made.path / "libtsm_model.so", get_target("host"), made.manifest, golden["inputs"], 1, tmp_path,
                                  files)


def test_targets_without_a_shared_library_are_refused_in_python_too(tmp_path):
    static = next(target.name for target in TARGETS.values() if target.link == "static")
    with pytest.raises(InputError) as error:
        export("odd", tmp_path / "b", target=static)
    assert static in error.value.problem and not (tmp_path / "b").exists()


def test_a_manifest_without_a_runtime_is_a_native_one_and_others_are_checked(made):
    good = made.manifest
    old = {key: value for key, value in good.items() if key not in ("runtime", "tvm")}
    assert validate(old) is old and Manifest(good).data["runtime"] == "tvm"
    for change in ({"runtime": "cuda"}, {"tvm": None}, {"tvm": dict(good["tvm"], library="other.so")}):
        with pytest.raises(BundleError):
            validate(dict(good, **change))


def test_blocks_are_shared_only_by_what_is_never_alive_together():
    spans = [("a", 100, 0, 2), ("b", 50, 1, 3), ("c", 80, 3, 4), ("d", 10, 4, 5), ("e", 200, 6, 6)]
    offsets, total = relax.place_in_blocks(spans)
    lives = {key: (size, first, last) for key, size, first, last in spans}
    for one, (size, first, last) in lives.items():
        assert offsets[one] % 64 == 0 and offsets[one] + size <= total
        for other, (_, since, until) in lives.items():
            if one != other and first <= until and since <= last:
                assert offsets[one] != offsets[other] and not offsets[one] < offsets[other] < offsets[one] + size
    assert len(set(offsets.values())) < len(spans)
