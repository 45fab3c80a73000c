"""An export, its verification and its engine as on macOS and Windows: what Linux alone has is taken away before ours is imported."""
import json
import subprocess
import sys

import pytest

from tsm_edge import shell
from tsm_edge.errors import InputError
from tsm_edge.export.bundle.folder import new_folder
from tsm_edge.export.targets import host

for package in ("torch", "tvm", "onnxruntime", "rich"):
    pytest.importorskip(package, reason=f"{package} (extra [export]) is not installed")

# What is left of this machine: the packages from PyPI have been loaded as they are; then its system goes.
_ELSEWHERE = """
import ctypes, os, platform, signal, sys, time, warnings
import numpy, onnx, onnxruntime, rich.console, torch, tvm  # as they are

system, machine, *argv = sys.argv[1:]
torch.set_num_threads(1)
for module, names in ((signal, "SIGHUP SIGKILL SIGALRM SIGUSR1 SIGPIPE SIGCHLD alarm setitimer pause"),
                      (os, "sched_getaffinity sysconf fork uname geteuid getppid statvfs posix_fallocate umask chown O_NOFOLLOW")):
    for name in names.split():
        delattr(module, name)
platform.system, platform.machine, platform.libc_ver = lambda: system, lambda: machine, lambda *a: ("", "")
replace, library = os.replace, ctypes.CDLL

def other_replace(old, new):
    if os.path.isdir(new):
        raise PermissionError(13, "Access is denied", new)  # Windows replaces files only
    replace(old, new)

def other_library(name, *args, **options):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    return library(name, *args, **options)

def no_such_place(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].startswith(("/proc/", "/sys/", "/dev/video")):
        raise FileNotFoundError(2, "No such file or directory", args[0])

os.replace, ctypes.CDLL = other_replace, other_library
sys.addaudithook(no_such_place)
if hasattr(__builtins__, "EncodingWarning"):
    warnings.filterwarnings("error", category=EncodingWarning, module=r"tsm_edge\\.")
"""
_EXPORT = _ELSEWHERE + """
from tsm_edge.export import cli
cli.main(argv)
"""
_LOAD = _ELSEWHERE + """
import json
import tsm_edge
from tsm_edge.runtimes.verify import verify
model = tsm_edge.load(argv[0])
print(json.dumps({"engine": model.engine, "note": model.note, "status": verify(argv[0])["status"]}))
"""
SYSTEMS = [("Windows", "AMD64"), pytest.param(("Darwin", "arm64"), marks=pytest.mark.slow)]


def python(script, system, *argv):
    return subprocess.run([sys.executable, "-X", "warn_default_encoding", "-c", script, *system, *map(str, argv)],
                          capture_output=True, encoding="utf-8", timeout=600)


@pytest.fixture(scope="module", params=SYSTEMS)
def bundle(request, tmp_path_factory):
    """(system, the bundle that was exported there in place of another one, what the export said)"""
    folder = tmp_path_factory.mktemp("bundles") / "nano"
    with new_folder(folder) as older:
        (older / "manifest.json").write_text(json.dumps({"schema": 1, "caches": [], "files": []}))
    options = ["--random-weights", "--width", "0.1", "--input-size", "32x32", "--num-classes", "5", "--allow-unverified", "--json"]
    done = python(_EXPORT, request.param, "--target", "jetson-nano", *options, "--output", folder)
    assert done.returncode == 0, done.stderr
    return request.param, folder, json.loads(done.stdout)


def test_a_bundle_for_a_board_is_exported_where_nothing_of_linux_is_to_be_had(bundle):
    (system, _), folder, report = bundle
    listed = {entry["path"] for entry in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == listed | {"manifest.json"}
    assert not [path for path in folder.parent.iterdir() if path != folder]
    library = [check for check in report["checks"] if check["name"] == "library vs torch"][0]
    assert report["verdict"].startswith("PASSED") and "on this machine" not in library["detail"]


def test_its_text_has_the_line_ends_of_every_other_system(bundle):
    _, folder, _ = bundle
    for path in (path for path in folder.rglob("*") if path.suffix in (".json", ".md", ".h", ".py")):
        assert b"\r" not in path.read_bytes(), path


def test_it_is_verified_and_run_by_onnxruntime(bundle):
    system, folder, _ = bundle
    done = python(_LOAD, system, folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["engine"], found["status"]) == ("onnxruntime", "passed")
    assert found["note"] == f"the library is for Linux; this is {system[0]}"


@pytest.mark.parametrize("system, machine", [("Windows", "AMD64"), ("Darwin", "arm64"), ("Linux", "riscv64")])
def test_the_host_target_is_refused_in_words(monkeypatch, system, machine):
    monkeypatch.setattr(host.platform, "system", lambda: system)
    monkeypatch.setattr(host.platform, "machine", lambda: machine)
    with pytest.raises(InputError, match=f"{system} {machine}") as error:
        host.detect_host.__wrapped__()
    assert error.value.exit_code == 2 and "board" in error.value.do and "onnxruntime" in error.value.do


def test_words_of_commands_are_quoted_and_split_as_windows_shell_does(monkeypatch):
    monkeypatch.setattr(shell, "os", type("os", (), {"name": "nt"}))
    assert shell.quote(r"C:\my bundles\nano") == r'"C:\my bundles\nano"' and shell.quote(r"dist\nano") == r"dist\nano"
    assert shell.split(r'"C:\LLVM 19\bin\clang.exe" --target=x') == [r"C:\LLVM 19\bin\clang.exe", "--target=x"]


def test_the_stack_of_a_compiling_thread_is_one_that_windows_allows():
    from tsm_edge.export.library.objects import STACK_BYTES

    assert STACK_BYTES < 256 << 20  # CPython's THREAD_MAX_STACKSIZE there
