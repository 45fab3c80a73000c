"""Networks as other projects build them, written down from their module names: what our loading is compared with."""
from types import SimpleNamespace

import pytest
import torch
from torch import nn

torch.set_num_threads(1)
STAGES = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
FRAMES = 4


class Shifted(nn.Module):
    """Bi-directional shift of the input of `net`, frame by frame: the first eighth from t+1, the second from t-1."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        fold, rows = x.shape[1] // 8, []
        for t in range(len(x)):
            after = x[t + 1, :fold] if t + 1 < len(x) else torch.zeros_like(x[t, :fold])
            before = x[t - 1, fold:2 * fold] if t > 0 else torch.zeros_like(x[t, :fold])
            rows.append(torch.cat([after, before, x[t, 2 * fold:]]))
        return self.net(torch.stack(rows))


class Unit(nn.Module):
    """Convolution, norm and activation in one module with the names conv and bn."""

    def __init__(self, i, o, k, stride=1, groups=1, act=None):
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(o)
        self.act = act or nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Residual(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return x + self.conv(x)


class Plain(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x)


class Bottle(nn.Module):
    """A ResNet-50 block; `units` puts convolution and norm together under conv1, conv2, conv3."""

    def __init__(self, i, planes, stride, units, shift):
        super().__init__()
        out, self.units = 4 * planes, units
        sizes = [(i, planes, 1, 1), (planes, planes, 3, stride), (planes, out, 1, 1)]
        for n, (a, b, k, s) in enumerate(sizes, 1):
            if units:
                unit = Unit(a, b, k, s, act=nn.ReLU() if n < 3 else None)
                if n == 1 and shift:
                    unit.conv = Shifted(unit.conv)
                setattr(self, f"conv{n}", unit)
            else:
                conv = nn.Conv2d(a, b, k, s, k // 2, bias=False)
                setattr(self, f"conv{n}", Shifted(conv) if n == 1 and shift else conv)
                setattr(self, f"bn{n}", nn.BatchNorm2d(b))
        self.downsample = None
        if i != out or stride != 1:
            self.downsample = Unit(i, out, 1, stride) if units else nn.Sequential(
                nn.Conv2d(i, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for n in (1, 2, 3):
            y = getattr(self, f"conv{n}")(y)
            if not self.units:
                y = getattr(self, f"bn{n}")(y)
                y = y.relu() if n < 3 else y
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet50(nn.Module):
    def __init__(self, units, shift=True):
        super().__init__()
        self.units = units
        if units:
            self.conv1 = Unit(3, 64, 7, 2, act=nn.ReLU())
        else:
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        last = 64
        for s, n in enumerate((3, 4, 6, 3)):
            blocks = []
            for b in range(n):
                blocks.append(Bottle(last, 64 * 2 ** s, 2 if s and not b else 1, units, shift))
                last = 256 * 2 ** s
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = self.conv1(x) if self.units else self.bn1(self.conv1(x)).relu()
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def flat_mobilenet(shift=True):
    """Layers in one `features` list, three entries of a Sequential for convolution, norm and activation."""
    def unit(i, o, k, s=1, g=1, act=True):
        return [nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(o)] + [nn.ReLU6()] * act

    layers, last = [nn.Sequential(*unit(3, 32, 3, 2))], 32
    for t, c, n, s in STAGES:
        for b in range(n):
            stride, same = (s if b == 0 else 1), b > 0
            parts = (unit(last, last * t, 1) if t > 1 else []) + unit(last * t, last * t, 3, stride, last * t)
            parts += unit(last * t, c, 1, act=False)
            if same and shift:
                parts[0] = Shifted(parts[0])
            layers.append((Residual if same else Plain)(nn.Sequential(*parts)))
            last = c
    layers.append(nn.Sequential(*unit(last, 1280, 1)))
    net = nn.Module()
    net.features = nn.Sequential(*layers)
    return net


def unit_mobilenet():
    """Stages layer1..layer7 of blocks, each a Sequential of units; the shift wraps a whole unit."""
    net, last = nn.Module(), 32
    net.conv1 = Unit(3, 32, 3, 2, act=nn.ReLU6())
    for index, (t, c, n, s) in enumerate(STAGES, 1):
        blocks = []
        for b in range(n):
            parts = [Unit(last, last * t, 1, act=nn.ReLU6())] if t > 1 else []
            parts += [Unit(last * t, last * t, 3, s if b == 0 else 1, last * t, nn.ReLU6()), Unit(last * t, c, 1)]
            if b:
                parts[0] = Shifted(parts[0])
            blocks.append((Residual if b else Plain)(nn.Sequential(*parts)))
            last = c
        setattr(net, f"layer{index}", nn.Sequential(*blocks))
    net.conv2 = Unit(last, 1280, 1, act=nn.ReLU6())
    return net


def run_unit_mobilenet(net, x):
    x = net.conv1(x)
    for index in range(1, 8):
        x = getattr(net, f"layer{index}")(x)
    return net.conv2(x)


def settle(net, frames, forward, seed=0):
    """Fan-in weights and norms whose statistics are those of the frames: outputs that move."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.weight.uniform_(0.8, 1.2)
                module.bias.uniform_(-0.3, 0.3)
        forward(net.train(), frames)
    return net.eval()


def tree(**children):
    net = nn.Module()
    for name, child in children.items():
        net.add_module(name, child)
    return net


def foreign(kind, frames, classes=27, shift=True):
    """(state dict as that project saves it, logits of its network over the frames)."""
    if kind == "reference mobilenet":
        body, head = flat_mobilenet(shift), nn.Linear(1280, classes)
        net = tree(module=tree(base_model=body, new_fc=head))
        run = lambda _, x: head(body.features(x).mean((2, 3)))  # noqa: E731
    elif kind == "reference resnet":
        body, head = ResNet50(units=False, shift=shift), nn.Linear(2048, classes)
        net = tree(module=tree(base_model=body, new_fc=head))
        run = lambda _, x: head(body(x).mean((2, 3)))  # noqa: E731
    elif kind == "mmaction2 mobilenet":
        body, head = unit_mobilenet(), nn.Linear(1280, classes)
        net = tree(backbone=body, cls_head=tree(fc_cls=head))
        run = lambda _, x: head(run_unit_mobilenet(body, x).mean((2, 3)))  # noqa: E731
    else:
        body, head = ResNet50(units=True, shift=shift), nn.Linear(2048, classes)
        net = tree(backbone=body, cls_head=tree(fc_cls=head))
        run = lambda _, x: head(body(x).mean((2, 3)))  # noqa: E731
    settle(net, frames, run)
    with torch.no_grad():
        return dict(net.state_dict()), run(net, frames)


@pytest.fixture(scope="session")
def others():
    """`others.foreign(kind, frames)`: a network of another project."""
    return SimpleNamespace(foreign=foreign, frames=FRAMES)


@pytest.fixture(scope="session")
def clip():
    """Image-like frames float32 [4, 3, 64, 64]."""
    from tsm_edge.sensitive import image_like_frames

    return torch.from_numpy(image_like_frames(FRAMES, 64, seed=3))


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
