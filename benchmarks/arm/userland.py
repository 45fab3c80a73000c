"""A Python for 64-bit ARM made of Debian's packages, in a folder of its own, to be run under QEMU; nothing is installed on this machine."""
from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tsm_edge.errors import InputError, MissingComponentError

PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")


class ArmPython(NamedTuple):
    """root : a root file system. python : its interpreter. packages : where wheels lie, if there are any."""

    root: Path
    python: Path
    packages: Path

    def command(self, prefix):
        """The words that start it under an emulator whose command begins with `prefix`; a program and its arguments follow."""
        libraries = self.root / "usr" / "lib" / "aarch64-linux-gnu"
        paths = {"PYTHONHOME": [self.root / "usr"], "PYTHONPATH": [self.packages, self.root / "usr" / "lib" / "python3" / "dist-packages"],
                 "LD_LIBRARY_PATH": [libraries / "blas", libraries / "lapack"]}  # links to these are made where Debian is installed
        settings = [word for name, places in paths.items() for word in ("-E", f"{name}={':'.join(map(str, places))}")]
        return [*map(str, prefix), "-L", str(self.root), *settings, str(self.python)]


def arm_python(folder, packages=("python3",), wheels=()):
    """The AArch64 Python in `folder`, made there first if need be.

    Parameters
    ----------
    folder : Path
    packages : names of Debian's, of this machine's release; their dependencies come with them
    wheels : requirements, fetched from PyPI without their dependencies

    Returns
    -------
    ArmPython

    Raises
    ------
    InputError
        There is something else in `folder`: it is left alone.
    MissingComponentError
        What fetching needs is missing, or fetching failed.
    """
    if _found(folder, wheels) is None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} cannot be used", found="a folder without an AArch64 Python of this command's making",
                             expected="a folder that this command made, or a new one", do="name another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=folder.name + ".", dir=folder.parent) as work:
            made = Path(work) / "made"
            made.mkdir()
            try:
                _fetch(made, packages, wheels)
            except (OSError, StopIteration, subprocess.CalledProcessError) as error:
                said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                raise MissingComponentError("no AArch64 Python could be made", found=said[-1] if said else type(error).__name__,
                                            expected="apt-get and dpkg-deb of Debian, pip, and their servers",
                                            do="run it on Debian with a network, or do without") from None
            made.replace(folder)
    return _found(folder, wheels)


def _found(folder, wheels):
    root, packages = folder / "root", folder / "packages"
    python = _python(root)
    return ArmPython(root, python, packages) if python and (packages.is_dir() or not wheels) else None


def _python(root):
    """The interpreter in a root file system, or None."""
    return next((path for path in sorted(root.glob("usr/bin/python3.*")) if path.name[8:].isdigit()), None)


def _fetch(folder, packages, wheels):
    """Debian's packages into folder/root, wheels into folder/packages."""
    root, apt = folder / "root", folder / "apt"
    for part in ("lists/partial", "cache/archives/partial", "state"):
        (apt / part).mkdir(parents=True)
    (apt / "state" / "status").touch()  # nothing is installed: all dependencies are fetched
    settings = ["-o", "APT::Architecture=arm64", "-o", "APT::Architectures::=arm64", "-o", f"Dir::State={apt}/state",
                "-o", f"Dir::State::lists={apt}/lists", "-o", f"Dir::State::status={apt}/state/status",
                "-o", f"Dir::Cache={apt}/cache", "-o", "APT::Sandbox::User=", "-q"]
    _quiet(["apt-get", *settings, "update"])
    _quiet(["apt-get", *settings, "install", "--download-only", "-y", "--no-install-recommends", *packages])
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        _quiet(["dpkg-deb", "-x", package, root])
    shutil.rmtree(apt)
    if not wheels:
        return
    version, fetched = next(filter(None, [_python(root)])).name[6:], folder / "wheels"
    _quiet([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", version,
            *(part for platform in PLATFORMS for part in ("--platform", platform)), "-d", fetched, *wheels])
    for wheel in sorted(fetched.glob("*.whl")):
        shutil.unpack_archive(wheel, folder / "packages", "zip")
    shutil.rmtree(fetched)


def _quiet(command):
    subprocess.run([str(part) for part in command], check=True, capture_output=True, encoding="utf-8")
