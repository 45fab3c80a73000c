"""A network of a user's own: odd channel counts, a depthwise convolution, an activation that no kernel of ours has."""
import torch
from torch import nn

from tsm_edge.sensitive import image_like_frames, make_sensitive
from tsm_edge.shift import insert_shifts


class OwnNet(nn.Module):
    """Three classes, two blocks, each with a residual connection."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 19, 3, 2, 1, bias=False), nn.BatchNorm2d(19), nn.ReLU6())
        self.a = nn.Sequential(nn.Conv2d(19, 38, 1), nn.ReLU6(), nn.Conv2d(38, 38, 3, 1, 1, groups=38), nn.Conv2d(38, 19, 1))
        self.b = nn.Conv2d(19, 19, 3, 1, 1)
        self.fc = nn.Linear(19, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.a(x)
        x = x + torch.tanh(self.b(x))
        return self.fc(x.mean((2, 3)))


def own_net(size):
    """It, with a shift in each block and weights that answer to frames of this size (width, height)."""
    net = OwnNet()
    insert_shifts(net, lambda name, block: name in ("a", "b"))
    return make_sensitive(net, 3, image_like_frames(16, size, 3))
