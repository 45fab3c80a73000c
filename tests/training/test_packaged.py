"""The recipe of the packaged model: its commands are ones that the tools take, and each begins with what the one before wrote."""
import subprocess

import pytest

pytest.importorskip("torch", reason="torch (extra [train]) is not installed")

from tsm_edge.errors import CheckFailedError  # noqa: E402
from tsm_edge.training import options, packaged  # noqa: E402

ARGV = ["--init", "features.pth", "--people", "people.npz", "--photos", "a", "b", "--output", "out", "--clips-per-class", "7"]


def test_its_steps_are_taken_and_follow_from_each_other():
    steps = packaged.steps(packaged.parser().parse_args(ARGV))
    runs = [step for step in steps if not isinstance(step, packaged.Average)]
    parsed = [options.parser().parse_args(line[line.index("tsm_edge.training.train") + 1:]) for line in runs]
    for args in parsed:
        options.check(args)
    assert [args.init for args in parsed] == ["features.pth", "out/calm/final.pth", "out/full/final.pth", "out/mean.pth"]
    assert [args.output for args in parsed] == ["out/calm", "out/full", "out/last", "out/again"]
    assert parsed[0].people is None and all(args.people == "people.npz" and args.photos == ["a", "b"] for args in parsed[1:])
    assert [args.render_seed for args in parsed] == [0, 0, 1, 2] and {args.seed for args in parsed} == {0}
    assert {args.clips_per_class for args in parsed} == {7}
    written = {"features.pth"}
    for step in steps:  # each takes what an earlier one wrote
        if isinstance(step, packaged.Average):
            assert set(step.paths) <= written
            written.add(step.made)
        else:
            args = parsed[runs.index(step)]
            assert args.init in written
            written.add(f"{args.output}/final.pth")
    assert steps[-1].made == "out/gestures.pth"


def test_a_command_that_fails_ends_the_recipe(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **k: ran.append(command) or subprocess.CompletedProcess(command, len(ran) - 1))
    with pytest.raises(CheckFailedError, match="a command of the recipe failed"):
        packaged._main(ARGV)
    assert len(ran) == 2


def test_the_average_is_that_of_the_values(checkpoint, tmp_path):
    import torch

    from tsm_edge.checkpoints import load_checkpoint, save_checkpoint
    from tsm_edge.training.networks import open_network

    first, second = checkpoint(), tmp_path / "second.pth"
    net = open_network(first)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.mul_(3.0) if value.is_floating_point() else value.add_(5)
    save_checkpoint(second, net, metrics={"top1": 0.5})
    packaged.average((first, second), tmp_path / "mean.pth")
    before, after = load_checkpoint(first), load_checkpoint(tmp_path / "mean.pth")
    assert after.card.classes == before.card.classes and "metrics" not in after.extra
    for name, value in before.state_dict.items():
        assert torch.allclose(after.state_dict[name], value * 2 if value.is_floating_point() else value + 5), name


def test_half_the_file_holds_the_same_network(checkpoint):
    import torch

    from tsm_edge.checkpoints import load_checkpoint

    path = checkpoint()
    before, size = load_checkpoint(path), path.stat().st_size
    packaged.finish(path)
    after = load_checkpoint(path)
    assert path.stat().st_size < 0.62 * size and after.card.model_name == "gestures" and after.card.classes == before.card.classes
    assert all(after.card.events[key] == value for key, value in packaged.EVENTS.items())
    assert all(torch.allclose(after.state_dict[k].float(), v.float(), rtol=1e-3, atol=1e-4) for k, v in before.state_dict.items())
