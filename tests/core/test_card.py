"""One card for one network: whoever describes it says the same, and what cannot be used is refused with the same words."""
import copy
import json
import pathlib
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tsm_edge import card as cards
from tsm_edge import create_model
from tsm_edge.card import FIELDS, JESTER_DEMO, Card, amend, background_of, check, check_classes, event_rule, parse_size
from tsm_edge.checkpoints import load_checkpoint, load_into, save_checkpoint
from tsm_edge.errors import CheckpointError, InputError
from tsm_edge.export import cli as export_cli
from tsm_edge.export.bundle.describe import describe as describe_bundle
from tsm_edge.export.networks import from_checkpoint
from tsm_edge.export.targets.boards import get_target
from tsm_edge.jester import CLASSES
from tsm_edge.runtimes.engines.torch import TorchModel
from tsm_edge.sensitive import make_sensitive
from tsm_edge.shift import insert_shifts
from tsm_edge.step import StepNetwork, find_input_size

LAYOUT = json.loads((pathlib.Path(__file__).parent / "jester_checkpoint_layout.json").read_text())["tensors"]
BLOCKS = ("name", "trained", "classes", "input", "stream", "events", "network")
ODD = ["wave", "No-Gesture", "nothing", "BACKGROUND", "Doing_other  things", "no gestures at all"]
EVENTS = {"window": 4, "hold": 1, "on": 0.7, "off": 0.2, "merge": {"0": 1}, "ignore": [2], "background": [1]}


def blocks(manifest):
    return {name: manifest[name] for name in BLOCKS}


def of_bundle(net, **options):
    step = StepNetwork(net, options.get("input_size"))
    return describe_bundle(net, step, get_target("host"), step.num_classes, **options)


def small(**options):
    return create_model("mobilenet_v2", options.pop("num_classes", 6), width=0.25, input_size=32, **options)


def saved(path, net, **meta):
    save_checkpoint(path, net, **meta)
    return path


# --- the same network, the same description --------------------------------------------------------------------------


def published(folder):
    torch.save({name: torch.tensor(1) if name.endswith("num_batches_tracked") else torch.rand(shape) * 0.1 + 0.1
                for name, shape in LAYOUT.items()}, folder / "online.pth.tar")
    return folder / "online.pth.tar"


def test_the_published_checkpoint_is_described_as_its_own_demo_runs_it(tmp_path):
    path = published(tmp_path)
    expected = {
        "name": "mobilenet_v2-jester", "trained": True, "classes": list(CLASSES),
        "input": {"width": 224, "height": 224, "colour": "RGB", "resize": "crop", "shorter_side": 256, "filter": "antialias",
                  "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "camera": "direct"},
        "stream": {"fps": 0.0, "max_gap_seconds": 1.0},
        "events": {"window": 12, "hold": 2, "on": 0.0, "off": 0.0, "merge": {"0": 2}, "ignore": [7, 8, 21, 22, 3], "background": [2]},
        "network": {"arch": "mobilenet_v2", "width": 1.0, "fold_div": 8, "past": [0, 1], "n_segment": 8}}
    assert blocks(TorchModel(path).manifest) == expected
    assert blocks(of_bundle(from_checkpoint(path))) == expected
    assert load_checkpoint(path).card.manifest() == expected


@pytest.mark.parametrize("names", [ODD, None, [f"gesture {i}" for i in range(6)]])
@pytest.mark.parametrize("said", [
    {}, {"trained": True}, {"trained": True, "events": EVENTS, "fps": 4}, {"model_name": "mine", "resize": "squash", "filter": "bilinear"},
    {"trained": True, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1], "max_gap_seconds": 3}])
def test_our_own_checkpoints_say_the_same_everywhere(names, said, tmp_path):
    path = saved(tmp_path / "own.pth", small(classes=names, past=(1, 2), fold_div=4, n_segment=4), **said)
    bundle = blocks(of_bundle(from_checkpoint(path)))
    assert blocks(TorchModel(path).manifest) == bundle == load_checkpoint(path).card.manifest()
    assert bundle["network"] == {"arch": "mobilenet_v2", "width": 0.25, "fold_div": 4, "past": [1, 2], "n_segment": 4}
    assert bundle["classes"] == (names or [f"class {i}" for i in range(6)])
    assert bundle["events"] == said.get("events", {
        "window": 12, "hold": 2, "on": 0.3, "off": 0.2, "merge": {}, "ignore": [], "background": [1, 2, 3, 4] if names == ODD else []})
    assert bundle["name"] == said.get("model_name", "mobilenet_v2" if said.get("trained") else "mobilenet_v2-untrained")
    assert (bundle["stream"]["fps"], bundle["input"]["mean"]) == (said.get("fps", 0), said.get("mean", [0.485, 0.456, 0.406]))
    assert bundle["input"]["shorter_side"] == (0 if "resize" in said else 37)


@pytest.mark.parametrize("kind", ["reference mobilenet", "reference resnet", "mmaction2 mobilenet", "mmaction2 resnet"])
def test_checkpoints_of_others_say_the_same_everywhere(kind, others, clip, tmp_path):
    weights = dict(others.foreign(kind, clip, 6)[0])
    if "mmaction2" in kind:
        weights["data_preprocessor.mean"] = torch.tensor([127.5, 102.0, 51.0])
    torch.save({"state_dict": weights}, tmp_path / "best.pth")
    arch = "mobilenet_v2" if "mobilenet" in kind else "resnet50"
    options = {"input_size": (64, 48), "past": (1, 2), "classes": ODD}
    net = create_model(arch, checkpoint=tmp_path / "best.pth", **options)
    got = blocks(TorchModel(net).manifest)
    assert got == blocks(of_bundle(from_checkpoint(tmp_path / "best.pth", **options)))
    assert got["trained"] and got["events"]["background"] == [1, 2, 3, 4] and got["network"]["past"] == [1, 2]
    assert got["input"]["mean"] == pytest.approx([0.5, 0.4, 0.2] if "mmaction2" in kind else [0.485, 0.456, 0.406])


def test_plain_weights_of_a_resnet_say_the_same_everywhere(tmp_path):
    torch.save(create_model("resnet18", 6, shift=None).state_dict(), tmp_path / "plain.pth")
    options = {"input_size": (64, 64), "past": (0, 1), "classes": ODD}
    got = blocks(TorchModel(create_model("resnet18", checkpoint=tmp_path / "plain.pth", **options)).manifest)
    assert got == blocks(of_bundle(from_checkpoint(tmp_path / "plain.pth", **options)))
    assert (got["name"], got["trained"]) == ("resnet18", True)


class Mine(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 6, 1)
        insert_shifts(self, lambda name, block: name == "head", placement="inplace")
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.head(self.body(x).relu()).mean((2, 3))


@pytest.mark.parametrize("said", [{}, {"tsm_info": {"classes": ODD, "trained": False}}, {"card": Card({"name": "mine", "classes": ODD})}])
def test_a_network_of_ones_own_says_the_same_everywhere(said):
    net = Mine(**said)
    amend(net, input_size=(32, 24))
    got = blocks(TorchModel(net).manifest)
    assert got == blocks(of_bundle(net))
    assert got["trained"] is ("tsm_info" not in said) and (got["input"]["width"], got["input"]["height"]) == (32, 24)
    assert got["name"] == {"tsm_info": "Mine-untrained", "card": "mine"}.get("".join(said), "Mine")
    assert got["events"]["background"] == ([1, 2, 3, 4] if said else [])


def test_the_onnx_file_says_what_the_checkpoint_says(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx (extra [export]) is not installed")
    from tsm_edge.export.graph.write import export_onnx

    path = saved(tmp_path / "own.pth", small(classes=ODD), trained=True, fps=4)
    net = from_checkpoint(path)
    export_onnx(StepNetwork(net), tmp_path / "model.onnx", of_bundle(net))
    meta = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "model.onnx")).metadata_props}
    assert blocks(json.loads(meta["tsm_edge.manifest"])) == blocks(TorchModel(path).manifest)


def test_whoever_is_given_a_value_is_heard_before_the_checkpoint(tmp_path):
    path = saved(tmp_path / "own.pth", small(classes=ODD), trained=True, fps=4, events=EVENTS)
    renamed = [f"{name}!" for name in ODD]
    net = from_checkpoint(path, classes=renamed, input_size=(48, 40))
    assert blocks(TorchModel(create_model("mobilenet_v2", checkpoint=path, classes=renamed, input_size=(48, 40))).manifest) \
        == blocks(of_bundle(net))
    told = of_bundle(net, name="told", trained=False, fps=9, resize="squash", max_gap_seconds=0, classes=ODD, events=dict(EVENTS, hold=3))
    assert (told["name"], told["trained"], told["stream"], told["classes"]) == ("told", False, {"fps": 9, "max_gap_seconds": 0}, ODD)
    assert told["events"]["hold"] == 3 and told["input"]["resize"] == "squash" and of_bundle(net)["events"] == EVENTS


def test_weights_loaded_into_a_network_bring_what_is_known_of_them(tmp_path):
    path = saved(tmp_path / "own.pth", small(classes=ODD), trained=True, fps=4, events=EVENTS, mean=(0.5, 0.5, 0.5))
    net = small()
    load_into(net, path)
    assert blocks(of_bundle(net)) == blocks(TorchModel(path).manifest)
    other = small()
    load_into(other, path, head=False)
    assert not other.card.trained and other.card.classes is None


# --- one refusal for one fault ---------------------------------------------------------------------------------------


def words(call, *args, **options):
    """(the last words of the problem, what is expected, what to do) of a refusal."""
    with pytest.raises(InputError) as error:
        call(*args, **options)
    own = isinstance(error.value, CheckpointError)  # names its file first, and what to do about it
    return error.value.problem.split(": ")[-1], error.value.found, error.value.expected, "" if own else error.value.do


def export_with(*argv):
    args = export_cli._parser().parse_args(["--target", "host", "--random-weights", *argv])
    return export_cli.make_network(args, export_cli.read_classes(args.classes) if args.classes else None)


def train_with(*argv):
    pytest.importorskip("cv2", reason="OpenCV (extra [train]) is not installed")
    from tsm_edge.training.options import fill_in, parser

    return fill_in(parser().parse_args(["--data", "clips", *argv]))


@pytest.mark.parametrize("width", [6.0, 0.05, float("nan")])
def test_a_width_is_refused_with_the_same_words_everywhere(width, tmp_path):
    path = saved(tmp_path / "own.pth", small(), width=width)
    refusals = [words(create_model, "mobilenet_v2", 6, width=width), words(export_with, "--width", str(width)),
                words(train_with, "--width", str(width)), words(check, "width", width)]
    assert set(refusals) == {("the network's width cannot be used", f"width={width}", "a width multiplier, 0.1 to 4",
                              "for example width=1.4, or --width 1.4")}
    assert words(load_checkpoint, path)[:3] == refusals[0][:3]


@pytest.mark.parametrize("size", [(3000, 3000), (7, 7), (32, 2049)])
def test_an_input_size_is_refused_with_the_same_words_everywhere(size, tmp_path):
    path, text = saved(tmp_path / "own.pth", small(), input_size=size), "{}x{}".format(*size)
    refusals = [words(create_model, "mobilenet_v2", 6, input_size=size), words(export_with, "--input-size", text),
                words(train_with, "--input-size", text), words(StepNetwork, small(), size), words(find_input_size, None, size),
                words(find_input_size, SimpleNamespace(tsm_info={"input_size": size})), words(of_bundle, small(), input_size=size)]
    assert set(refusals) == {("the network's input size cannot be used", f"input_size={size}", "pixels a side, or (width, height), each "
                              "8 to 2048", "for example input_size=(224, 224), or --input-size 224x224")}
    assert words(load_checkpoint, path)[:3] == refusals[0][:3]


@pytest.mark.parametrize("classes, found", [(list("abcdea"), "'a' twice"), (["a", "b"], "2 names"),
                                            (list("abcde") + [" "], "['a', 'b', 'c', 'd', 'e', ' ']")])
def test_class_names_are_refused_with_the_same_words_everywhere(classes, found, tmp_path):
    path = saved(tmp_path / "own.pth", small(), classes=classes)
    refusals = [words(create_model, "mobilenet_v2", 6, classes=classes), words(check_classes, classes, 6),
                words(of_bundle, small(), classes=classes), words(from_checkpoint, saved(tmp_path / "good.pth", small()), classes=classes)]
    assert set(refusals) == {("the class names cannot be used", found, "6 different names, one for each output",
                              "for example classes=['left', 'right'] for a network with two outputs")}
    assert words(load_checkpoint, path)[:2] == refusals[0][:2]
    (tmp_path / "names.txt").write_text("\n".join(classes))
    if " " not in classes:
        assert words(export_with, "--num-classes", "6", "--classes", str(tmp_path / "names.txt"))[1] == found


def test_names_in_a_file_are_read_by_the_same_rule(tmp_path):
    pytest.importorskip("cv2", reason="OpenCV (extra [train]) is not installed")
    from tsm_edge.training.data.listing import read_classes

    (tmp_path / "names.txt").write_text("a\nb\na\n")
    assert words(read_classes, tmp_path / "names.txt")[1:3] == words(export_cli.read_classes, tmp_path / "names.txt")[1:3] \
        == words(check_classes, list("aba"))[1:3] == ("'a' twice", "different names")


@pytest.mark.parametrize("name, wrong", [
    ("name", 7), ("name", ""), ("model_name", 7), ("num_classes", 0), ("num_classes", True), ("num_classes", 2.0), ("width", "wide"),
    ("width", True), ("rounding", "up"), ("input_size", "224"), ("input_size", (224, 224, 3)), ("input_size", 224.0), ("input_size", True),
    ("shift", "both"), ("past", (1, 1)), ("past", "01"), ("past", (0.5, 1)), ("future", 3), ("fold_div", 0), ("n_segment", "8"),
    ("placement", "behind"), ("mean", "abc"), ("mean", 3), ("mean", (0, 0)), ("mean", (0, 0, float("nan"))), ("std", (0, 0, 0)),
    ("resize", "fit"), ("filter", ["antialias"]), ("fps", -1), ("fps", float("inf")), ("fps", 10 ** 400), ("trained", "yes"),
    ("events", 3), ("notes", [3]), ("checkpoint", "own")])
def test_what_a_card_cannot_say_is_refused_by_name(name, wrong):
    with pytest.raises(InputError, match=f"the network's {name.replace('_', ' ')} cannot be used") as error:
        Card({name: wrong})
    assert error.value.found == f"{name}={wrong!r}"[:200] and error.value.expected and error.value.do.startswith("for example ")


@pytest.mark.parametrize("classes", [[1, 2], "ab", 5, [], ["a", ""], {"a": 1, "b": 2}, None])
def test_what_are_no_names_is_refused(classes):
    with pytest.raises(InputError, match="class names cannot be used") as error:
        check_classes(classes, 2)
    assert error.value.found == repr(classes) and error.value.expected == "2 different names, one for each output"


def test_sizes_are_read_as_they_are_typed():
    assert parse_size("224") == (224, 224) and parse_size(" 256x192 ") == parse_size("256X192") == (256, 192)
    for text in ("", "2x", "x2", "99999", "a", "224*224", "224x", "-5", "64.5", "9" * 5000):
        with pytest.raises(InputError, match="input size cannot be used"):
            parse_size(text)


# --- what a card is --------------------------------------------------------------------------------------------------


def test_a_card_says_what_it_was_told_else_what_is_usual():
    card = Card({"width": 0.5, "fps": None, "shift": None, "training": {"epochs": 3}})
    assert card.said == {"width": 0.5, "shift": None} and (card.width, card.fold_div, card.past, card.trained) == (0.5, 8, None, True)
    assert card["width"] == 0.5 and dict(card).keys() == FIELDS.keys() and "training" not in card
    assert card.but(width=None, fps=4, trained=False).said == {"width": 0.5, "shift": None, "fps": 4.0, "trained": False}
    with pytest.raises(TypeError, match="no fpss"):
        card.but(fpss=4)
    with pytest.raises(AttributeError):
        card.trained = False
    with pytest.raises(TypeError):
        card["trained"] = False
    with pytest.raises(AttributeError, match="a card has no colour"):
        card.colour  # noqa: B018
    assert copy.deepcopy(card) == card == pickle.loads(pickle.dumps(card)) and copy.deepcopy(card).said == card.said
    assert all(check(name, usual) == usual for name, (usual, *_) in FIELDS.items() if usual not in (None, ()))


def test_a_network_shows_its_card_also_under_the_old_name():
    net = small(classes=ODD)
    assert net.tsm_info is net.card and net.tsm_info["classes"] == ODD and dict(net.tsm_info)["input_size"] == (32, 32)
    assert copy.deepcopy(net).card == net.card and "card" not in "".join(net.state_dict())
    with pytest.raises(AttributeError):
        net.tsm_info = {}


def test_random_weights_say_so_wherever_a_network_says_anything():
    ours, plain, dumb = small(), Mine(tsm_info={"trained": True, "n_segment": 4, "more": 1}), Mine()
    amend(ours, trained=True)
    for net in (ours, plain, dumb):
        make_sensitive(net, 0, torch.rand(4, 3, 32, 32))
        assert Card.of(net).trained is False
    assert plain.tsm_info == {"trained": False, "n_segment": 4, "more": 1} and Card.of(plain).name == "Mine"


def test_whoever_says_that_nothing_happens_is_background_however_it_is_written():
    assert background_of(ODD) == [1, 2, 3, 4] and background_of(["NO  GESTURE", " nothing ", "Nothing else"]) == [0, 1]
    assert background_of(CLASSES) == [0, 2] and event_rule(CLASSES, False)["background"] == [0, 2]
    assert event_rule(CLASSES, True) == JESTER_DEMO and event_rule(CLASSES[:26], True)["on"] == 0.3


def test_a_card_needs_nothing_but_python_and_an_old_one():
    pytest.importorskip("vermin", reason="vermin (extra [test]) is not installed")
    command = [sys.executable, "-c", "import vermin; vermin.main()", "-t=3.6-", "--no-tips", "--violations", cards.__file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    code = "import sys; sys.modules.update(torch=None, numpy=None)\nfrom tsm_edge.card import Card\nprint(Card().manifest(2)['classes'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "['class 0', 'class 1']\n"
