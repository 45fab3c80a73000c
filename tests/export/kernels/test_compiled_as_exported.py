"""The kernels that tests and measurements run are, byte for byte, those that exports hold: one function compiles them all."""
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")

from tsm_edge.benchmarks import kernel_emulated, kernel_here  # noqa: E402
from tsm_edge.errors import MissingComponentError  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.kernels.blocks import inverted_residual  # noqa: E402
from tsm_edge.export.kernels.choose.strip_cost import StripForm  # noqa: E402
from tsm_edge.export.library import objects  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402

ROOT = Path(objects.__file__).resolve().parents[2]


def driver_objects(kernels, target, folder):
    """The object files that the tests' driver is linked from."""
    try:
        kernel_emulated.build_driver(kernels, target, folder)
    except MissingComponentError as error:
        pytest.skip(str(error))
    return [path.read_bytes() for path in sorted(folder.glob("kernel.*.o"))]


@pytest.fixture
def strips():
    """make(target) -> a kernel whose threads have buffers of their own, which is where compiler settings matter."""
    rng = np.random.default_rng(0)

    def conv(name, source, out, *shape, groups=1, pad=0):
        weight = rng.standard_normal(shape).astype("float32")
        return ops.Conv(name, source, out, weight, np.zeros(shape[0], "float32"), (1, 1), (pad,) * 4, groups, (0.0, 6.0))

    op = ops.InvertedResidual("block", conv("e", "x", "e", 64, 16, 1, 1), conv("d", "e", "d", 64, 1, 3, 3, groups=64, pad=1),
                              conv("p", "d", "out", 24, 64, 1, 1))
    shapes = {"x": (16, 8, 16), "e": (16, 8, 64), "d": (16, 8, 64), "out": (16, 8, 24)}
    return lambda target: inverted_residual.build(op, shapes, target, form=StripForm(4, 4, 4))


@pytest.mark.parametrize("board", ["jetson-nano", "raspberry-pi-5", "raspberry-pi-32bit", "host"])
def test_a_kernel_that_is_tested_is_the_one_that_is_exported(strips, tmp_path, board):
    target = get_target(board)
    kernel = strips(target)
    for folder in "ab":
        (tmp_path / folder).mkdir()
    shown, = objects.compile_each([(None, kernel)], target, tmp_path, hidden=False)
    kernel_here.compile_kernel(kernel, target).write_to_file(str(tmp_path / "here.o"), "o")
    assert (tmp_path / "here.o").read_bytes() == (tmp_path / shown).read_bytes()
    exported, = objects.compile_each([(None, kernel)], target, tmp_path / "a")
    assert driver_objects([kernel], target, tmp_path / "b") == [(tmp_path / "a" / exported).read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("board", ["jetson-nano", "raspberry-pi-5"])
def test_all_kernels_of_an_exported_library_are_those_that_tests_run(tmp_path, board):
    import step_runs as runs

    from tsm_edge.export.graph.to_ops import import_onnx
    from tsm_edge.export.graph.write import export_onnx
    from tsm_edge.export.kernels.calls import choose_kernels
    from tsm_edge.export.library.build import build_library
    from tsm_edge.export.networks import with_random_weights
    from tsm_edge.step import StepNetwork

    target, path = get_target(board), tmp_path / "model.onnx"
    export_onnx(StepNetwork(with_random_weights().eval(), input_size=(224, 224)).eval(), path, {"schema": 1})
    program = import_onnx(path)
    chosen = choose_kernels(program, target)
    library = build_library(chosen, runs.manifest_for(program), target, tmp_path / "library")
    exported = [path.read_bytes() for path in sorted(library.path.parent.glob("kernel.*.o"))]
    (tmp_path / "tested").mkdir()
    assert len(exported) == 15 and driver_objects([kernel for _, kernel in chosen.calls], target, tmp_path / "tested") == exported


def test_one_file_tells_tvm_how_to_compile():
    using = {path.relative_to(ROOT).as_posix() for room in ("export", "benchmarks") for path in (ROOT / room).rglob("*.py")
             if re.search(r"PassContext\(|\btvm\.compile\(|\btvm\.build\(", path.read_text(encoding="utf-8"))}
    assert using == {"export/library/objects.py"}
