"""The network that tsm-export's options describe."""
from __future__ import annotations

from tsm_edge.errors import InputError
from tsm_edge.export.proof.traces import one_thread


def _check_class_count(classes, num_classes, whose):
    if classes is not None and len(classes) != num_classes:
        raise InputError("the class list does not fit the network", found=f"{len(classes)} names",
                         expected=f"{num_classes}, the outputs of {whose}",
                         do="give --classes a file with one name for each output, in their order")


def _width(arch, width):
    if width is not None and arch != "mobilenet_v2":
        raise InputError(f"{arch} has no width multiplier", found=f"--width {width:g}",
                         expected="mobilenet_v2, or no --width", do="leave --width out")
    if width is not None and not 0.1 <= width <= 4:
        raise InputError("--width cannot be used", found=f"{width:g}", expected="0.1 to 4",
                         do="for example --width 1.4")
    return {} if width is None else {"width": width}


def _label(net, classes, trained):
    """Write class names and whether the weights are trained into the network's description."""
    net.tsm_info["trained"] = trained
    if classes is not None:
        net.tsm_info["classes"] = list(classes)
    return net.eval()


def with_random_weights(arch="mobilenet_v2", num_classes=None, *, classes=None, width=None, input_size=None, past=None,
                        fold_div=None, seed=0):
    """An untrained network whose outputs nevertheless move with its input, so that it can be verified and timed.

    Parameters
    ----------
    arch, num_classes, width : as in `tsm_edge.create_model`; num_classes defaults to len(classes), else 27.
    classes : list of str or None
    input_size : (width, height) or None for 224x224.
    past, fold_div : as in `tsm_edge.create_model`.
    seed : int

    Returns
    -------
    torch.nn.Module
        With `tsm_info["trained"]` False.
    """
    from tsm_edge.models import create_model
    from tsm_edge.sensitive import image_like_frames, make_sensitive

    if num_classes is not None and num_classes < 2:
        raise InputError("--num-classes cannot be used", found=str(num_classes), expected="at least 2",
                         do="for example --num-classes 27")
    count = num_classes or (len(classes) if classes else 27)
    _check_class_count(classes, count, "--num-classes")
    size = input_size or (224, 224)
    net = create_model(arch, count, input_size=size, shift="online", past=past, fold_div=fold_div,
                       **_width(arch, width))
    with one_thread():
        make_sensitive(net, seed, image_like_frames(16, size, seed))
    return _label(net, classes, trained=False)


def from_checkpoint(path, *, arch=None, num_classes=None, classes=None, width=None, input_size=None, past=None,
                    fold_div=None):
    """The network of a checkpoint; what is given besides must agree with what the file holds.

    Parameters
    ----------
    past : (start, stop) or None
        Which folds of channels come from the past, for files that do not say or were trained with both directions.
    Others : as for `with_random_weights`.

    Raises
    ------
    CheckpointError, InputError
        Unreadable, foreign or mismatching files and options.
    """
    from tsm_edge.checkpoints import load_checkpoint
    from tsm_edge.models import create_model

    checkpoint = load_checkpoint(path)
    for option, given, found in (("--arch", arch, checkpoint.arch), ("--width", width, checkpoint.width),
                                 ("--num-classes", num_classes, checkpoint.num_classes)):
        if given is not None and given != found:
            raise InputError(f"{option} does not fit the checkpoint {path}", found=f"{option} {given}",
                             expected=f"{found}, as the file has it", do=f"leave {option} out, or pick another file")
    _check_class_count(classes, checkpoint.num_classes, str(path))
    size = input_size or checkpoint.info.get("input_size") or (224, 224)
    width = {"width": checkpoint.width} if checkpoint.arch == "mobilenet_v2" else {}
    net = create_model(checkpoint.arch, checkpoint.num_classes, input_size=tuple(size), shift="online",
                       checkpoint=path, past=past, fold_div=fold_div, **width)
    for key in ("events", "model_name"):
        if checkpoint.info.get(key):
            net.tsm_info[key] = checkpoint.info[key]
    return _label(net, classes or checkpoint.classes, trained=checkpoint.info.get("trained", True))
