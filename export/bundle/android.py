"""Without an NDK an Android bundle is a CMake package: the compiled network as an archive, the C runtime as sources.

The archive (kernels, plan, weights) uses nothing of the C library and so needs no NDK to be made. The runtime uses
threads and the C library's headers, which only an NDK has: it is compiled by the app's own NDK, within the app's build.
"""
from __future__ import annotations

import shutil
from pathlib import Path

from tsm_edge.runtimes.c_sources import HEADER, library_sources

# CMake's names of the processors that an architecture's archive can be linked for
_PROCESSORS = {"aarch64": "aarch64|arm64", "armv7l": "armv7", "x86_64": "x86_64|AMD64|amd64"}

_CMAKE = """# The model as a CMake target:
#     add_subdirectory({folder} tsm_edge)
#     target_link_libraries(your_native_library PRIVATE tsm_edge::model)
cmake_minimum_required(VERSION 3.10)
project(tsm_edge C)

if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "{processors}")
  message(FATAL_ERROR "tsm_edge: this model was compiled for {title}; "
    "found CMAKE_SYSTEM_PROCESSOR=${{CMAKE_SYSTEM_PROCESSOR}}, expected {processors}. {advice}")
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

# kernels, plan and weights, compiled when the model was exported
add_library(tsm_edge_network STATIC IMPORTED GLOBAL)
set_target_properties(tsm_edge_network PROPERTIES IMPORTED_LOCATION "${{CMAKE_CURRENT_LIST_DIR}}/{archive}")

# the runtime, compiled by your toolchain
add_library(tsm_edge_model STATIC
{sources})
add_library(tsm_edge::model ALIAS tsm_edge_model)
set_target_properties(tsm_edge_model PROPERTIES C_STANDARD 11 C_EXTENSIONS ON POSITION_INDEPENDENT_CODE ON
  C_VISIBILITY_PRESET hidden)
target_include_directories(tsm_edge_model PUBLIC "${{CMAKE_CURRENT_LIST_DIR}}"
  PRIVATE "${{CMAKE_CURRENT_LIST_DIR}}/src")
if(NOT CMAKE_BUILD_TYPE MATCHES "Debug")
  target_compile_options(tsm_edge_model PRIVATE -O2)
endif()

# each needs the other: the runtime the plan, the kernels the runtime's error function
target_link_libraries(tsm_edge_model PUBLIC tsm_edge_network Threads::Threads m)
set_property(TARGET tsm_edge_network PROPERTY INTERFACE_LINK_LIBRARIES tsm_edge_model)
if(ANDROID)
  # pages of 16 KB, as newer phones have them
  target_link_options(tsm_edge_model INTERFACE "-Wl,-z,max-page-size=16384")
endif()
"""

_CONFIG = """# find_package(tsm_edge REQUIRED CONFIG PATHS <this folder>), then link tsm_edge::model
if(NOT TARGET tsm_edge::model)
  add_subdirectory("${CMAKE_CURRENT_LIST_DIR}" "${CMAKE_BINARY_DIR}/tsm_edge")
endif()
"""


def write_cmake_package(folder, archive, target):
    """Write CMakeLists.txt, tsm_edge-config.cmake, the archive and the runtime's sources into the bundle `folder`.

    Parameters
    ----------
    folder : Path
        The bundle.
    archive : Path
        libtsm_model.a for `target`.
    target : Target
    """
    folder, archive = Path(folder), Path(archive)
    sources, headers = library_sources()
    (folder / "src").mkdir(parents=True, exist_ok=True)
    for path in sources + headers:
        shutil.copyfile(path, folder / "src" / path.name)
    shutil.copyfile(HEADER, folder / HEADER.name)
    if archive.resolve() != (folder / archive.name).resolve():
        shutil.copyfile(archive, folder / archive.name)
    listed = "".join(f'  "${{CMAKE_CURRENT_LIST_DIR}}/src/{path.name}"\n' for path in sources).rstrip("\n")
    advice = "In Gradle: abiFilters 'arm64-v8a'." if target.os == "android" else "Pick another target for tsm-export."
    text = _CMAKE.format(folder="<this folder>", processors=_PROCESSORS[target.arch], title=target.title,
                         archive=archive.name, sources=listed, advice=advice)
    (folder / "CMakeLists.txt").write_bytes(text.encode())
    (folder / "tsm_edge-config.cmake").write_bytes(_CONFIG.encode())
