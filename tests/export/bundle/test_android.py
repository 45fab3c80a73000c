"""An app's own CMake project takes in a bundle without an NDK at export time, and the model then runs."""
import os
import shutil
import subprocess

import pytest

from tsm_edge.errors import BundleError
from tsm_edge.export.bundle import android
from tsm_edge.export.proof import on_target
from tsm_edge.export.targets.boards import TARGETS
from tsm_edge.runtimes.c_sources import library_sources

APP = r"""
#include <stdio.h>
#include <tsm_edge.h>
int main(void) {
  tsm_model *model = NULL;
  tsm_stream *stream = NULL;
  if (tsm_model_create(NULL, &model) || tsm_stream_create(model, NULL, &stream)) return 1;
  float frame[48];
  for (int i = 0; i < 48; i++) frame[i] = 1;
  tsm_result result = {sizeof result};
  for (int t = 0; t < 2; t++) if (tsm_stream_step_tensor(stream, frame, &result)) return 2;
  printf("%s %g\n", result.label, result.logits[1]);  /* right, 2 * (48 + 2) */
  tsm_stream_destroy(stream);
  tsm_model_destroy(model);
  return 0;
}
"""
PROJECTS = {
    "add_subdirectory": "add_subdirectory({package} tsm_edge)",
    "find_package": "find_package(tsm_edge REQUIRED CONFIG PATHS {package} NO_DEFAULT_PATH NO_CMAKE_FIND_ROOT_PATH)",
}
CMAKE = """cmake_minimum_required(VERSION 3.10)
project(app C)
{take}
add_executable(app app.c)
target_link_libraries(app PRIVATE tsm_edge::model)
"""


def make_project(folder, library, target, take):
    android.write_cmake_package(folder / "package", library.path.with_name("libtsm_model.a"), target)
    (folder / "app.c").write_text(APP)
    (folder / "CMakeLists.txt").write_text(CMAKE.format(take=PROJECTS[take].format(package=folder / "package")))
    return folder


def cmake(folder, *options):
    if not shutil.which("cmake"):
        pytest.skip("cmake is not installed")
    build = folder / "build"
    done = subprocess.run(["cmake", "-S", str(folder), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", *options],
                          capture_output=True, text=True)
    if done.returncode == 0:
        done = subprocess.run(["cmake", "--build", str(build)], capture_output=True, text=True)
    return build / "app", done


@pytest.mark.parametrize("take", sorted(PROJECTS))
def test_a_project_on_this_machine_links_and_runs_the_package(make_tiny_library, tmp_path, take):
    if not shutil.which("cc"):
        pytest.skip("cc is not installed")
    host = TARGETS["host"]
    app, done = cmake(make_project(tmp_path, make_tiny_library(host), host, take))
    assert done.returncode == 0, done.stdout + done.stderr
    assert subprocess.run([app], capture_output=True, text=True).stdout == "right 100\n"


def test_a_project_cross_compiled_for_arm_links_and_runs_the_package(make_tiny_library, tmp_path):
    compiler, target = shutil.which("aarch64-linux-gnu-gcc"), TARGETS["android-arm64"]
    if not compiler:
        pytest.skip("aarch64-linux-gnu-gcc is not installed")
    app, done = cmake(make_project(tmp_path, make_tiny_library(target), target, "add_subdirectory"),
                      "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_C_COMPILER={compiler}")
    assert done.returncode == 0, done.stdout + done.stderr
    prefix, reason = on_target.emulator(target)
    if prefix is None or on_target.sysroot(target) is None:
        pytest.skip(reason)
    ran = subprocess.run([*prefix, "-L", on_target.sysroot(target), app], capture_output=True, text=True)
    assert ran.stdout == "right 100\n", ran.stderr


def test_a_project_for_another_processor_is_refused_with_what_to_do(make_tiny_library, tmp_path):
    target = TARGETS["android-arm64"]
    if os.uname().machine == "aarch64":
        pytest.skip("this machine is the processor the archive is for")
    _, done = cmake(make_project(tmp_path, make_tiny_library(target), target, "add_subdirectory"))
    assert done.returncode != 0
    assert "found CMAKE_SYSTEM_PROCESSOR" in done.stderr and "abiFilters" in done.stderr


def fake_ndk(folder):
    """An NDK's layout around zig's musl, whose C library also calls itself libc.so."""
    compiler = folder / "toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android21-clang"
    compiler.parent.mkdir(parents=True)
    words = " ".join(on_target.zig())
    compiler.write_text(f'#!/bin/sh\nexec {words} cc -target aarch64-linux-musl "$@"\n')
    compiler.chmod(0o755)
    return folder


def test_with_an_ndk_the_bundle_holds_a_shared_library_for_16_kb_pages(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch (extra [export]) is not installed")
    pytest.importorskip("tvm", reason="apache-tvm (extra [export]) is not installed")
    from tsm_edge.export import export_bundle
    from tsm_edge.export.library import elf
    from tsm_edge.sensitive import image_like_frames, make_sensitive
    from tsm_edge.shift import insert_shifts

    monkeypatch.setenv("ANDROID_NDK_HOME", str(fake_ndk(tmp_path / "ndk")))
    torch.set_num_threads(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 1),
                              torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 3))
    insert_shifts(net, lambda name, block: name == "2")
    make_sensitive(net, 0, image_like_frames(16, 32, 0))
    bundle = export_bundle(net, "android-arm64", tmp_path / "phone", input_size=(32, 32), trained=False)
    library = elf.read_elf(bundle.path / "libtsm_model.so")
    assert library.machine == "aarch64" and all(a >= 16384 for a in library.load_alignments)
    assert set(library.needed) <= {"libc.so", "libm.so", "libdl.so"}
    assert not (bundle.path / "CMakeLists.txt").exists()
    text = (bundle.path / "README.md").read_text()
    assert "jniLibs/arm64-v8a" in text and "add_subdirectory" not in text
    check = bundle.manifest["verification"]["checks"][-1]
    if on_target.emulator(TARGETS["android-arm64"], static=True)[0] is not None:
        assert check["status"] == "passed" and "musl" in check["detail"], check
    else:
        assert check["status"] == "not executed"


def test_a_missing_runtime_is_named(tmp_path):
    with pytest.raises(BundleError, match="no runtime"):
        library_sources(tmp_path)
