"""What lies in a bundle's device/ runs the package's own files: same verification, results and refusals, with nothing installed."""
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tsm_edge.runtimes.verify import verify


@pytest.fixture
def board(native_bundle, toys, tmp_path):
    """A bundle with its device folder, as it is copied onto a board."""
    return toys.with_device(native_bundle, tmp_path / "board")


@pytest.fixture
def run(board, bare_python):
    """run(*arguments): exit code, stdout, stderr of the program, by a Python with nothing but numpy."""
    command, bare = bare_python()
    program = board / "device" / "tsm_edge.pyz"

    def run(*arguments):
        done = subprocess.run([*command, program, *map(str, arguments)], capture_output=True, text=True, env=bare)
        return done.returncode, done.stdout, done.stderr

    return run


def python(board, code, *flags):
    """stdout of a Python that sees what is installed here, too, started in the bundle's device folder."""
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, cwd=board / "device")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_verifies_the_bundle_it_lies_in_with_the_rows_of_tsm_verify(run, board):
    code, out, err = run("verify")
    assert code == 0 and out.strip().splitlines()[-1].startswith("PASSED toy by native") and "UNTRAINED" in out, err
    assert "files: 5 of 5" in err and f"verify {board}" in err
    report, here = json.loads(run("verify", "--json")[1]), verify(board)
    assert report["checks"] == here["checks"] and len(report["checks"]) == 6
    assert {**report, "seconds": 0} == {**here, "bundle": str(board), "seconds": 0}


def test_it_verifies_another_bundle_where_one_is_named(run, native_bundle, tmp_path):
    code, _, err = run("verify", native_bundle)
    assert code == 0 and "files: 3 of 3" in err
    code, _, err = run("verify", tmp_path / "none")
    assert code == 2 and "no such bundle" in err


def test_a_recording_that_differs_fails_with_exit_code_1(run, board, toys):
    np.savez_compressed(board / "golden.npz", **{**toys.golden(), "logits": toys.golden()["logits"] * 1.01})
    toys.seal(board)
    code, out, _ = run("verify")
    assert code == 1 and out.strip().splitlines()[-1].startswith("FAILED toy by native")


@pytest.mark.parametrize("name", ["golden.npz", "libtsm_model.so", "device/tsm_device.py"])
def test_a_file_that_was_changed_is_refused_with_exit_code_2(run, board, name):
    with open(board / name, "r+b") as file:
        file.seek(100)
        file.write(b"\1\2\3")
    code, out, err = run("verify")
    assert code == 2 and f"{name} is damaged" in err and "PASSED" not in out
    assert all(part in err for part in ("found:", "expected:", "do:"))


def test_a_library_for_another_machine_is_named(run, board, toys):
    data = bytearray((board / "libtsm_model.so").read_bytes())
    data[18:20], data[4] = b"\x28\x00", 1
    (board / "libtsm_model.so").write_bytes(data)
    toys.seal(board)
    for arguments in (("verify",), ("verify", "--engine", "native"), ("bench",)):
        code, _, err = run(*arguments)
        assert code == 2 and "arm, 32 bits" in err and "tsm-export --target host" in err, err


def test_bench_times_steps(run):
    code, out, err = run("bench", "--steps", 5, "--json")
    report = json.loads(out)
    assert code == 0 and 0 < report["p50_ms"] <= report["p90_ms"] <= report["p99_ms"] and report["steps"] == 5, err
    assert report["trained"] is False and "UNTRAINED" in err and "5 classes, input 28x20, 2 caches" in err
    assert "step p50" in run("bench", "--steps", 5)[1]


@pytest.mark.parametrize("arguments, words", [
    (("bench", "--steps", 0), "--steps"), (("bench", "--threads", 65), "threads"), (("bench", "--threads", -1), "threads"),
    (("verfy",), "did you mean 'verify'"), (("verify", "--engine", "nativ"), "did you mean 'native'"),
    (("verify", "--engine", "tvm"), "pip install"), (("verify", "--engine", "torch"), "cannot run a bundle"),
    (("bench", "net.pth"), "no torch")])
def test_what_cannot_be_is_refused_in_words(run, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.pth").write_bytes(b"")
    code, out, err = run(*arguments)
    assert code == 2 and words in err and all(part in err for part in ("found:", "expected:", "do:")) and out == "", err


def test_without_a_command_it_says_what_there_is(run):
    code, out, _ = run()
    assert code == 0 and all(word in out for word in ("verify", "demo", "bench", "Python 3.6"))
    assert run("--help")[1] == out and "usage: python3 tsm_edge.pyz verify" in run("verify", "--help")[1]


def test_a_missing_numpy_is_said(board):
    done = subprocess.run([sys.executable, "-S", "-I", board / "device" / "tsm_edge.pyz", "verify"], capture_output=True, text=True)
    assert done.returncode == 2 and "numpy is not installed" in done.stderr and "python3-numpy" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_old_python_is_told_which_it_needs(board):
    """The first lines of the program, which an old Python must be able to read, too."""
    code = "import sys, zipfile; sys.version_info = (2, 7); exec(zipfile.ZipFile('tsm_edge.pyz').read('__main__.py'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=board / "device")
    assert done.returncode == 1 and "needs Python 3.6 or newer, this is 2.7" in done.stderr and "Traceback" not in done.stderr


def test_an_installed_package_does_not_take_the_zipped_ones_place(board, bare_python, tmp_path):
    (tmp_path / "installed" / "tsm_edge").mkdir(parents=True)
    (tmp_path / "installed" / "tsm_edge" / "__init__.py").write_text("raise ImportError('the installed one')")
    command, environment = bare_python()
    environment = {**environment, "PYTHONPATH": f"{tmp_path / 'installed'}:{environment['PYTHONPATH']}"}
    for arguments in (["-c", "import tsm_device; print('PASSED', tsm_device.load().bundle.folder)"], ["tsm_edge.pyz", "verify"],
                      ["tsm_device.py"]):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=board / "device", env=environment)
        assert "PASSED" in done.stdout and str(board) in done.stdout + done.stderr, done.stderr


def test_an_installed_package_that_is_imported_already_loads_the_bundle_too(board):
    assert python(board, "import tsm_edge.runtimes, tsm_device; print(tsm_device.load().bundle.folder)") == str(board)


def test_the_module_gives_the_recorded_logits_and_events(board, toys):
    code = ("import numpy as np, tsm_device; m = tsm_device.load(); s, e = m.stream(), m.events()\n"
            "frames = np.load('../golden.npz')['frames']; out = [s.step(f, t / 10.0) for t, f in enumerate(frames)]\n"
            "for t, r in enumerate(out): e.update(r, t / 10.0)\n"
            "print([[float(v) for v in r.logits] for r in out], e.label)")
    logits, label = python(board, code).rsplit(" ", 1)
    assert np.abs(np.array(json.loads(logits)) - toys.golden()["logits"]).max() < 1e-4 and label in toys.CLASSES
    done = subprocess.run([sys.executable, board / "device" / "tsm_device.py"], capture_output=True, text=True)
    assert done.returncode == 0 and "PASSED" in done.stdout


def test_the_python_lines_of_a_boards_readme_run_as_they_stand(board, bare_python, toys):
    from tsm_edge.export.bundle.readme import bundle_readme
    from tsm_edge.export.targets.boards import TARGETS

    text = bundle_readme(json.loads((board / "manifest.json").read_text()), TARGETS["jetson-nano"], board.name, [])
    lines = text.split("With nothing installed but numpy:")[1].split("or with the package")[0].splitlines()
    camera = "import numpy; camera = numpy.zeros((2, 30, 40, 3), numpy.uint8)"
    code = "\n".join([camera, *(line[4:] for line in lines), "print(result.label)"])
    command, environment = bare_python()
    done = subprocess.run([*command, "-c", code], capture_output=True, text=True, cwd=board.parent, env=environment)
    assert done.stdout.strip() in toys.CLASSES, done.stderr


def test_import_to_first_result_takes_less_than_a_second_of_work(board, bare_python):
    """Processor time, which a busy machine does not lengthen; there is nothing to wait for but the disk."""
    code = ("import sys, numpy as np, tsm_device; "
            "r = tsm_device.load().stream().step(np.zeros((480, 640, 3), np.uint8)); print(r.label, 'cv2' in sys.modules)")
    command, environment = bare_python()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "-c", code], capture_output=True, text=True, cwd=board / "device", env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.split()[1] == "False", done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_class_names_reach_a_terminal_that_knows_ascii_only(board, bare_python):
    command, environment = bare_python()
    code = "import sys; sys.path.insert(0, 'tsm_edge.pyz'); from tsm_edge import cli; cli.run(lambda argv: print('\\xd6ffnen \\u4e2d'))"
    environment = {**environment, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "-c", code], capture_output=True, cwd=board / "device", env=environment)
    assert (done.returncode, done.stdout) == (0, b"\\xd6ffnen \\u4e2d\n"), done.stderr


def test_a_reader_who_has_seen_enough_is_no_error(board):
    code = "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); sys.argv = ['tsm_edge.pyz', 'verify']; import runpy; " \
           "runpy.run_path('tsm_edge.pyz', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=board / "device")
    assert done.returncode == 0 and "rror" not in done.stderr, done.stderr
