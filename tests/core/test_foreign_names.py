"""MobileNetV2 with torchvision's and timm's names, and features alone: the same function under our names."""
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch import nn  # noqa: E402

from tsm_edge import create_model  # noqa: E402
from tsm_edge.checkpoints import load_checkpoint, load_into, save_checkpoint  # noqa: E402
from tsm_edge.errors import TsmEdgeError  # noqa: E402

TABLE = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def conv_norm(i, o, k=1, stride=1, groups=1):
    return nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)


class TorchvisionBlock(nn.Module):
    """Written from the paper (Sandler et al., CVPR 2018, table 1), with the modules nested as torchvision nests them."""

    def __init__(self, i, o, stride, t):
        super().__init__()
        wide = i * t
        layers = [] if t == 1 else [nn.Sequential(*conv_norm(i, wide), nn.ReLU6())]
        layers += [nn.Sequential(*conv_norm(wide, wide, 3, stride, wide), nn.ReLU6()), *conv_norm(wide, o)]
        self.conv, self.add = nn.Sequential(*layers), stride == 1 and i == o

    def forward(self, x):
        return x + self.conv(x) if self.add else self.conv(x)


class TorchvisionMobileNet(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        layers, last = [nn.Sequential(*conv_norm(3, 32, 3, 2), nn.ReLU6())], 32
        for t, c, n, s in TABLE:
            for k in range(n):
                layers.append(TorchvisionBlock(last, c, s if k == 0 else 1, t))
                last = c
        layers.append(nn.Sequential(*conv_norm(last, 1280), nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class TimmBlock(nn.Module):
    def __init__(self, i, o, stride, t):
        super().__init__()
        wide, self.first, self.add = i * t, t == 1, stride == 1 and i == o
        if self.first:
            self.conv_dw, self.bn1 = conv_norm(i, i, 3, stride, i)
            self.conv_pw, self.bn2 = conv_norm(i, o)
        else:
            self.conv_pw, self.bn1 = conv_norm(i, wide)
            self.conv_dw, self.bn2 = conv_norm(wide, wide, 3, stride, wide)
            self.conv_pwl, self.bn3 = conv_norm(wide, o)

    def forward(self, x):
        relu = nn.functional.relu6
        if self.first:
            return self.bn2(self.conv_pw(relu(self.bn1(self.conv_dw(x)))))
        y = self.bn3(self.conv_pwl(relu(self.bn2(self.conv_dw(relu(self.bn1(self.conv_pw(x))))))))
        return x + y if self.add else y


class TimmMobileNet(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.conv_stem, self.bn1 = conv_norm(3, 32, 3, 2)
        stages, last = [], 32
        for t, c, n, s in TABLE:
            blocks = []
            for k in range(n):
                blocks.append(TimmBlock(last, c, s if k == 0 else 1, t))
                last = c
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = conv_norm(last, 1280)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x):
        relu = nn.functional.relu6
        x = self.blocks(relu(self.bn1(self.conv_stem(x))))
        return self.classifier(relu(self.bn2(self.conv_head(x))).mean((2, 3)))


def alive(net):
    """Statistics that no identity would have."""
    torch.manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(m.weight, 0.8, 1.4)
            nn.init.normal_(m.bias, 0.1, 0.1)
    return net.eval()


@pytest.mark.parametrize("theirs", [TorchvisionMobileNet, TimmMobileNet])
@pytest.mark.parametrize("size", [32, 45])
def test_it_computes_what_it_computed_there(theirs, size, tmp_path):
    net = alive(theirs())
    torch.save(net.state_dict(), tmp_path / "theirs.pth")
    ours = create_model("mobilenet_v2", checkpoint=tmp_path / "theirs.pth", shift=None).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        wanted, found = net(x), ours(x)
    assert wanted.std() > 0 and (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_other_widths_of_foreign_names_are_recognised_or_refused(tmp_path):
    weights = alive(TorchvisionMobileNet()).state_dict()
    weights["features.3.conv.2.weight"] = torch.zeros(24, 7, 1, 1)
    torch.save(weights, tmp_path / "odd.pth")
    with pytest.raises(TsmEdgeError, match="does not fit mobilenet_v2"):
        load_checkpoint(tmp_path / "odd.pth")


def test_features_without_a_classifier_begin_a_training_and_nothing_else(tmp_path):
    net = create_model("mobilenet_v2", 3, width=0.35)
    features = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items() if not k.startswith("classifier")}
    torch.save(features, tmp_path / "features.pth")
    loaded = load_checkpoint(tmp_path / "features.pth")
    assert loaded.kind == "features" and loaded.card.width == 0.35 and not loaded.card.trained
    with pytest.raises(TsmEdgeError, match="has no classifier"):
        create_model("mobilenet_v2", checkpoint=tmp_path / "features.pth", past=(0, 1))
    other = create_model("mobilenet_v2", 4, width=0.35)
    load_into(other, tmp_path / "features.pth", head=False)
    mine = other.state_dict()
    assert all(torch.equal(mine[name], value.to(mine[name].dtype)) for name, value in features.items())


def test_a_half_size_file_holds_the_weights_to_sixteen_bits(tmp_path):
    net = create_model("mobilenet_v2", 3, width=0.35)
    save_checkpoint(tmp_path / "full.pth", net)
    save_checkpoint(tmp_path / "half.pth", net, half=True)
    full, half = ((tmp_path / name).stat().st_size for name in ("full.pth", "half.pth"))
    assert half < 0.62 * full
    for name, value in load_checkpoint(tmp_path / "half.pth").state_dict.items():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.allclose(value.float(), net.state_dict()[name].float(), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        net.classifier.weight[0, 0] = 1e6
    with pytest.raises(TsmEdgeError, match="16 bits"):
        save_checkpoint(tmp_path / "never.pth", net, half=True)
    assert not (tmp_path / "never.pth").exists()
