"""A bundle is read as hostile: whatever does not fit is refused with what was found, before it is used."""
import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tsm_edge.errors import BundleError
from tsm_edge.runtimes.bundle import open_bundle, read_golden


def refused(call, *words):
    """The error's found/expected/do are there, and `words` in its text."""
    with pytest.raises(BundleError) as error:
        call()
    assert error.value.found and error.value.expected and error.value.do and error.value.exit_code == 2
    for word in words:
        assert word in str(error.value), f"{word!r} not in: {error.value}"
    return error.value


@pytest.fixture
def spoil(toys, onnx_bundle, tmp_path):
    """A copy of the good bundle, and its manifest as a dict to change; write(manifest) puts it back."""
    folder = shutil.copytree(onnx_bundle, tmp_path / "copy")

    class Spoil:
        path = folder
        manifest = json.loads((folder / "manifest.json").read_text())

        def write(self):
            (folder / "manifest.json").write_text(json.dumps(self.manifest))
            return folder

    return Spoil()


def zip_of(folder, path, prefix=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def test_folder_manifest_and_zip_open_alike(onnx_bundle, tmp_path):
    plain, top = zip_of(onnx_bundle, tmp_path / "plain.zip"), zip_of(onnx_bundle, tmp_path / "top.zip", "nano/")
    for path in (onnx_bundle, onnx_bundle / "manifest.json", plain, top, str(plain)):
        bundle = open_bundle(path)
        assert bundle.check() == 2 and "model.onnx" in bundle and "libtsm_model.so" not in bundle
        assert bundle.file("model.onnx").read_bytes() == (onnx_bundle / "model.onnx").read_bytes()


def test_an_unpacked_zip_is_removed_with_its_bundle(onnx_bundle, tmp_path):
    bundle = open_bundle(zip_of(onnx_bundle, tmp_path / "b.zip"))
    folder = bundle.folder
    assert folder.exists()
    bundle.close()
    assert not folder.exists()
    bundle = open_bundle(tmp_path / "b.zip")
    folder = bundle.folder
    del bundle
    assert not folder.exists()


@pytest.mark.parametrize("name", ["read_bytes", "iterdir", "is_dir"])
def test_a_bundle_that_may_not_be_read_is_refused_in_words(onnx_bundle, tmp_path, monkeypatch, name):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, name, refuse)
    refused(lambda: open_bundle(tmp_path if name == "iterdir" else onnx_bundle), "Permission denied")


def test_other_folders_and_files_are_no_bundles(tmp_path, onnx_bundle):
    refused(lambda: open_bundle(tmp_path / "nothing"), "no such bundle")
    refused(lambda: open_bundle(tmp_path), "no bundle", "manifest.json")
    (tmp_path / "text.zip").write_text("this is no zip")
    refused(lambda: open_bundle(tmp_path / "text.zip"), "no bundle")
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    refused(lambda: open_bundle(tmp_path / "empty.zip"), "no bundle")
    whole = zip_of(onnx_bundle, tmp_path / "b.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[:len(whole) // 2])
    refused(lambda: open_bundle(tmp_path / "half.zip"))


@pytest.mark.parametrize("change, words", [
    (lambda m: m.update(schema=99), ("unknown schema", "99", "schema 1")),
    (lambda m: m.update(classes=[]), ("classes",)),
    (lambda m: m["input"].update(width=-3), ("input.width", "-3")),
    (lambda m: m["input"].update(std=[1, 1, 0]), ("input.std",)),
    (lambda m: m["caches"][0].update(shape=[1, 2, 3]), ("shape", "[1, fold, h, w]")),
    (lambda m: m["caches"][0].update(shape=[1, 65536, 65536, 65536], slice=[0, 65536], channels=65536), ("caches", "too large")),
    (lambda m: m["caches"].append(m["caches"][0]), ("name",)),
    (lambda m: m["files"][0].update(size="7"), ("size",)),
    (lambda m: m["files"][0].update(sha256="0x"), ("sha256",)),
    (lambda m: m["files"].append(m["files"][0]), ("every file once",)),
    (lambda m: m["files"][0].update(size=5 << 30), ("too large",)),
    (lambda m: m.pop("files"), ("files",)),
])
def test_a_manifest_that_cannot_be_true_is_refused(spoil, change, words):
    change(spoil.manifest)
    refused(lambda: open_bundle(spoil.write()), *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100000, '{"schema": true}', "\xff\xfe"])
def test_a_manifest_that_is_no_manifest_is_refused(spoil, text):
    (spoil.path / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(lambda: open_bundle(spoil.path))


def test_a_manifest_larger_than_any_is_not_read(spoil):
    with open(spoil.path / "manifest.json", "r+b") as file:
        file.truncate(1 << 30)  # sparse
    refused(lambda: open_bundle(spoil.path), "too large")


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..", "a\\..\\b", "C:x", "a//b", "", "x\x00y", 7])
def test_paths_out_of_the_bundle_are_refused(spoil, path):
    spoil.manifest["files"][0]["path"] = path
    refused(lambda: open_bundle(spoil.write()), "path")


def test_damaged_missing_and_linked_files_are_refused(spoil, tmp_path):
    model = spoil.path / "model.onnx"
    data = model.read_bytes()
    model.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    refused(lambda: open_bundle(spoil.path).file("model.onnx"), "damaged", "sha256")
    model.write_bytes(data[:-1])
    refused(lambda: open_bundle(spoil.path).check(), "damaged", f"{len(data) - 1} bytes", f"{len(data)} bytes")
    model.unlink()
    refused(lambda: open_bundle(spoil.path).check(), "cannot be read")
    (tmp_path / "elsewhere").write_bytes(data)
    os.symlink(tmp_path / "elsewhere", model)
    refused(lambda: open_bundle(spoil.path).file("model.onnx"), "link", "elsewhere")
    refused(lambda: open_bundle(spoil.path).file("secret.txt"), "not part")


def test_a_linked_folder_inside_is_refused(spoil, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_bytes(b"x")
    entry = {"path": "device/x", "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    spoil.manifest["files"].append(entry)
    os.symlink(tmp_path / "out", spoil.path / "device")
    refused(lambda: open_bundle(spoil.write()).file("device/x"), "link")


def test_zips_with_tricks_are_refused(spoil, tmp_path):
    def made(extra):
        path = zip_of(spoil.path, tmp_path / "b.zip")
        with zipfile.ZipFile(path, "a") as archive:
            extra(archive)
        return path

    def link(archive):
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")

    refused(lambda: open_bundle(made(lambda a: a.writestr("../escape", "x"))), "out of the bundle")
    refused(lambda: open_bundle(made(lambda a: a.writestr("/abs", "x"))), "out of the bundle")
    refused(lambda: open_bundle(made(link)), "link")
    with pytest.warns(UserWarning):
        path = made(lambda a: a.writestr("model.onnx", "again"))
    refused(lambda: open_bundle(path), "twice")
    refused(lambda: open_bundle(made(lambda a: a.writestr("two/manifest.json", "{}"))), "one manifest.json")
    assert not (tmp_path.parent / "escape").exists()


def test_a_zip_bomb_is_cut_off_at_the_declared_size(spoil, tmp_path):
    (spoil.path / "model.onnx").write_bytes(bytes(8 << 20))  # the manifest says a few hundred bytes
    error = refused(lambda: open_bundle(zip_of(spoil.path, tmp_path / "bomb.zip")), "larger than it should be")
    assert "model.onnx" in error.problem


def test_files_that_the_manifest_does_not_name_are_left_alone(spoil, tmp_path):
    (spoil.path / "results.txt").write_text("mine")
    assert open_bundle(spoil.path).check() == 2
    bundle = open_bundle(zip_of(spoil.path, tmp_path / "b.zip"))
    assert not (bundle.folder / "results.txt").exists()


def golden_like(toys, spoil, **changes):
    arrays = {**toys.golden(), **changes}
    np.savez_compressed(spoil.path / "golden.npz", **{k: v for k, v in arrays.items() if v is not None})
    toys.seal(spoil.path)
    return open_bundle(spoil.path)


def test_golden_reads_back_what_was_written(toys, onnx_bundle):
    got, want = read_golden(open_bundle(onnx_bundle)), toys.golden()
    assert set(got) == set(want) and all(np.array_equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("changes", [
    {"logits": None}, {"logits": np.zeros((6, 4), np.float32)}, {"logits": np.zeros((6, 5))},
    {"frames": np.zeros((6, 3, 8, 8), np.uint8)}, {"cache.a": np.zeros((5, 2, 20, 28), np.float32)},
    {"inputs": np.array([{"pickled": 1}], dtype=object)}, {"logits": np.asfortranarray(np.zeros((6, 5), np.float32))}])
def test_golden_of_other_shapes_or_types_is_refused(toys, spoil, changes):
    refused(lambda: read_golden(golden_like(toys, spoil, **changes)), "golden.npz")


def test_golden_with_a_lying_header_is_refused(toys, spoil):
    import io

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (99999, 5)})
    golden_like(toys, spoil)
    with zipfile.ZipFile(spoil.path / "golden.npz", "w") as archive:
        for name, value in toys.golden().items():
            file = io.BytesIO()
            np.save(file, value)
            archive.writestr(name + ".npy", header.getvalue() + b"1234" if name == "logits" else file.getvalue())
    toys.seal(spoil.path)
    refused(lambda: read_golden(open_bundle(spoil.path)), "golden.npz")
