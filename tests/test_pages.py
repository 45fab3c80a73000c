"""What the pages say is so: their links lead somewhere, the files they name exist, their Python runs, and frames come with their time."""
import ast
import re
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "tsm_edge" / "weights" / "README.md",
         *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = ("tsm_edge", "export", "runtimes", "demo", "training", "benchmarks", "tests")


def named(path):
    return str(path.relative_to(ROOT))


def fenced(text, language):
    """The blocks of a page that are marked as `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def anchors(page):
    """What a link to a heading of the page may say after its #."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_headings_that_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{link}: no such file"
        assert not heading or heading in anchors(there), f"{link}: {there.name} has no such heading, but {sorted(anchors(there))}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_named_on_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    in_commands = [word for block in fenced(text, "sh") for line in block.splitlines() if "pytest tests/" in line for word in line.split()]
    for word in [*re.findall(r"`([\w./*-]+)`", text), *in_commands]:
        if word.split("/")[0] in ROOMS and "/" in word and "<" not in word:
            assert list(ROOT.glob(word)), f"`{word}`: no such file"


def defines(path, name):
    """Is `name` (a function, a class, Class.method or a constant) defined in this file of Python or C?"""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return bool(re.search(rf"^[\w *]+\b{name}\([^;]*\{{$", text, re.M))
    body = ast.parse(text).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part or isinstance(node, ast.Assign)
                 and part in [target.id for target in node.targets if isinstance(target, ast.Name)]]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def test_the_five_answers_in_contributing_are_true():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("Do you know the house?")[2]
    rows = re.findall(r"^\| ((?!what|-)[^|]+) \| (.+) \|$", text, re.M)
    answers = [re.findall(r"`([\w/]+\.\w+)` `([\w.]+)`", row) for _, row in rows]
    assert len(rows) == 5 and all(answers)
    for path, name in sum(answers, []):
        assert defines(ROOT / path, name), f"{path} has no {name}"
    assert not defines(ROOT / "tsm_edge" / "step.py", "StepNetwork.no") and not defines(ROOT / "runtimes/c/tsm_stream.c", "tsm_no")


def imports(tree):
    """(module, name or None) of each import in a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_names_that_a_page_imports_from_us_exist(page):
    import importlib

    for block in fenced(page.read_text(encoding="utf-8"), "python"):
        for module, name in imports(ast.parse(block)):
            if module.split(".")[0] == "tsm_edge":
                assert name is None or hasattr(importlib.import_module(module), name), f"{module} has no {name}"


def test_the_promise_in_the_readme_holds():
    pytest.importorskip("torch", reason="torch (extra [train]) is not installed")
    promise = next(block for block in fenced((ROOT / "README.md").read_text(encoding="utf-8"), "python") if "allclose" in block)
    exec(compile(promise.replace("224", "112"), "README.md", "exec"), {})


class Played:
    """Stands for a model and its stream; remembers what its steps were given."""

    def __init__(self):
        self.given = []

    def stream(self, colour="RGB"):
        return self

    def events(self):
        from tsm_edge.runtimes.events import GestureEvents

        return GestureEvents.of(self)

    def step(self, frame, *times):
        self.given.append((frame, *times))
        return type("Result", (), {"label": "a", "score": 1.0, "logits": np.zeros(2), "skipped": False, "reset": False})()


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "api.md"], ids=named)
def test_the_loops_on_the_pages_run_and_pass_each_frame_with_its_time(page, monkeypatch, capsys):
    import tsm_edge

    loops = [block for block in fenced(page.read_text(encoding="utf-8"), "python") if ".step(frame, " in block]
    played = Played()
    played.classes, played.manifest = ["a", "b"], {"events": {}}
    monkeypatch.setattr(tsm_edge, "load", lambda path: played, raising=False)
    space = {"camera": list(np.zeros((3, 48, 64, 3), np.uint8))}
    begin = time.monotonic()
    for block in loops:
        exec(compile(block, page.name, "exec"), space)
    assert loops and len(played.given) == 3 * len(loops) and "a 1.0" in capsys.readouterr().out
    assert all(frame.shape == (48, 64, 3) and begin <= now <= time.monotonic() for frame, now in played.given)


def steps(text):
    """The arguments of each call `.step(frame...)` in a text, as text."""
    return re.findall(r"\.step\((frame(?:[^()]|\([^()]*\))*)\)", text)


def without_time(text):
    """Those calls that pass no second argument."""
    return [call for call in steps(text) if "," not in re.sub(r"\([^()]*\)|\[[^][]*\]", "", call)]


def texts():
    """(where, text) of all that a reader may copy: pages, and every string in the package, docstrings among them."""
    for page in PAGES:
        yield named(page), page.read_text(encoding="utf-8")
    for room in ROOMS[:-1]:
        for file in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield named(file), node.value


def test_every_snippet_passes_a_timestamp():
    found = [(where, text) for where, text in texts() if steps(text)]
    assert len(found) >= 4
    assert [(where, call) for where, text in found for call in without_time(text)] == []


def test_readmes_of_bundles_pass_a_timestamp():
    from tsm_edge.export.bundle.readme import bundle_readme
    from tsm_edge.export.targets.boards import TARGETS

    manifest = {"name": "m", "trained": True, "classes": ["a", "b"], "precision": "fp32", "threads": 4,
                "input": {"width": 64, "height": 64, "colour": "RGB"}, "caches": [{"shape": [1, 3, 8, 8]}],
                "verification": {"status": "passed", "checks": []}}
    for target in TARGETS.values():
        text = bundle_readme(manifest, target, "b", ["device/x", "golden.npz"])
        assert steps(text) and not without_time(text), text


def test_a_snippet_without_a_time_would_be_seen():
    assert without_time("r = stream.step(frame)\nq = s.step(frame[0], time.monotonic())\ns.step(frame.image, frame.time)") == ["frame"]
    assert without_time("s.step(frame[:, :64])") == ["frame[:, :64]"] and without_time("s.step(frame, clock(a, b))") == []
