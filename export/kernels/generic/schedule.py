"""A plain schedule for the TensorIR that TVM's legalisation gives: no intermediate tensors, loops in a sensible order.

It knows nothing of the operation. Element by element: everything into one loop nest. Sums: the innermost loop runs along
the result's last axis, so that the compiler can use vectors. Large results are shared out among the threads.
"""
from __future__ import annotations

PARALLEL_FROM = 16384  # elements of a result (times the terms of a sum) that are worth waking the threads for


def schedule(func):
    """A faster function that computes the same; `func` itself where its form is not one of the known ones."""
    from tvm.s_tir import Schedule, ScheduleError

    plan = Schedule(func)
    try:
        _inline(plan, ScheduleError)
        for block in _blocks(plan):
            _order(plan, block)
        return plan.mod["main"]
    except (ScheduleError, RuntimeError, ValueError):
        return func


def is_one_loop_nest(func):
    """Whether a function computes everything in one nest of loops, without tensors in between."""
    from tvm.s_tir import Schedule

    plan = Schedule(func)
    return len(_blocks(plan)) == 1 and set(_kinds(plan, _blocks(plan)[0])) == {"spatial"}


def _blocks(plan):
    return plan.get_child_blocks(plan.get_sblock("root"))


def _kinds(plan, block):
    """The kinds of the block's axes: "spatial", "reduction" or "other", in order."""
    names = {0: "spatial", 2: "reduction"}
    return [names.get(int(axis.iter_type), "other") for axis in plan.get(block).iter_vars]


def _inline(plan, error):
    outputs = [plan.get(b).name_hint for b in plan.get_output_blocks("root")]
    for block in _blocks(plan):
        if plan.get(block).name_hint in outputs or set(_kinds(plan, block)) - {"spatial"}:
            continue
        readers = plan.get_consumers(block)
        if any(set(_kinds(plan, reader)) - {"spatial"} for reader in readers):
            continue  # a padded input, say: better written once than tested in every term of a sum
        try:
            plan.compute_inline(block)
        except error:
            pass  # it stays a tensor of its own
    for block in _blocks(plan):  # what follows a sum goes where the sum is written
        if plan.get(block).name_hint in outputs and len(_blocks(plan)) > 1 and not set(_kinds(plan, block)) - {"spatial"}:
            try:
                plan.reverse_compute_inline(block)
            except error:
                pass


def _order(plan, block):
    loops, kinds = plan.get_loops(block), _kinds(plan, block)
    if len(loops) != len(kinds) or "other" in kinds:
        return
    spatial = [loop for loop, kind in zip(loops, kinds) if kind == "spatial"]
    reduction = [loop for loop, kind in zip(loops, kinds) if kind == "reduction"]
    work = 1
    for loop in loops:
        work *= int(plan.get(loop).extent)
    wide = [loop for loop in spatial if int(plan.get(loop).extent) > 1]
    if not wide:
        return
    inner = wide[-1]
    if reduction:
        plan.reorder(*[loop for loop in spatial if loop is not inner], *reduction, inner)
    outer = [loop for loop in spatial if loop is not inner]
    if outer:
        fused = plan.fuse(*outer) if len(outer) > 1 else outer[0]
        if work >= PARALLEL_FROM and int(plan.get(fused).extent) > 1:
            plan.parallel(fused)
    if reduction:
        plan.decompose_reduction(block, reduction[0])
