"""A bundle's folder is seen whole or not at all, and replaces nothing but a bundle."""
import hashlib
import json
import os

import pytest

from tsm_edge.errors import InputError
from tsm_edge.export.bundle import folder


def make_bundle(path, text="old"):
    with folder.new_folder(path) as new:
        (new / "model.onnx").write_text(text)
        manifest = {"schema": 1, "caches": [], "files": folder.list_files(new)}
        (new / "manifest.json").write_text(json.dumps(manifest))
    return path


def beside(path):
    return [name for name in os.listdir(path.parent) if name != path.name]


def test_a_new_folder_appears_whole_and_leaves_nothing_beside_it(tmp_path):
    path = make_bundle(tmp_path / "deep" / "nano")
    assert sorted(os.listdir(path)) == ["manifest.json", "model.onnx"]
    assert beside(path) == []
    assert path.stat().st_mode & 0o055 == 0o055  # readable by others, as a plain mkdir would be


@pytest.mark.parametrize("exchange", [True, False])
def test_a_bundle_is_replaced_by_the_next_export(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    path = make_bundle(tmp_path / "nano")
    (path / "device" / "__pycache__").mkdir(parents=True)
    (path / "device" / "__pycache__" / "demo.cpython-36.pyc").write_bytes(b"x")  # a bundle that was run is still one
    make_bundle(path, "new")
    assert (path / "model.onnx").read_text() == "new" and beside(path) == []


def test_a_failed_export_leaves_the_old_bundle_and_no_rubbish(tmp_path):
    path = make_bundle(tmp_path / "nano")
    with pytest.raises(RuntimeError), folder.new_folder(path) as new:
        (new / "half").write_text("x")
        raise RuntimeError
    assert (path / "model.onnx").read_text() == "old" and beside(path) == []


def test_a_rename_that_fails_brings_the_old_bundle_back(tmp_path, monkeypatch):
    path = make_bundle(tmp_path / "nano")
    monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    rename, calls = os.replace, []

    def failing(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise OSError("disk on fire")
        rename(a, b)

    monkeypatch.setattr(folder.os, "replace", failing)
    with pytest.raises(InputError, match="disk on fire"):
        make_bundle(path, "new")
    assert (path / "model.onnx").read_text() == "old" and beside(path) == []


def test_a_bundle_that_a_program_has_open_where_that_locks_it_is_refused_in_words_and_kept(tmp_path, monkeypatch):
    path = make_bundle(tmp_path / "nano")

    def locked(a, b):
        raise PermissionError(13, "Access is denied", str(a))

    monkeypatch.setattr(folder, "_exchange", lambda one, other: False)
    monkeypatch.setattr(folder.os, "replace", locked)
    with pytest.raises(InputError, match="Access is denied"):
        make_bundle(path, "new")
    assert (path / "model.onnx").read_text() == "old" and beside(path) == []


def refusal(path):
    with pytest.raises(InputError) as error, folder.new_folder(path):
        raise AssertionError("must be refused before anything is made")
    assert error.value.exit_code == 2 and "--output" in error.value.do or "folder" in error.value.do
    return error.value


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    path = tmp_path / "home"
    path.mkdir()
    (path / "thesis.tex").write_text("years of work")
    error = refusal(path)
    assert "thesis.tex" in error.found and "bundle" in error.expected
    assert (path / "thesis.tex").read_text() == "years of work"


def test_a_folder_with_some_other_manifest_is_refused(tmp_path):
    path = tmp_path / "web"
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    assert "manifest.json" in refusal(path).found


def test_a_bundle_with_a_file_of_ones_own_is_refused_and_kept(tmp_path):
    path = make_bundle(tmp_path / "nano")
    (path / "notes.txt").write_text("mine")
    assert "notes.txt" in refusal(path).found
    assert (path / "notes.txt").read_text() == "mine" and (path / "model.onnx").read_text() == "old"


def test_a_file_and_a_symbolic_link_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert refusal(tmp_path / "file").found == "a file"
    make_bundle(tmp_path / "nano")
    (tmp_path / "link").symlink_to(tmp_path / "nano")
    assert refusal(tmp_path / "link").found == "a symbolic link"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "nano").mkdir()
    make_bundle(tmp_path / "nano")
    assert (tmp_path / "nano" / "model.onnx").exists()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "--output" in refusal(tmp_path / "file" / "nano").do


def test_files_are_listed_with_size_and_hash(tmp_path):
    (tmp_path / "device" / "__pycache__").mkdir(parents=True)
    (tmp_path / "device" / "run.py").write_bytes(b"abc")
    (tmp_path / "device" / "__pycache__" / "x.pyc").write_bytes(b"abc")
    (tmp_path / "manifest.json").write_text("{}")
    assert folder.list_files(tmp_path) == [
        {"path": "device/run.py", "size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}]
