"""A model library small enough to write by hand: the whole way from plan to proof without a compiler stack."""
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

PLAN = r"""
#include "tsm_plan.h"
/* 4x4x3 frame, one cache (4, 4, 1), two logits: logits[k] = (k + 1) * (sum of the frame + twice the cache's last
 * value); the next cache is the frame's first channel. */
static int step(void *self, const tsm_ffi_any *args, int32_t n, tsm_ffi_any *result) {
  (void)self, (void)result;
  if (n != 4) return -1;
  const float *frame = ((tsm_dltensor *)args[0].v.p)->data, *cache = ((tsm_dltensor *)args[1].v.p)->data;
  float *logits = ((tsm_dltensor *)args[2].v.p)->data, *next = ((tsm_dltensor *)args[3].v.p)->data;
  float sum = 0;
  for (int i = 0; i < 48; i++) sum += frame[i];
  for (int k = 0; k < 2; k++) logits[k] = (float)(k + 1) * (sum + 2 * cache[15]);
  for (int i = 0; i < 16; i++) next[i] = frame[3 * i];
  return 0;
}
static const unsigned char weights[64] __attribute__((aligned(64))) = {1};
static const char *const classes[] = {"left", "right"};
static const tsm_plan_cache caches[] = {{"cache.a", 1, 4, 4, 2, 32, 0}};
static const tsm_plan_operand operands[] = {
  {TSM_IN_FRAME, 2, 32, 3, 0, {4, 4, 3}}, {TSM_IN_CACHE, 2, 32, 3, 0, {4, 4, 1}},
  {TSM_IN_LOGITS, 2, 32, 1, 0, {2}}, {TSM_IN_NEXT_CACHE, 2, 32, 3, 0, {4, 4, 1}}};
static const tsm_plan_call calls[] = {{"all", "tiny", step, 0, 4, 48, 256}};
const tsm_plan tsm_model_plan = {
  .version = TSM_PLAN_VERSION, .model_name = "tiny", .precision = "fp32", .trained = 0, .num_classes = 2,
  .classes = classes, .height = 4, .width = 4, .resize = 1, .antialias = 1, .mean = {0, 0, 0}, .std = {1, 1, 1},
  .default_threads = THREADS, .cache_bytes = 64, .arena_bytes = 64, .weight_bytes = 64, .weights = weights,
  .num_caches = 1, .num_calls = 1, .num_operands = 4, .caches = caches, .calls = calls, .operands = operands,
  .manifest = "{}"};
"""
TINY_MANIFEST = {"classes": ["left", "right"], "caches": [{"name": "cache.a", "shape": [1, 1, 4, 4]}]}


@dataclass
class TinyLibrary:
    path: Path


def tiny_trace(inputs):
    """What the tiny network computes, in numpy."""
    from tsm_edge.export.proof.traces import Trace

    last, logits = 0.0, []
    for frame in inputs:
        logits.append([(k + 1) * (frame.sum() + 2 * last) for k in range(2)])
        last = frame[0, 3, 3]
    return Trace(np.array(logits, np.float32), {"cache.a": inputs[:, :1].copy()})


@pytest.fixture(scope="session")
def tiny_inputs():
    return (np.random.default_rng(0).normal(size=(16, 3, 4, 4))).astype(np.float32)


@pytest.fixture(scope="session")
def tiny():
    """The tiny network's plan (C), manifest and numpy form."""
    return SimpleNamespace(plan=PLAN, manifest=TINY_MANIFEST, trace=tiny_trace)


@pytest.fixture
def no_qemu(monkeypatch):
    """A machine without qemu (and without all else that is looked for on the PATH)."""
    from tsm_edge.export.proof import on_target

    monkeypatch.setattr(on_target.shutil, "which", lambda name: None)


@pytest.fixture
def no_emulator(no_qemu, monkeypatch):
    """A machine with neither qemu nor the package unicorn."""
    monkeypatch.setitem(sys.modules, "unicorn", None)
    monkeypatch.delitem(sys.modules, "tsm_edge.export.proof.emulator", raising=False)


@pytest.fixture(scope="session")
def make_tiny_library(tmp_path_factory):
    """make(target, threads=1, plan=PLAN) -> TinyLibrary, compiled by zig for that target."""
    pytest.importorskip("ziglang", reason="ziglang (extra [export]) is not installed")
    from tsm_edge.export.library import toolchain
    from tsm_edge.export.proof import on_target
    from tsm_edge.runtimes.c_sources import FOLDER, library_sources

    def make(target, threads=1, plan=PLAN):
        work = tmp_path_factory.mktemp("tiny")
        (work / "plan.c").write_text(plan.replace("THREADS", str(threads), 1) if "THREADS" in plan else plan)
        flags = ["-O2", "-std=gnu11", "-fPIC", "-I", str(FOLDER)]
        zig = on_target.zig()
        bare = toolchain.ZIG_TARGET[target.arch]
        triple = f"{bare}.{target.libc.split()[-1]}" if target.os == "linux" else bare
        subprocess.run([*zig, "cc", "-target", bare, *flags, "-c", str(work / "plan.c"), "-o", str(work / "plan.o")],
                       check=True)
        subprocess.run([*zig, "ar", "rcs", str(work / "libtsm_model.a"), str(work / "plan.o")], check=True)
        sources, _ = library_sources()
        if target.os == "linux":
            subprocess.run([*zig, "cc", "-target", triple, *flags, "-shared", str(work / "plan.o"),
                            *map(str, sources), "-lpthread", "-lm", "-o", str(work / "libtsm_model.so")], check=True)
        return TinyLibrary(work / ("libtsm_model.so" if target.os == "linux" else "libtsm_model.a"))

    return make
