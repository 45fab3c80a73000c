"""The export's sentence: what each stage adds, when it ends, and what --keep writes of it."""
import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime (extra [export]) is not installed")
from torch import nn  # noqa: E402

from tsm_edge.errors import CheckFailedError, InputError  # noqa: E402
from tsm_edge.export import export_bundle, pipeline  # noqa: E402
from tsm_edge.export.bundle.report import Progress  # noqa: E402
from tsm_edge.export.keep import KEPT, Keeper  # noqa: E402
from tsm_edge.sensitive import image_like_frames, make_sensitive  # noqa: E402
from tsm_edge.shift import insert_shifts  # noqa: E402

SIZE = (40, 32)
OPTIONS = {"input_size": SIZE, "classes": ["left", 'say "right"'], "trained": False, "name": "mine"}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.fc = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 1), nn.Linear(16, 2)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.fc((x + self.a(x)).mean((2, 3)))


def small():
    net = Small()
    insert_shifts(net, lambda name, block: name == "a")
    return make_sensitive(net, 3, image_like_frames(16, SIZE, 3))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    progress = Progress()
    bundle = export_bundle(small(), "host", folder / "bundle", keep=folder / "stages", progress=progress, **OPTIONS)
    return folder / "stages", bundle, progress


def test_the_sentence_is_the_list_of_stages():
    assert list(pipeline.STAGES) == ["trace", "prove the step", "read the operations", "choose kernels", "build the library",
                                     "prove the library", "write the bundle"]
    assert list(KEPT) == list(pipeline.STAGES)


def test_times_are_those_of_the_stages(kept):
    _, bundle, progress = kept
    assert [title for title, _ in progress.stages] == list(pipeline.STAGES) == [title for title, _ in bundle.report.stages]


def test_each_stage_adds_to_the_job_and_takes_nothing_away(tmp_path):
    job = pipeline.Job(small(), pipeline.get_target("host"), str(tmp_path / "b"), tmp_path, description=OPTIONS)
    adds = {"trace": {"step", "manifest", "frames", "generated", "inputs"}, "prove the step": {"reference", "checks", "advice"},
            "read the operations": {"program", "checks", "advice"}, "choose kernels": {"chosen"}, "build the library": {"library"},
            "prove the library": {"trace", "checks", "advice"}, "write the bundle": {"report"}}
    for title, stage in pipeline.STAGES.items():
        after = stage(job)
        changed = {f.name for f in dataclasses.fields(job) if getattr(after, f.name) is not getattr(job, f.name)}
        assert changed == adds[title], title
        assert after.checks[:len(job.checks)] == job.checks
        job = after


def test_everything_that_a_stage_made_can_be_looked_at(kept):
    stages, bundle, _ = kept
    folders = sorted(path.name for path in stages.iterdir() if path.is_dir())
    assert folders == ["1-trace", "2-prove-the-step", "3-read-the-operations", "4-choose-kernels", "5-build-the-library",
                       "6-prove-the-library", "7-write-the-bundle"]
    listed = (stages / "stages.txt").read_text().split()
    assert sorted(listed) == sorted(path.relative_to(stages).as_posix() for path in stages.glob("*/*"))
    assert json.loads((stages / "1-trace" / "manifest.json").read_text())["classes"] == OPTIONS["classes"]
    assert "cache.a" in (stages / "1-trace" / "caches.txt").read_text()
    assert "Conv" in (stages / "3-read-the-operations" / "operations.txt").read_text()
    symbols = {kernel["symbol"] for kernel in _calls(stages)}
    assert symbols and all("def " in (stages / "4-choose-kernels" / f"{name}.tir.py").read_text() for name in symbols)
    assert all((stages / "5-build-the-library" / f"{name}.s").stat().st_size > 100 for name in symbols)
    assert "tsm_model_plan" in (stages / "5-build-the-library" / "plan.c").read_text()
    assert "arena" in (stages / "5-build-the-library" / "memory.txt").read_text()
    assert (stages / "5-build-the-library" / "libtsm_model.so").read_bytes() == (bundle.path / "libtsm_model.so").read_bytes()
    assert "library vs torch" in (stages / "7-write-the-bundle" / "report.txt").read_text()


def _calls(stages):
    rows = (stages / "4-choose-kernels" / "calls.txt").read_text().split("\n\n")[0].splitlines()
    return [dict(zip(("operation", "kind", "symbol", "macs"), row.split())) for row in rows[1:]]


def test_the_kept_traces_are_those_of_the_kept_onnx_file(kept):
    stages, _, _ = kept
    session = onnxruntime.InferenceSession(str(stages / "3-read-the-operations" / "model.onnx"))
    inputs = np.load(stages / "1-trace" / "frames.npz")["inputs"]
    cache, logits = np.zeros(session.get_inputs()[1].shape, np.float32), []
    for frame in inputs:
        out, cache = session.run(None, {"frame": frame[None], session.get_inputs()[1].name: cache})
        logits.append(out[0])
    for name in ("2-prove-the-step/reference.npz", "6-prove-the-library/library.npz"):
        np.testing.assert_allclose(np.load(stages / name)["logits"], np.stack(logits), atol=1e-4 * np.abs(logits).max())
    rows = (stages / "6-prove-the-library" / "logits.csv").read_text().splitlines()
    assert rows[0] == 'frame,best,"left","say ""right"""'
    np.testing.assert_allclose(np.genfromtxt(rows[1:], delimiter=",")[:, 2:], np.stack(logits), atol=1e-3 * np.abs(logits).max())


def test_an_export_that_fails_keeps_what_its_stages_made_until_then(tmp_path):
    net = small()
    with torch.no_grad():
        net.fc.weight *= 1e-6
    with pytest.raises(CheckFailedError):
        export_bundle(net, "host", tmp_path / "b", keep=tmp_path / "stages", **OPTIONS)
    assert not (tmp_path / "b").exists()
    assert "failed" in (tmp_path / "stages" / "2-prove-the-step" / "checks.txt").read_text()
    assert not (tmp_path / "stages" / "3-read-the-operations").exists()


def test_keeping_again_replaces_its_own_files_and_touches_nobody_elses(tmp_path):
    keep = Keeper(tmp_path / "stages", pipeline.STAGES, tmp_path / "b")
    (keep.folder / "4-choose-kernels").mkdir()
    (keep.folder / "4-choose-kernels" / "old.tir.py").write_text("")
    Keeper(tmp_path / "stages", pipeline.STAGES, tmp_path / "b")
    assert [path.name for path in keep.folder.iterdir()] == ["stages.txt"]
    (keep.folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="notes.txt"):
        Keeper(tmp_path / "stages", pipeline.STAGES, tmp_path / "b")
    assert (keep.folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("folder", ["b", "b/stages", ".", "afile"])
def test_a_folder_that_is_the_bundles_or_no_folder_is_refused(tmp_path, folder):
    (tmp_path / "afile").write_text("mine")
    with pytest.raises(InputError, match="cannot be kept there"):
        Keeper(tmp_path / folder, pipeline.STAGES, tmp_path / "b")
    assert (tmp_path / "afile").read_text() == "mine"
