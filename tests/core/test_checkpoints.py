import json
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from tsm_edge import create_model
from tsm_edge.checkpoints import load_checkpoint, load_into, save_checkpoint
from tsm_edge.errors import CheckFailedError, CheckpointError, InputError
from tsm_edge.jester import CLASSES
from tsm_edge.shift import find_shifts, set_segments

LAYOUT = json.loads((pathlib.Path(__file__).parent / "jester_checkpoint_layout.json").read_text())["tensors"]


def published(seed=0):
    """A flat OrderedDict with exactly the names, order and shapes of the published checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in LAYOUT.items():
        counter = name.endswith("num_batches_tracked")
        weights[name] = torch.tensor(1) if counter else torch.rand(shape, generator=generator) * 0.1 + 0.1
    return weights


def write(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.fixture
def published_file(tmp_path):
    return write(tmp_path / "online.pth.tar", published(), _use_new_zipfile_serialization=False)


def test_the_published_checkpoint_loads_in_its_legacy_serialisation(published_file):
    assert published_file.read_bytes()[:2] != b"PK"
    loaded = load_checkpoint(published_file)
    assert torch.equal(create_model("mobilenet_v2", checkpoint=loaded).classifier.bias, published()["classifier.bias"])
    assert (loaded.kind, loaded.card.name, loaded.card.num_classes, loaded.card.width) == ("published", "mobilenet_v2", 27, 1.0)
    assert loaded.card.classes == list(CLASSES) and loaded.card.past == (0, 1) and loaded.card.shift == "online"
    net = create_model("mobilenet_v2", 27, checkpoint=published_file)
    weights = published()
    assert list(net.state_dict()) == list(weights) and len(weights) == 314
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    card = net.card
    assert card.trained and card.classes == list(CLASSES) and card.past == (0, 1) and card.future is None
    assert card.notes == [] and len(find_shifts(net)) == 10


def test_our_network_has_the_published_names_and_shapes():
    state = create_model("mobilenet_v2", 27).state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == LAYOUT and list(state) == list(LAYOUT)


@pytest.mark.parametrize("kind, legacy", [("reference mobilenet", False), ("reference mobilenet", True), ("reference resnet", True),
                                          ("mmaction2 mobilenet", False), ("mmaction2 resnet", False)])
def test_networks_trained_elsewhere_compute_the_same_here(kind, legacy, others, clip, tmp_path):
    weights, expected = others.foreign(kind, clip)
    first = {"reference mobilenet": "module.base_model.features.3.conv.0.net.weight",
             "reference resnet": "module.base_model.layer1.0.conv1.net.weight",
             "mmaction2 mobilenet": "backbone.layer2.1.conv.0.net.conv.weight",
             "mmaction2 resnet": "backbone.layer1.0.conv1.conv.net.weight"}[kind]
    assert first in weights and ("module.new_fc.weight" if "reference" in kind else "cls_head.fc_cls.weight") in weights
    path = write(tmp_path / "best.pth.tar", {"epoch": 3, "arch": "x", "state_dict": weights, "best_prec1": torch.tensor(9.0)},
                 _use_new_zipfile_serialization=not legacy)
    loaded = load_checkpoint(path)
    arch = "mobilenet_v2" if "mobilenet" in kind else "resnet50"
    assert (loaded.kind, loaded.card.name, loaded.card.num_classes) == (kind.split()[0], arch, 27)
    assert (loaded.card.shift, loaded.card.future, loaded.card.past) == ("offline", (0, 1), (1, 2))
    net = set_segments(create_model(arch, 27, input_size=64, shift="offline", checkpoint=path), len(clip)).eval()
    with torch.no_grad():
        got = net(clip)
    assert float((expected.max(0).values - expected.min(0).values).max()) > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert net.card.trained and net.card.checkpoint["kind"] == loaded.kind


def test_a_bidirectional_checkpoint_runs_online_only_if_the_caller_says_how(others, clip, tmp_path):
    path = write(tmp_path / "b.pth", {"state_dict": others.foreign("reference mobilenet", clip)[0]})
    with pytest.raises(CheckpointError) as error:
        create_model("mobilenet_v2", 27, checkpoint=path)
    assert "both directions, future=(0, 1), past=(1, 2)" in error.value.found
    assert "past=(1, 2)" in error.value.do and "shift='offline'" in error.value.do
    net = create_model("mobilenet_v2", 27, past=(1, 2), checkpoint=path)
    assert net.card.past == (1, 2) and net.card.future is None
    assert len(net.card.notes) == 1 and "as asked for" in net.card.notes[0]
    assert all(shift.past == (1, 2) and shift.future is None for _, shift in find_shifts(net))


def test_weights_trained_without_shifts_are_recognised(others, clip, tmp_path):
    path = write(tmp_path / "tsn.pth", {"state_dict": others.foreign("mmaction2 resnet", clip, shift=False)[0]})
    assert load_checkpoint(path).card.shift is None
    with pytest.raises(CheckpointError, match="not trained with online shifts") as error:
        create_model("resnet50", 27, checkpoint=path)
    assert "without shifts" in error.value.found
    assert create_model("resnet50", 27, shift=None, checkpoint=path).card.past is None


def test_shifts_in_other_places_are_refused(others, clip, tmp_path):
    weights = others.foreign("reference resnet", clip)[0]
    odd = {name.replace("layer4.2.conv1.net", "layer4.2.conv1"): value for name, value in weights.items()}
    with pytest.raises(CheckpointError, match="shifts in other places") as error:
        load_checkpoint(write(tmp_path / "c.pth", {"state_dict": odd}))
    assert "layer4.2.conv1" in error.value.found


def test_shifts_of_whole_blocks_are_recognised(others, clip, tmp_path):
    weights = others.foreign("reference resnet", clip)[0]
    block = {name.replace("conv1.net.", "conv1."): value for name, value in weights.items()}
    block = {name if ".layer" not in name else ".".join([*name.split(".")[:4], "net", *name.split(".")[4:]]): value
             for name, value in block.items()}
    assert "module.base_model.layer1.0.net.conv1.weight" in block
    path = write(tmp_path / "c.pth", {"state_dict": block})
    assert load_checkpoint(path).card.placement == "inplace"
    net = create_model("resnet50", 27, shift="offline", checkpoint=path)
    assert [layer for layer, _ in find_shifts(net)][:2] == ["layer1.0", "layer1.1"]


def test_preprocessing_stored_by_mmaction2_is_kept(others, clip, tmp_path):
    weights = dict(others.foreign("mmaction2 resnet", clip)[0])
    weights["data_preprocessor.mean"] = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    net = create_model("resnet50", 27, past=(1, 2), checkpoint=write(tmp_path / "c.pth", {"state_dict": weights}))
    np.testing.assert_allclose(net.card.mean, [0.485, 0.456, 0.406], atol=1e-6)


@pytest.mark.parametrize("width", [0.5, 0.75, 1.0, 1.4])
def test_any_width_is_read_from_the_shapes(width, tmp_path):
    net = create_model("mobilenet_v2", 9, width=width)
    path = write(tmp_path / "w.pth", net.state_dict())
    loaded = load_checkpoint(path)
    assert (loaded.card.width, loaded.card.num_classes, loaded.kind, "shift" in loaded.card.said) == (width, 9, "plain", False)
    with pytest.raises(CheckpointError, match="not trained with online shifts") as error:
        create_model("mobilenet_v2", 9, checkpoint=path)
    assert "does not say" in error.value.found
    again = create_model("mobilenet_v2", checkpoint=path, past=(0, 1))
    assert again.card.width == width and torch.equal(again.classifier.weight, net.classifier.weight)


# --- our own ---------------------------------------------------------------------------------------------------------


def test_our_own_checkpoint_knows_everything(tmp_path):
    net = create_model("mobilenet_v2", 3, width=0.5, input_size=(160, 128), past=(1, 3), fold_div=16, n_segment=4,
                       classes=["a", "b", "c"])
    path = tmp_path / "own.pth"
    save_checkpoint(path, net, trained=True, accuracy=np.float32(0.5), when=pathlib.Path("x"))
    loaded = load_checkpoint(path)
    assert (loaded.kind, loaded.card.classes, loaded.extra["accuracy"], loaded.card.width) == ("own", ["a", "b", "c"], 0.5, 0.5)
    again = create_model("mobilenet_v2", checkpoint=path)
    for key in ("width", "input_size", "past", "fold_div", "n_segment", "classes", "num_classes", "shift", "placement"):
        assert again.card[key] == net.card[key], key
    assert again.card.trained and not net.card.trained
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    assert os.listdir(tmp_path) == ["own.pth"]
    with pytest.raises(CheckpointError) as error:
        create_model("mobilenet_v2", checkpoint=path, past=(0, 1))
    assert "past=(1, 3)" in error.value.found and "past=(0, 1)" in error.value.expected


def test_an_offline_checkpoint_of_ours_needs_consent_too(tmp_path):
    save_checkpoint(tmp_path / "o.pth", create_model("resnet18", 3, shift="offline"))
    with pytest.raises(CheckpointError, match="not trained with online"):
        create_model("resnet18", checkpoint=tmp_path / "o.pth")
    assert create_model("resnet18", checkpoint=tmp_path / "o.pth", shift="offline").card.future == (0, 1)
    assert create_model("resnet18", checkpoint=tmp_path / "o.pth", past=(1, 2)).card.future is None
    online = create_model("resnet18", 3)
    load_into(online, tmp_path / "o.pth")
    assert online.card.notes == ["weights trained with shifts 'offline' (a tsm_edge checkpoint), run 'online'"]


def test_a_network_of_ones_own_is_saved_and_loaded(tmp_path):
    net, other = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    save_checkpoint(tmp_path / "n.pth", net)
    load_into(other, tmp_path / "n.pth")
    assert torch.equal(net[0].weight, other[0].weight)
    with pytest.raises(CheckpointError, match="does not fit the network") as error:
        load_into(nn.Sequential(nn.Conv2d(3, 5, 1)), tmp_path / "n.pth")
    assert "0.weight (4, 3, 1, 1) instead of (5, 3, 1, 1)" in error.value.found and "1.weight" in error.value.found


def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path):
    save_checkpoint(tmp_path / "n.pth", nn.Linear(2, 2))
    before, limit = (tmp_path / "n.pth").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # writing fails there, as on a full disk
        with pytest.raises(InputError, match="n.pth cannot be written") as error:
            save_checkpoint(tmp_path / "n.pth", nn.Linear(100, 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert error.value.found and [p.name for p in tmp_path.iterdir()] == ["n.pth"]
    assert (tmp_path / "n.pth").read_bytes() == before
    with pytest.raises(InputError, match="cannot be written"):
        save_checkpoint(tmp_path / "n.pth" / "m.pth", nn.Linear(2, 2))


@pytest.mark.parametrize("kind", [InputError, CheckpointError, CheckFailedError])
def test_errors_come_whole_from_other_processes(kind):
    error = kind("a problem", found=3, expected="four", do="count again")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == str(error) and (again.problem, again.found) == ("a problem", "3")


def test_the_classifier_can_be_left_alone_to_train_for_other_classes(published_file):
    net = create_model("mobilenet_v2", 5)
    head = net.classifier.weight.clone()
    load_into(net, published_file, head=False)
    assert torch.equal(net.classifier.weight, head) and not net.card.trained
    assert torch.equal(net.features[0][0].weight, published()["features.0.0.weight"])
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_into(net, published_file)


def test_a_failed_load_changes_nothing(published_file):
    net = create_model("mobilenet_v2", 5)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_into(net, published_file)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_values_that_could_not_be_read_back_are_refused_when_saving(tmp_path):
    with pytest.raises(InputError, match="cannot be stored") as error:
        save_checkpoint(tmp_path / "x.pth", nn.Linear(1, 1), options={"f": print})
    assert "meta.options.f" in error.value.found and os.listdir(tmp_path) == []


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.00001, 0.3, 0.999])
def test_truncated_files_are_refused(keep, legacy, tmp_path):
    path = write(tmp_path / "t.pth", published(), _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * keep)])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(path) in error.value.problem and "bytes" in error.value.found
    assert "torch.save" in error.value.expected and "again" in error.value.do
    assert error.value.exit_code == 2


@pytest.mark.parametrize("content, problem, found", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer", "bytes of text"),
    (b"<!DOCTYPE html><html>Not found", "web page", "<!DOCTYPE html>"), (b"\x08\x07onnx", "no PyTorch checkpoint", "6 bytes"),
    (b"import os\n", "no PyTorch checkpoint", "bytes")])
def test_files_that_are_something_else_are_refused(content, problem, found, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=problem) as error:
        load_checkpoint(tmp_path / "x.pth")
    assert found in error.value.found and error.value.do


def test_missing_files_and_folders_are_refused(tmp_path):
    for path, problem in ((tmp_path / "none.pth", "is not there"), (tmp_path, "is a folder")):
        with pytest.raises(CheckpointError, match=problem):
            load_checkpoint(path)


def test_a_single_changed_byte_is_noticed_though_torch_does_not_look(tmp_path):
    path = write(tmp_path / "f.pth", published())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match="truncated or damaged") as error:
        load_checkpoint(path)
    assert "CRC" in error.value.found


def test_files_without_checksums_load(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = write(tmp_path / "f.pth", published())
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint(path).kind == "published"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind, problem", [("script", "TorchScript program"), ("pickle", "not written by torch.save"),
                                           ("zip", "archive of something else")])
def test_files_of_other_kinds_are_not_called_damaged(kind, problem, tmp_path):
    path = tmp_path / "x.pth"
    if kind == "script":
        torch.jit.script(nn.Linear(2, 2)).save(str(path))
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"weight": [1, 2]}))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "hello")
    with pytest.raises(CheckpointError, match=problem) as error:
        load_checkpoint(path)
    assert "download" not in error.value.do


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_never_run(legacy, tmp_path):
    target = tmp_path / "ran"
    path = write(tmp_path / "e.pth", {"state_dict": published(), "x": Evil(target)}, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="can run code") as error:
        load_checkpoint(path)
    assert "system" in error.value.found and "state_dict" in error.value.do and not target.exists()
    (tmp_path / "p.pth").write_bytes(pickle.dumps(Evil(target)))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "p.pth")
    assert not target.exists()


def test_best_scores_stored_as_numpy_numbers_do_no_harm(tmp_path):
    content = {"state_dict": published(), "best": np.float64(0.5), "epoch": np.int64(3)}
    assert load_checkpoint(write(tmp_path / "n.pth", content)).kind == "published"


def renamed(pattern, to):
    return {name.replace(pattern, to): value for name, value in published().items()}


def without(name):
    return {k: v for k, v in published().items() if k != name}


@pytest.mark.parametrize("weights, problem, found", [
    (renamed("features.", "backbone_net.stage."), "names that are not known", "backbone_net.stage.0.0.weight"),
    ({"conv.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "names that are not known", "conv.weight, fc.bias"),
    (without("features.3.conv.0.weight"), "does not fit mobilenet_v2", "missing: features.3.conv.0.weight"),
    (without("classifier.weight"), "has no classifier", "features.0.0.weight"),
    ({**published(), "features.19.weight": torch.zeros(1)}, "does not fit", "not expected: features.19.weight"),
    ({**published(), "features.3.conv.0.weight": torch.zeros(144, 23, 1, 1)}, "does not fit",
     "features.3.conv.0.weight (144, 23, 1, 1) instead of (144, 24, 1, 1)"),
    ({**published(), "features.2.conv.6.weight": torch.zeros(25, 96, 1, 1)}, "no MobileNetV2", "25"),
    ({**published(), "classifier.bias": torch.full((27,), float("nan"))}, "no numbers", "classifier.bias"),
    ({**published(), "classifier.bias": torch.zeros(27, dtype=torch.int8)}, "does not fit", "classifier.bias torch.int8"),
    ({**published(), "classifier.bias": torch.zeros(27, dtype=torch.complex64)}, "does not fit", "classifier.bias torch.complex64"),
    ({**published(), "classifier.bias": torch.zeros(27).to_sparse()}, "without plain values", "classifier.bias is torch.sparse_coo"),
    ({**published(), "classifier.bias": torch.zeros(27, device="meta")}, "without plain values", "classifier.bias is meta"),
    ({**published(), "features.0.0.weight": torch.tensor(1.0)}, "no MobileNetV2", "(0, "),
    ({"state_dict": {}}, "no checkpoint of a network", "no tensors"), ([1, 2], "no checkpoint of a network", "list"),
    ({"epoch": 3, "optimizer": {}}, "no checkpoint of a network", "epoch, optimizer"),
    ({"module.base_model.conv1_7x7_s2.weight": torch.zeros(1), "module.new_fc.weight": torch.zeros(1)}, "BNInception", "conv1_7x7"),
    ({"module.base_model.layer2.net.0.conv1.net.weight": torch.zeros(1)}, "temporal pooling", "layer2.net"),
    ({"module.base_model.layer2.0.nl.g.weight": torch.zeros(1)}, "non-local blocks", "nl.g"),
    ({"format": "tsm_edge.checkpoint", "version": 99}, "another release", "99"),
    ({"format": "tsm_edge.checkpoint", "version": torch.ones(2)}, "another release", "tensor"),
    ({"format": "tsm_edge.checkpoint", "version": 1}, "damaged", "format, version")])
def test_foreign_and_mismatching_contents_are_refused(weights, problem, found, tmp_path):
    with pytest.raises(CheckpointError, match=problem) as error:
        load_checkpoint(write(tmp_path / "x.pth", weights))
    assert found in error.value.found and error.value.expected and error.value.do and error.value.exit_code == 2


@pytest.mark.parametrize("key, value", [
    ("width", "wide"), ("width", 1e9), ("num_classes", -1), ("past", "01"), ("past", [0.5, 1]), ("fold_div", 0), ("n_segment", "8"),
    ("input_size", "224"), ("classes", ["a", 3]), ("trained", "yes"), ("shift", "both"), ("mean", [0, 0]), ("name", 7)])
def test_damaged_descriptions_of_our_own_are_refused(key, value, tmp_path):
    save_checkpoint(tmp_path / "o.pth", create_model("mobilenet_v2", 2, width=0.5), **{key: value})
    with pytest.raises(CheckpointError, match="o.pth cannot be used") as error:
        load_checkpoint(tmp_path / "o.pth")
    assert repr(value) in error.value.found and error.value.expected and "save_checkpoint" in error.value.do


def test_resnets_of_other_depths_are_refused(tmp_path):
    state = create_model("resnet18", 5).state_dict()
    deeper = {**state, **{k.replace("layer3.1.", "layer3.2."): v for k, v in state.items() if "layer3.1." in k}}
    with pytest.raises(CheckpointError, match="another depth") as error:
        load_checkpoint(write(tmp_path / "r.pth", deeper))
    assert "(2, 2, 3, 2)" in error.value.found and "(3, 4, 6, 3)" in error.value.expected


def test_wrong_class_counts_widths_and_networks_are_refused(published_file):
    with pytest.raises(CheckpointError, match="another number of classes") as error:
        create_model("mobilenet_v2", 400, checkpoint=published_file)
    assert error.value.found == "27 (classifier.weight (27, 1280))" and "400" in error.value.expected
    assert "num_classes=27" in error.value.do
    with pytest.raises(CheckpointError, match="another width") as error:
        create_model("mobilenet_v2", 27, width=0.5, checkpoint=published_file)
    assert (error.value.found, error.value.expected) == ("width 1", "0.5")
    with pytest.raises(CheckpointError, match="another network") as error:
        create_model("resnet50", 27, checkpoint=published_file)
    assert "mobilenet_v2" in error.value.found and "features.0.0.weight" in error.value.found
    with pytest.raises(CheckpointError, match="other shifts"):
        create_model("mobilenet_v2", 27, past=(1, 2), checkpoint=published_file)


def test_old_checkpoints_without_counters_load(tmp_path):
    weights = {k: v for k, v in published().items() if not k.endswith("num_batches_tracked")}
    net = create_model("mobilenet_v2", checkpoint=write(tmp_path / "o.pth", weights))
    assert int(net.features[0][1].num_batches_tracked) == 0


def test_loading_needs_no_package_but_torch_and_numpy(published_file):
    code = ("import sys; sys.modules.update(torchvision=None, onnx=None, tvm=None)\n"
            f"import tsm_edge; print(tsm_edge.create_model('mobilenet_v2', 27, checkpoint={str(published_file)!r}).card.name)")
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "mobilenet_v2"
