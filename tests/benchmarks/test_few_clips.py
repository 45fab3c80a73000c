"""What a few clips are worth: how they are dealt out, mapped, and added up."""
import json
from types import SimpleNamespace

import pytest

from tsm_edge.benchmarks import few_clips
from tsm_edge.errors import CheckFailedError, InputError


@pytest.fixture
def clips(tmp_path):
    for folder, count in (("go-left", 5), ("other", 2), ("skipped", 1)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"{i + 8}.mp4").write_bytes(b"x")
    return tmp_path


def test_clips_are_dealt_out_once_each_by_the_order_of_their_numbers(clips):
    folds = few_clips.deal(clips, {"other": "Swiping Right", "skipped": "-"}, 2)
    names = [{name: [p.name for p in paths] for name, paths in fold.items()} for fold in folds]
    assert names == [{"go-left": ["8.mp4", "10.mp4", "12.mp4"], "Swiping Right": ["8.mp4"]},
                     {"go-left": ["9.mp4", "11.mp4"], "Swiping Right": ["9.mp4"]}]


def test_two_folders_of_one_class_are_one_and_keep_clips_of_the_same_name(clips, tmp_path):
    fold = few_clips.deal(clips, {"other": "go-left", "skipped": "-"}, 2)[0]
    laid = few_clips.lay_out(tmp_path / "laid", [fold])
    assert len(list((laid / "go-left").iterdir())) == 4


@pytest.mark.parametrize("pairs", [["left"], ["=left"], ["left="]])
def test_pairs_that_say_nothing_are_refused(pairs):
    with pytest.raises(InputError, match="--map cannot be used"):
        few_clips.mapped(pairs)


def test_too_few_clips_and_no_folder_are_refused(clips, tmp_path):
    with pytest.raises(InputError, match="too few clips in .*skipped"):
        few_clips.deal(clips, {}, 2)
    with pytest.raises(InputError, match="no clips at"):
        few_clips.deal(tmp_path / "nowhere", {}, 2)


def test_each_fold_is_judged_by_what_was_trained_on_the_others(clips, monkeypatch, capsys):
    """A stand-in for the commands: a model is right where it was trained on that very clip, the one as it is nowhere."""
    known, held = {}, []

    def run(module, *argv):
        if module == "train":
            argv = [str(a) for a in argv]
            data, output = argv[argv.index("--data") + 1], argv[argv.index("--output") + 1]
            known[output] = {p.name for p in few_clips.Path(data).rglob("*.mp4")}
            return {}
        model, data = str(argv[0]), argv[argv.index("--data") + 1]
        shown = {p.name for p in few_clips.Path(data).rglob("*.mp4")}
        held.append(shown)
        right = len(shown & known.get(model.replace("/final.pth", ""), set()))
        return {"clips": len(shown), "top1": right / len(shown), "clip_events": {"right": len(shown), "wrong": right}}

    monkeypatch.setattr(few_clips, "run", run)
    assert few_clips._main([str(clips), "--map", "skipped=-", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["before"] == found["after"] == found["alone"] == [7, 0, 7, 0]  # nothing was trained on what it is judged by
    assert len(held) == 6 and held[0] == held[1] == held[2] and not held[0] & held[3]


def test_a_command_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(few_clips.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=2, stderr="", stdout=""))
    with pytest.raises(CheckFailedError, match="train failed"):
        few_clips.run("train")
