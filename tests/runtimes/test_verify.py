"""tsm-verify passes what computes the recording, fails what does not, refuses what cannot be read."""
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tsm_edge.errors import BundleError
from tsm_edge.runtimes import verify


def run(*arguments):
    """Exit code, stdout, stderr of tsm-verify."""
    done = subprocess.run([sys.executable, "-m", "tsm_edge.runtimes.verify", *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def changed(toys, bundle, folder, **arrays):
    """A copy of a bundle whose recording differs."""
    folder = shutil.copytree(bundle, folder)
    np.savez_compressed(folder / "golden.npz", **{**toys.golden(), **arrays})
    return toys.seal(folder)


@pytest.mark.parametrize("engine", ["native", "onnxruntime"])
def test_a_good_bundle_passes_with_every_measurement(native_bundle, toys, engine):
    report = verify.verify(native_bundle, engine)
    assert report["status"] == "passed" and report["engine"] == engine and report["frames"] == 6 and report["files"] == 3
    names = [row["name"] for row in report["checks"]]
    assert names == ["recorded logits move", "preprocessing", "logits", "cache.a", "cache.b", "logits from frames"]
    logits = report["checks"][2]
    largest = float(np.abs(toys.golden()["logits"]).max())
    assert logits["tolerance"] == pytest.approx(1e-4 * max(1, largest)) and 0 <= logits["max_abs_diff"] < 1e-5 * largest
    assert logits["argmax_flips"] == 0 and logits["max_abs_logit"] == pytest.approx(largest)


@pytest.mark.parametrize("name, failing", [("logits", ["logits"]), ("cache.b", ["cache.b"]),
                                           ("inputs", ["preprocessing"])])
def test_a_difference_beyond_tolerance_fails_its_check_alone(native_bundle, toys, tmp_path, name, failing):
    value = toys.golden()[name].copy()
    value[-1].flat[0] += (30 if name == "cache.b" else 3) * 1e-4 * max(1, np.abs(value).max())
    report = verify.verify(changed(toys, native_bundle, tmp_path / "b", **{name: value}))
    assert report["status"] == "failed"
    assert [n for n in report["failed"] if not (name == "inputs" and n in ("logits", "cache.a", "cache.b"))] == failing


def test_a_recording_that_stands_still_is_no_proof(native_bundle, toys, tmp_path):
    golden = toys.golden()
    report = verify.verify(changed(toys, native_bundle, tmp_path / "b", logits=np.repeat(golden["logits"][:1], 6, 0)))
    assert "recorded logits move" in report["failed"]


def test_not_a_number_never_passes(native_bundle, toys, tmp_path):
    class Broken:
        def __init__(self, model):
            self.__dict__.update(vars(model))
            self._model, self.engine = model, model.engine

        def stream(self):
            stream = self._model.stream()
            step = stream.step_tensor
            stream.step_tensor = lambda x: step(x) * np.nan
            return stream

    model = Broken(verify.load(native_bundle))
    assert verify.replay(model, toys.golden())[2]["status"] == "failed"


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_recording_that_is_not_finite_never_passes(native_bundle, toys, tmp_path, value):
    golden = toys.golden()
    golden["inputs"][1].flat[-1] = golden["cache.a"][2].flat[3] = golden["logits"][0, 0] = value
    report = verify.verify(changed(toys, native_bundle, tmp_path / "b", **golden))
    assert {"recorded logits move", "preprocessing", "logits", "cache.a", "logits from frames"} <= set(report["failed"])


def test_command_line_passes(native_bundle):
    code, out, err = run(native_bundle)
    assert code == 0 and out.strip().splitlines()[-1].startswith("PASSED toy by native")
    assert "UNTRAINED" in out and "files: 3 of 3" in err and "tsm-verify" in err


def test_command_line_fails_with_exit_code_1(native_bundle, toys, tmp_path):
    folder = changed(toys, native_bundle, tmp_path / "b", logits=toys.golden()["logits"] + 1)
    code, out, _ = run(folder)
    assert code == 1 and out.strip().splitlines()[-1].startswith("FAILED toy by native") and "logits" in out


def test_json_is_the_whole_report_and_nothing_else(native_bundle):
    code, out, err = run(native_bundle, "--json", "--engine", "onnxruntime")
    report = json.loads(out)
    assert code == 0 and report["status"] == "passed" and report["engine"] == "onnxruntime" and "PASSED" in err


def test_wrong_bundles_and_options_exit_with_2(native_bundle, tmp_path):
    folder = shutil.copytree(native_bundle, tmp_path / "b")
    with open(folder / "model.onnx", "ab") as file:
        file.write(b"x")
    for arguments, words in (((folder,), ("damaged", "found:", "expected:", "do:")), ((tmp_path / "no",), ("no such bundle",)),
                             ((native_bundle, "--engine", "nativ"), ("did you mean 'native'",)), ((), ("BUNDLE",))):
        code, out, err = run(*arguments)
        assert code == 2 and all(word in err for word in words) and "PASSED" not in out


def test_a_bundle_without_recording_is_refused(native_bundle, toys, tmp_path):
    folder = shutil.copytree(native_bundle, tmp_path / "b")
    (folder / "golden.npz").unlink()
    toys.seal(folder)
    with pytest.raises(BundleError, match="nothing to replay"):
        verify.verify(folder)
