"""2D backbones with temporal shifts: MobileNetV2 and ResNet-18/50.

Clip networks: frames in [N * T, 3, H, W], RGB and normalised; logits of every frame out, [N * T, classes]. The mean over T
is the clip's answer and the caller's affair.
"""
from __future__ import annotations

import math

from torch import nn

from .card import Card, check
from .cli import choose
from .errors import InputError

# (expansion, channels at width 1, blocks, stride of the first block)
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
RESNETS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
NAMES = ("mobilenet_v2", *RESNETS)


# --- MobileNetV2 -----------------------------------------------------------------------------------------------------


def mobilenet_channels(width: float = 1.0, rounding: str = "reference") -> tuple[int, tuple[int, ...], int]:
    """Channels of a MobileNetV2: (stem, (seven stages), head).

    rounding : "reference" rounds up to multiples of 8 and leaves the stem and the first stage as they are;
        "mmaction2" rounds to the nearest multiple and scales all. At width 1 they are the same.
    """
    if rounding == "reference":
        def up(value):
            return int(math.ceil(value * 1.0 / 8) * 8)

        return (32, tuple(up(c * width) if t > 1 else c for t, c, _, _ in STAGES), up(1280 * width) if width > 1 else 1280)

    def near(value):
        rounded = max(8, int(value + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * value else rounded

    return near(32 * width), tuple(near(c * width) for _, c, _, _ in STAGES), int(1280 * width) if width > 1 else 1280


class InvertedResidual(nn.Module):
    """expand (1x1), depthwise (3x3), project (1x1); with an identity path where the shapes allow."""

    def __init__(self, in_channels, out_channels, stride, expansion):
        super().__init__()
        hidden = in_channels * expansion
        layers = []
        if expansion != 1:
            layers += [nn.Conv2d(in_channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        layers += [nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden),
                   nn.ReLU6(inplace=True), nn.Conv2d(hidden, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class Backbone(nn.Module):
    """A network with a card, which `create_model` fills in."""

    card = Card()

    @property
    def tsm_info(self):
        """The card by its earlier name; a mapping that cannot be changed."""
        return self.card


class MobileNetV2(Backbone):
    """MobileNetV2 with the layer names of the published gesture checkpoint; without shifts (see `create_model`).

    channels : (stem, (seven stages), head), see `mobilenet_channels`.
    """

    def __init__(self, num_classes, channels=None, dropout=0.0):
        super().__init__()
        stem, stages, head = channels or mobilenet_channels()
        layers, last = [self._conv_bn(3, stem, 3, 2)], stem
        for (expansion, _, blocks, stride), out in zip(STAGES, stages):
            for block in range(blocks):
                layers.append(InvertedResidual(last, out, stride if block == 0 else 1, expansion))
                last = out
        layers.append(self._conv_bn(last, head, 1, 1))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)
        _initialise(self)

    @staticmethod
    def _conv_bn(in_channels, out_channels, kernel, stride):
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
                             nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))

    def forward_features(self, x):
        """Last feature map: [N * T, head, h, w]."""
        return self.features(x)

    def forward(self, x):
        return self.classifier(self.dropout(self.forward_features(x).mean((2, 3))))

    @staticmethod
    def shifted(name, block):
        """Where the shifts are: the expanding convolution of every block with an identity path."""
        return block.conv[0] if isinstance(block, InvertedResidual) and block.residual and len(block.conv) == 8 else None


# --- ResNet ----------------------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity path."""

    expansion = 1

    def __init__(self, in_channels, planes, stride, downsample):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 beside an identity path."""

    expansion = 4

    def __init__(self, in_channels, planes, stride, downsample):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(Backbone):
    """ResNet with torchvision's layer names; without shifts (see `create_model`)."""

    def __init__(self, block, blocks, num_classes, dropout=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self._last = 64
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._stage(block, 64 * 2 ** i, n, 1 if i == 0 else 2) for i, n in enumerate(blocks))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self._last, num_classes)
        _initialise(self)

    def _stage(self, block, planes, blocks, stride):
        layers, out = [], planes * block.expansion
        for i in range(blocks):
            downsample, step = None, stride if i == 0 else 1
            if step != 1 or self._last != out:
                downsample = nn.Sequential(nn.Conv2d(self._last, out, 1, step, bias=False), nn.BatchNorm2d(out))
            layers.append(block(self._last, planes, step, downsample))
            self._last = out
        return nn.Sequential(*layers)

    def forward_features(self, x):
        """Last feature map: [N * T, C, h, w]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x):
        return self.fc(self.dropout(self.forward_features(x).mean((2, 3))))

    @staticmethod
    def shifted(name, block):
        """Where the shifts are: the first convolution of every block."""
        return block.conv1 if isinstance(block, (BasicBlock, Bottleneck)) else None


def _initialise(net):
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


def build(name: str, num_classes: int, *, width: float = 1.0, rounding: str = "reference", dropout: float = 0.0) -> Backbone:
    """A backbone without shifts and without weights of its own."""
    choose(name, NAMES, "network")
    num_classes, width = check("num_classes", num_classes), check("width", width)
    if name == "mobilenet_v2":
        return MobileNetV2(num_classes, mobilenet_channels(width, rounding), dropout)
    if width != 1:
        raise InputError(f"{name} has no width multiplier", found=f"width={width}", expected="width 1.0",
                         do="leave width out, or use mobilenet_v2")
    return ResNet(BasicBlock if name == "resnet18" else Bottleneck, RESNETS[name], num_classes, dropout)
