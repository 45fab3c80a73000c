"""The native engine: threads, replaced libraries, kernel errors, profiles."""
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tsm_edge.errors import BundleError
from tsm_edge.runtimes import load
from tsm_edge.runtimes.engines import native


def test_threads_are_the_models_or_as_asked(native_bundle):
    assert load(native_bundle).stream().threads == 1
    assert load(native_bundle, threads=3).stream().threads == 3


def test_streams_in_threads_of_their_own_do_not_disturb_each_other(native_bundle, toys):
    model, golden, wrong = load(native_bundle, "native"), toys.golden(), []

    def run():
        stream = model.stream()
        for _ in range(30):
            stream.reset()
            for t, frame in enumerate(golden["frames"]):
                if np.abs(stream.step(frame).logits - golden["logits"][t]).max() > 1e-4:
                    wrong.append(t)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_new_export_to_the_same_place_is_not_the_old_code(native_bundle, toys, tmp_path):
    folder = shutil.copytree(native_bundle, tmp_path / "b")
    old = load(folder, "native")
    assert old.classes == toys.CLASSES
    # the library's own name for class 0 changes; the loader would give the mapped library again
    data = (folder / "libtsm_model.so").read_bytes()
    assert data.count(b"three\0") == 1
    (tmp_path / "new.so").write_bytes(data.replace(b"three\0", b"drei!\0"))
    shutil.move(tmp_path / "new.so", folder / "libtsm_model.so")
    names = [c if c != "three" else "drei!" for c in toys.CLASSES]
    toys.seal(folder, classes=names)
    assert load(folder, "native").classes == names
    assert old.stream().step(toys.golden()["frames"][0]).label in toys.CLASSES


def test_library_and_manifest_must_belong_together(native_bundle, toys, tmp_path):
    folder = shutil.copytree(native_bundle, tmp_path / "b")
    toys.seal(folder, classes=["a", "b", "c", "d", "e"])
    with pytest.raises(BundleError, match="belong together"):
        load(folder)


@pytest.mark.parametrize("path, value", [
    ("input.mean", [0.0, 0.0, 0.0]), ("input.std", [1.0, 1.0, 1.0]), ("input.resize", "squash"), ("input.shorter_side", 40),
    ("input.filter", "bilinear"), ("precision", "fp16"), ("trained", True)])
@pytest.mark.parametrize("engine", [None, "native"])
def test_a_manifest_that_was_changed_does_not_belong_to_its_library(native_bundle, toys, tmp_path, path, value, engine):
    manifest = toys.manifest()
    *way, last = path.split(".")
    (manifest[way[0]] if way else manifest)[last] = value
    folder = toys.seal(shutil.copytree(native_bundle, tmp_path / "b"), **manifest)
    with pytest.raises(BundleError, match=f"(?s)belong together.*{last}"):
        load(folder, engine)


@pytest.mark.parametrize("rows, columns", [(1, 40), (30, 1), (30, 40), (1, 1)])
def test_frames_are_taken_however_they_lie_in_memory(native_bundle, rows, columns):
    """Views with rows far apart, backwards, and single rows, of which numpy may say any stride."""
    stream = load(native_bundle, "native").stream()
    frame = np.random.RandomState(0).randint(0, 256, (rows, columns, 3)).astype(np.uint8)
    want = stream.preprocess(frame)
    views = [np.zeros((2 * rows, columns + 7, 3), np.uint8)[::2, :columns], np.zeros((rows, columns, 3), np.uint8)[::-1],
             np.zeros((rows, columns, 6), np.uint8)[:, :, ::2]]
    if rows == 1:
        views.append(np.lib.stride_tricks.as_strided(np.zeros((1, columns, 3), np.uint8), (1, columns, 3), (7, 3, 1)))
    else:  # pages that are not touched cost nothing
        views.append(np.zeros((rows, 20000000), np.uint8)[:, 5:5 + 3 * columns].reshape(rows, columns, 3))
    for view in views:
        view[:] = frame
        assert np.array_equal(stream.preprocess(view), want) and stream.step(view).index >= 0


def test_the_same_library_is_mapped_once_from_wherever_it_comes(native_bundle, toys, tmp_path):
    path = Path(shutil.make_archive(tmp_path / "toy", "zip", native_bundle))

    def mapped():
        with open("/proc/self/maps") as file:
            return sum("libtsm_model" in line for line in file)

    frame, before = toys.golden()["frames"][0], None
    for source in (path, shutil.copytree(native_bundle, tmp_path / "copy"), path, path):
        result = load(source, "native").stream().step(frame)
        assert np.abs(result.logits - toys.golden()["logits"][0]).max() < 1e-4
        if sys.platform.startswith("linux"):
            before = before or mapped()
            assert mapped() == before > 0


def test_a_kernels_refusal_comes_with_its_words_and_keeps_the_state(native_bundle, toys):
    stream, frames = load(native_bundle, "native").stream(), toys.golden()["frames"]
    stream.step(frames[0])
    before = stream.state()
    with pytest.raises(BundleError, match="too bright"):
        stream.step_tensor(np.full((1, 3, toys.toy.HEIGHT, toys.toy.WIDTH), 2000, np.float32))
    assert all(np.array_equal(value, before[name]) for name, value in stream.state().items())
    assert np.abs(stream.step(frames[1]).logits - toys.golden()["logits"][1]).max() < 1e-4


def test_a_closed_stream_says_so(native_bundle, toys):
    with load(native_bundle, "native").stream() as stream:
        stream.step(toys.golden()["frames"][0])
    stream.close()
    with pytest.raises(BundleError, match="closed"):
        stream.step(toys.golden()["frames"][0])


def test_profile_names_the_kernel_calls(native_bundle, toys):
    stream = native.NativeStream(load(native_bundle, "native"), "RGB", 0, 0, profile=True)
    stream.step(toys.golden()["frames"][0])
    rows = stream.profile()
    assert [row["name"] for row in rows] == ["stem", "block", "head"]
    assert all(row["steps"] == 1 and row["last_ns"] > 0 for row in rows)


def test_x86_levels_are_checked_before_loading(native_bundle, toys, tmp_path, monkeypatch):
    from tsm_edge.runtimes.bundle import open_bundle

    if native.this_machine()[0] != "x86_64":
        pytest.skip("an x86-64 matter")
    folder = shutil.copytree(native_bundle, tmp_path / "b")
    toys.seal(folder, target={"name": "host", "triple": "x86_64-linux-gnu", "cpu": "x86-64-v4"})
    monkeypatch.setattr(native, "_cpu_flags", lambda: {"sse4_2", "popcnt", "avx2", "fma"})
    assert "avx512f" in native.unfit(open_bundle(folder))
    toys.seal(folder, target={"name": "phone", "triple": "x86_64-linux-android", "cpu": ""})
    assert "Android" in native.unfit(open_bundle(folder))
