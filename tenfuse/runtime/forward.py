"""The forward of a fused loop.

Takes the tensors of ``tenfuse::loop``; leaves its results.  What is launched on what is worked
out at the first call with tensors of one layout, and then repeated.
"""

from __future__ import annotations

from typing import Any

import torch

from tenfuse.plan.loop import LoopPlan
from tenfuse.runtime.bind import (
    Groups,
    all_sizes,
    allocate,
    count_launch,
    dynamic_names,
    enter,
    grouped,
    plan_of,
    prepare,
    run,
    saved,
    sizes_of,
    viewed,
)
from tenfuse.runtime.pages import advise
from tenfuse.runtime.replay import Replay, Signature, replay, signature

_REPLAYS: dict[Signature, Replay | None] = {}
_MOST = 256
"""Layouts remembered; all are forgotten when there are more."""


def run_forward(
    carries: Any, streams: Any, invariants: Any, steps: int, key: str, save: bool
) -> list[torch.Tensor]:
    """The implementation of ``tenfuse::loop`` on the CPU."""
    tensors = [*carries, *streams, *invariants]
    which = signature(key, save, steps, tensors)
    known = _REPLAYS.get(which)
    if known is not None:
        count_launch(key, "forward")
        return known(tensors)
    results, found = _first(plan_of(key), tensors, grouped(carries, streams, invariants), steps, key, save)
    if len(_REPLAYS) > _MOST:
        _REPLAYS.clear()
    _REPLAYS[which] = found
    return results


def _first(
    plan: LoopPlan, tensors: list[torch.Tensor], groups: Groups, steps: int, key: str, save: bool
) -> tuple[list[torch.Tensor], Replay | None]:
    """A call with a new layout: its results, and how to repeat it."""
    dynamic = sizes_of(plan, groups)
    sizes = all_sizes(plan, dynamic)
    finals, exports, saves = allocate(plan, groups, steps, save, sizes)
    for large in (*exports, *saves):
        advise(large)
    first = len(finals) + len(exports)
    zeroed: tuple[tuple[int, int], ...] = ()
    if saves and not plan.kept and plan.saving is not None:
        zeroed = tuple((first + n, -(-steps // plan.saving.checkpoint)) for n in range(len(saves)))
    results = [*finals, *exports, *saves]
    for i, row in zeroed:
        results[i][row:].zero_()
    bound = enter(plan, groups, sizes)
    of = _sources(plan, groups)
    for role, places, lead in (("init", plan.carries, 0), ("final", plan.carries, 0), ("out", plan.outs, 1)):
        for i, p in enumerate(places):
            base = [*tensors, *results][of[role, i]]
            bound[role, i] = viewed(base, p, sizes, lead)
    for n, x in enumerate(saves):
        name = saved(plan, n, "out", len(plan.outs))
        bound[name], of[name] = x, len(tensors) + first + n
    kernel = plan.saving if save and plan.saving is not None else plan.forward
    names = dynamic_names(kernel, dynamic)
    run(kernel, key, "forward", bound, steps, names)
    operands = [(bound[o.role, o.index], of[o.role, o.index]) for o in kernel.operands]
    launcher = prepare(kernel, key, "forward")
    return results, replay(launcher, steps, operands, tensors, results, zeroed, names)


def _sources(plan: LoopPlan, groups: Groups) -> dict[tuple[str, int], int]:
    """Which tensor, given ones first and then results, every operand is a view of."""
    a, b, c = (len(groups[name]) for name in ("carries", "streams", "invariants"))
    of = {("init", i): p.source for i, p in enumerate(plan.carries)}
    of |= {("stream", i): a + p.source for i, p in enumerate(plan.streams)}
    of |= {("constant", i): a + b + p.source for i, p in enumerate(plan.invariants)}
    of |= {("final", i): a + b + c + p.source for i, p in enumerate(plan.carries)}
    return of | {("out", j): a + b + c + a + p.source for j, p in enumerate(plan.outs)}


__all__ = ["run_forward"]
