"""A whole bundle of a network small enough to write by hand: ONNX graph, C library, manifest, golden.npz."""
import hashlib
import json
import shutil
from pathlib import Path

import c_toy as toy  # the network in C and in numpy: toy_weights, toy_reference, build_toy
import numpy as np

CLASSES = ["zero", "one", "two", "three", "four"]
SHAPES = {"cache.a": (1, 2, toy.HEIGHT, toy.WIDTH), "cache.b": (1, 3, toy.HEIGHT, toy.WIDTH)}


def manifest(**changes):
    caches = [{"name": name, "layer": name[6:], "shape": list(shape), "dtype": "float32", "slice": [0, shape[1]],
               "channels": 8} for name, shape in SHAPES.items()]
    return {
        "schema": 1, "name": "toy", "trained": False, "classes": CLASSES,
        "input": {"width": toy.WIDTH, "height": toy.HEIGHT, "colour": "RGB", "resize": "crop",
                  "shorter_side": toy.SHORTER, "filter": "antialias", "mean": toy.MEAN.tolist(), "std": toy.STD.tolist()},
        "stream": {"fps": 15, "max_gap_seconds": 1.0},
        "events": {"window": 3, "hold": 2, "on": 0.3, "off": 0.2, "merge": {}, "ignore": [], "background": [0]},
        "caches": caches, "precision": "fp32", "threads": 1, "toolchain": {},
        "network": {"arch": "toy", "width": 1.0, "fold_div": 4, "past": [0, 1], "n_segment": 8},
        "target": {"name": "host", "triple": "x86_64-linux-gnu", "cpu": "x86-64", "os": "linux"},
        "verification": {"status": "not executed", "frames": 0, "checks": []}, **changes}


def onnx_model(meta=None):
    """toy_plan.c's network as a step graph."""
    from onnx import TensorProto, helper, numpy_helper

    w0, b0, w1, w2 = toy.toy_weights()
    constants = {"w0": w0.T.reshape(8, 3, 1, 1), "b0": b0, "w1": w1, "w2": w2, "splits": np.array([2, 3, 3]),
                 "axes": np.array([2, 3])}
    node = helper.make_node
    nodes = [
        node("Conv", ["frame", "w0", "b0"], ["act"]),
        node("Split", ["act", "splits"], ["next_cache.a", "next_cache.b", "rest"], axis=1),
        node("Concat", ["cache.a", "cache.b", "rest"], ["spliced"], axis=1),
        node("Relu", ["spliced"], ["positive"]),
        node("ReduceMean", ["positive", "axes"], ["mean"], keepdims=0),
        node("MatMul", ["mean", "w1"], ["hidden"]),
        node("MatMul", ["hidden", "w2"], ["logits"])]
    def tensor(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(
        nodes, "toy", [tensor("frame", [1, 3, toy.HEIGHT, toy.WIDTH]), *(tensor(n, s) for n, s in SHAPES.items())],
        [tensor("logits", [1, toy.CLASSES]), *(tensor("next_" + n, s) for n, s in SHAPES.items())],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if meta:
        embedded = {key: value for key, value in meta.items() if key not in ("files", "verification")}
        helper.set_model_props(model, {"tsm_edge.manifest": json.dumps(embedded)})
    return model


def smooth_frames(count, height=36, width=50, seed=0):
    """uint8 [count, height, width, 3] with large moving shapes: the logits move."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 10.0
    frames = np.empty((count, height, width, 3))
    for t in range(count):
        for c in range(3):
            a, b, d = random.uniform(0.3, 1.5, 3)
            frames[t, :, :, c] = np.sin(a * x + t) + np.cos(b * y - d * t) + random.uniform(-1, 1)
    return ((frames - frames.min()) / np.ptp(frames) * 255).astype(np.uint8)


def golden(count=6):
    """What golden.npz of the toy holds, from the numpy network."""
    from tsm_edge.runtimes.preprocess import preprocess

    frames = smooth_frames(count)
    inputs = np.stack([preprocess(frame, manifest()["input"]) for frame in frames])
    steps = toy.toy_reference(inputs)
    return {"frames": frames, "inputs": inputs, "logits": np.stack([s[0] for s in steps]).astype(np.float32),
            "cache.a": np.stack([s[1] for s in steps]).astype(np.float32),
            "cache.b": np.stack([s[2] for s in steps]).astype(np.float32)}


def list_files(folder):
    """The manifest's "files" for what lies in a folder."""
    return [{"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size,
             "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]


def seal(folder, **changes):
    """(Re)write manifest.json for the files as they are now."""
    folder = Path(folder)
    data = {**manifest(), **changes}
    data.setdefault("files", list_files(folder))
    (folder / "manifest.json").write_text(json.dumps(data, indent=1))
    return folder


def make_bundle(folder, library=None):
    """A complete bundle in `folder`; `library`: a compiled toy to copy in, as libtsm_model.so."""
    import onnx

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx_model(manifest()), folder / "model.onnx")
    np.savez_compressed(folder / "golden.npz", **golden())
    if library:
        shutil.copy(library, folder / "libtsm_model.so")
    return seal(folder)


def with_device(source, folder, **changes):
    """A copy with a device folder, as an export writes it."""
    from tsm_edge.export.bundle.device import write_device

    shutil.copytree(source, folder)
    write_device(Path(folder) / "device")
    return seal(folder, **changes)
