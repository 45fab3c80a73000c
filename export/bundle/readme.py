"""The README.md inside a bundle: what it is, whether it is proven, what to copy where and what to type."""
from __future__ import annotations

from tsm_edge.sides import whose

UNTRAINED = ("**UNTRAINED: this network has random weights. It recognises nothing; its labels mean nothing. Use it to "
             "try the machinery and to measure speed, and export again with `--checkpoint` for recognition.**")

_FILES = {
    "manifest.json": "what the model is, what it expects, how it was verified, hashes of all files",
    "model.onnx": "the step graph, for onnxruntime and for looking at",
    "libtsm_model.so": "the compiled network with its runtime; needs libc and libm only",
    "model_tvm.so": "the same kernels for TVM's own runtime; `tsm_edge.load(..., engine=\"tvm\")` runs it. Not needed otherwise",
    "libtsm_model.a": "the compiled network with its runtime, to be linked by the app",
    "tsm_edge.h": "the C interface of that library",
    "golden.npz": "a few frames with the logits and caches that must come out, for verification on the device",
    "CMakeLists.txt": "for add_subdirectory()",
    "tsm_edge-config.cmake": "for find_package(tsm_edge)",
    "src/": "the runtime's C sources, compiled by the app's own toolchain",
    "device/": "verification, demo and benchmark for the device's own Python (3.6 or newer, numpy; OpenCV for the demo), and a module",
}


def _verification(manifest):
    verification = manifest["verification"]
    lines = ["| check | result | frames | max difference | tolerance | argmax flips |", "|---|---|---|---|---|---|"]
    for check in verification["checks"]:
        def number(key, form="{:.2g}", check=check):
            return "" if check.get(key) is None else form.format(check[key])
        lines.append(f"| {check['name']} | {check['status']} | {check['frames']} | {number('max_abs_diff')} | "
                     f"{number('tolerance')} | {number('argmax_flips', '{}')} |")
    lines += [""] + [f"- {check['name']}: {check['detail']}" for check in verification["checks"] if check.get("detail")]
    if verification["status"] == "not executed":
        lines += ["", "**Not everything was executed**: the checks above that say so were not run where this was "
                  "exported. Run the verification on the device before relying on it."]
    return "\n".join(lines)


def _classes(manifest):
    names, events = manifest["classes"], manifest.get("events", {})
    lines = [", ".join(names) + "."]
    if whose(manifest):
        lines += ["", whose(manifest)]
    ignored = [names[i] for i in events.get("ignore", [])]
    merged = [f"{names[int(a)]} counts as {names[b]}" for a, b in events.get("merge", {}).items()]
    if ignored or merged:
        lines += ["", "As events (`\"events\"` in manifest.json): " + "; ".join(
            merged + (["never reported: " + ", ".join(ignored)] if ignored else [])) + "."]
    return lines


def _python(target, folder):
    """Lines: with the package, and with what lies in device/ alone."""
    loop = ["    for frame in camera:                                    # uint8, height x width x 3, RGB",
            "        result = stream.step(frame, time.monotonic())       # result.label, result.score"]
    here = ["    import time, tsm_edge                                   # pip install tsm-edge",
            f"    stream = tsm_edge.load(\"{folder}\").stream()", *loop]
    if target.os != "linux":
        return ["On a computer, by onnxruntime (`pip install 'tsm-edge[onnxruntime]'`):", "", *here]
    return ["With nothing installed but numpy:", "", "    import sys, time", f"    sys.path.insert(0, \"{folder}/device\")",
            "    import tsm_device", "    stream = tsm_device.load().stream()                     # this bundle", *loop, "",
            "or with the package, on any machine:", "", *here]


def bundle_readme(manifest, target, folder, files):
    """The text.

    Parameters
    ----------
    manifest : dict
        The bundle's manifest, with `verification`.
    target : tsm_edge.export.targets.boards.Target
    folder : str
        Name of the bundle's folder, for the commands.
    files : list of str
        Relative paths of what is in the bundle.
    """
    size = manifest["input"]
    caches = manifest["caches"]
    values = sum(c["shape"][1] * c["shape"][2] * c["shape"][3] for c in caches)
    parts = [f"# {manifest['name']} for {target.title}", ""]
    if not manifest["trained"]:
        parts += [UNTRAINED, ""]
    shape = f"{size['width']}x{size['height']}"
    parts += [
        f"Online video recognition, one frame at a time: {len(manifest['classes'])} classes, "
        f"input {shape} {size['colour']}, {len(caches)} caches ({values:,} values) carry the past, "
        f"precision {manifest['precision']}, "
        f"{manifest['threads']} thread{'s' if manifest['threads'] != 1 else ''} by default.",
        "",
        "## On the device", "", target.deploy.replace("{folder}", folder).strip(), "",
        "## Verification", "", _verification(manifest), "",
        "## From Python", "", *_python(target, folder), "",
        "## Classes", "", *_classes(manifest), "",
        "## Files", "",
    ]
    shown = {name for name in files if "/" not in name} | {name.split("/")[0] + "/" for name in files if "/" in name}
    for name in sorted(shown | {"manifest.json", "README.md"}):
        if name in _FILES:
            parts.append(f"- `{name}`: {_FILES[name]}")
    parts += ["", f"Built for {target.triple}, {target.cpu}" +
              (f" ({' '.join(target.features)})" if target.features else "") + f", {target.libc} or newer"
              + (f", pages up to {target.page_size // 1024} KB." if target.link == "shared" else ".")]
    return "\n".join(parts) + "\n"
