"""Every wrong option is refused before any work: what was found, what was expected, what to do, and exit code 2."""
import errno
import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest

from tsm_edge import default
from tsm_edge.export import cli
from tsm_edge.export.bundle.report import ExportReport


def refuse(capsys, *argv):
    """Run tsm-export, expect a refusal; returns its text."""
    with pytest.raises(SystemExit) as leave:
        cli.main(list(argv))
    assert leave.value.code == 2
    out, error = capsys.readouterr()
    assert out == "" and "found:" in error and "expected:" in error and "do:" in error
    return error


def test_the_targets_are_listed(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["--list-targets"])
    out = capsys.readouterr().out
    assert leave.value.code == 0
    assert "jetson-nano" in out and "cortex-a57" in out and "glibc 2.27" in out and "libtsm_model.a + CMake" in out
    with pytest.raises(SystemExit):
        cli.main(["--list-targets", "--json"])
    assert {t["name"] for t in json.loads(capsys.readouterr().out)} >= {"jetson-nano", "pixel-1"}


def test_a_mistyped_target_is_refused_with_the_nearest(capsys):
    assert "did you mean 'raspberry-pi-4'?" in refuse(capsys, "--target", "rasberry-pi-4", "--random-weights")


def test_no_target_is_refused(capsys):
    assert "--list-targets" in refuse(capsys, "--random-weights")


def test_no_weights_are_refused_with_the_two_ways_out(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(default, "DEFAULT_CHECKPOINT", Path("no such file"))
    text = refuse(capsys, "--target", "host", "--output", str(tmp_path / "b"))
    assert "--checkpoint FILE" in text and "--random-weights" in text and not os.listdir(tmp_path)


def test_checkpoint_and_random_weights_exclude_each_other(capsys, tmp_path):
    assert "exclude" in refuse(capsys, "--target", "host", "--random-weights", "--checkpoint", "x", "--output",
                               str(tmp_path / "b"))


def test_a_mistyped_architecture_is_refused_with_the_nearest(capsys, tmp_path):
    text = refuse(capsys, "--target", "host", "--random-weights", "--arch", "resnet5", "--output", str(tmp_path / "b"))
    assert "did you mean 'resnet50'?" in text


@pytest.mark.parametrize("size", ["224x", "x224", "0x0", "7x224", "9999x224", "224*224"])
def test_a_wrong_input_size_is_refused(capsys, tmp_path, size):
    text = refuse(capsys, "--target", "host", "--random-weights", "--input-size", size, "--output", str(tmp_path / "b"))
    assert (size in text or "input_size=(" in text) and "--input-size 224x224" in text


def test_a_folder_of_somebody_else_is_refused_before_the_work(capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    text = refuse(capsys, "--target", "host", "--random-weights", "--output", str(tmp_path))
    assert "thesis.tex" in text and "--output" in text and (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("content, word", [("", "[]"), ("a\nb\na\n", "'a' twice"), ("a\n\nb\n", "['a', '', 'b']")])
def test_an_unusable_class_list_is_refused(capsys, tmp_path, content, word):
    (tmp_path / "labels.txt").write_text(content)
    text = refuse(capsys, "--target", "host", "--random-weights", "--classes", str(tmp_path / "labels.txt"),
                  "--output", str(tmp_path / "b"))
    assert word in text


def test_a_missing_class_list_is_refused(capsys, tmp_path):
    assert "nowhere.txt" in refuse(capsys, "--target", "host", "--random-weights", "--classes",
                                   str(tmp_path / "nowhere.txt"), "--output", str(tmp_path / "b"))


def test_a_class_list_of_the_wrong_length_is_refused(capsys, tmp_path):
    pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
    (tmp_path / "labels.txt").write_text("left\nright\n")
    text = refuse(capsys, "--target", "host", "--random-weights", "--num-classes", "5", "--classes",
                  str(tmp_path / "labels.txt"), "--output", str(tmp_path / "b"))
    assert "2 names" in text and "5" in text


@pytest.mark.parametrize("frames, word", [(np.zeros((16, 8, 8, 3), np.float32), "float32"),
                                          (np.zeros((3, 8, 8, 3), np.uint8), "[3, 8, 8, 3]"),
                                          (np.zeros((16, 8, 8, 3), np.uint8), "all the same")])
def test_unusable_frames_are_refused(capsys, tmp_path, frames, word):
    np.save(tmp_path / "f.npy", frames)
    text = refuse(capsys, "--target", "host", "--random-weights", "--frames", str(tmp_path / "f.npy"), "--output",
                  str(tmp_path / "b"))
    assert word in text and ("T >= 16" in text or "moving" in text)


def test_a_missing_checkpoint_is_refused(capsys, tmp_path):
    pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
    text = refuse(capsys, "--target", "host", "--checkpoint", str(tmp_path / "none.pth"), "--output",
                  str(tmp_path / "b"))
    assert "none.pth" in text and os.listdir(tmp_path) == []


@pytest.mark.parametrize("option", ["--checkpoint", "--output", "--classes", "--input-size", "--past", "--name", "--cc", "--frames",
                                    "--target"])
def test_an_empty_option_is_not_a_missing_one(capsys, tmp_path, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    assert f"{option} is empty" in refuse(capsys, "--target", "host", option, "")
    assert os.listdir(tmp_path) == []


def test_a_refusal_is_json_too(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["--target", "host", "--checkpoint", "none.pth", "--threads", "2", "--classes", "none.txt", "--json"])
    got = json.loads(capsys.readouterr().out)
    assert leave.value.code == 2 and got["status"] == "refused" and "none.txt" in got["problem"] and got["do"]


@pytest.mark.parametrize("output", ["afile/b", "x" * 300, "/proc/tsm-edge/b"])
def test_where_nothing_can_be_written_is_refused_before_the_work(capsys, tmp_path, monkeypatch, output):
    (tmp_path / "afile").write_text("")
    monkeypatch.chdir(tmp_path)
    text = refuse(capsys, "--target", "host", "--random-weights", "--output", output)
    assert "cannot be written" in text and "read the network" not in text and os.listdir(tmp_path) == ["afile"]


def test_a_full_disk_is_said_in_words(capsys, monkeypatch):
    def full(args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cli, "_export", full)
    assert "the disk is full" in refuse(capsys, "--target", "host")


@pytest.mark.parametrize("target, folder, commands", [
    ("host", "dist/my own", ["tsm-verify 'dist/my own'", "tsm-demo 'dist/my own' --source 0"]),
    ("jetson-nano", "dist/nano", ["scp -r dist/nano USER@BOARD:", "ssh USER@BOARD python3 nano/device/tsm_edge.pyz verify"])])
def test_the_next_commands_can_be_pasted(target, folder, commands):
    report = ExportReport("m", target, folder, False, "fp32", 1, library="libtsm_model.so")
    assert cli._next_commands(report)[:2] == commands


def test_the_next_command_for_the_board_is_quoted_for_both_shells():
    command = cli._next_commands(ExportReport("m", "jetson-nano", "my own", False, "fp32", 1))[1]
    assert shlex.split(shlex.split(command)[3]) == ["my own/device/tsm_edge.pyz"]


def test_the_next_commands_verify_the_library_for_tvm_on_the_board_too():
    report = ExportReport("m", "jetson-nano", "dist/my own", False, "fp32", 1, tvm={"library": "model_tvm.so"})
    command = shlex.split(cli._next_commands(report)[2], comments=True)
    assert command[:2] == ["ssh", "USER@BOARD"]
    assert shlex.split(" ".join(command[2:])) == ["python3", "my own/device/tsm_edge.pyz", "verify", "--engine", "tvm"]


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["--help"])
    assert leave.value.code == 0 and "tsm-export --target jetson-nano --checkpoint" in capsys.readouterr().out
