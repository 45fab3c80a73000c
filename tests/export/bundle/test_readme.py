"""A person who opens the bundle sees what it is, whether it is trained and proven, and what to type."""
import pytest

from tsm_edge.export.bundle.readme import bundle_readme
from tsm_edge.export.bundle.report import ExportReport, lines, rows, size_text
from tsm_edge.export.proof import relax_check
from tsm_edge.export.proof.tolerances import NOT_EXECUTED, PASSED, Check, summary
from tsm_edge.export.targets.boards import TARGETS


def manifest(trained=True, checks=None):
    checks = checks or [Check("library vs torch", PASSED, 1e-5, 1e-3, 10.0, 0, 16, "on this machine")]
    return {"name": "mobilenet_v2", "trained": trained, "classes": ["a", "b"], "precision": "fp32", "threads": 4,
            "input": {"width": 224, "height": 160, "colour": "RGB"}, "caches": [{"shape": [1, 3, 56, 40]}],
            "verification": summary(checks)}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_readme_names_the_device_its_commands_and_the_proof(name):
    text = bundle_readme(manifest(), TARGETS[name], "nano", ["device/tsm_edge.pyz", "golden.npz", "libtsm_model.so"])
    assert TARGETS[name].title in text and "{folder}" not in text and "nano" in text
    assert "input 224x160" in text and "6,720 values" in text
    assert "| library vs torch | passed | 16 | 1e-05 | 0.001 | 0 |" in text
    assert "`golden.npz`" in text and "`device/`" in text and "UNTRAINED" not in text


def test_an_untrained_bundle_says_so_at_the_top():
    text = bundle_readme(manifest(trained=False), TARGETS["host"], "b", [])
    assert "UNTRAINED" in "".join(text.splitlines(True)[:4])


def test_merged_and_masked_classes_are_named():
    masked = dict(manifest(), classes=["a", "b", "c"], events={"merge": {"0": 1}, "ignore": [2]})
    text = bundle_readme(masked, TARGETS["host"], "b", [])
    assert "a, b, c." in text and "a counts as b; never reported: c." in text
    assert "never reported" not in bundle_readme(manifest(), TARGETS["host"], "b", [])


def test_what_was_not_executed_is_said_in_the_readme_and_the_verdict():
    checks = [Check("ONNX vs torch", PASSED, 0.0, 1e-3, 1.0, 0, 16), Check("library vs torch", NOT_EXECUTED)]
    text = bundle_readme(manifest(checks=checks), TARGETS["jetson-nano"], "nano", [])
    assert "| library vs torch | not executed | 0 |  |  |  |" in text and "Not everything was executed" in text
    report = ExportReport("m", "jetson-nano", "dist/nano", True, "fp32", 4, status=NOT_EXECUTED)
    assert report.verdict().startswith("NOT VERIFIED") and "PASSED" not in report.verdict()


def test_the_verdict_names_the_library_that_was_not_run():
    native, tvm = Check("library vs torch", PASSED, 1e-5, 1e-3, 10.0, 0, 16), Check(relax_check.NAME, NOT_EXECUTED)
    report = ExportReport("m", "jetson-nano", "dist/nano", True, "fp32", 4, status=NOT_EXECUTED, checks=[native, tvm],
                          tvm={"library": "model_tvm.so"})
    assert report.verdict().endswith(": model_tvm.so was not run here: verify it on the device.")
    report.checks[0] = Check("library vs torch", NOT_EXECUTED)
    assert report.verdict().endswith(": the library was not run here: verify it on the device.")


def test_the_verdict_can_be_grepped_and_names_an_untrained_network():
    report = ExportReport("m", "host", "dist/host", False, "fp32", 4, status=PASSED)
    assert report.verdict().startswith("PASSED m for host in dist/host") and "UNTRAINED" in report.verdict()


def test_the_table_shows_sizes_kernels_and_fallbacks():
    report = ExportReport("m", "host", "dist/host", True, "fp32", 4, kernels={"pointwise": 3, "dense": 1},
                          fallbacks=["Erf"], macs=299_500_000, cache_bytes=108192,
                          files=[{"path": "libtsm_model.so", "size": 5 << 20, "sha256": ""},
                                 {"path": "device/a.py", "size": 1000, "sha256": ""},
                                 {"path": "device/b.py", "size": 24, "sha256": ""}])
    table = dict(rows(report))
    assert table["libtsm_model.so"] == "5.0 MB" and table["device/"] == "1.0 KB" and table["caches"] == "105.7 KB"
    assert table["kernels"] == "3 pointwise, 1 dense" and table["left to TVM's legalisation"] == "Erf"
    assert table["multiply-accumulates a frame"] == "299.5 M"


def test_the_final_table_says_untrained_and_shows_every_check():
    report = ExportReport("m", "host", "dist/host", False, "fp32", 4, checks=[
        Check("ONNX vs torch", PASSED, 2e-5, 1e-3, 9.0, 0, 16, "all good"), Check("library vs torch", NOT_EXECUTED)])
    text = lines(report)
    assert text[0].startswith("UNTRAINED")
    assert ["ONNX", "vs", "torch", "passed", "16", "2e-05", "0.001", "0"] in [line.split() for line in text]
    assert any(line.split() == "library vs torch not executed 0 - - -".split() for line in text)
    assert "  ONNX vs torch: all good" in text


def test_sizes_are_for_people():
    assert [size_text(n) for n in (0, 1023, 1536, 3 << 30)] == ["0 B", "1,023 B", "1.5 KB", "3,072.0 MB"]
