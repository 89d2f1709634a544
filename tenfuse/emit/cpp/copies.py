"""Copying one tensor of a task.

Takes the two places it lies in; leaves one nest that sweeps its local axes, vectorised along
an axis with stride 1 in both places, else in the target, else in the source.  Where each has
another axis with stride 1, squares of entries are turned in registers, and the nest copies
what is left over at the two edges.
"""

from __future__ import annotations

import dataclasses

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.nest import TEAM, NestWriter
from tenfuse.emit.cpp.schedule import Scheduler
from tenfuse.emit.cpp.settle import Settled
from tenfuse.emit.cpp.shape import Nest, Store
from tenfuse.step.program import AxisName, CarrySpec, Input, Node, Pointwise, StepProgram


def copy(
    settled: Settled,
    axes: tuple[AxisName, ...],
    source: Access,
    target: Access,
    unroll: int = 0,
    add: bool = False,
    whole: bool = False,
    number: tuple[Access, tuple[AxisName, ...]] | None = None,
    team: bool = False,
) -> list[str]:
    """Lines that copy one tensor of a task, one of integers if ``whole``, or add it to what is there.

    It is multiplied by ``number``, which lies somewhere over some of its axes.  A ``team`` of threads
    shares the work.  With ``unroll``, so many vectors lie together where the target is a panel.
    """
    block = unroll * settled.lanes
    turned = None if add or whole or number else _turned(settled, axes, source, target, block, team)
    if turned is not None:
        return turned
    spaces = settled.spaces
    places = [source, *([number[0]] if number else [])]
    nodes: tuple[Node, ...] = (Input("carry", 0, axes), *((Pointwise("whole", (0,)),) if whole else ()))
    nodes += (Input("state", 0, number[1]), Pointwise("mul", (0, 1))) if number else ()
    value = len(nodes) - 1
    program = StepProgram(nodes, settled.sizes(), (CarrySpec(axes, value, axes),), ())
    kernel = dataclasses.replace(settled.kernel, program=program, recompute=None, operands=())
    scheduler = Scheduler(kernel, program, spaces, settled.isa, {}, {})
    local = spaces.local(axes)
    units = [a for a, s in target.dims if s == "1"] or [a for a, s in source.dims if s == "1"]
    both = [a for a, s in source.dims if s == "1" and (a, "1") in target.dims]
    x = (both + units)[0] if units else None
    order = sorted(local - {x}, key=lambda a: spaces.axes[a].id) + ([x] if x else [])
    store = Store(value, local, ("sum" if add else "copy", 0))
    nest = Nest(order, x, {x: unroll} if x and unroll else {}, [], [store])
    return NestWriter(scheduler, nest, lambda r: places[r], lambda s: target, team=team).text()


def _turned(
    settled: Settled, axes: tuple[AxisName, ...], source: Access, target: Access, block: int, team: bool
) -> list[str] | None:
    """Lines that copy a tensor square by square; None where one axis serves both places, or
    an axis of a square is shorter than a vector, or of a length that only the launch knows."""
    spaces, lanes = settled.spaces, settled.lanes
    sides = [[a for a, s in place.dims if s == "1"] for place in (source, target)]
    if len(sides[0]) != 1 or len(sides[1]) != 1 or sides[0] == sides[1] or source.panel:
        return None
    (along,), (across,) = sides
    extents = {a: spaces.axes[a].extent for a in spaces.local(axes)}
    if any(isinstance(e, int) and e < lanes for e in (extents[along], extents[across])):
        return None
    if team and not all(isinstance(e, int) or e.startswith("N") for e in extents.values()):
        return None
    steps, strides = dict(source.dims), dict(target.dims)
    names = {a: f"i{spaces.axes[a].id}" for a in extents}
    whole = {a: f"({extents[a]}) / {lanes} * {lanes}" for a in (along, across)}

    def at(place: Access) -> str:
        terms = [f"{names[a]} * {s}" for a, s in place.dims if not place.panel or a != across]
        if place.panel:
            name = names[across]
            terms.append(f"{name} / {block} * {block} * {place.panel} + {name} % {block}")
        return " + ".join([place.pointer, *terms])

    def loop(a: AxisName, start: str, end: str, stride: int) -> str:
        return f"for (int64_t {names[a]} = {start}; {names[a]} < {end}; {names[a]} += {stride})"

    others = [loop(a, "0", str(extents[a]), 1) for a in sorted(extents) if a not in (along, across)]
    single = f"  st1({at(target)}, ld1({at(source)}));"
    each = [TEAM] if team and not others else []
    return [
        "{",
        *([TEAM] if team and others else []),
        *others,
        "{",
        *each,
        loop(across, "0", whole[across], lanes),
        loop(along, "0", whole[along], lanes),
        f"  square({at(target)}, {strides[along]}, {at(source)}, {steps[across]});",
        *each,
        loop(across, "0", str(extents[across]), 1),
        loop(along, f"{names[across]} < {whole[across]} ? {whole[along]} : 0", str(extents[along]), 1),
        single,
        "}",
        "}",
    ]


__all__ = ["copy"]
