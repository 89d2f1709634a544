"""Copying one tensor of a task.

Takes the two places it lies in; leaves one nest that sweeps its local axes, vectorised along
an axis with stride 1 in both places, else in the target, else in the source.
"""

from __future__ import annotations

import dataclasses

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.nest import NestWriter
from tenfuse.emit.cpp.schedule import Scheduler
from tenfuse.emit.cpp.settle import Settled
from tenfuse.emit.cpp.shape import Nest, Store
from tenfuse.step.program import AxisName, CarrySpec, Input, StepProgram


def copy(
    settled: Settled,
    axes: tuple[AxisName, ...],
    source: Access,
    target: Access,
    unroll: int = 0,
    add: bool = False,
) -> list[str]:
    """Lines that copy one tensor of a task, or add it to what is there."""
    spaces = settled.spaces
    program = StepProgram((Input("carry", 0, axes),), settled.sizes(), (CarrySpec(axes, 0, axes),), ())
    kernel = dataclasses.replace(settled.kernel, program=program, recompute=None, operands=())
    scheduler = Scheduler(kernel, program, spaces, settled.isa, {}, {})
    local = spaces.local(axes)
    units = [a for a, s in target.dims if s == "1"] or [a for a, s in source.dims if s == "1"]
    both = [a for a, s in source.dims if s == "1" and (a, "1") in target.dims]
    x = (both + units)[0] if units else None
    order = sorted(local - {x}, key=lambda a: spaces.axes[a].id) + ([x] if x else [])
    store = Store(0, local, ("sum" if add else "copy", 0))
    nest = Nest(order, x, {x: unroll} if x and unroll else {}, [], [store])
    return NestWriter(scheduler, nest, lambda r: source, lambda s: target).text()


__all__ = ["copy"]
