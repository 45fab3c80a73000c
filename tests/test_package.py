"""What setup.cfg says is so: one version, every folder installed, dependencies with a bound where new ones have broken us."""
import configparser
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import tsm_edge

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("tsm_edge", "export", "runtimes", "demo", "training", "benchmarks")
BOUND = ("numpy", "onnx", "onnxruntime", "opencv-python", "opencv-python-headless", "torch", "apache-tvm", "ziglang", "unicorn")


def setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def requirements():
    """(extra or "", requirement) of each dependency."""
    config = setup_cfg()
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return [(extra, line.strip()) for extra, lines in lists.items() for line in lines.splitlines() if line.strip()]


def test_the_version_is_said_in_one_place():
    assert version("tsm-edge") == tsm_edge.__version__
    assert setup_cfg()["metadata"]["version"] == "attr: tsm_edge.__version__"


def test_the_version_is_known_where_nothing_is_installed():
    code = f"import sys; sys.path = [{str(ROOT)!r}] + [p for p in sys.path if 'packages' not in p]\nimport tsm_edge\n" \
           "print(tsm_edge.__version__, sorted({'importlib.metadata', 'numpy', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == f"{tsm_edge.__version__} []", done.stderr


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## \[?([\w.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert headings[0] == "Unreleased" and tsm_edge.__version__ in headings


def test_every_folder_of_ours_is_installed():
    listed = setup_cfg()["options"]["packages"].split()
    folders = [file.parent.relative_to(ROOT) for room in ROOMS for file in (ROOT / room).rglob("__init__.py")]
    ours = {".".join(part for part in ("tsm_edge", *folder.parts) if part) for folder in folders if folder.parts[0] != "tsm_edge"}
    assert set(listed) == {"tsm_edge"} | ours and len(listed) == len(set(listed))
    assert (ROOT / "tsm_edge" / "py.typed").is_file() and "py.typed" in setup_cfg()["options.package_data"]["tsm_edge"].split()


def test_dependencies_that_have_broken_us_are_bounded_above():
    for extra, requirement in requirements():
        if re.split(r"[^\w-]", requirement)[0] in BOUND:
            assert "<" in requirement, f"[{extra}] {requirement}: no upper bound"


def test_one_package_is_asked_for_alike_by_every_extra():
    asked = {}
    for _, requirement in requirements():
        name, bounds = re.match(r"([\w-]+)([^;]*)", requirement).groups()
        asked.setdefault(name, set()).add(bounds.strip())
    assert {name: bounds for name, bounds in asked.items() if len(bounds) > 1} == {}


def test_no_extra_but_window_brings_an_opencv_that_needs_a_desktop_to_linux():
    brings = {extra for extra, requirement in requirements() if requirement.startswith("opencv-python>") and "!=" not in requirement}
    assert brings == {"window"}


def test_the_workflow_does_nothing_but_call_the_script_of_ci():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.findall(r"^\s*(?:- )?run: (.+)$", text, re.M) == [".ci/run"]
