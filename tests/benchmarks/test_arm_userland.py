"""The AArch64 Python that is made of Debian's packages."""
import pytest

from tsm_edge.benchmarks.arm import userland
from tsm_edge.errors import InputError, MissingComponentError


@pytest.mark.parametrize("inside", ("thesis.tex", "packages/MNN/thesis.tex"))
def test_a_folder_of_the_users_own_is_left_alone(tmp_path, monkeypatch, inside):
    monkeypatch.setattr(userland, "_fetch", lambda folder, *_: (folder / "root").mkdir())
    (tmp_path / "own" / inside).parent.mkdir(parents=True)
    (tmp_path / "own" / inside).write_text("years of work")
    with pytest.raises(InputError, match="(?s)own cannot be used.*found:.*do:.*another folder"):
        userland.arm_python(tmp_path / "own")
    with pytest.raises(InputError, match="cannot be used"):
        userland.arm_python(tmp_path / "own" / inside)
    assert (tmp_path / "own" / inside).read_text() == "years of work" and [path.name for path in tmp_path.iterdir()] == ["own"]


def test_what_cannot_be_fetched_leaves_nothing_and_what_can_is_fetched_once(tmp_path, monkeypatch):
    def broken(folder, *_):
        (folder / "root").mkdir()
        raise FileNotFoundError("apt-get")

    def fetch(folder, packages, wheels):
        assert packages == ("python3", "x") and wheels == ("MNN",)
        for part in ("root/usr/bin", "packages/MNN"):
            (folder / part).mkdir(parents=True)
        (folder / "root/usr/bin/python3.11").touch()

    monkeypatch.setattr(userland, "_fetch", broken)
    with pytest.raises(MissingComponentError, match="(?s)found:.*apt-get.*expected:.*Debian"):
        userland.arm_python(tmp_path / "cache" / "python", ("python3", "x"), ("MNN",))
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setattr(userland, "_fetch", fetch)
    made = userland.arm_python(tmp_path / "cache" / "python", ("python3", "x"), ("MNN",))
    assert made.python == tmp_path / "cache/python/root/usr/bin/python3.11" and made.packages.is_dir() and made.python.exists()
    monkeypatch.setattr(userland, "_fetch", broken)
    assert userland.arm_python(tmp_path / "cache" / "python", ("python3", "x"), ("MNN",)) == made
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["python"]
