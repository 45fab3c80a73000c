"""Networks that decide by their data are refused, those that look at shapes and constants only are not."""
import re

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.export.graph.control_flow import refuse_decisions  # noqa: E402
from tsm_edge.shift import insert_shifts  # noqa: E402
from tsm_edge.step import StepNetwork  # noqa: E402


class Net(nn.Module):
    def __init__(self, look):
        super().__init__()
        self.conv, self.fc, self.look = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2), look
        self.register_buffer("turns", torch.tensor(2))

    def forward(self, x):
        y = self.look(self, self.conv(x), x)
        return self.fc(y.mean((2, 3)))


def branch(net, y, x):
    return y * 0 if x.mean() < -1.5 else y


def number(net, y, x):
    return y * float(y.amax())


def equal(net, y, x):
    return y * 0 if torch.equal(y, y.relu()) else y


def filled_memory(net, y, x):
    """The value goes through memory that was there before, and a view of it."""
    memory = torch.zeros(4)
    memory[1:3] = x.mean((0, 2, 3))[:2]
    return y if memory.sum() > 0 else -y


def shape(net, y, x):
    return nn.functional.pad(y, (0, 1)) if y.shape[3] % 2 == 0 and y.numel() > 9 else y


def constant(net, y, x):
    for _ in range(int(net.turns)):
        y = y.relu() if bool(net.fc.weight.isfinite().all()) else y
    return y


def where(net, y, x):
    return torch.where(x.mean() < 0, y, -y)


def step_of(look):
    net = Net(look)
    insert_shifts(net, lambda name, module: name == "conv", fold_div=3)
    return StepNetwork(net.eval(), (8, 8))


@pytest.mark.parametrize("look, line", [(branch, "if x.mean() < -1.5"), (number, "float(y.amax())"), (equal, "torch.equal"),
                                        (filled_memory, "memory.sum() > 0")])
def test_a_decision_by_the_data_is_refused_by_its_line(look, line):
    with pytest.raises(InputError, match=r"(?s)decides by what it sees.*found: +test_control_flow\.py:\d+: .*" + re.escape(line)
                       + ".*expected:.*do:.*torch.where"):
        refuse_decisions(step_of(look))


@pytest.mark.parametrize("look", [shape, constant, where])
def test_shapes_and_constants_may_be_looked_at(look):
    refuse_decisions(step_of(look))
