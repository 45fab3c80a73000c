"""The recipe of the packaged model: its commands are ones that the tools take, and each begins with what the one before wrote."""
import subprocess

import pytest

pytest.importorskip("torch", reason="torch (extra [train]) is not installed")

from tsm_edge.errors import CheckFailedError  # noqa: E402
from tsm_edge.training import options, packaged  # noqa: E402
from tsm_edge.training.evaluate import run as evaluate  # noqa: E402

ARGV = ["--init", "features.pth", "--people", "people.npz", "--photos", "a", "b", "--output", "out", "--clips-per-class", "7"]


def test_its_commands_are_taken_and_follow_from_each_other():
    lines = packaged.commands(packaged.parser().parse_args(ARGV))
    *runs, tuned = lines
    parsed = [options.parser().parse_args(line[line.index("tsm_edge.training.train") + 1:]) for line in runs]
    for args in parsed:
        options.check(args)
    assert [args.init for args in parsed] == ["features.pth", "out/calm/final.pth", "out/full/final.pth"]
    assert [args.output for args in parsed] == ["out/calm", "out/full", "out/last"]
    assert parsed[0].people is None and all(args.people == "people.npz" and args.photos == ["a", "b"] for args in parsed[1:])
    assert parsed[1].clips_per_class == 7 and parsed[2].render_seed == 1 and {args.seed for args in parsed} == {0}
    args = evaluate.parser().parse_args(tuned[tuned.index("tsm_edge.training.evaluate.run") + 1:])
    assert args.model == "out/last/final.pth" and args.tune_events == "out/gestures.pth"


def test_a_command_that_fails_ends_the_recipe(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **k: ran.append(command) or subprocess.CompletedProcess(command, len(ran) - 1))
    with pytest.raises(CheckFailedError, match="a command of the recipe failed"):
        packaged._main(ARGV)
    assert len(ran) == 2


def test_half_the_file_holds_the_same_network(checkpoint):
    import torch

    from tsm_edge.checkpoints import load_checkpoint

    path = checkpoint()
    before, size = load_checkpoint(path), path.stat().st_size
    packaged.halve(path)
    after = load_checkpoint(path)
    assert path.stat().st_size < 0.62 * size and after.card.model_name == "gestures" and after.card.classes == before.card.classes
    assert all(torch.allclose(after.state_dict[k].float(), v.float(), rtol=1e-3, atol=1e-4) for k, v in before.state_dict.items())
