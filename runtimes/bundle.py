"""Opening a bundle, read as hostile: nothing is mapped or loaded before its path, size and hash are checked.

    bundle = open_bundle("dist/nano")          # or "nano.zip"
    bundle.manifest                            # dict
    bundle.file("model.onnx")                  # its Path, after size and SHA-256 were found right
"""
import functools
import hashlib
import operator
import os
import shutil
import stat
import tempfile
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tsm_edge.errors import BundleError
from tsm_edge.manifest import Manifest, plain_path

MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 1000
MAX_BUNDLE_BYTES = 4 << 30
MAX_CACHE_VALUES = 1 << 28
AGAIN = "copy the bundle again, or export it again"


def _bad(problem, found, expected, do=AGAIN):
    return BundleError(problem, found=found, expected=expected, do=do)


def _product(shape):
    """Values of an array; a Python int, which has no end."""
    return functools.reduce(operator.mul, shape, 1)


def parse_manifest(data: bytes, where: str = "manifest.json", embedded: bool = False) -> dict:
    """Bytes of a manifest -> checked dict.

    Raises
    ------
    BundleError
    """
    manifest = Manifest.from_json(data, where, embedded).data
    values = sum(_product(cache["shape"]) for cache in manifest["caches"])
    if values > MAX_CACHE_VALUES:
        raise _bad(f"{where}: the caches are too large", f"{values} values", f"at most {MAX_CACHE_VALUES}")
    return manifest


def check_file_list(manifest: dict) -> dict:
    """The manifest's files as {path: (size, sha256)}; neither too many nor too large.

    Raises
    ------
    BundleError
    """
    files = {entry["path"]: (entry["size"], entry["sha256"]) for entry in manifest["files"]}
    if len(files) > MAX_FILES:
        raise _bad("the bundle has too many files", str(len(files)), f"at most {MAX_FILES}")
    total = sum(size for size, _ in files.values())
    if total > MAX_BUNDLE_BYTES:
        raise _bad("the bundle is too large", f"{total} bytes", f"at most {MAX_BUNDLE_BYTES}")
    return files


class Bundle:
    """An opened bundle.

    manifest : dict, checked. folder : Path where its files lie. source : what was opened, as text.
    """

    def __init__(self, folder: "str | os.PathLike[str]", manifest: dict, source: object,
                 cleanup: "Callable[[], None] | None" = None) -> None:
        self.folder, self.manifest, self.source = Path(folder), manifest, str(source)
        self.files = check_file_list(manifest)
        self._good = set()  # type: set[str]
        self._cleanup = weakref.finalize(self, cleanup) if cleanup else None

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def file(self, name: str) -> Path:
        """Path of a file of the bundle, once its size and hash have been found right.

        Raises
        ------
        BundleError
            Not in the manifest, missing, a link, or of another size or hash than the manifest says.
        """
        if name not in self.files:
            raise _bad(f"{name} is not part of the bundle", ", ".join(sorted(self.files)), name)
        path = self.folder.joinpath(*name.split("/"))
        if name in self._good:
            return path
        size, digest = self.files[name]
        step = self.folder
        for part in name.split("/"):
            step = step / part
            if step.is_symlink():
                raise _bad(f"{name} is reached through a link", f"{step.name} -> {os.readlink(step)}", "plain files")
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise _bad(f"{name} is no file", stat.filemode(status.st_mode), "a plain file")
            if status.st_size != size:
                raise _bad(f"{name} is damaged", f"{status.st_size} bytes", f"{size} bytes")
            with open(path, "rb") as file:
                found = _sha256(file)
        except OSError as error:
            raise _bad(f"{name} cannot be read", error.strerror or str(error), f"a file of {size} bytes") from error
        if found != digest:
            raise _bad(f"{name} is damaged", f"sha256 {found}", digest)
        self._good.add(name)
        return path

    def check(self) -> int:
        """Check every file of the manifest; returns how many."""
        self._good.clear()
        for name in self.files:
            self.file(name)
        return len(self.files)

    def close(self) -> None:
        """Remove what was unpacked from a zip. The bundle is not to be used afterwards."""
        if self._cleanup:
            self._cleanup()


def _sha256(file):
    checksum = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        checksum.update(block)
    return checksum.hexdigest()


def open_bundle(path: "str | os.PathLike[str]") -> Bundle:
    """Open a bundle: a folder, or the same folder zipped.

    Parameters
    ----------
    path : str or path
        The folder that tsm-export wrote, its manifest.json, or a .zip of it (with or without a top folder). A zip is
        unpacked into a temporary folder that lives as long as the bundle.

    Returns
    -------
    Bundle

    Raises
    ------
    BundleError
    """
    path = Path(path)
    try:
        if path.name == "manifest.json" and path.is_file():
            path = path.parent
        if path.is_dir():
            return _open_folder(path)
        if path.is_file():
            return _open_zip(path)
    except OSError as error:
        raise _bad(f"{path} cannot be opened", error.strerror or str(error), "a bundle that may be read, and room to unpack a .zip",
                   "check its permissions and the disk") from error
    raise _bad("there is no such bundle", str(path), "a folder that tsm-export wrote, or a .zip of it",
               "check the path; tsm-export --help shows how to make one")


def _open_folder(path):
    manifest = path / "manifest.json"
    if not manifest.is_file() or manifest.is_symlink():
        shown = sorted(entry.name for entry in path.iterdir())[:8]
        raise _bad(f"{path} is no bundle", ", ".join(shown) or "an empty folder", "a folder with a manifest.json",
                   "give the folder that tsm-export wrote")
    if manifest.stat().st_size > MAX_MANIFEST_BYTES:
        raise _bad("manifest.json is too large", f"{manifest.stat().st_size} bytes", f"at most {MAX_MANIFEST_BYTES}")
    return Bundle(path, parse_manifest(manifest.read_bytes()), path)


def _open_zip(path):
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _bad(f"{path} is no bundle", str(error), "a folder that tsm-export wrote, or a .zip of it") from error
    with archive:
        members = {}
        for member in archive.infolist():
            if member.is_dir():
                continue
            if not plain_path(member.orig_filename) or not plain_path(member.filename):
                raise _bad("a path in the zip leads out of the bundle", repr(member.orig_filename)[:200],
                           "a plain relative path without '..'", "do not use this file; export the bundle again")
            if member.filename in members:
                raise _bad("the zip holds a file twice", member.filename, "every file once")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise _bad("the zip holds a link", member.filename, "plain files", "zip the bundle again without links")
            if member.flag_bits & 1:
                raise _bad("the zip is encrypted", member.filename, "plain files", "zip the bundle without a password")
            members[member.filename] = member
            if len(members) > 4 * MAX_FILES:
                raise _bad("the zip holds too many files", f"more than {4 * MAX_FILES}", f"at most {MAX_FILES}")
        tops = [name for name in members if name == "manifest.json" or
                (name.endswith("/manifest.json") and name.count("/") == 1)]
        if len(tops) != 1:
            raise _bad(f"{path} is no bundle", ", ".join(sorted(members)[:8]) or "an empty zip",
                       "one manifest.json, at the top or in one top folder", "zip the folder that tsm-export wrote")
        prefix = tops[0][:-len("manifest.json")]
        manifest_bytes = _unzip(archive, members[tops[0]], MAX_MANIFEST_BYTES)
        manifest = parse_manifest(manifest_bytes)
        files = check_file_list(manifest)
        folder = Path(tempfile.mkdtemp(prefix="tsm-bundle-"))
        try:
            (folder / "manifest.json").write_bytes(manifest_bytes)
            for name, (size, _) in files.items():
                member = members.get(prefix + name)
                if member is None:
                    raise _bad(f"{name} is missing from the zip", f"{len(members)} other files",
                               f"a file of {size} bytes")
                target = folder.joinpath(*name.split("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_unzip(archive, member, size))
            return Bundle(folder, manifest, path, cleanup=lambda: shutil.rmtree(folder, ignore_errors=True))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _unzip(archive, member, limit):
    """One member's bytes, never more than `limit`, whatever its header claims."""
    try:
        with archive.open(member) as file:
            data = file.read(limit + 1)
    except Exception as error:  # zipfile and the decompressors have many error types (zlib.error, lzma.LZMAError, ...)
        raise _bad(f"{member.filename} cannot be unpacked", f"{type(error).__name__}: {error}",
                   "an undamaged zip") from error
    if len(data) > limit:
        raise _bad(f"{member.filename} is larger than it should be", f"more than {limit} bytes", "no more than that")
    return data


def contradictions(library, manifest):
    """What a library (`tsm_edge.runtimes.library.Library`) and a manifest say differently of the same network, in words;
    empty where they belong together."""
    info, size = library.info, manifest["input"]
    crop = size["resize"] == "crop"
    said = [  # what, in the library, in the manifest
        ("width", info.width, size["width"]), ("height", info.height, size["height"]),
        ("resize", "squash" if info.resize else "crop", size["resize"]),
        ("shorter_side", info.shorter_side if crop else 0, size["shorter_side"] if crop else 0),
        ("filter", "antialias" if info.antialias else "bilinear", size["filter"]),
        ("colour", "BGR" if info.colour else "RGB", size["colour"]),
        ("mean", list(info.mean), np.float32(size["mean"]).tolist()), ("std", list(info.std), np.float32(size["std"]).tolist()),
        ("precision", (info.precision or b"fp32").decode("utf-8"), manifest["precision"]),
        ("trained", bool(info.trained), manifest["trained"])]
    words = ["{} is {} in the library, {} in manifest.json".format(*one) for one in said if one[1] != one[2]]
    if library.classes != manifest["classes"]:
        words.append(f"the library has {len(library.classes)} other classes than manifest.json")
    if library.caches != {cache["name"]: tuple(cache["shape"]) for cache in manifest["caches"]}:
        words.append(f"the library has {len(library.caches)} other caches than manifest.json")
    return words


def read_golden(bundle: Bundle) -> dict:
    """The recorded frames and outputs, each array's shape and type checked before it is read.

    Returns
    -------
    dict
        frames uint8 [T, H0, W0, 3], inputs float32 [T, 3, H, W], logits float32 [T, classes] and for every cache
        "cache.<layer>" float32 [T, fold, h, w].

    Raises
    ------
    BundleError
    """
    path, manifest = bundle.file("golden.npz"), bundle.manifest
    size = manifest["input"]
    wanted = {"frames": (None, None, 3), "inputs": (3, size["height"], size["width"]),
              "logits": (len(manifest["classes"]),), **{c["name"]: tuple(c["shape"][1:]) for c in manifest["caches"]}}
    golden, count = {}, None
    try:
        with zipfile.ZipFile(path) as archive:
            for name, shape in wanted.items():
                try:
                    member = archive.getinfo(name + ".npy")
                except KeyError:
                    raise _bad("golden.npz does not fit the manifest", f"no array {name}", f"{name} {shape}") from None
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    found, fortran, dtype = reader[version](file)
                    kind = np.uint8 if name == "frames" else np.float32
                    fits = len(found) == len(shape) + 1 and all(b is None or a == b for a, b in zip(found[1:], shape))
                    if not fits or dtype != kind or fortran or not 1 <= found[0] <= 100000 \
                            or count not in (None, found[0]) or max(found) > 100000:
                        raise _bad("golden.npz does not fit the manifest", f"{name}: {dtype} {list(found)}",
                                   f"{np.dtype(kind)} {[count or 'T', *(s or 'any' for s in shape)]}")
                    count = found[0]
                    total = _product(found) * dtype.itemsize
                    if total > MAX_BUNDLE_BYTES // 2 or member.file_size < total:
                        raise _bad("golden.npz is damaged", f"{name}: {member.file_size} bytes", f"{total} bytes")
                    data = file.read(total)
                    if len(data) != total:
                        raise _bad("golden.npz is damaged", f"{name}: {len(data)} bytes", f"{total} bytes")
                    golden[name] = np.frombuffer(data, dtype).reshape(found)
    except BundleError:
        raise
    except Exception as error:  # zip, npy header and decompressor errors have many types; all mean the same here
        raise _bad("golden.npz cannot be read", f"{type(error).__name__}: {error}",
                   "the arrays that tsm-export wrote") from error
    return golden
