"""The forward of a fused loop.

Takes the tensors of ``tenfuse::loop``; leaves its results.
"""

from __future__ import annotations

from typing import Any

import torch

from tenfuse.plan.loop import LoopPlan
from tenfuse.runtime.bind import (
    Groups,
    all_sizes,
    allocate,
    dynamic_names,
    enter,
    grouped,
    plan_of,
    prepare,
    saved,
    sizes_of,
    viewed,
)
from tenfuse.runtime.frame import Frame
from tenfuse.runtime.replay import Replays

_replays = Replays()


def run_forward(
    carries: Any, streams: Any, invariants: Any, steps: int, key: str, save: bool
) -> list[torch.Tensor]:
    """The implementation of ``tenfuse::loop`` on the CPU."""
    groups = (carries, streams, invariants)

    def work_out(frame: Frame) -> None:
        _forward(plan_of(key), key, steps, grouped(*frame.grouped(groups)), frame, save)

    return _replays.run(key, save, steps, [*carries, *streams, *invariants], work_out)


def _forward(plan: LoopPlan, key: str, steps: int, groups: Groups, frame: Frame, save: bool) -> None:
    """Works out one call: one kernel over all steps."""
    dynamic = sizes_of(plan, groups)
    sizes = all_sizes(plan, dynamic)
    finals, exports, saves = allocate(plan, groups, steps, save, sizes)
    for x in (*finals, *exports):
        frame.result(x)
    for x in saves:
        frame.result(x, _unwritten(plan, steps))
    bound = enter(plan, groups, sizes)
    for role, tensors, places, lead in (
        ("init", groups["carries"], plan.carries, 0),
        ("final", finals, plan.carries, 0),
        ("out", exports, plan.outs, 1),
    ):
        bound |= {(role, i): viewed(tensors[p.source], p, sizes, lead) for i, p in enumerate(places)}
    bound |= {saved(plan, n, "out", len(plan.outs)): x for n, x in enumerate(saves)}
    kernel = plan.saving if save and plan.saving is not None else plan.forward
    operands = [bound[o.role, o.index] for o in kernel.operands]
    frame.launch(prepare(kernel, key, "forward"), "forward", operands, steps, dynamic_names(kernel, dynamic))


def _unwritten(plan: LoopPlan, steps: int) -> int | None:
    """The first row of saved states that the kernel leaves as it is, if there is one."""
    return None if plan.kept or plan.saving is None else -(-steps // plan.saving.checkpoint)


__all__ = ["run_forward"]
