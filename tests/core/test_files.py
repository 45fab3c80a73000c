import os
import resource
import subprocess
import sys

import pytest

from tsm_edge.errors import InputError
from tsm_edge.files import made_beside, part_of, remove_dead, written_whole


def test_a_file_appears_at_the_end_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path) as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.name == "a.txt"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_broken_off_writing_changes_nothing(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), written_whole(path) as part:
        part.write_text("half")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
        with pytest.raises(InputError, match="a.txt cannot be written"), written_whole(tmp_path / "a.txt") as part:
            part.write_bytes(bytes(9000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert os.listdir(tmp_path) == []


def test_missing_folders_are_made_only_if_asked(tmp_path):
    path = tmp_path / "b" / "a.txt"
    with pytest.raises(InputError, match="a.txt cannot be written"), written_whole(path):
        pass
    assert os.listdir(tmp_path) == []
    with written_whole(path, parents=True) as part:
        part.write_text("new")
    assert path.read_text() == "new"


def test_a_folder_is_made_beside_its_place(tmp_path):
    with made_beside(tmp_path / "c") as part:
        (part / "x").write_text("1")
        part.rename(tmp_path / "c")
    assert os.listdir(tmp_path) == ["c"] and os.listdir(tmp_path / "c") == ["x"]


def test_what_a_killed_process_left_is_removed_the_next_time(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / part_of("a.txt").replace(str(os.getpid()), str(gone.pid))
    left.mkdir()
    (left / "a.txt").write_text("half")
    with written_whole(tmp_path / "a.txt") as part:
        part.write_text("new")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_parts_of_others_that_live_are_left_alone(tmp_path):
    mine, other = tmp_path / part_of("c"), tmp_path / f".c.part-elsewhere-{2 ** 22 + 1}"
    mine.mkdir(), other.mkdir()
    remove_dead(tmp_path, "c")
    assert mine.is_dir() and other.is_dir()
