"""Tuning records: what --tune measures, and what exports make of a record."""
import importlib.util
import json
import platform
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

for package in ("onnx", "onnxruntime", "tvm", "ziglang"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} (extra [export]) is not installed", allow_module_level=True)
if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
    pytest.skip("kernels for this machine are made on Linux on x86-64 or aarch64", allow_module_level=True)

import small_program  # noqa: E402
import step_runs as runs  # noqa: E402

from tsm_edge.benchmarks.kernel_here import evaluate  # noqa: E402
from tsm_edge.errors import InputError  # noqa: E402
from tsm_edge.export import cli, kernels  # noqa: E402
from tsm_edge.export.graph import ops  # noqa: E402
from tsm_edge.export.graph.to_ops import import_onnx  # noqa: E402
from tsm_edge.export.kernels.calls import choose_kernels, make_kernel  # noqa: E402
from tsm_edge.export.kernels.choose import choices  # noqa: E402
from tsm_edge.export.kernels.choose import record as records  # noqa: E402
from tsm_edge.export.kernels.choose.choices import Choices  # noqa: E402
from tsm_edge.export.library.build import build_library  # noqa: E402
from tsm_edge.export.targets.boards import get_target  # noqa: E402
from tsm_edge.export.tuning import clock as measure  # noqa: E402
from tsm_edge.export.tuning import tuner as tuning  # noqa: E402

HOST = replace(get_target("host"), threads=1)


@pytest.fixture(scope="module")
def network():
    return small_program.network()


def kernels_of(step, target=HOST):
    return small_program.kernels_of(step, target)


def record_for(step, target=HOST, **choose):
    """A record that was not measured, with the same choices for each kernel of a kind."""
    record = records.Record(records.features(target), target.threads)
    for symbol, kernel in kernels_of(step, target).items():
        chosen = choose.get(kernel.kind, Choices())
        record.entries[symbol] = records.Entry(symbol, kernel.kind, chosen, 1e-6, 2e-6, 3)
    return record


OTHER = {"inverted_residual": Choices(tile=(3, 1), panel=(2, 1), strip=4, group=2), "conv": Choices(tile=(3, 1)),
         "pointwise": Choices(tile=(3, 1), order="tiles")}


# --- measuring ----------------------------------------------------------------------------------------------------------


def test_a_network_is_tuned_on_this_machine_and_the_record_survives_writing_and_reading(tmp_path, network):
    path, said = tmp_path / "deep" / "host.jsonl", []
    tuner = tuning.Tuner(path, candidates=2, rounds=2)
    tuner.check(HOST)
    assert not list(path.parent.iterdir())
    record = tuner.run(network[1], HOST, note=said.append)
    assert set(record.entries) == set(kernels_of(network[1])) and len(said) == len(record.entries)
    assert [entry.tried for entry in record.entries.values()] == [1, 1]
    for entry in record.entries.values():
        assert 0 < entry.seconds <= entry.default_seconds < 0.1
    again = records.read_record(path)
    assert again.text() == record.text() == path.read_text() and again.entries == record.entries
    assert path.read_text().count("\n") == 1 + len(record.entries)
    assert tuning.prepare(path, HOST).entries == record.entries
    tuner.check(HOST)  # its own file may be measured anew


class Clock:
    """Stands for measure.measure: kernels take the time that `ratio(symbol)` says, of 100 us."""

    def __init__(self, ratio):
        self.ratio, self.measured = ratio, []

    def __call__(self, made, outputs, target, tracker, key, cc, rounds):
        self.measured += [kernel.symbol for kernel in made]
        timings = []
        for kernel in made:
            ratio = self.ratio(kernel.symbol)
            timings.append(measure.Timing((1e-4 * abs(ratio),) * rounds, ratio > 0))
        return timings


def entry_of(monkeypatch, tmp_path, network, ratio, **limits):
    """What is recorded for the fused block if measuring gives these ratios to the cost model's own time."""
    clock = Clock(ratio)
    monkeypatch.setattr(measure, "measure", clock)
    target = replace(HOST, vector_bits=512, vector_registers=32)  # whatever this machine has: its own choice must be no candidate
    record = tuning.Tuner(tmp_path / "r.jsonl", **limits).run(network[1], target)
    return next(entry for entry in record.entries.values() if entry.kind == "inverted_residual"), clock


def test_the_best_of_each_group_of_parameters_are_taken_together(monkeypatch, tmp_path, network):
    def ratio(symbol):
        return (0.8 if "_s2" in symbol.partition("_with")[2] else 1) * (0.7 if "_p8x3" in symbol else 1)

    monkeypatch.setattr(choices, "candidates", lambda kind, target, rows: {
        "panel": [Choices(panel=(5, 2)), Choices(panel=(8, 3))], "strip": [Choices(strip=2, group=2), Choices(strip=3)]}
        if kind == "inverted_residual" else {})
    entry, _ = entry_of(monkeypatch, tmp_path, network, ratio)
    assert entry.choices == Choices(panel=(8, 3), strip=2, group=2) and entry.tried == 4
    assert entry.seconds == pytest.approx(0.56e-4) and entry.default_seconds == pytest.approx(1e-4)


@pytest.mark.parametrize("ratio", [0.98, 1.2, -0.5], ids=["within noise", "slower", "other results"])
def test_what_is_not_clearly_faster_or_computes_something_else_is_not_taken(monkeypatch, tmp_path, network, ratio):
    monkeypatch.setattr(choices, "candidates", lambda kind, target, rows: {"tile": [Choices(tile=(2, 1)), Choices(tile=(3, 1))]})
    entry, clock = entry_of(monkeypatch, tmp_path, network, lambda symbol: ratio if "_with" in symbol else 1)
    assert not entry.choices and entry.tried == 2 and len(clock.measured) >= 6


def test_a_budget_is_shared_between_kernels_and_groups_of_parameters(monkeypatch, tmp_path, network):
    entry, clock = entry_of(monkeypatch, tmp_path, network, lambda symbol: 1, candidates=6)
    tried = {symbol for symbol in clock.measured if "_with" in symbol}
    assert len(tried) <= 6 and {symbol.split("_")[0] for symbol in tried} == {"conv", "inverted"}
    parts = {symbol.partition("_with_")[2][0] for symbol in tried if symbol.startswith("inverted")}
    assert parts == {"t", "p", "s"} and entry.tried == 3


def test_tuning_again_keeps_what_an_older_record_of_the_same_target_knew(monkeypatch, tmp_path, network):
    path, said = tmp_path / "r.jsonl", []
    old = record_for(network[1], **OTHER)
    old.entries["conv_other"] = records.Entry("conv_other", "conv", Choices(tile=(2, 1)), 1e-6, 2e-6, 7)
    old.write(path)
    monkeypatch.setattr(measure, "measure", Clock(lambda symbol: 1))
    new = tuning.Tuner(path, candidates=1).run(network[1], HOST, note=said.append)
    assert said[0] == f"{path} keeps its 3 kernels until they are measured again"
    changed = [symbol for symbol, entry in old.entries.items() if new.entries[symbol] != entry]
    assert set(new.entries) == set(old.entries) and len(changed) == 1 and new.entries[changed[0]].tried == 1
    assert records.read_record(path).entries == new.entries
    again = tuning.Tuner(path, candidates=1).run(network[1], replace(HOST, threads=2), note=said.append)
    assert len(again.entries) == 1 and any("will be replaced" in text and "number of threads" in text for text in said)


def test_a_small_budget_goes_to_the_kernels_with_most_work(monkeypatch, tmp_path, network):
    said, clock = [], Clock(lambda symbol: 1)
    monkeypatch.setattr(measure, "measure", clock)
    record = tuning.Tuner(tmp_path / "r.jsonl", candidates=1).run(network[1], HOST, note=said.append)
    most = max(kernels_of(network[1]).values(), key=lambda kernel: kernel.macs)
    assert list(record.entries) == [most.symbol] and record.entries[most.symbol].tried == 1
    assert said[-1] == "the budget is spent: 1 kernels were not tried"


def test_candidates_fit_the_registers_of_every_target():
    for name in ("jetson-nano", "raspberry-pi-32bit", "host"):
        target = get_target(name)
        for options in choices.candidates("inverted_residual", target, 28).values():
            for rows, vectors in filter(None, [chosen.tile or chosen.panel for chosen in options]):
                assert rows * vectors + vectors + 1 <= target.vector_registers


@pytest.mark.parametrize("kind", sorted(choices.OF_KIND))
def test_choices_do_not_change_what_a_kernel_computes(kind):
    rng = np.random.default_rng(3)

    def conv(name, x, out, oc, ic, k=1, groups=1, **more):
        weight = (rng.standard_normal((oc, ic // groups, k, k)) / np.sqrt(ic // groups * k * k)).astype("float32")
        return ops.Conv(name, x, out, weight, rng.standard_normal(oc).astype("float32"), (1, 1), (k // 2,) * 4, groups,
                            **more)

    splice = ops.Splice("cache", "next", 0, 3)
    shapes = {"x": (9, 11, 24), "a": (9, 11, 72), "b": (9, 11, 72), "out": (9, 11, 24)}
    op = {"pointwise": lambda: conv("c", "x", "out", 24, 24, splice=splice, clip=(0, 6)),
          "conv": lambda: conv("c", "x", "out", 24, 24, 3),
          "inverted_residual": lambda: ops.InvertedResidual(
              "r", conv("e", "x", "a", 72, 24, splice=splice, clip=(0, 6)), conv("d", "a", "b", 72, 72, 3, 72, clip=(0, 6)),
              conv("p", "b", "out", 24, 72, residual="x"))}[kind]()
    tensors = {"x": rng.standard_normal(shapes["x"]).astype("float32")}
    if kind != "conv":
        tensors["cache"] = rng.standard_normal((9, 11, 3)).astype("float32")
    expected = evaluate(kernels.build(op, shapes, HOST), tensors, HOST)
    kernel = kernels.build(op, shapes, HOST, choices=OTHER[kind])
    assert "_with_" in kernel.symbol
    got = evaluate(kernel, tensors, HOST)
    assert set(got) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=2e-5 * max(1, np.abs(value).max()))


def test_results_that_differ_are_noticed_where_kernels_are_timed(network):
    """The second kernel's weights are other ones: same code, other results."""
    symbol, kernel = next(iter(kernels_of(network[1]).items()))
    args = tuple(replace(arg, array=arg.array + 0.5) if hasattr(arg, "array") else arg for arg in kernel.args)
    other = replace(kernel, symbol=symbol + "_other", args=args)
    step = network[1]
    outputs = next(tuning._outputs(op) for op in kernels.fuse(step).ops
                   if make_kernel(op, step.shapes, HOST).symbol == symbol)
    same, changed = measure.measure([kernel, other], outputs, HOST, rounds=1)
    assert same.agrees and not changed.agrees


# --- records in exports -------------------------------------------------------------------------------------------------


def test_a_record_gives_the_same_library_each_time_and_the_same_results(tmp_path, network):
    model, step = network
    path = tmp_path / "record.jsonl"
    record_for(step, **OTHER).write(path)
    built = []
    for name in ("one", "two"):
        record = tuning.prepare(path, HOST)
        chosen = choose_kernels(import_onnx(model), HOST, tuning=record)
        built.append(build_library(chosen, runs.manifest_for(step), HOST, tmp_path / name))
    assert built[0].path.read_bytes() == built[1].path.read_bytes()
    assert any("_with_" in call.kernel.symbol for call in built[0].plan.calls)
    assert "knows 2 kernels of this network and builds 2" in built[0].chosen.notes[0]
    inputs = runs.frames_for(model, 3)
    expected, got = runs.run_onnx(model, inputs), runs.Library(built[0].path).run(model, inputs)
    for a, b in zip(expected, got):
        for name in a:
            assert np.abs(a[name] - b[name]).max() <= 5e-5 * max(1.0, float(np.abs(a[name]).max())), name


def test_a_record_of_another_network_changes_nothing_and_says_so(network):
    record = records.Record(records.features(HOST), 1, entries={
        "conv_1": records.Entry("conv_1", "conv", Choices(tile=(2, 2)), 1e-6, 2e-6, 1)}, name="theirs")
    applied = records.Applied(record)
    for kernel in kernels_of(network[1]).values():
        assert applied(kernel) is None
    assert applied.note() == "the tuning record theirs has no kernel of this network: it changes nothing"


def test_records_for_something_else_are_refused(tmp_path, network):
    path = tmp_path / "r.jsonl"
    record_for(network[1]).write(path)
    with pytest.raises(InputError, match="is for another target") as error:
        tuning.prepare(path, get_target("jetson-nano"))
    assert "host: triple" in error.value.found and "jetson-nano" in error.value.expected and "--tune" in error.value.do
    with pytest.raises(InputError, match="another number of threads") as error:
        tuning.prepare(path, replace(HOST, threads=2))
    assert "--threads 1" in error.value.do
    path.write_text(path.read_text().replace(f'"kernels": {choices.VERSION}', '"kernels": 999', 1))
    with pytest.raises(InputError, match="kernels of another version") as error:
        tuning.prepare(path, HOST)
    assert error.value.found == "kernels 999"
    tuning.Tuner(path).check(HOST)  # an outdated record may be replaced


def test_a_kernels_version_that_only_equals_the_number_is_another(tmp_path, network):
    path = tmp_path / "r.jsonl"
    record_for(network[1]).write(path)
    changed(path, 0, kernels=True)
    with pytest.raises(InputError, match="kernels of another version") as error:
        tuning.prepare(path, HOST)
    assert error.value.found == "kernels True"


def test_an_entry_of_another_kind_than_the_kernels_is_refused(network):
    record = record_for(network[1], **OTHER)
    symbol, kernel = next((symbol, kernel) for symbol, kernel in kernels_of(network[1]).items() if kernel.kind == "conv")
    record.entries[symbol] = replace(record.entries[symbol], kind="pointwise")
    with pytest.raises(InputError, match="cannot be used") as error:
        records.Applied(record)(kernel)
    assert error.value.found == f"{symbol} is of kind 'conv', not 'pointwise'"


def test_one_record_serves_boards_that_are_the_same(tmp_path, network):
    nano, tx2 = get_target("jetson-nano"), get_target("jetson-tx2")
    path = tmp_path / "nano.jsonl"
    record_for(network[1], nano).write(path)
    assert tuning.prepare(path, tx2).target["name"] == "jetson-nano"


def test_shipped_records_are_found_by_target_and_ignored_where_they_do_not_fit(tmp_path, monkeypatch, network):
    assert tuning.prepare(None, HOST) is None  # none comes with the package: nothing was measured on the boards
    monkeypatch.setattr(records, "__file__", str(tmp_path / "record.py"))
    record_for(network[1]).write(tmp_path / "records" / "host.jsonl")
    assert tuning.prepare(None, HOST).name == "shipped for host"
    assert tuning.prepare(None, replace(HOST, threads=3)) is None and tuning.prepare(None, get_target("pixel-1")) is None


def changed(path, line, **values):
    lines = path.read_text().splitlines()
    lines[line] = json.dumps({key: value for key, value in {**json.loads(lines[line]), **values}.items()
                              if value is not None})
    path.write_text("\n".join(lines) + "\n")


DAMAGE = {
    "empty": (lambda p: p.write_text(""), "tsm_tuning"),
    "a picture": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0"), "decode"),
    "cut": (lambda p: p.write_text(p.read_text()[:-40]), "line 3"),
    "a list": (lambda p: p.write_text(p.read_text() + "[1, 2]\n"), "no JSON object"),
    "deep": (lambda p: p.write_text(p.read_text() + "[" * 100_000), "line 4"),
    "no header": (lambda p: p.write_text("".join(p.read_text().splitlines(True)[1:])), "tsm_tuning"),
    "unknown field of the header": (lambda p: changed(p, 0, speed=1), "unknown field 'speed'"),
    "unknown field of a kernel": (lambda p: changed(p, 1, tile=[1, 2]), "unknown field 'tile'"),
    "a field less": (lambda p: changed(p, 1, seconds=None), "no 'seconds'"),
    "unknown choice": (lambda p: changed(p, 1, kind="conv", choices={"unroll": 4}), "'unroll'"),
    "a choice of another kind": (lambda p: changed(p, 1, kind="conv", choices={"strip": 4}), "'strip'"),
    "a huge tile": (lambda p: changed(p, 1, choices={"tile": [4000, 2]}), "tile = [4000, 2]"),
    "half a tile": (lambda p: changed(p, 1, choices={"tile": [4]}), "tile = [4]"),
    "true for one": (lambda p: changed(p, 1, choices={"tile": [True, 1]}), "tile = [True, 1]"),
    "unknown kind": (lambda p: changed(p, 1, kind="fft"), "kind 'fft'"),
    "unknown order": (lambda p: changed(p, 1, kind="conv", choices={"order": "up"}), "order = 'up'"),
    "negative time": (lambda p: changed(p, 1, seconds=-1), "seconds -1"),
    "a time of 400 digits": (lambda p: changed(p, 1, default_seconds=10 ** 400), "default_seconds 1000"),
    "a version that is no integer": (lambda p: changed(p, 0, tsm_tuning=1.0), "tsm_tuning"),
    "no number": (lambda p: p.write_text(p.read_text().replace("1e-06", "NaN")), "seconds nan"),
    "a name that is none": (lambda p: changed(p, 1, kernel="a b"), "kernel 'a b'"),
    "the same kernel twice": (lambda p: p.write_text(p.read_text() + p.read_text().splitlines()[1]), "a second time"),
    "target without features": (lambda p: changed(p, 0, target={"name": "host"}), "target"),
    "threads in words": (lambda p: changed(p, 0, threads="one"), "threads"),
    "gone": (lambda p: p.unlink(), "No such file"),
    "a folder": (lambda p: (p.unlink(), p.mkdir()), "directory"),
}


@pytest.mark.parametrize("case", sorted(DAMAGE))
def test_damaged_records_are_refused(tmp_path, network, case):
    path = tmp_path / "r.jsonl"
    record_for(network[1]).write(path)
    damage, found = DAMAGE[case]
    damage(path)
    with pytest.raises(InputError, match="cannot be used") as error:
        tuning.prepare(path, HOST)
    assert found in error.value.found and "--tune" in error.value.do
    if path.exists():  # and --tune does not write over it
        with pytest.raises(InputError, match="in the way"):
            tuning.Tuner(path).check(HOST)


@pytest.mark.parametrize("name", ["file/r.jsonl", "n" * 252], ids=["below a file", "too long"])
def test_a_record_that_cannot_be_written_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as error:
        tuning.prepare(tuning.Tuner(tmp_path / name), HOST)
    assert "--tuning-record" in error.value.do and [p.name for p in tmp_path.iterdir()] == ["file"]


# --- the command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, result", [("all", (None, None)), ("40", (40, None)), ("90s", (None, 90.0))])
def test_budgets(text, result):
    assert tuning.parse_budget(text) == result


@pytest.mark.parametrize("text", ["0", "0s", "-3", "1.5", "ten", "3m", ""])
def test_odd_budgets_are_refused(text):
    with pytest.raises(InputError, match="--tune"):
        tuning.parse_budget(text)


@pytest.mark.parametrize("text", ["here", ":9190", "host:0", "host:70000", "host:port"])
def test_odd_trackers_are_refused(text):
    with pytest.raises(InputError, match="--rpc-tracker"):
        measure.parse_tracker(text)


def options(*argv):
    return cli._tuning(cli._parser().parse_args(["--target", "host", *argv]), "out")


def test_options_name_what_is_to_be_measured_and_where():
    assert options() is None and options("--tuning-record", "a.jsonl") == "a.jsonl"
    assert options("--tune") == tuning.Tuner("out.tuning.jsonl")
    assert options("--tune", "9s", "--tuning-record", "a", "--rpc-tracker", "pi:9190", "--rpc-key", "pi4") == tuning.Tuner(
        "a", None, 9.0, ("pi", 9190), "pi4")
    for wrong in (["--rpc-key", "k"], ["--rpc-tracker", "a:1"], ["--tune", "--rpc-key", "k"]):
        with pytest.raises(InputError):
            options(*wrong)


def test_another_processors_kernels_are_not_timed_here(tmp_path):
    other = "jetson-nano" if platform.machine() == "x86_64" else "raspberry-pi-32bit"
    with pytest.raises(InputError, match="cannot be timed on this machine") as error:
        tuning.Tuner(tmp_path / "r").check(get_target(other))
    assert "--rpc-tracker" in error.value.do
    with pytest.raises(InputError, match="needs --rpc-key"):
        tuning.Tuner(tmp_path / "r", tracker=("127.0.0.1", 9)).check(get_target(other))


def test_a_board_that_fails_later_leaves_what_was_measured(monkeypatch, tmp_path, network):
    said, clock, path = [], Clock(lambda symbol: 1), tmp_path / "r.jsonl"

    def gone(made, *more):
        if path.exists():
            raise InputError("the board is gone", found="", expected="", do="")
        return clock(made, *more)

    monkeypatch.setattr(measure, "measure", gone)
    with pytest.raises(InputError, match="gone"):
        tuning.Tuner(path, candidates=2).run(network[1], HOST, note=said.append)
    assert len(records.read_record(path).entries) == 1 and said[-1] == f"the kernels measured so far are in {path}"


@pytest.mark.slow
def test_tsm_export_tunes_verifies_and_exports_the_same_bytes_from_the_record(tmp_path):
    pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
    base = [sys.executable, "-m", "tsm_edge.export.cli", "--target", "host", "--random-weights", "--width", "0.25",
            "--input-size", "64x64", "--num-classes", "4", "--threads", "1"]
    record = tmp_path / "record.jsonl"
    done = [subprocess.run([*base, "--output", str(tmp_path / name), "--tuning-record", str(record), *more],
                           capture_output=True, text=True) for name, more in (("a", ["--tune", "15"]), ("b", []))]
    for run in done:
        assert run.returncode == 0 and "PASSED" in run.stdout and f"note: the tuning record {record} knows" in run.stdout
    libraries = [(tmp_path / name / "libtsm_model.so").read_bytes() for name in "ab"]
    assert libraries[0] == libraries[1]
