"""tsm-export as a person types it: checkpoints in the published layout and others, damaged ones, untrained networks."""
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")

from tsm_edge import default  # noqa: E402
from tsm_edge.checkpoints import save_checkpoint  # noqa: E402
from tsm_edge.export import cli, pipeline  # noqa: E402
from tsm_edge.export.bundle.report import ExportReport  # noqa: E402
from tsm_edge.export.proof import on_target  # noqa: E402
from tsm_edge.export.targets.boards import TARGETS  # noqa: E402
from tsm_edge.models import create_model  # noqa: E402
from tsm_edge.sensitive import image_like_frames, make_sensitive  # noqa: E402


def run(capsys, *argv):
    """tsm-export in this process: (exit code, stdout, stderr)."""
    torch.set_num_threads(1)
    with pytest.raises(SystemExit) as leave:
        cli.main([str(arg) for arg in argv])
    out, error = capsys.readouterr()
    return leave.value.code, out, error


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file with the names, shapes and legacy serialisation of the published online Jester checkpoint."""
    path = tmp_path_factory.mktemp("checkpoint") / "mobilenetv2_jester_online.pth.tar"
    net = make_sensitive(create_model("mobilenet_v2", 27, input_size=64), 0, image_like_frames(16, 64, 0))
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


def test_a_checkpoint_in_the_published_layout_becomes_a_verified_bundle(capsys, tmp_path, published):
    output = tmp_path / "host"
    code, out, error = run(capsys, "--target", "host", "--checkpoint", published, "--input-size", "64x64", "--output",
                           output, "--json")
    assert code == 0, error
    report = json.loads(out)
    assert report["status"] == "passed" and report["trained"] is True and report["name"] == "mobilenet_v2-jester"
    assert report["verdict"].startswith("PASSED") and "UNTRAINED" not in report["verdict"] + (output / "README.md").read_text()
    assert report["options"]["arch"] == "mobilenet_v2" and report["options"]["input-size"] == "64x64"
    assert report["fallbacks"] == [] and report["kernels"] and report["macs"] > 20e6 and len(report["stages"]) >= 7
    for stage in ("trace", "prove the step", "choose kernels", "prove the library", "write the bundle"):
        assert f" ok  {stage}" in error
    assert "options: target=host" in error and error.strip().splitlines()[-1] == report["verdict"]
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["classes"][15] == "Swiping Down" and manifest["events"]["merge"] == {"0": 2}
    assert sum(np.prod(c["shape"]) for c in manifest["caches"]) * 4 == report["cache_bytes"]


def test_for_a_camera_that_mirrors_sides_are_exchanged_and_that_is_said(capsys, tmp_path, published):
    output = tmp_path / "host"
    code, out, error = run(capsys, "--target", "host", "--checkpoint", published, "--input-size", "64x64", "--output", output,
                           "--mirrored-camera", "--json")
    assert code == 0 and "camera=mirrored" in error, error
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["input"]["camera"] == "mirrored" and manifest["classes"][15:18] == ["Swiping Down", "Swiping Right", "Swiping Left"]
    assert "as a mirror does" in (output / "README.md").read_text()


def test_without_a_checkpoint_the_model_of_the_package_is_taken(monkeypatch, published):
    monkeypatch.setattr(default, "DEFAULT_CHECKPOINT", published)
    args = cli._parser().parse_args(["--target", "host"])
    card = cli.make_network(args, None).card
    assert card.trained is True and card.num_classes == 27 and card.classes[16] == "Swiping Left"


def refused(capsys, tmp_path, *argv):
    output = tmp_path / "out" / "bundle"
    code, out, error = run(capsys, "--target", "host", "--output", output, *argv)
    assert code == 2 and out == "" and not output.parent.exists()
    assert "found:" in error and "expected:" in error and "do:" in error
    return error


def test_a_truncated_checkpoint_is_refused(capsys, tmp_path, published):
    (tmp_path / "cut.pth").write_bytes(published.read_bytes()[:100_000])
    assert "cut.pth is truncated or damaged" in refused(capsys, tmp_path, "--checkpoint", tmp_path / "cut.pth")


def test_a_file_that_is_no_checkpoint_is_refused(capsys, tmp_path):
    (tmp_path / "page.pth").write_text("<html>not found</html>")
    assert "web page" in refused(capsys, tmp_path, "--checkpoint", tmp_path / "page.pth")


def test_options_that_contradict_the_checkpoint_are_refused(capsys, tmp_path, published):
    assert "found:    --arch resnet50" in refused(capsys, tmp_path, "--checkpoint", published, "--arch", "resnet50")
    assert "expected: 27" in refused(capsys, tmp_path, "--checkpoint", published, "--num-classes", "5")
    (tmp_path / "labels.txt").write_text("left\nright\n")
    text = refused(capsys, tmp_path, "--checkpoint", published, "--classes", tmp_path / "labels.txt")
    assert "found:    2 names" in text and "27" in text


def test_weights_trained_in_both_directions_need_a_word_on_the_slice(capsys, tmp_path):
    net = create_model("resnet18", 5, input_size=32, shift="offline")
    save_checkpoint(tmp_path / "offline.pth", net, trained=True)
    text = refused(capsys, tmp_path, "--checkpoint", tmp_path / "offline.pth")
    assert "--past 1:2" in text
    assert "'0-1'" in refused(capsys, tmp_path, "--checkpoint", tmp_path / "offline.pth", "--past", "0-1")


def test_an_untrained_export_under_an_emulator_says_so_and_lists_the_next_commands(capsys, tmp_path):
    target = TARGETS["jetson-nano"]
    if on_target.emulator(target, static=True)[0] is None:
        pytest.skip(on_target.emulator(target, static=True)[1])
    code, out, error = run(capsys, "--target", "jetson-nano", "--random-weights", "--width", "0.25", "--input-size", "64x48",
                           "--num-classes", "4", "--output", tmp_path / "nano", "--name", "trial")
    assert code == 0, error
    lines = out.splitlines()
    assert lines[0].startswith("UNTRAINED") and lines[-1].startswith("PASSED trial for jetson-nano")
    assert "UNTRAINED" in lines[-1] and "UNTRAINED" in error
    assert any(line.split()[:1] == ["scp"] for line in lines) and any("library vs torch" in line for line in lines)
    detail = next(line for line in lines if line.startswith("  library vs torch: "))
    assert "qemu-aarch64 -cpu cortex-a57" in detail or "CPU cortex-a57" in detail or "on this machine" in detail
    assert json.loads((tmp_path / "nano" / "manifest.json").read_text())["input"]["width"] == 64


def test_on_a_machine_with_nothing_but_pip_the_packaged_model_is_verified_for_a_board(capsys, tmp_path, no_qemu):
    pytest.importorskip("unicorn", reason="unicorn (extra [export]) is not installed")
    code, out, error = run(capsys, "--target", "jetson-nano", "--output", tmp_path / "nano", "--json")
    report = json.loads(out)
    assert code == 0 and report["status"] == "passed", error
    check = next(check for check in report["checks"] if check["name"] == "library vs torch")
    assert check["status"] == "passed" and check["frames"] == 16
    assert "under unicorn 2." in check["detail"] and "CPU cortex-a57" in check["detail"] and "1 thread" in check["detail"]
    manifest = json.loads((tmp_path / "nano" / "manifest.json").read_text())
    assert manifest["verification"]["status"] == "passed" and check in manifest["verification"]["checks"]


def test_an_export_that_could_not_be_run_here_leaves_with_1_unless_allowed(capsys, tmp_path, monkeypatch, no_emulator):
    argv = ["--target", "raspberry-pi-32bit", "--random-weights", "--arch", "mobilenet_v2", "--width", "0.1",
            "--input-size", "32x32", "--output", tmp_path / "pi"]
    code, out, error = run(capsys, *argv)
    assert code == 1 and out.splitlines()[-1].startswith("NOT VERIFIED") and "--allow-unverified" in error
    assert (tmp_path / "pi" / "manifest.json").exists()
    report = ExportReport("m", "raspberry-pi-32bit", "pi", False, "fp32", 4)  # the same once more, without the work
    monkeypatch.setattr(pipeline, "export_bundle", lambda *args, **options: pipeline.Bundle(tmp_path, {}, report))
    assert run(capsys, *argv)[0] == 1
    assert run(capsys, *argv, "--allow-unverified")[0] == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failed_check_ends_with_its_verdict_exit_code_1_and_no_bundle(capsys, tmp_path, as_json):
    net = create_model("mobilenet_v2", 3, width=0.1, input_size=32)  # freshly initialised: its answers stand still
    save_checkpoint(tmp_path / "dull.pth", net, trained=True)
    code, out, error = run(capsys, "--target", "host", "--checkpoint", tmp_path / "dull.pth", "--output", tmp_path / "b",
                           *["--json"] * as_json)
    assert code == 1 and not (tmp_path / "b").exists()
    assert "found:" in error and "logits vary by" in error and "do:" in error
    if as_json:
        assert json.loads(out)["status"] == "failed" and error.splitlines()[-1].startswith("FAILED mobilenet_v2 for host")
    else:
        assert out.startswith("FAILED mobilenet_v2 for host") and len(out.splitlines()) == 1


def test_a_missing_cross_compiler_is_refused_before_the_work(capsys, tmp_path):
    text = refused(capsys, tmp_path, "--random-weights", "--width", "0.1", "--input-size", "32x32", "--cc", "no-such-gcc")
    assert "--cc no-such-gcc" in text and "prove the step" not in text


def test_an_export_that_is_stopped_leaves_nothing_behind(tmp_path):
    (tmp_path / "work").mkdir()
    export = subprocess.Popen(
        [sys.executable, "-m", "tsm_edge.export.cli", "--target", "host", "--random-weights", "--width", "0.1",
         "--input-size", "32x32", "--output", str(tmp_path / "b")],
        env=dict(os.environ, TMPDIR=str(tmp_path / "work")), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL))  # a suite under nohup has it ignored
    for line in export.stderr:
        if line.startswith("read the operations"):
            break
    for _ in range(3):
        export.send_signal(signal.SIGHUP)
    assert "stopping ..." in export.communicate(timeout=60)[1]
    assert export.returncode == 130 and os.listdir(tmp_path / "work") == [] and not (tmp_path / "b").exists()


def test_an_export_can_be_stopped_by_any_of_three_signals_but_not_by_one_that_nohup_ignores(monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]  # of this process, whatever started it
    monkeypatch.setattr(cli, "run", lambda main, argv: None)
    try:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
        cli.main([])
        assert [signal.getsignal(number) for number in numbers] == [cli._stop] * 3
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        cli.main([])
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


@pytest.mark.slow
def test_the_installed_command_exports_and_verifies(tmp_path):
    command = os.path.join(os.path.dirname(sys.executable), "tsm-export")
    done = subprocess.run([command, "--target", "host", "--random-weights", "--output", str(tmp_path / "host")],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stderr
    done = subprocess.run([command.replace("export", "verify"), str(tmp_path / "host")], capture_output=True, text=True)
    assert done.returncode == 0 and "PASSED" in done.stdout, done.stderr
