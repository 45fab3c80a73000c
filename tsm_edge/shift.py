"""The temporal shift: a few channels of each frame's activation come from its neighbours in time.

Slices are counted in folds of `C // fold_div` channels: with fold_div = 8, (0, 1) is the first eighth of the channels,
(1, 2) the second, (0, 2) the first quarter. Online networks have a `past` slice only; offline networks, as in the paper,
have future=(0, 1) and past=(1, 2).
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Optional, TypeVar

from torch import Tensor, nn

from .errors import InputError

Slice = Optional[tuple[int, int]]  # (start, stop) in folds
Net = TypeVar("Net", bound=nn.Module)
CHILD = "temporal_shift"  # name of the child module that insert_shifts adds


def check_slice(bounds: Slice, fold_div: int, what: str) -> Slice:
    """Return `bounds` as a tuple of two ints (start, stop) in folds, or None.

    Raises
    ------
    InputError
        Not two whole numbers with 0 <= start < stop <= fold_div.
    """
    if bounds is None:
        return None
    try:
        start, stop = (int(v) for v in bounds)
        if (start, stop) != tuple(bounds):
            raise ValueError
    except (TypeError, ValueError):
        start = stop = -1
    if not 0 <= start < stop <= fold_div:
        raise InputError(f"the {what} slice of a temporal shift cannot be used", found=f"{what}={bounds!r}",
                         expected=f"(start, stop) in folds, 0 <= start < stop <= fold_div = {fold_div}",
                         do=f"for example {what}=(0, 1) for the first 1/{fold_div} of the channels")
    return start, stop


def check_shift(fold_div: int, past: Slice, future: Slice) -> tuple[int, Slice, Slice]:
    """Check fold_div and both slices together; returns (fold_div, past, future)."""
    if isinstance(fold_div, bool) or int(fold_div) != fold_div or fold_div < 1:
        raise InputError("fold_div of a temporal shift cannot be used", found=f"fold_div={fold_div!r}",
                         expected="a whole number, at least 1", do="for example fold_div=8")
    past, future = check_slice(past, fold_div, "past"), check_slice(future, fold_div, "future")
    if past and future and max(past[0], future[0]) < min(past[1], future[1]):
        raise InputError("a channel cannot come from the past and from the future", found=f"past={past}, future={future}",
                         expected="slices that do not overlap", do="for example future=(0, 1), past=(1, 2)")
    return int(fold_div), past, future


def channel_slice(bounds: Slice, channels: int, fold_div: int) -> tuple[int, int]:
    """Channels (start, stop) of a slice given in folds; (0, 0) if `bounds` is None or a fold is less than a channel."""
    fold = channels // fold_div
    return (0, 0) if bounds is None or fold == 0 else (bounds[0] * fold, bounds[1] * fold)


def temporal_shift(x: Tensor, n_segment: int, *, fold_div: int = 8, past: Slice = (0, 1), future: Slice = None) -> Tensor:
    """Take some channels of each frame from the frame before it, and some from the frame after it.

    Frames missing at the ends of a clip are zeros. The input is not changed. In a network that is to run frame by frame, use
    the module `TemporalShift`, or `insert_shifts`: only modules can be given a cache.

    Parameters
    ----------
    x : torch.Tensor
        [N * T, C, H, W]: N clips of T frames each, in order.
    n_segment : int
        T.
    fold_div : int
        Channels are counted in folds of C // fold_div; with fewer than fold_div channels nothing is shifted.
    past, future : (start, stop) or None
        Which folds come from t-1 and from t+1.

    Returns
    -------
    torch.Tensor
        [N * T, C, H, W]

    Raises
    ------
    InputError
        The number of frames is no multiple of n_segment, or the slices cannot be used.
    """
    fold_div, past, future = check_shift(fold_div, past, future)
    frames, channels = x.shape[0], x.shape[1]
    if n_segment < 1 or frames % n_segment:
        raise InputError("the batch is no whole number of clips", found=f"{frames} frames, n_segment={n_segment}",
                         expected="a multiple of n_segment frames",
                         do="call tsm_edge.shift.set_segments(net, T) with the number of frames of a clip; to run frame by frame "
                            "make every shift a TemporalShift module")
    (p0, p1), (f0, f1) = channel_slice(past, channels, fold_div), channel_slice(future, channels, fold_div)
    if p0 == p1 and f0 == f1:
        return x
    x = x.view(frames // n_segment, n_segment, *x.shape[1:])  # [N, T, C, H, W]
    out = x.clone()
    if p1 > p0:
        out[:, 1:, p0:p1] = x[:, :-1, p0:p1]
        out[:, :1, p0:p1] = 0
    if f1 > f0:
        out[:, :-1, f0:f1] = x[:, 1:, f0:f1]
        out[:, -1:, f0:f1] = 0
    return out.view(frames, *x.shape[2:])


class TemporalShift(nn.Module):
    """`temporal_shift` as a module, without parameters.

    Attributes
    ----------
    n_segment : int
        Frames of a clip; may be set at any time.
    fold_div, past, future : see `temporal_shift`.
    """

    def __init__(self, n_segment: int = 8, fold_div: int = 8, past: Slice = (0, 1), future: Slice = None) -> None:
        super().__init__()
        self.fold_div, self.past, self.future = check_shift(fold_div, past, future)
        self.n_segment = n_segment

    def forward(self, x: Tensor) -> Tensor:
        """[N * T, C, H, W] -> the same shape."""
        return temporal_shift(x, self.n_segment, fold_div=self.fold_div, past=self.past, future=self.future)

    def extra_repr(self) -> str:
        return f"n_segment={self.n_segment}, fold_div={self.fold_div}, past={self.past}, future={self.future}"


def _shift_input(module, args, kwargs):
    # a plain function that finds the shift on the module: copies and pickles of the network keep working
    if args:
        return (getattr(module, CHILD)(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: getattr(module, CHILD)(kwargs[first])}


def _first_convolution(name, block):
    for module in block.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv1d)):
            return module
    raise InputError("a block to shift has no convolution", found=f"{name or 'the network'}: {type(block).__name__}",
                     expected="a block with a convolution inside",
                     do="let `where` return the module whose input is to be shifted")


def insert_shifts(net: nn.Module, where: Callable[[str, nn.Module], bool | nn.Module | list[nn.Module] | None], *, n_segment: int = 8,
                  fold_div: int = 8, past: Slice = (0, 1), future: Slice = None, placement: str = "residual") -> list[str]:
    """Shift the inputs of some layers of a network along time, in place.

    Adds no parameters and renames nothing: state dicts of the network without shifts fit, and the other way round.

    Parameters
    ----------
    net : torch.nn.Module
        A 2D network over frames [N * T, C, H, W].
    where : callable (name, block) -> bool, module, or list of modules
        Called with every module of the network. True: shift this block. A module of the block: shift that module's input.
    n_segment, fold_div, past, future : see `temporal_shift`.
    placement : "residual" or "inplace"
        For blocks answered with True. "residual": the input of the block's first convolution, so that the identity path
        sees the un-shifted input. "inplace": the block's input, so that both paths see it shifted.

    Returns
    -------
    list of str
        Names of the layers whose inputs are now shifted.

    Raises
    ------
    InputError
        Nothing matched, a layer already has a shift, or a module answered by `where` is none of the network's.
    """
    if placement not in ("residual", "inplace"):
        raise InputError("unknown placement of temporal shifts", found=repr(placement), expected="'residual' or 'inplace'",
                         do="'residual' keeps the spatial features of the identity path")
    check_shift(fold_div, past, future)
    names = {id(module): name for name, module in net.named_modules()}
    chosen = {}  # id -> module; a layer shared by several blocks gets one shift
    for name, block in list(net.named_modules()):
        answer = where(name, block)
        if answer is None or answer is False:
            continue
        if answer is True:
            answer = _first_convolution(name, block) if placement == "residual" else block
        for module in answer if isinstance(answer, (list, tuple)) else [answer]:
            if not isinstance(module, nn.Module) or id(module) not in names:
                raise InputError("`where` answered with something that is no module of the network",
                                 found=f"{type(module).__name__} for {name!r}", expected="True, False, or modules of the block",
                                 do="return the module whose input is to be shifted")
            chosen[id(module)] = module
    if not chosen:
        some = ", ".join([n for n in names.values() if n][:4])
        raise InputError("no block was chosen for a temporal shift", found=f"`where` was False for {len(names)} modules",
                         expected=f"True for at least one, by its name ({some}, ...) or type",
                         do="print [name for name, _ in net.named_modules()]")
    for key, module in chosen.items():
        if CHILD in module._modules or isinstance(module, TemporalShift):
            raise InputError("a layer already has a temporal shift", found=names[key] or type(module).__name__,
                             expected="a layer without one", do="insert shifts once, into a fresh network")
    for module in chosen.values():
        module.add_module(CHILD, TemporalShift(n_segment, fold_div, past, future))
        module.register_forward_pre_hook(_shift_input, with_kwargs=True)
    return [names[key] for key in chosen]


def find_shifts(net: nn.Module) -> list[tuple[str, TemporalShift]]:
    """All shifts of a network: list of (layer, TemporalShift).

    `layer` is the name of the layer whose input is shifted; for a shift that is a layer of its own, its own name.
    """
    found = []
    for name, module in net.named_modules():
        if isinstance(module, TemporalShift):
            parent, _, child = name.rpartition(".")
            found.append((parent if child == CHILD else name, module))
    return [(layer or "input", module) for layer, module in found]


def set_segments(net: Net, n_segment: int) -> Net:
    """Set the number of frames of a clip in all shifts of a network; returns the network."""
    for _, shift in find_shifts(net):
        shift.n_segment = n_segment
    return net
