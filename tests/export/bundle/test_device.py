"""What a board gets: the package's own files, in the same bytes each time, for Python 3.6 and numpy 1.13."""
import ast
import subprocess
import sys
import zipfile

import pytest

from tsm_edge.export.bundle import device

STANDARD = set("""argparse collections contextlib ctypes difflib errno functools glob hashlib importlib io json math operator os pathlib
    platform re shutil signal stat struct sys tempfile threading time typing urllib weakref zipfile""".split())
AT_CALL = {"cv2", "numpy", "onnxruntime", "tvm"}  # what the board may have
# Of numpy, with the keywords that are passed: each was looked up in numpy 1.13. Look a new one up there before you add it.
NUMPY = set("""abs arange argsort(kind) array array(order) asarray asarray(order) ascontiguousarray clip copyto ctypeslib.as_array dtype
    empty exp flatnonzero float32 float64 frombuffer isfinite lib.format.read_array_header_1_0 lib.format.read_array_header_2_0
    lib.format.read_magic linspace max maximum multiply(out) ndarray number percentile ptp(axis) random.RandomState rint stack
    take(axis) take(mode) take(out) uint8 where zeros""".split())


@pytest.fixture(scope="module")
def trees():
    """{path in the program: syntax tree}"""
    return {path: ast.parse(data) for path, data in device.files().items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle's device/, its program unpacked beside it in files/."""
    folder = tmp_path_factory.mktemp("bundle") / "device"
    device.write_device(folder)
    with zipfile.ZipFile(folder / device.PROGRAM) as program:
        program.extractall(folder / "files")
    return folder


def test_the_same_files_give_the_same_bytes_in_any_process(folder, tmp_path):
    code = ("import os, sys, pathlib; os.umask(0o077); os.chdir(sys.argv[1])\n"
            "from tsm_edge.export.bundle.device import write_device; write_device(pathlib.Path('device'))")
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env={"TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"})
    for name in (device.PROGRAM, device.MODULE):
        assert (tmp_path / "device" / name).read_bytes() == (folder / name).read_bytes()


def imported(path, tree):
    """Modules that a file of the program imports, however deep: (name, at its top)."""
    package = path.rsplit("/", 1)[0].replace("/", ".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[:len(package.split(".")) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield module, node in tree.body
            yield from ((f"{module}.{alias.name}", node in tree.body) for alias in node.names if module.startswith("tsm_edge"))


def test_what_is_zipped_asks_nothing_that_is_not(trees):
    ours = {path[:-3].replace("/__init__", "").replace("/", ".") for path in trees}
    for path, tree in trees.items():
        for name, at_top in imported(path, tree):
            first = name.split(".")[0]
            if first == "tsm_edge":
                assert name in ours or name.rsplit(".", 1)[0] in ours, f"{path} imports {name}"
            else:
                assert first in STANDARD or first in AT_CALL, f"{path} imports {name}"
                assert not at_top or first not in AT_CALL - {"numpy"}, f"{path} imports {name} at its top"


def test_everything_that_is_zipped_is_asked_for(trees):
    from tsm_edge import runtimes
    from tsm_edge.demo import board

    asked = {name for path, tree in trees.items() for name, _ in imported(path, tree)} | set(board.COMMANDS.values())
    asked |= {f"tsm_edge.runtimes.engines.{module}" for module, _ in runtimes._ENGINES.values()}
    for path in trees:
        name = path[:-3].replace("/", ".")
        assert name in asked or path.endswith("__init__.py") or path == "__main__.py", f"nothing imports {path}"


def test_every_file_runs_on_python_3_6(folder):
    pytest.importorskip("vermin", reason="vermin (extra [test]) is not installed")
    command = [sys.executable, "-c", "import vermin; vermin.main()", "-t=3.6-", "--no-tips", "--violations", "--eval-annotations"]
    files = [*(folder / "files").rglob("*.py"), folder / device.MODULE]
    assert len(files) == len(device.files()) + 1 > 25
    done = subprocess.run([*command, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    (folder / "new.py").write_text("print(x := 5)")
    assert subprocess.run([*command, folder / "new.py"], capture_output=True).returncode == 1


def numpy_names(tree):
    """Dotted names of numpy in a file, and of calls with keywords "name(keyword)" for each."""
    def dotted(node):
        if isinstance(node, ast.Attribute):
            base = dotted(node.value)
            return None if base is None else [*base, node.attr]
        return [] if isinstance(node, ast.Name) and node.id == "np" else None

    calls = {node.func: node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        name = dotted(node) if isinstance(node, ast.Attribute) and node not in inner else None
        if name:
            keywords = [keyword.arg for keyword in calls[node].keywords] if node in calls else []
            yield from [f"{'.'.join(name)}({keyword})" for keyword in keywords] or [".".join(name)]


def test_numpy_1_13_has_what_is_used_of_it(trees):
    used = {name for tree in trees.values() for name in numpy_names(tree)}
    assert used - NUMPY == set() and len(used) > 20
    assert set(numpy_names(ast.parse("x = np.max(y, initial=0) + np.lib.f.g(z)"))) == {"max(initial)", "lib.f.g"}


def test_no_clock_of_the_program_can_be_set(trees):
    """time.time() jumps when a board without a battery learns the time."""
    assert not [path for path, data in device.files().items() if b"time.time(" in data]
