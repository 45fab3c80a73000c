import pytest
import torch
from torch import nn

from tsm_edge import create_model
from tsm_edge.backbones import mobilenet_channels
from tsm_edge.errors import CheckpointError, InputError
from tsm_edge.models import mobilenet_v2, resnet18, resnet50
from tsm_edge.shift import find_shifts


def count(net, size=224):
    """Multiply-accumulates of convolutions and linear layers for one frame, by hooks."""
    total, handles = [0], []

    def add(module, args, out):
        if isinstance(module, nn.Conv2d):
            total[0] += out[0].numel() * module.weight[0].numel()
        else:
            total[0] += module.weight.numel()

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(add))
    for _, shift in find_shifts(net):
        shift.n_segment = 1
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, size, size))
    return total[0]


def parameters(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("build, values, macs", [
    # known from the papers: MobileNetV2 has 2.2 M values without its classifier and 300 M multiply-accumulates,
    # ResNet-18 and -50 have 11.69 M and 25.56 M with 1000 classes and 1.81 G and 4.09 G
    (lambda: mobilenet_v2(1000), 3504872, 300774272), (lambda: resnet18(1000), 11689512, 1814073344),
    (lambda: resnet50(1000), 25557032, 4089184256)])
def test_networks_have_the_size_that_is_known_of_them(build, values, macs):
    net = build()
    assert parameters(net) == values and count(net) == macs


def test_the_reference_step_takes_three_tenths_of_a_gigamac():
    assert round(count(create_model("mobilenet_v2", 27)) / 1e6, 1) == 299.5


@pytest.mark.parametrize("name, layers", [
    ("mobilenet_v2", [f"features.{i}.conv.0" for i in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]),
    ("resnet18", [f"layer{s}.{b}.conv1" for s in (1, 2, 3, 4) for b in (0, 1)]),
    ("resnet50", [f"layer{s}.{b}.conv1" for s, n in ((1, 3), (2, 4), (3, 6), (4, 3)) for b in range(n)])])
def test_shifts_are_where_the_reference_has_them(name, layers):
    net = create_model(name, 27, shift="offline")
    assert [layer for layer, _ in find_shifts(net)] == layers
    assert all((s.future, s.past, s.fold_div) == ((0, 1), (1, 2), 8) for _, s in find_shifts(net))
    assert all((s.future, s.past) == (None, (0, 1)) for _, s in find_shifts(create_model(name, 27)))
    assert find_shifts(create_model(name, 27, shift=None)) == []


@pytest.mark.parametrize("width, expected", [
    (1.0, (32, (16, 24, 32, 64, 96, 160, 320), 1280)), (0.5, (32, (16, 16, 16, 32, 48, 80, 160), 1280)),
    (0.35, (32, (16, 16, 16, 24, 40, 56, 112), 1280)), (1.4, (32, (16, 40, 48, 96, 136, 224, 448), 1792))])
def test_widths_round_up_to_eights_and_leave_the_stem(width, expected):
    assert mobilenet_channels(width) == expected
    net = create_model("mobilenet_v2", 5, width=width)
    assert (net.features[0][0].out_channels, net.classifier.in_features) == (expected[0], expected[2])


def test_mmaction2_widths_round_to_the_nearest_eight():
    assert mobilenet_channels(0.5, "mmaction2") == (16, (8, 16, 16, 32, 48, 80, 160), 1280)
    assert mobilenet_channels(1.0, "mmaction2") == mobilenet_channels(1.0)


@pytest.mark.parametrize("name, size", [("mobilenet_v2", (96, 160)), ("mobilenet_v2", (100, 75)), ("resnet18", (33, 47))])
def test_any_input_size_runs(name, size):
    net = create_model(name, 4, input_size=size, n_segment=2).eval()
    with torch.no_grad():
        out = net(torch.randn(4, 3, size[1], size[0]))
        assert out.shape == (4, 4)
        features = net.forward_features(torch.randn(4, 3, size[1], size[0]))
    assert features.ndim == 4 and net.card.input_size == size


def test_clips_of_a_batch_do_not_mix():
    net = create_model("resnet18", 3, input_size=32, n_segment=4).eval()
    x = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        both, one, two = net(x), net(x[:4]), net(x[4:])
    torch.testing.assert_close(both, torch.cat([one, two]), rtol=1e-4, atol=1e-5)


def test_the_network_says_what_it_is():
    card = create_model("mobilenet_v2", 2, width=1.4, input_size=160, classes=["a", "b"]).card
    assert (card.name, card.width, card.input_size, card.classes) == ("mobilenet_v2", 1.4, (160, 160), ["a", "b"])
    assert (card.shift, card.past, card.fold_div, card.trained) == ("online", (0, 1), 8, False)
    assert card.mean == (0.485, 0.456, 0.406) and card.std == (0.229, 0.224, 0.225) and card.resize == "crop"


def test_it_can_be_trained():
    net = create_model("mobilenet_v2", 3, width=0.5, input_size=32, n_segment=2, dropout=0.3).train()
    loss = net(torch.randn(4, 3, 32, 32)).square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("arguments, found, do", [
    (("mobilenetv2", 27), "'mobilenetv2'", "did you mean 'mobilenet_v2'?"), (("resnet5", 27), "'resnet5'", "did you mean 'resnet50'?"),
    (("resnet50", 0), "0", "num_classes=27"), (("resnet50", "27"), "'27'", "27"), (("resnet50",), "num_classes=None", "27")])
def test_unknown_networks_and_class_counts_are_refused(arguments, found, do):
    with pytest.raises(InputError) as error:
        create_model(*arguments)
    assert found in error.value.found and do in error.value.do and not isinstance(error.value, CheckpointError)


@pytest.mark.parametrize("options, found", [
    ({"width": 0}, "width=0"), ({"input_size": 7}, "7"), ({"input_size": (224, 224, 3)}, "(224, 224, 3)"), ({"input_size": "224"}, "224"),
    ({"shift": "bidirectional"}, "'bidirectional'"), ({"future": (0, 1)}, "future=(0, 1)"), ({"classes": ["a"]}, "1 names"),
    ({"past": (0, 9)}, "past=(0, 9)"), ({"placement": "behind"}, "'behind'")])
def test_options_that_cannot_be_used_are_refused(options, found):
    with pytest.raises(InputError) as error:
        create_model("mobilenet_v2", 27, **options)
    assert found in error.value.found and error.value.expected and error.value.do
    with pytest.raises(InputError, match="no width multiplier"):
        create_model("resnet50", 27, width=0.5)
