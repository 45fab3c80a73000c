"""An app's own CMake project takes in a bundle without an NDK at export time, and the model then runs."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import tsm_edge.runtimes
from tsm_edge.errors import BundleError
from tsm_edge.export import android, replay
from tsm_edge.export.targets import TARGETS

RUNTIME = Path(tsm_edge.runtimes.__file__).resolve().parent / "c"
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
    android.write_cmake_package(folder / "package", library.path.with_name("libtsm_model.a"), RUNTIME, target)
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
        pytest.skip("no C compiler on this machine")
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
    prefix, reason = replay.emulator(target)
    if prefix is None or replay.sysroot(target) is None:
        pytest.skip(reason)
    ran = subprocess.run([*prefix, "-L", replay.sysroot(target), app], capture_output=True, text=True)
    assert ran.stdout == "right 100\n", ran.stderr


def test_a_project_for_another_processor_is_refused_with_what_to_do(make_tiny_library, tmp_path):
    target = TARGETS["android-arm64"]
    if os.uname().machine == "aarch64":
        pytest.skip("this machine is the processor the archive is for")
    _, done = cmake(make_project(tmp_path, make_tiny_library(target), target, "add_subdirectory"))
    assert done.returncode != 0
    assert "found CMAKE_SYSTEM_PROCESSOR" in done.stderr and "abiFilters" in done.stderr


def test_a_missing_runtime_is_named(tmp_path):
    with pytest.raises(BundleError, match="no runtime"):
        android.runtime_sources(tmp_path)
