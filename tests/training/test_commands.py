"""The training room's commands name what is missing, instead of a traceback."""
import os
import subprocess
import sys

import pytest

from tsm_edge.default import default_checkpoint

COMMANDS = {"gestures": ["--help"], "record": ["--help"], "train": ["--data", "gestures"],
            "eval": [str(default_checkpoint()), "--data", "gestures"]}


def without(fault, command, tmp_path):
    """(exit code, stderr) of a command where `import cv2` meets this fault."""
    (tmp_path / "cv2.py").write_text(fault)
    code = f"from tsm_edge.training.cli import {command}_main as main; main({COMMANDS[command]})"
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=str(tmp_path)), capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_opencv_is_named_with_the_extra_that_brings_it(command, tmp_path):
    code, err = without("raise ModuleNotFoundError('no cv2', name='cv2')", command, tmp_path)
    assert code == 2 and f"tsm-edge[{'demo' if command == 'gestures' else 'train'}]" in err and "Traceback" not in err


@pytest.mark.parametrize("command", ["gestures", "record"])
def test_an_opencv_that_cannot_be_loaded_is_said_with_the_way_out(command, tmp_path):
    code, err = without("raise ImportError('libGL.so.1: cannot open shared object file')", command, tmp_path)
    assert code == 2 and "libGL.so.1" in err and "libgl1" in err and "Traceback" not in err


def test_another_fault_is_not_hidden(tmp_path):
    code, err = without("import no_such_thing_at_all", "gestures", tmp_path)
    assert code == 1 and "no_such_thing_at_all" in err and "Traceback" in err
