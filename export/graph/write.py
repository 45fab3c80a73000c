"""The step network as an ONNX file: named inputs and outputs, fixed shapes, the manifest inside.

The graph has only what the step computes: convolutions with batch norms folded in, activations, additions, the splices of
the caches (Slice and Concat), pooling and the classifier. The same network gives the same bytes.
"""
from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import warnings

from tsm_edge.errors import CheckFailedError, InputError, MissingComponentError

from .control_flow import refuse_decisions
from .tidy import OPSET, end_names, tidy

METADATA_KEY = "tsm_edge.manifest"
_LEFT_OUT = ("files", "verification")  # known only after the file is written


def export_onnx(step_net, path, manifest=None):
    """Write a step network as ONNX, checked.

    Parameters
    ----------
    step_net : tsm_edge.step.StepNetwork
    path : path or None
        File to write; None writes none.
    manifest : dict or None
        Embedded in the file's metadata, without `files` and `verification`.

    Returns
    -------
    onnx.ModelProto
        Inputs `frame` and `cache.<layer>`, outputs `logits` and `next_cache.<layer>`, float32, all shapes fixed.

    Raises
    ------
    InputError
        The network contains something that ONNX cannot express, or decides by its data.
    CheckFailedError
        The graph does not pass ONNX's checker or shape inference.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingComponentError("writing ONNX needs the package onnx", found="no package onnx", expected="onnx>=1.16",
                                    do="pip install 'tsm-edge[export]'") from error
    refuse_decisions(step_net)
    model = onnx.load_from_string(_trace(step_net))
    tidy(model, step_net)
    if manifest is not None:
        kept = {key: value for key, value in manifest.items() if key not in _LEFT_OUT}
        entry = model.metadata_props.add()
        entry.key, entry.value = METADATA_KEY, json.dumps(kept, ensure_ascii=False, sort_keys=True)
    model = _check(model, step_net)
    if path is not None:
        with open(path, "wb") as file:
            file.write(model.SerializeToString(deterministic=True))
    return model


def _trace(step_net):
    """Let torch write the graph; bytes of an ONNX model."""
    import torch

    width, height = step_net.input_size
    frame = torch.zeros(1, 3, height, width, dtype=next(step_net.parameters()).dtype)
    inputs, outputs = end_names(step_net)
    options = dict(input_names=inputs, output_names=outputs, opset_version=OPSET, do_constant_folding=True,
                   training=torch.onnx.TrainingMode.EVAL)
    if "dynamo" in torch.onnx.export.__code__.co_varnames:
        options["dynamo"] = False  # the exporter that needs no further package
    buffer, level = io.BytesIO(), logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad(), _quiet_stdout(), _plain_attention():
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx.*")
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of shapes, which are fixed: see refuse_decisions
            torch.onnx.export(step_net, (frame, *step_net.zero_caches()), buffer, **options)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise InputError("the network cannot be written as ONNX", found=f"{type(error).__name__}: {text[0] if text else ''}",
                         expected=f"operations that ONNX opset {OPSET} has",
                         do="replace the operation named by one that ONNX has") from error
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
    return buffer.getvalue()


@contextlib.contextmanager
def _quiet_stdout():
    """torch prints the whole graph when an operation has no counterpart in ONNX: from C++, to the process's own stdout."""
    sys.stdout.flush()
    try:
        before = os.dup(1)
    except OSError:  # closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(before, 1)
        os.close(before)


@contextlib.contextmanager
def _plain_attention():
    """nn.MultiheadAttention by its parts: ONNX has nothing for torch's fused one."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _check(model, step_net):
    """ONNX's checker and strict shape inference; returns the model with the shapes of all tensors written in."""
    import onnx

    inputs, outputs = end_names(step_net)
    try:
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        raise CheckFailedError("the ONNX graph does not pass ONNX's own checks", found=str(error).strip().splitlines()[0],
                               expected="a valid graph with consistent shapes",
                               do="report this, with the network's structure") from error
    read = {name for node in model.graph.node for name in node.input}
    dead = [name for name in inputs if name not in read]
    fed = {name for node in model.graph.node for name in node.output}
    unmade = [name for name in outputs if name not in fed]
    if dead or unmade:
        raise InputError("the network's graph leaves something out", found=", ".join(dead + unmade),
                         expected="every input read and every output computed",
                         do="a shift whose result the logits do not depend on must be taken out of the network")
    return model
