"""Does a network decide by its data? A graph has one path: what a branch that was not taken computes would be lost silently."""
from __future__ import annotations

import os
import traceback

from tsm_edge.errors import InputError


def refuse_decisions(step_net):
    """Run one step and refuse a network whose Python code looks at a value that comes from the frame or a cache.

    Parameters
    ----------
    step_net : tsm_edge.step.StepNetwork

    Raises
    ------
    InputError
        Names the line that makes a number, or a truth value, of such a tensor.
    """
    import torch

    width, height = step_net.input_size
    frame = torch.zeros(1, 3, height, width, dtype=next(step_net.parameters()).dtype)
    caches = step_net.zero_caches()
    with torch.no_grad(), _watcher()([frame, *caches]):
        step_net(frame, *caches)


def _watcher():
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    looks = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default}

    class Watcher(TorchDispatchMode):
        """Follows what is computed from some tensors, by the memory that it lies in."""

        def __init__(self, tensors):
            super().__init__()
            self.kept, self.memory = [], set()  # kept: memory that is freed could be another tensor's next
            self.follow(tensors)

        def follow(self, values):
            for value in tree_leaves(values):
                if isinstance(value, torch.Tensor):
                    self.kept.append(value)
                    self.memory.add(value.untyped_storage()._cdata)

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            given = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, torch.Tensor)]
            followed = any(value.untyped_storage()._cdata in self.memory for value in given)
            if followed and function in looks:
                raise InputError("the network decides by what it sees", found=_where(),
                                 expected="the same operations for every frame",
                                 do="take the decision out of the network's forward, or compute both ways and choose with torch.where")
            result = function(*args, **(kwargs or {}))
            if followed:
                self.follow(result)
            return result

    return Watcher


def _where():
    """"net.py:12: if x.mean() > 0:" of the innermost line that is the network's own."""
    import torch

    ours = (os.path.dirname(torch.__file__) + os.sep, os.path.abspath(__file__))
    for line in reversed(traceback.extract_stack()):
        if not os.path.abspath(line.filename).startswith(ours):
            return f"{os.path.basename(line.filename)}:{line.lineno}: {line.line}" if line.line else f"{line.filename}:{line.lineno}"
    return "a number taken from a tensor"
