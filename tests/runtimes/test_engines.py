"""One interface: every engine gives the same logits, caches, resets and skips; what is missing is named."""
import gc
import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from tsm_edge.errors import BundleError, InputError, MissingComponentError
from tsm_edge.runtimes import ENGINES, load
from tsm_edge.runtimes.interface import Clock


@pytest.fixture(scope="module")
def torch_model(toys):
    """The toy network in torch, through a step network of a module with the same shifts."""
    torch = pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
    from tsm_edge.runtimes.engines.torch import TorchModel
    from tsm_edge.shift import TemporalShift

    w0, b0, w1, w2 = (torch.from_numpy(w) for w in toys.toy.toy_weights())

    class Toy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = TemporalShift(n_segment=6, fold_div=4, past=(0, 1))  # channels 0, 1 of 8
            self.b = TemporalShift(n_segment=6, fold_div=1, past=(0, 1))  # all of 3

        def forward(self, x):
            act = torch.einsum("nkhw,kc->nchw", x, w0) + b0[:, None, None]
            spliced = torch.cat([self.a(act)[:, :2], self.b(act[:, 2:5]), act[:, 5:]], 1)
            return spliced.clamp(min=0).mean((2, 3)) @ w1 @ w2

    torch.set_num_threads(1)
    manifest = {key: value for key, value in toys.manifest().items() if key not in ("files", "verification")}
    return TorchModel(Toy(), manifest=manifest)


@pytest.fixture(scope="module")
def tvm_model(native_bundle, toys, tmp_path_factory):
    tvm = pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")
    from tvm.relax.frontend.onnx import from_onnx

    folder = shutil.copytree(native_bundle, tmp_path_factory.mktemp("bundle") / "tvm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it renames inputs; they are passed by position
        library = tvm.compile(from_onnx(toys.onnx_model()), target="llvm")
    def link(output, objects, **options):
        toys.toy.run([*toys.toy.host_compiler(), "-shared", "-fPIC", *objects, "-o", output])

    library.export_library(str(folder / "model_tvm.so"), fcompile=link)
    described = {"library": "model_tvm.so", "entry": "main", "kernels": {}, "functions": [], "fallbacks": []}
    return load(toys.seal(folder, runtime="tvm", tvm=described), "tvm")


@pytest.fixture(params=ENGINES)
def model(request):
    if request.param in ("torch", "tvm"):
        return request.getfixturevalue(request.param + "_model")
    return load(request.getfixturevalue("native_bundle"), engine=request.param)


def close(got, want):
    assert np.abs(got - want).max() <= 1e-5 * max(1, np.abs(want).max())


def test_chained_frames_give_the_recorded_logits_and_caches(model, toys):
    golden, stream = toys.golden(), model.stream()
    for t, frame in enumerate(golden["frames"]):
        result = stream.step(frame)
        close(result.logits, golden["logits"][t])
        for name, values in stream.state().items():
            assert values.dtype == np.float32 and values.shape == model.cache_shapes[name]
            close(values[0], golden[name][t])
        odds = np.exp(golden["logits"][t].astype(float))
        close(result.scores, odds / odds.sum())
        assert result.index == odds.argmax() and result.label == toys.CLASSES[result.index]
        assert result.score == result.scores[result.index] and not result.reset and not result.skipped
        assert result.timings["step_ms"] > 0 and set(result.timings) == {"preprocess_ms", "step_ms"}
    assert np.ptp(golden["logits"], axis=0).max() > 1, "the logits do not move: nothing was compared"


def test_tensors_and_frames_are_the_same_road(model, toys):
    golden, stream = toys.golden(), model.stream()
    for t, x in enumerate(golden["inputs"]):
        close(stream.step_tensor(x[None]), golden["logits"][t])


def test_colour_order_is_the_streams(model, toys):
    frame = toys.golden()["frames"][0]
    close(model.stream("BGR").step(np.ascontiguousarray(frame[:, :, ::-1])).logits, model.stream().step(frame).logits)
    assert np.abs(model.stream("BGR").step(frame).logits - model.stream().step(frame).logits).max() > 0.01


def test_streams_share_nothing_and_state_carries_over(model, toys):
    frames = toys.golden()["frames"]
    one, two = model.stream(), model.stream()
    for frame in frames[:3]:
        one.step(frame)
    two.step(frames[5])
    two.restore(one.state())
    for frame in frames[3:]:
        assert np.array_equal(one.step(frame).logits, two.step(frame).logits)
    one.reset()
    assert not any(values.any() for values in one.state().values())
    close(one.step(frames[0]).logits, toys.golden()["logits"][0])


def test_results_are_the_callers_to_keep(model, toys):
    stream, frames = model.stream(), toys.golden()["frames"]
    first, state = stream.step(frames[0]), stream.state()
    logits, copy = first.logits.copy(), {k: v.copy() for k, v in state.items()}
    stream.step(frames[1])
    assert np.array_equal(first.logits, logits) and all(np.array_equal(state[k], copy[k]) for k in copy)
    frame = frames[2].copy()
    stream.step(frame)
    before = stream.state()
    frame[:] = 0
    assert all(np.array_equal(v, before[k]) for k, v in stream.state().items())


def clocked(model, times, **options):
    """(reset, skipped) of a frame at each time."""
    stream = model.stream(**options)
    frame = np.zeros((20, 28, 3), np.uint8)
    return [(r.reset, r.skipped) for r in (stream.step(frame, t) for t in times)]


def test_a_gap_or_time_running_backwards_resets(model, toys):
    assert clocked(model, [5, 5.5, 6.4, 7.5, 7.6, 3.0], fps=0) == [
        (False, False), (False, False), (False, False), (True, False), (False, False), (True, False)]
    assert not any(reset for reset, _ in clocked(model, [0, 50, 100], max_gap_seconds=0))
    frames, stream = toys.golden()["frames"], model.stream()
    stream.step(frames[3], 0.0)
    close(stream.step(frames[0], 100.0).logits, toys.golden()["logits"][0])


def test_frames_faster_than_the_model_are_skipped_by_clock(model):
    skips = [skipped for _, skipped in clocked(model, np.arange(300) / 30.0)]
    assert 148 <= 300 - sum(skips) <= 152, "15 of 30 a second"
    jitter = np.arange(300) / 30.0 + np.random.default_rng(0).uniform(-0.008, 0.008, 300)
    assert 145 <= sum(not s for _, s in clocked(model, jitter)) <= 155
    assert not any(skipped for _, skipped in clocked(model, np.arange(100) / 30.0, fps=0))
    assert not any(skipped for _, skipped in clocked(model, [None] * 10))


def test_rates_and_gaps_beyond_all_measure_mean_none(model):
    for options in ({"fps": 1e-300, "max_gap_seconds": 1e300}, {"fps": 1e300, "max_gap_seconds": 1e12}):
        assert clocked(model, [0.0, 1e-3, 1e9 - 1], **options) == [(False, False)] * 3


def test_a_skipped_frame_repeats_the_last_result_and_leaves_the_state(model, toys):
    stream, frames = model.stream(), toys.golden()["frames"]
    first = stream.step(frames[0], 0.0)
    state = stream.state()
    skipped = stream.step(frames[1], 0.001)
    assert skipped.skipped and np.array_equal(skipped.logits, first.logits) and skipped.label == first.label
    assert all(np.array_equal(v, state[k]) for k, v in stream.state().items())


def test_all_engines_keep_the_same_clock(native_bundle):
    """Against the C runtime, over odd clocks."""
    model, random = load(native_bundle, "native"), np.random.default_rng(1)
    for rate, fps, gap in ((30, 15, 1), (25, 12, 0.5), (60, 7.3, 0.2), (10, 24, 1)):
        times = np.cumsum(random.exponential(1 / rate, 400) * random.choice([1, 1, 1, 8], 400))
        times[200:] -= 0.3
        clock, has_result, want = Clock(gap, fps), False, []
        for t in times:
            reset, skip = clock.watch(int(round(t * 1e9)), has_result)
            has_result = True
            want.append((reset, skip))
        assert clocked(model, times, fps=fps, max_gap_seconds=gap) == want
        assert any(r for r, _ in want) and (fps > rate or any(s for _, s in want))


def refused(call, *words, kind=InputError):
    with pytest.raises(kind) as error:
        call()
    assert error.value.found and error.value.expected and error.value.do
    for word in words:
        assert word in str(error.value), f"{word!r} not in: {error.value}"


def test_wrong_arguments_are_refused_and_leave_the_stream_as_it_was(model, toys):
    stream, frames = model.stream(), toys.golden()["frames"]
    stream.step(frames[0])
    refused(lambda: stream.step(frames[1].astype(np.float32)), "float32", "uint8")
    refused(lambda: stream.step(frames[1][..., 0]), "[height, width, 3]")
    refused(lambda: stream.step(frames[1], float("nan")), "timestamp")
    refused(lambda: stream.step(frames[1], "now"), "timestamp")
    refused(lambda: stream.step_tensor(np.zeros((1, 3, 7, 7), np.float32)), "[1, 3, 7, 7]", "[1, 3, 20, 28]")
    refused(lambda: stream.step_tensor(np.full(model.input_shape, "x")), "network input")
    refused(lambda: stream.step_tensor([[1], [1, 2]]), "network input")
    refused(lambda: stream.restore({}), "another model")
    refused(lambda: stream.restore(None), "no state")
    refused(lambda: stream.restore([1]), "no state")
    refused(lambda: stream.restore({**stream.state(), "cache.a": "x"}), "no state")
    refused(lambda: stream.step(frames[1], 1e12), "milliseconds")
    refused(lambda: stream.restore({**stream.state(), "cache.a": np.zeros((1, 2, 3, 4), np.float32)}), "another model")
    refused(lambda: model.stream("GRAY"), "RGB or BGR")
    refused(lambda: model.stream(fps=-1), "fps")
    refused(lambda: model.stream(max_gap_seconds=float("inf")), "max_gap_seconds")
    close(stream.step(frames[1]).logits, toys.golden()["logits"][1])


def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_nothing_grows_from_frame_to_frame(model, toys):
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    stream, frames = model.stream(), toys.golden()["frames"]

    def run(count):
        for t in range(count):
            stream.step(frames[t % 6], t * 0.1)
            stream.step_tensor(np.zeros(model.input_shape, np.float32))
        gc.collect()
        return memory(), len(gc.get_objects())

    run(200)
    growth = []
    for _ in range(3):  # a leak shows every time, a library's late start only once
        (bytes_before, objects_before), (bytes_after, objects_after) = run(0), run(500)
        growth.append((objects_after - objects_before, bytes_after - bytes_before))
        if growth[-1][0] < 50 and growth[-1][1] < 1 << 19:
            return
    raise AssertionError(f"objects and bytes that 500 frames left behind, three times: {growth}")


def test_streams_that_are_dropped_are_freed(native_bundle):
    model = load(native_bundle, "native")
    for _ in range(200):
        model.stream()
    gc.collect()
    before = memory()
    for _ in range(2000):
        model.stream()
    gc.collect()
    assert memory() - before < 2 << 20


# --- choosing a engine ------------------------------------------------------------------------------------------------


def test_native_is_taken_where_the_library_fits_else_onnxruntime(native_bundle, onnx_bundle):
    assert load(native_bundle).engine == "native" and load(native_bundle).note == ""
    model = load(onnx_bundle)
    assert model.engine == "onnxruntime" and "no libtsm_model.so" in model.note
    assert load(onnx_bundle / "model.onnx").engine == "onnxruntime"


@pytest.mark.parametrize("change, words", [
    ((18, b"\xb7\x00"), "aarch64, 64 bits"), ((4, b"\x01"), "32 bits"), ((0, b"\x7fFLE"), "no ELF")])
def test_a_library_for_another_machine_is_seen_before_it_is_loaded(toys, native_bundle, tmp_path, change, words):
    folder = shutil.copytree(native_bundle, tmp_path / "b")
    data = bytearray((folder / "libtsm_model.so").read_bytes())
    data[change[0]:change[0] + len(change[1])] = change[1]
    (folder / "libtsm_model.so").write_bytes(data)
    toys.seal(folder)
    model = load(folder)
    assert model.engine == "onnxruntime" and words in model.note
    refused(lambda: load(folder, "native"), "cannot run here", words, "onnxruntime", kind=BundleError)


def test_a_damaged_library_is_refused_not_passed_over(native_bundle, tmp_path):
    folder = shutil.copytree(native_bundle, tmp_path / "b")
    data = bytearray((folder / "libtsm_model.so").read_bytes())
    data[5000] ^= 1
    (folder / "libtsm_model.so").write_bytes(data)
    refused(lambda: load(folder), "damaged", "sha256", kind=BundleError)


@pytest.mark.parametrize("engine", [None, "native"])
@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(b""), lambda p: p.write_bytes(p.read_bytes()[:4000]),
                                   lambda p: p.write_bytes(b"\0" * p.stat().st_size)])
def test_a_library_that_is_missing_or_no_longer_one_is_not_passed_over(native_bundle, tmp_path, spoil, engine):
    folder = shutil.copytree(native_bundle, tmp_path / "b")
    spoil(folder / "libtsm_model.so")
    refused(lambda: load(folder, engine), "libtsm_model.so", "copy the bundle again", kind=BundleError)


def test_unknown_and_unfit_engines_are_refused(native_bundle, onnx_bundle, tmp_path):
    refused(lambda: load(native_bundle, "nativ"), "'nativ'", "did you mean 'native'")
    refused(lambda: load(native_bundle, "torch"), "checkpoint")
    pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")
    refused(lambda: load(native_bundle, "tvm"), "holds no model_tvm.so", "--runtime tvm")
    refused(lambda: load(onnx_bundle / "model.onnx", "native"), "ONNX file")
    for threads in (0, 65, -1, 1.5):
        refused(lambda threads=threads: load(native_bundle, threads=threads), "threads", "1 to 64")
    (tmp_path / "x.onnx").write_bytes(b"12345678")
    refused(lambda: load(tmp_path / "x.onnx"), "cannot be loaded", kind=BundleError)


@pytest.mark.parametrize("package, engine, extra", [
    ("onnxruntime", "onnxruntime", "tsm-edge[onnxruntime]"), ("tvm", "tvm", "tsm-edge[export]"), ("torch", "torch", "tsm-edge[export]")])
def test_a_missing_engine_is_named_with_its_extra(onnx_bundle, tmp_path, monkeypatch, package, engine, extra):
    monkeypatch.setitem(sys.modules, package, None)  # import raises ImportError
    (tmp_path / "net.pth").write_bytes(b"")
    path = tmp_path / "net.pth" if engine == "torch" else onnx_bundle
    refused(lambda: load(path, engine), extra, "not installed", kind=MissingComponentError)


def test_importing_the_runtimes_brings_no_engine():
    code = ("import sys, tsm_edge, tsm_edge.runtimes, tsm_edge.runtimes.engines.native, tsm_edge.runtimes.events; "
            "import tsm_edge.runtimes.sources, tsm_edge.demo.cli; "
            "print([m for m in ('torch', 'onnx', 'onnxruntime', 'tvm', 'cv2', 'rich') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_onnx_file_without_its_manifest_is_refused(toys, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnx.save(toys.onnx_model(), tmp_path / "bare.onnx")
    refused(lambda: load(tmp_path / "bare.onnx"), "no manifest", kind=BundleError)
    other = toys.manifest()
    other["caches"][0].update(shape=[1, 2, 9, 9])
    onnx.save(toys.onnx_model(other), tmp_path / "other.onnx")
    refused(lambda: load(tmp_path / "other.onnx"), "does not fit", kind=BundleError)


def test_a_checkpoint_runs_in_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
    import tsm_edge
    from tsm_edge.checkpoints import save_checkpoint
    from tsm_edge.shift import set_segments

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = tsm_edge.create_model("mobilenet_v2", 4, width=0.25, input_size=64, classes=list("abcd"))
    save_checkpoint(tmp_path / "net.pth", net, trained=True)
    model = tsm_edge.load(tmp_path / "net.pth")
    assert (model.engine, model.classes, model.input_shape) == ("torch", list("abcd"), (1, 3, 64, 64))
    assert json.dumps(model.manifest) and model.manifest["trained"] is True and len(model.cache_shapes) == 10
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    set_segments(net, 1)
    clip = net.eval()(torch.from_numpy(_inputs(frame, model))).detach().numpy()
    close(model.stream().step(frame).logits, clip[0])


def _inputs(frame, model):
    from tsm_edge.runtimes.preprocess import preprocess

    return preprocess(frame, model.manifest["input"])[None]
