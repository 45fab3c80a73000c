"""The rules of the house, read off the syntax trees: which room asks which, no circles, how imports are written, how long things are."""
import ast
import configparser
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tsm_edge.export.bundle.device import MODULES

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("tsm_edge", "export", "runtimes", "demo", "training", "benchmarks")
# Floors, the highest first. A room asks only those below it; two on one floor do not know each other. What lies deeper is named apart.
FLOORS = (
    ("benchmarks", "demo training export", "runtimes", "tsm_edge"),
    ("export/__init__.py export/cli.py", "export/pipeline.py", "export/keep.py",
     "export/bundle export/networks.py export/targets/boards.py",
     "export/proof export/tuning", "export/library", "export/kernels", "export/graph export/targets"),
    ("training", "training/evaluate", "training/gestures/cli.py", "training/data training/networks.py", "training/gestures"),
    ("export/kernels", "export/kernels/blocks export/kernels/generic", "export/kernels/choose", "export/kernels/write",
     "export/kernels/arm"),
)
PLAIN = {f"tsm_edge/{name}.py" for name in ("card", "cli", "default", "errors", "files", "jester", "manifest", "picture", "shell", "sides")}
LIBRARIES = {"torch", "torchvision", "onnx", "onnxruntime", "tvm", "cv2", "rich", "matplotlib", "PIL", "unicorn", "openvino", "ncnn", "MNN"}
ENGINES = {"torch", "onnx", "onnxruntime", "tvm"}  # of the runtimes only runtimes/engines may import them
MOST_LINES, LONGEST_FUNCTION, MOST_ENTRIES = 450, 60, 12


class House:
    """What the files of a tree import.

    arrows : {(file, imported file): line}. outside : [(file, package, line, at call)]. badly : what is written against the habit.
    """

    def __init__(self, root):
        self.root, self.arrows, self.outside, self.badly = root, {}, [], []
        self.trees = {path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
                      for room in (*ROOMS, "tests") for path in sorted((root / room).rglob("*.py"))}
        self.modules = {module_of(file): file for file in self.trees if not file.startswith("tests/")}
        for file in self.modules.values():
            self.imports_of(file)

    def imports_of(self, file):
        package = module_of(file).split(".")[:None if file.endswith("__init__.py") else -1]
        top = set(ast.iter_child_nodes(self.trees[file]))
        for node in ast.walk(self.trees[file]):
            if isinstance(node, ast.Import):
                level, names = 0, [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                level, base = node.level, package[:len(package) - node.level + 1] if node.level else []
                module = ".".join([*base, *filter(None, [node.module])])
                names = [f"{module}.{alias.name}" if f"{module}.{alias.name}" in self.modules else module for alias in node.names]
            else:
                continue
            for other in dict.fromkeys(self.modules[name] for name in names if name in self.modules):
                self.arrows.setdefault((file, other), node.lineno)
                if level != (Path(file).parent == Path(other).parent):
                    self.badly.append(f"{file}:{node.lineno} imports {other}: relative within a room, absolute across")
            self.outside += [(file, name.split(".")[0], node.lineno, node not in top) for name in names if not level]

    def upwards(self):
        """Arrows that no floor allows."""
        for (file, other), line in self.arrows.items():
            for floors in FLOORS:
                (room, here), (asked, there) = place(file, floors), place(other, floors)
                if room and asked and room != asked and there <= here:
                    yield f"{file}:{line} imports {other}: {room} must not ask {asked}"
            if file in PLAIN and other not in PLAIN:
                yield f"{file}:{line} imports {other}: a plain file asks plain files only"

    def leaving(self, files):
        """Arrows out of some files."""
        return [f"{file}:{line} imports {other}" for (file, other), line in self.arrows.items() if file in files and other not in files]

    def libraries(self):
        """Packages imported where they must not be."""
        for file, package, line, at_call in self.outside:
            if package in LIBRARIES:
                if file in PLAIN or (file.startswith(("runtimes/", "demo/")) and not at_call):
                    yield f"{file}:{line} imports {package}" + ("" if file in PLAIN else " at its top")
                elif package in ENGINES and file.startswith("runtimes/") and not file.startswith("runtimes/engines/"):
                    yield f"{file}:{line} imports {package}: only runtimes/engines does"

    def circle(self):
        """Files that ask each other, as "a -> b -> a"; "" if there is no such circle."""
        asked = {}
        for file, other in self.arrows:
            asked.setdefault(file, set()).update({other} - {file})
        try:
            TopologicalSorter({file: sorted(asked[file]) for file in sorted(asked)}).prepare()
        except CycleError as error:
            return " -> ".join(reversed(error.args[1]))
        return ""

    def too_long(self):
        """Files and functions over the limits."""
        for file, tree in self.trees.items():
            count = len((self.root / file).read_text(encoding="utf-8").splitlines())
            if count > MOST_LINES:
                yield f"{file}: {count} lines"
            for node in ast.walk(tree):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    count = node.end_lineno - node.lineno + 1
                    if count > LONGEST_FUNCTION:
                        yield f"{file}:{node.name}: {count} lines"


def module_of(file):
    """"export/graph/__init__.py" -> "tsm_edge.export.graph"."""
    parts = [part for part in file.removesuffix(".py").split("/") if part != "__init__"]
    return ".".join(parts if parts[0] == "tsm_edge" else ["tsm_edge", *parts])


def place(file, floors):
    """(room, floor) of a file: of the longest name that fits. ("", 0) if there is none."""
    fits = [(room, number) for number, floor in enumerate(floors) for room in floor.split()
            if file == room or file.startswith(room + "/")]
    return max(fits, key=lambda fit: len(fit[0]), default=("", 0))


@pytest.fixture(scope="module")
def house():
    return House(ROOT)


def test_a_room_asks_only_the_floors_below_it(house):
    assert len(house.arrows) > 300
    assert list(house.upwards()) == []


def test_no_two_files_ask_each_other_by_any_way(house):
    assert house.circle() == ""


def test_libraries_are_imported_where_they_may_be(house):
    assert list(house.libraries()) == []


def test_what_a_board_gets_asks_nothing_that_it_does_not_get(house):
    names = [package if module == "__init__" else f"{package}.{module}" for package, modules in MODULES.items() for module in modules]
    assert house.leaving({house.modules[name] for name in names}) == []


def test_every_room_is_installed(house):
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    rooms = {module_of(Path(file).parent.as_posix()) for file in house.modules.values()}
    assert set(config["options"]["packages"].split()) == rooms


def test_imports_are_relative_within_a_room_and_absolute_across(house):
    assert house.badly == []


def test_files_and_functions_are_short(house):
    assert list(house.too_long()) == []


def test_the_export_is_seen_at_a_glance():
    assert len([path for path in (ROOT / "export").iterdir() if path.name != "__pycache__"]) <= MOST_ENTRIES


def test_each_rule_can_be_broken(tmp_path):
    texts = {"tsm_edge/errors.py": "def f():\n    import torch\n    from tsm_edge.runtimes import bundle\n",
             "runtimes/verify.py": "import onnxruntime\nfrom tsm_edge.export.graph import ops\nfrom ..errors import f\n",
             "runtimes/bundle.py": "def g():\n    import tvm\n",
             "export/graph/ops.py": "from tsm_edge.export.kernels.write import emit\nfrom tsm_edge.export.graph import read\n",
             "export/graph/read.py": "def late():\n    from . import to_ops\n", "export/graph/to_ops.py": "from .ops import x\n",
             "export/kernels/write/emit.py": "x = 0\n" * 451,
             "export/kernels/arm/rows.py": "from tsm_edge.export.kernels.write.emit import x\n",
             "export/proof/a.py": "from tsm_edge.export.tuning import b\n", "export/tuning/b.py": "",
             "training/gestures/clips.py": "", "demo/app.py": "from tsm_edge.training.gestures import clips\nimport cv2\n",
             "tests/long.py": "def long():\n" + "    x = 0\n" * 60}
    for file, text in texts.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    house = House(tmp_path)
    assert sorted(line.split(": ")[-1] for line in house.upwards()) == [
        "a plain file asks plain files only", "demo must not ask training", "export/graph must not ask export/kernels",
        "export/kernels/arm must not ask export/kernels/write", "export/proof must not ask export/tuning",
        "runtimes must not ask export", "tsm_edge must not ask runtimes"]
    assert house.circle() == "export/graph/ops.py -> export/graph/read.py -> export/graph/to_ops.py -> export/graph/ops.py"
    assert list(house.libraries()) == ["tsm_edge/errors.py:2 imports torch", "runtimes/bundle.py:2 imports tvm: only runtimes/engines does",
                                       "runtimes/verify.py:1 imports onnxruntime at its top", "demo/app.py:2 imports cv2 at its top"]
    assert [line.split(":")[:2] for line in sorted(house.badly)] == [["export/graph/ops.py", "2 imports export/graph/read.py"],
                                                             ["runtimes/verify.py", "3 imports tsm_edge/errors.py"]]
    assert house.leaving({"demo/app.py"}) == ["demo/app.py:1 imports training/gestures/clips.py"]
    assert list(house.too_long()) == ["export/kernels/write/emit.py: 451 lines", "tests/long.py:long: 61 lines"]
