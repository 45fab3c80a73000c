"""The names that other projects give to the layers of our backbones, and the way from theirs to ours.

`reference`: the repository of the TSM paper: `module.base_model.<layer>(.net).weight`, `module.new_fc.*`; `.net` marks a
layer whose input is shifted. `mmaction2`: `backbone.<layer>.conv(.net).weight`, `cls_head.fc_cls.*`. Flat names are ours:
the published online checkpoint's for MobileNetV2, torchvision's for ResNet. torchvision's and timm's names of MobileNetV2 are
known too; both are networks without shifts.
"""
from __future__ import annotations

import re

from .backbones import RESNETS, STAGES, build, mobilenet_channels
from .card import WIDTH

HEADS = {"mobilenet_v2": "classifier", "resnet18": "fc", "resnet50": "fc"}


class UnknownLayout(Exception):
    """Names that are none of ours. args: (problem, found, expected, do)."""


def first_keys(names, count=4):
    """The first few names, for messages."""
    names = list(names)
    shown = ", ".join(str(name) for name in names[:count])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > count else shown or "no tensors"


def translate(weights):
    """Tensors by whatever names -> (kind, tensors by our names, layers marked as shifted, facts).

    kind is "reference", "mmaction2" or "flat". The layers are None where the layout does not mark them. facts may have
    `placement`, `mean` and `std`.

    Raises
    ------
    UnknownLayout
    """
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name[len("module."):]: value for name, value in weights.items()}
    if any(name.startswith("base_model.") for name in weights):
        return "reference", *_from_reference(weights)
    if any(name.startswith("backbone.") for name in weights):
        return "mmaction2", *_from_mmaction2(weights)
    if "features.1.conv.0.0.weight" in weights:
        return "flat", {_mobilenet_of_torchvision(name): value for name, value in weights.items()}, None, {}
    if "conv_stem.weight" in weights and "blocks.1.0.conv_pwl.weight" in weights:
        return "flat", {_mobilenet_of_timm(name): value for name, value in weights.items()}, None, {}
    if "features.0.0.weight" in weights or "layer1.0.conv1.weight" in weights:
        return "flat", dict(weights), None, {}
    raise UnknownLayout(
        "its layers have names that are not known here", first_keys(weights),
        "features.0.0.weight, ... (published online MobileNetV2, torchvision's) or conv_stem.weight, ... (timm's) or "
        "conv1.weight, layer1.0.conv1.weight, ... (ResNet) or "
        "base_model.*, new_fc.* (reference repository) or backbone.*, cls_head.fc_cls.* (MMAction2)",
        "use a checkpoint of one of those, or rename its tensors to the names of create_model(...).state_dict()")


def _refuse_structure(names, prefix):
    """Parts that our networks do not have, in words."""
    parts = (("non-local blocks", r"\.(nl|non_local_block|block)\."), ("temporal pooling", rf"{prefix}\.layer2\.net\."),
             ("BNInception", rf"{prefix}\.(conv1_7x7|inception)"))
    for what, pattern in parts:
        matching = [name for name in names if re.search(pattern, name)]
        if matching:
            raise UnknownLayout(f"it holds a network with {what}", first_keys(matching),
                                "MobileNetV2, ResNet-18 or ResNet-50 with temporal shifts and nothing more",
                                "train one of those, or build your own network and call tsm_edge.shift.insert_shifts")


def _unmark(name):
    """Take the mark of a shift out of a name: (name, marked, the whole block was marked)."""
    block = re.sub(r"^(layer\d+\.\d+)\.net\.", r"\1.", name)
    if block != name:
        return block, True, True
    plain = re.sub(r"\.net(?=\.)", "", name)
    return plain, plain != name, False


def _from_reference(weights):
    _refuse_structure(weights, "base_model")
    mobile = any(name.startswith("base_model.features.") for name in weights)
    head = "classifier" if mobile else "fc"
    ours, shifted, facts = {}, set(), {}
    for name, value in weights.items():
        if name.startswith("new_fc."):
            ours[f"{head}.{name[len('new_fc.'):]}"] = value
            continue
        plain, marked, whole = _unmark(name[len("base_model."):] if name.startswith("base_model.") else name)
        ours[plain] = value
        if whole:
            facts["placement"] = "inplace"
            shifted.add(".".join(plain.split(".")[:2]))
        elif marked:
            shifted.add(plain.rpartition(".")[0])
    return ours, shifted, facts


def _from_mmaction2(weights):
    _refuse_structure(weights, "backbone")
    mobile = "backbone.conv2.conv.weight" in weights
    ours, shifted, facts = {}, set(), {}
    for name, value in weights.items():
        if name.startswith("data_preprocessor."):
            key = name.rpartition(".")[2]
            if key in ("mean", "std") and value.numel() == 3:  # of pixels 0..255
                facts[key] = tuple(float(v) / 255 for v in value.flatten())
            continue
        if name.startswith("cls_head.fc_cls."):
            ours[f"{'classifier' if mobile else 'fc'}.{name.rpartition('.')[2]}"] = value
            continue
        plain, marked, whole = _unmark(name[len("backbone."):] if name.startswith("backbone.") else name)
        plain = (_mobilenet_of_mmaction2 if mobile else _resnet_of_mmaction2)(plain)
        ours[plain] = value
        if whole:
            facts["placement"] = "inplace"
            shifted.add(".".join(plain.split(".")[:2]))
        elif marked and not re.search(r"(bn\d|conv\.1)\.\w+$", plain):  # a shifted ConvModule marks its norm as well
            shifted.add(plain.rpartition(".")[0])
    return ours, shifted, facts


def _resnet_of_mmaction2(name):
    """layer1.0.conv1.conv.weight -> layer1.0.conv1.weight; layer1.0.conv1.bn.bias -> layer1.0.bn1.bias."""
    name = re.sub(r"downsample\.conv\.", "downsample.0.", re.sub(r"downsample\.bn\.", "downsample.1.", name))
    return re.sub(r"conv(\d)\.bn\.", r"bn\1.", re.sub(r"(conv\d)\.conv\.", r"\1.", name))


def _mobilenet_of_mmaction2(name):
    """layer2.0.conv.1.bn.bias -> features.2.conv.4.bias: each of its ConvModules is three of our layers."""
    name = re.sub(r"^conv1\.conv\.", "features.0.0.", re.sub(r"^conv1\.bn\.", "features.0.1.", name))
    name = re.sub(r"^conv2\.conv\.", "features.18.0.", re.sub(r"^conv2\.bn\.", "features.18.1.", name))
    match = re.match(r"layer(\d)\.(\d+)\.conv\.(\d)\.(conv|bn)\.(.+)$", name)
    if not match or not 1 <= int(match[1]) <= len(STAGES):
        return name
    stage, block, module = (int(v) for v in match.groups()[:3])
    index = 1 + sum(blocks for _, _, blocks, _ in STAGES[:stage - 1]) + block
    return f"features.{index}.conv.{3 * module + (match[4] == 'bn')}.{match[5]}"


def _mobilenet_of_torchvision(name):
    """features.2.conv.1.0.weight -> features.2.conv.3.weight: convolution, norm and activation are one module there."""
    match = re.match(r"features\.(\d+)\.conv\.(\d)(?:\.(\d))?\.(\w+)$", name)
    if not match:
        return re.sub(r"^classifier\.1\.", "classifier.", name)
    modules = 1 if match[1] == "1" else 2  # before the last convolution and its norm, which stand alone
    index = 3 * int(match[2]) + int(match[3]) if match[3] else 3 * modules + int(match[2]) - modules
    return f"features.{match[1]}.conv.{index}.{match[4]}"


_TIMM = {"conv_pw": 0, "bn1": 1, "conv_dw": 3, "bn2": 4, "conv_pwl": 6, "bn3": 7}
_TIMM_FIRST = {"conv_dw": 0, "bn1": 1, "conv_pw": 3, "bn2": 4}


def _mobilenet_of_timm(name):
    """blocks.1.0.conv_pwl.weight -> features.2.conv.6.weight."""
    match = re.match(r"blocks\.(\d)\.(\d)\.(\w+)\.(\w+)$", name)
    if match and int(match[1]) < len(STAGES):
        layers = _TIMM_FIRST if match[1] == "0" else _TIMM
        index = 1 + sum(blocks for _, _, blocks, _ in STAGES[:int(match[1])]) + int(match[2])
        return f"features.{index}.conv.{layers.get(match[3], match[3])}.{match[4]}"
    ends = ("conv_stem.", "features.0.0."), ("bn1.", "features.0.1."), ("conv_head.", "features.18.0."), ("bn2.", "features.18.1.")
    for theirs, ours in ends:
        if name.startswith(theirs):
            return ours + name[len(theirs):]
    return name


def measure(weights):
    """(arch, num_classes, width, rounding) of tensors by our names, from their names and shapes; num_classes 0: no classifier.

    Raises
    ------
    UnknownLayout
    """
    arch, width, rounding = "mobilenet_v2", 1.0, "reference"
    if "features.0.0.weight" in weights:
        width, rounding = _width(weights)
    else:
        blocks = tuple(len({m[1] for m in (re.match(rf"layer{s}\.(\d+)\.", name) for name in weights) if m}) for s in range(1, 5))
        arch = "resnet50" if any(".conv3." in name for name in weights) else "resnet18"
        if blocks != RESNETS[arch]:
            raise UnknownLayout("it holds a ResNet of another depth", f"blocks {blocks}",
                                "ResNet-18 with blocks (2, 2, 2, 2) or ResNet-50 with blocks (3, 4, 6, 3)",
                                "train one of those, or shift your own network with tsm_edge.shift.insert_shifts")
    head = weights.get(HEADS[arch] + ".weight")
    if head is None and HEADS[arch] + ".bias" not in weights:
        return arch, 0, width, rounding
    if head is None or head.ndim != 2:
        raise UnknownLayout("it has no classifier", first_keys(weights), f"{HEADS[arch]}.weight with shape (classes, channels)",
                            "use the checkpoint of a whole network, or load a backbone with load_into(net, path, head=False)")
    return arch, int(head.shape[0]), width, rounding


def _width(weights):
    """Find the width multiplier whose channels these are."""
    def channels(name):
        return int(weights[name].shape[0]) if name in weights and weights[name].ndim else 0

    index, stages = 1, []
    for expansion, _, blocks, _ in STAGES:
        stages.append(channels(f"features.{index}.conv.{3 if expansion == 1 else 6}.weight"))
        index += blocks
    found = channels("features.0.0.weight"), tuple(stages), channels(f"features.{index}.0.weight")
    widths = (w / 100 for w in range(round(100 * WIDTH[0]), round(100 * WIDTH[1]) + 1))
    for width in sorted(widths, key=lambda w: (w != 1, round(w * 100) % 25 != 0, round(w * 100) % 10 != 0,
                                                                       round(w * 100) % 5 != 0, w)):
        for rounding in ("reference", "mmaction2"):
            if mobilenet_channels(width, rounding) == found:
                return width, rounding
    raise UnknownLayout("its channels are those of no MobileNetV2", f"stem, stages and head {found}",
                        f"for width 1.0: {mobilenet_channels(1.0)}", "use a MobileNetV2 with a plain width multiplier")


def differences(weights, expected):
    """What is wrong with tensors by our names: list of sentences; empty if they fit `expected` (a state dict).

    Counters of batches (`num_batches_tracked`) may be missing: old releases of PyTorch did not write them.
    """
    missing = [n for n in expected if n not in weights and not n.endswith(".num_batches_tracked")]
    extra = [n for n in weights if n not in expected]
    wrong = [f"{n} {tuple(weights[n].shape)} instead of {tuple(expected[n].shape)}" for n in expected
             if n in weights and tuple(weights[n].shape) != tuple(expected[n].shape)]
    kinds = [f"{n} {weights[n].dtype}" for n in expected
             if n in weights and expected[n].is_floating_point() and not weights[n].is_floating_point()]
    found = ("missing", missing), ("not expected", extra), ("shapes", wrong), ("no floating-point numbers", kinds)
    return [f"{what}: {first_keys(names)}" for what, names in found if names]


def expected_weights(arch, num_classes, width, rounding):
    """State dict (shapes only) and shifted layers of one of our backbones; num_classes 0: without its classifier."""
    import torch

    with torch.device("meta"):
        net = build(arch, num_classes or 1, width=width, rounding=rounding)
    names = {module: name for name, module in net.named_modules()}
    blocks = [(name, net.shifted(name, block)) for name, block in net.named_modules()]
    tensors = {k: v for k, v in net.state_dict().items() if num_classes or k.rpartition(".")[0] != HEADS[arch]}
    return tensors, {names[m] for _, m in blocks if m is not None}, {name for name, m in blocks if m is not None}
