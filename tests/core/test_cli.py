"""Habits of all commands: tables, ranges, where the verdict goes."""
from types import SimpleNamespace

import pytest

from tsm_edge import cli
from tsm_edge.errors import InputError


def test_columns_of_numbers_stand_to_the_right_and_all_others_to_the_left():
    table = [("stage", "frames", "share", "note"), ("camera", "12", "7.5%", "first"), ("all of it", "3", "-", ""),
             ("x", "1200", "1.2e-05", "2nd")]
    assert cli.columns(table) == ["  stage      frames    share  note",
                                  "  camera         12     7.5%  first",
                                  "  all of it       3        -",
                                  "  x            1200  1.2e-05  2nd"]


@pytest.mark.parametrize("value, limits", [(0, (1, None)), (11, (1, 10)), (float("nan"), (0, None)), (-0.1, (0, 1))])
def test_numbers_out_of_range_are_refused_by_the_options_name(value, limits):
    with pytest.raises(InputError, match="--clip-size cannot be used") as error:
        cli.check_ranges(SimpleNamespace(clip_size=value), {"clip_size": limits})
    assert error.value.expected == (f"{limits[0]} or more" if limits[1] is None else f"{limits[0]} to {limits[1]}")


def test_what_was_left_out_is_in_every_range():
    cli.check_ranges(SimpleNamespace(size=None, count=5), {"size": (1, 2), "count": (5, 5), "of another command": (1, 2)})


def test_stdout_is_for_machines_where_they_read_it(capsys):
    cli.echo({"target": "host", "threads": 2})
    cli.verdict("PASSED for a person", False)
    cli.verdict("PASSED for a machine", True)
    captured = capsys.readouterr()
    assert captured.out == "PASSED for a person\n"
    assert captured.err == "options: target=host, threads=2\nPASSED for a machine\n"
