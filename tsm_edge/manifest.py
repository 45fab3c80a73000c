"""manifest.json: what a bundle says of itself. Needs nothing but Python.

The schema in one place; `validate` checks a manifest against it, whole or as embedded in the ONNX file and the library
(there without `files` and `verification`).
"""
import json
import math
import os
import re

from .errors import BundleError

SCHEMA = 1
STATUSES = ("passed", "not executed", "failed")
PRECISIONS = ("fp32", "fp16")
RUNTIMES = ("native", "tvm")  # tvm: the bundle also holds a library for TVM's own runtime; described in "tvm"
REQUIRED = ("schema", "name", "trained", "classes", "input", "stream", "events", "network", "caches", "precision", "target",
            "threads", "toolchain")
_AGAIN = "export the network again, with this release"


def validate(manifest: dict, where: str = "manifest.json", embedded: bool = False) -> dict:
    """Check a manifest against the schema.

    Parameters
    ----------
    manifest : dict
    where : str
        Named in messages.
    embedded : bool
        True for a manifest inside an ONNX file or a library, which has neither `files` nor `verification`.

    Returns
    -------
    dict
        The manifest itself.

    Raises
    ------
    BundleError
        Names the part, what stands there, and what should.
    """
    check = _Checker(where)
    check(isinstance(manifest, dict), "its content", type(manifest).__name__, "a JSON object")
    if manifest.get("schema") != SCHEMA or isinstance(manifest.get("schema"), bool):
        raise BundleError(f"{where} has an unknown schema", found=repr(manifest.get("schema"))[:80], expected=f"schema {SCHEMA}",
                          do="install the release of tsm-edge that wrote it, or export again")
    required = REQUIRED if embedded else (*REQUIRED, "files", "verification")
    missing = [key for key in required if key not in manifest]
    check(not missing, "it", f"no {', '.join(missing)}", f"all of {', '.join(required)}")
    check(isinstance(manifest["name"], str) and manifest["name"], "name", manifest["name"], "text")
    check(isinstance(manifest["trained"], bool), "trained", manifest["trained"], "true or false")
    classes = manifest["classes"]
    check(isinstance(classes, list) and classes and all(isinstance(c, str) and c for c in classes), "classes", classes,
          "a list of names")
    check(manifest["precision"] in PRECISIONS, "precision", manifest["precision"], " or ".join(PRECISIONS))
    runtime = manifest.get("runtime", "native")
    check(runtime in RUNTIMES, "runtime", runtime, " or ".join(RUNTIMES))
    check(_whole(manifest["threads"], 1, 1024), "threads", manifest["threads"], "a whole number, at least 1")
    for key in ("target", "toolchain"):
        check(isinstance(manifest[key], dict), key, manifest[key], "an object")
    _input(check, manifest["input"])
    _stream(check, manifest["stream"])
    _events(check, manifest["events"], len(classes))
    _network(check, manifest["network"])
    _caches(check, manifest["caches"])
    if not embedded:
        _files(check, manifest["files"])
        _runtime(check, manifest)
        _verification(check, manifest["verification"])
    return manifest


class _Checker:
    def __init__(self, where):
        self.where = where

    def __call__(self, good, part, found, expected):
        if not good:
            raise BundleError(f"{self.where}: {part} cannot be used", found=repr(found)[:200], expected=expected, do=_AGAIN)

    def object(self, value, part, keys):
        """`value` is an object that has all of `keys`."""
        self(isinstance(value, dict), part, value, "an object")
        missing = [key for key in keys if key not in value]
        self(not missing, part, f"no {', '.join(missing)}", f"an object with {', '.join(keys)}")


def _whole(value, low, high=2 ** 53):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value, low=-math.inf):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value and abs(value) <= 1e300  # and no NaN


def _input(check, value):
    check.object(value, "input", ("width", "height", "colour", "resize", "shorter_side", "filter", "mean", "std"))
    for key in ("width", "height"):
        check(_whole(value[key], 1, 16384), f"input.{key}", value[key], "pixels, 1 to 16384")
    check(value["colour"] == "RGB", "input.colour", value["colour"], "RGB")
    check(value["resize"] in ("crop", "squash"), "input.resize", value["resize"], "crop or squash")
    if value["resize"] == "crop":
        least = max(value["width"], value["height"]) if value["width"] == value["height"] else 1
        check(_whole(value["shorter_side"], least, 16384), "input.shorter_side", value["shorter_side"],
              f"pixels, {least} to 16384, no less than what is cut out")
    check(value["filter"] in ("antialias", "bilinear"), "input.filter", value["filter"], "antialias or bilinear")
    for key, low in (("mean", -math.inf), ("std", 1e-12)):
        good = isinstance(value[key], list) and len(value[key]) == 3 and all(_number(v, low) for v in value[key])
        check(good, f"input.{key}", value[key], "three numbers" + " above 0" * (key == "std"))


def _stream(check, value):
    check.object(value, "stream", ("fps", "max_gap_seconds"))
    check(_number(value["fps"], 0), "stream.fps", value["fps"], "frames a second; 0 for every frame")
    check(_number(value["max_gap_seconds"], 0), "stream.max_gap_seconds", value["max_gap_seconds"], "seconds")


def _events(check, value, classes):
    check.object(value, "events", ("window", "hold", "on", "off", "merge", "ignore", "background"))
    for key in ("window", "hold"):
        check(_whole(value[key], 1, 10000), f"events.{key}", value[key], "a number of results, at least 1")
    for key in ("on", "off"):
        check(_number(value[key], 0) and value[key] <= 1, f"events.{key}", value[key], "a score, 0 to 1")
    for key in ("ignore", "background"):
        good = isinstance(value[key], list) and all(_whole(v, 0, classes - 1) for v in value[key])
        check(good, f"events.{key}", value[key], f"class numbers, 0 to {classes - 1}")
    merge = value["merge"]
    good = isinstance(merge, dict) and all(
        isinstance(k, str) and k.isdigit() and int(k) < classes and _whole(v, 0, classes - 1) for k, v in merge.items())
    check(good, "events.merge", merge, f'pairs of class numbers such as {{"0": 2}}, 0 to {classes - 1}')


def _network(check, value):
    check.object(value, "network", ("arch", "width", "fold_div", "past", "n_segment"))
    check(isinstance(value["arch"], str) and value["arch"], "network.arch", value["arch"], "text")
    check(_number(value["width"], 1e-6), "network.width", value["width"], "a width multiplier")
    for key in ("fold_div", "n_segment"):
        check(_whole(value[key], 1), f"network.{key}", value[key], "a whole number, at least 1")
    past = value["past"]
    good = past is None or (isinstance(past, list) and len(past) == 2 and all(_whole(v, 0) for v in past) and past[0] < past[1])
    check(good, "network.past", past, "two folds [start, stop], or null for a network without shifts")


def _caches(check, caches):
    check(isinstance(caches, list), "caches", caches, "a list")
    names = set()
    for index, cache in enumerate(caches):
        check.object(cache, f"caches[{index}]", ("name", "layer", "shape", "dtype", "slice", "channels"))
        name, shape, cut, channels = cache["name"], cache["shape"], cache["slice"], cache["channels"]
        check(isinstance(name, str) and name.startswith("cache.") and name not in names, f"caches[{index}].name", name,
              'its own name, "cache.<layer>"')
        names.add(name)
        check(isinstance(cache["layer"], str) and cache["layer"], f"{name}: layer", cache["layer"], "the name of the layer")
        check(isinstance(shape, list) and len(shape) == 4 and all(_whole(v, 1, 65536) for v in shape) and shape[0] == 1,
              f"{name}: shape", shape, "[1, fold, h, w]")
        check(cache["dtype"] in ("float32", "float16"), f"{name}: dtype", cache["dtype"], "float32 or float16")
        check(isinstance(cut, list) and len(cut) == 2 and all(_whole(v, 0) for v in cut) and cut[1] - cut[0] == shape[1],
              f"{name}: slice", cut, f"[start, stop] of {shape[1]} channels")
        check(_whole(channels, cut[1], 65536), f"{name}: channels", channels, f"at least {cut[1]}")


def plain_path(path: object) -> bool:
    """Is this a plain relative path: no "..", not absolute, no drive, no backslash, no control characters?"""
    return (isinstance(path, str) and 0 < len(path) <= 240 and not re.search(r"[\x00-\x1f\x7f\\:]", path)
            and all(part not in ("", ".", "..") for part in path.split("/")))


def _files(check, files):
    check(isinstance(files, list), "files", files, "a list")
    seen = set()
    for index, entry in enumerate(files):
        check.object(entry, f"files[{index}]", ("path", "size", "sha256"))
        check(plain_path(entry["path"]), f"files[{index}].path", entry["path"], "a relative path without '..'")
        check(entry["path"] not in seen and entry["path"] != "manifest.json", f"files[{index}].path", entry["path"],
              "every file once, without manifest.json")
        seen.add(entry["path"])
        check(_whole(entry["size"], 0), f"{entry['path']}: size", entry["size"], "bytes")
        check(isinstance(entry["sha256"], str) and re.fullmatch("[0-9a-f]{64}", entry["sha256"]), f"{entry['path']}: sha256",
              entry["sha256"], "64 hexadecimal digits")


def _runtime(check, manifest):
    if manifest.get("runtime", "native") == "native":
        return
    check.object(manifest.get("tvm"), "tvm", ("library", "entry", "kernels", "functions", "fallbacks"))
    library = manifest["tvm"]["library"]
    check(library in {entry["path"] for entry in manifest["files"]}, "tvm.library", library, "a file of the bundle")


def _verification(check, value):
    check.object(value, "verification", ("status", "frames", "checks"))
    check(value["status"] in STATUSES, "verification.status", value["status"], ", ".join(STATUSES))
    check(_whole(value["frames"], 0), "verification.frames", value["frames"], "a whole number")
    check(isinstance(value["checks"], list), "verification.checks", value["checks"], "a list")
    worst = "passed"
    for index, one in enumerate(value["checks"]):
        check.object(one, f"verification.checks[{index}]", ("name", "status"))
        check(one["status"] in STATUSES, f"verification.checks[{index}].status", one["status"], ", ".join(STATUSES))
        worst = max(worst, one["status"], key=("passed", "not executed", "failed").index)
    # a manifest must not claim more than its checks show
    good = value["status"] == worst if value["checks"] else value["status"] != "passed"
    check(good, "verification.status", value["status"], f"{worst if value['checks'] else 'not executed'}, as the checks say")


class Manifest:
    """A validated manifest. `data` is the dict; the fields most asked for have names of their own.

    >>> Manifest.load("dist/nano/manifest.json").classes
    """

    def __init__(self, data: dict, embedded: bool = False, where: str = "manifest.json") -> None:
        self.data = validate(data, where, embedded)

    @classmethod
    def from_json(cls, text: "str | bytes", where: str = "manifest.json", embedded: bool = False) -> "Manifest":
        """From JSON text (str or UTF-8 bytes).

        Raises
        ------
        BundleError
        """
        try:
            data = json.loads(text.decode("utf-8") if isinstance(text, (bytes, bytearray)) else text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{where} cannot be read", found=str(error)[:200], expected="JSON in UTF-8", do=_AGAIN) from error
        return cls(data, embedded, where)

    @classmethod
    def load(cls, path: "str | os.PathLike[str]") -> "Manifest":
        """From a file."""
        try:
            with open(path, "rb") as file:
                return cls.from_json(file.read(), os.fspath(path))
        except OSError as error:
            raise BundleError(f"{path} cannot be read", found=error.strerror or str(error), expected="a bundle's manifest.json",
                              do="check the path") from error

    def to_json(self) -> str:
        """JSON text; the same manifest gives the same text."""
        return json.dumps(self.data, indent=2, ensure_ascii=False) + "\n"

    @property
    def name(self) -> str:
        return self.data["name"]

    @property
    def trained(self) -> bool:
        return self.data["trained"]

    @property
    def classes(self) -> "list[str]":
        """Class names, in the order of the logits."""
        return self.data["classes"]
