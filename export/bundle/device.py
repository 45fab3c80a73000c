"""device/ of a bundle: this package's runtime and demo, zipped for the board's own Python.

    python3 device/tsm_edge.pyz verify          # needs Python 3.6 or newer and numpy
    python3 device/tsm_edge.pyz demo --source csi://0

The same files as everywhere, in the same places, so that they import each other as where they are installed.
"""
import importlib.util
import zipfile
from pathlib import Path

PROGRAM, MODULE = "tsm_edge.pyz", "tsm_device.py"
# package -> its modules that a board gets. They ask each other, Python 3.6, numpy 1.13 and (at call) OpenCV 4.1 and engines.
MODULES = {
    "tsm_edge": ("__init__", "cli", "default", "errors", "manifest", "picture", "sides"),
    "tsm_edge.runtimes": ("__init__", "bench", "bundle", "capture", "events", "interface", "library", "preprocess", "sources", "verify"),
    "tsm_edge.runtimes.engines": ("__init__", "native", "onnx", "tvm_library"),
    "tsm_edge.demo": ("__init__", "app", "board", "cli", "heat", "overlay", "recording", "timing", "window"),
}
_MAIN = '''import sys

if sys.version_info < (3, 6):
    sys.exit("tsm_edge.pyz needs Python 3.6 or newer, this is %d.%d: run it with python3" % sys.version_info[:2])
from tsm_edge.demo.board import main

main()
'''
_MODULE = '''"""This bundle from Python: 3.6 or newer, with numpy. (On the command line: python3 tsm_edge.pyz verify.)

    import tsm_device
    model = tsm_device.load()                              # the bundle that this file lies in
    stream, events = model.stream(), model.events()
    now = time.monotonic()
    result = stream.step(frame, now)                       # uint8 [height, width, 3], RGB; result.label, result.score
    for event in events.update(result, now): ...           # event.kind, event.label, event.start, event.end
"""
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(_HERE, "tsm_edge.pyz"))
from tsm_edge import runtimes  # noqa: E402


def load(path=os.path.dirname(_HERE), engine=None, threads=None):
    """A bundle's model (tsm_edge.runtimes.load)."""
    return runtimes.load(path, engine, threads)


if __name__ == "__main__":
    from tsm_edge.runtimes.verify import main

    main()
'''


def files():
    """What is in the program: {path within it: bytes}, sorted by path."""
    found = {"__main__.py": _MAIN.encode("utf-8")}
    for package, modules in MODULES.items():
        for module in modules:
            name = package if module == "__init__" else f"{package}.{module}"
            found[f"{package.replace('.', '/')}/{module}.py"] = Path(importlib.util.find_spec(name).origin).read_bytes()
    return dict(sorted(found.items()))


def write_device(folder):
    """Write the program and the module beside it into a new `folder`. The same files give the same bytes."""
    folder = Path(folder)
    folder.mkdir()
    with zipfile.ZipFile(folder / PROGRAM, "w", zipfile.ZIP_STORED) as program:
        for path, data in files().items():
            entry = zipfile.ZipInfo(path)  # of the year 1980
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # as Unix writes it, wherever it is made
            program.writestr(entry, data)
    (folder / MODULE).write_bytes(_MODULE.encode("utf-8"))
