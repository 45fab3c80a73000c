import copy
import json
import subprocess
import sys

import pytest

from tsm_edge.errors import BundleError
from tsm_edge.manifest import Manifest, validate

GOOD = {
    "schema": 1, "name": "mobilenet_v2-jester", "trained": True, "classes": ["zero", "one", "two"],
    "input": {"width": 224, "height": 224, "colour": "RGB", "resize": "crop", "shorter_side": 256, "filter": "antialias",
              "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "stream": {"fps": 0, "max_gap_seconds": 1.0},
    "events": {"window": 12, "hold": 2, "on": 0.3, "off": 0.2, "merge": {"0": 2}, "ignore": [1], "background": [2]},
    "network": {"arch": "mobilenet_v2", "width": 1.0, "fold_div": 8, "past": [0, 1], "n_segment": 8},
    "caches": [{"name": "cache.a", "layer": "a", "shape": [1, 3, 56, 56], "dtype": "float32", "slice": [0, 3], "channels": 24},
               {"name": "cache.b", "layer": "b", "shape": [1, 4, 28, 28], "dtype": "float32", "slice": [4, 8], "channels": 32}],
    "precision": "fp32", "target": {"name": "host"}, "threads": 4, "toolchain": {"torch": "2.13"},
    "files": [{"path": "device/tsm_edge.pyz", "size": 3, "sha256": "0" * 64}],
    "verification": {"status": "not executed", "frames": 16, "checks": [
        {"name": "a", "status": "passed"}, {"name": "b", "status": "not executed"}]},
}


def changed(path, value):
    data = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    at = data
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at[key]
    if value is KeyError:
        del at[last]
    else:
        at[int(last) if isinstance(at, list) else last] = value
    return data


def test_a_good_manifest_passes_and_survives_json():
    manifest = Manifest.from_json(Manifest(GOOD).to_json().encode())
    assert manifest.data == GOOD and validate(GOOD) is GOOD
    assert manifest.classes[1] == "one" and manifest.trained


def test_only_an_embedded_manifest_may_lack_files_and_results():
    inside = {key: value for key, value in GOOD.items() if key not in ("files", "verification")}
    assert Manifest(inside, embedded=True).data == inside
    with pytest.raises(BundleError, match="it cannot be used") as error:
        validate(inside)
    assert error.value.found == "'no files, verification'"


@pytest.mark.parametrize("path, value, part", [
    ("schema", 2, "unknown schema"), ("schema", True, "unknown schema"), ("name", "", "name"), ("trained", "yes", "trained"),
    ("classes", [], "classes"), ("classes.0", 3, "classes"), ("precision", "bf16", "precision"), ("threads", 0, "threads"),
    ("input.width", 0, "input.width"), ("input.width", 224.0, "input.width"), ("input.colour", "BGR", "input.colour"),
    ("input.resize", "fit", "input.resize"), ("input.shorter_side", 200, "input.shorter_side"), ("input.std.0", 0, "input.std"),
    ("input.mean", [0, 0], "input.mean"), ("input.mean.0", float("nan"), "input.mean"), ("input.filter", KeyError, "input"),
    ("stream.fps", -1, "stream.fps"), ("stream.fps", 10 ** 400, "stream.fps"), ("stream.max_gap_seconds", None, "stream.max_gap_seconds"),
    ("events.window", 0, "events.window"), ("events.on", 1.5, "events.on"), ("events.ignore", [3], "events.ignore"),
    ("events.merge", {"3": 0}, "events.merge"), ("events.merge", {"x": 0}, "events.merge"), ("network.past", [1, 1], "network.past"),
    ("network.fold_div", "8", "network.fold_div"), ("network", None, "network"), ("target", [], "target"),
    ("caches.1.name", "cache.a", r"caches\[1\].name"), ("caches.0.name", "a", r"caches\[0\].name"),
    ("caches.0.shape", [1, 3, 56], "cache.a: shape"), ("caches.0.shape", [2, 3, 56, 56], "cache.a: shape"),
    ("caches.0.slice", [0, 4], "cache.a: slice"), ("caches.1.channels", 7, "cache.b: channels"),
    ("caches.0.dtype", "float64", "cache.a: dtype"), ("caches.0", "cache", r"caches\[0\]"),
    ("files.0.path", "../x", r"files\[0\].path"), ("files.0.path", "/etc/x", r"files\[0\].path"),
    ("files.0.path", "manifest.json", r"files\[0\].path"), ("files.0.path", "a\\b", r"files\[0\].path"),
    ("files.0.size", -1, "size"), ("files.0.sha256", "0" * 63, "sha256"), ("verification.status", "passed", "verification.status"),
    ("verification.checks.0.status", "fine", r"verification.checks\[0\].status"), ("verification.frames", -1, "verification.frames"),
    ("verification.checks", [], None)])
def test_every_part_that_is_wrong_is_named(path, value, part):
    if part is None:
        assert validate(changed(path, value))
        with pytest.raises(BundleError, match="verification.status"):
            validate({**GOOD, "verification": {"status": "passed", "frames": 0, "checks": []}})
        return
    with pytest.raises(BundleError, match=part) as error:
        validate(changed(path, value), "dist/nano/manifest.json")
    assert "dist/nano/manifest.json" in error.value.problem and error.value.found and error.value.expected and error.value.do


@pytest.mark.parametrize("key", sorted(GOOD))
def test_every_missing_key_is_named(key):
    with pytest.raises(BundleError) as error:
        validate(changed(key, KeyError))
    assert key in error.value.found or key == "schema"


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", "[" * 100000, "[]", "null"])
def test_what_is_no_json_object_is_refused(text):
    with pytest.raises(BundleError) as error:
        Manifest.from_json(text)
    assert error.value.do


def test_a_file_is_read_and_a_missing_one_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(GOOD))
    assert Manifest.load(tmp_path / "manifest.json").name == "mobilenet_v2-jester"
    with pytest.raises(BundleError, match="cannot be read"):
        Manifest.load(tmp_path / "none.json")


def test_the_face_of_the_package_is_light_and_says_what_is_missing():
    code = """
import sys
sys.modules["torch"] = None                      # as if it were not installed
import tsm_edge, tsm_edge.manifest, tsm_edge.jester, tsm_edge.runtimes
assert not {"onnx", "tvm", "cv2", "onnxruntime"} & set(sys.modules), sorted(sys.modules)
assert tsm_edge.__version__[0].isdigit() and callable(tsm_edge.load) and "create_model" in dir(tsm_edge)
assert len(set(tsm_edge.jester.CLASSES)) == 27 and list(tsm_edge.jester.CLASSES) == sorted(tsm_edge.jester.CLASSES)
try:
    tsm_edge.create_model
except tsm_edge.errors.MissingComponentError as error:
    print(error.do)
try:
    tsm_edge.lod
except AttributeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip install 'tsm-edge[export]'" in done.stdout and "no attribute 'lod'" in done.stdout
