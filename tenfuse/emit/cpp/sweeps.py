"""What the sweeps of one step cost, and the layout of states that costs least.

Takes a ``Kernel`` and the axes that stay inside a task; leaves a ``Work`` per sweep, its
cycles for every vector axis, and the unit dimension of every state.  Estimates only: any
layout is correct.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from tenfuse.emit.cpp.preamble import cost
from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.step.program import AxisName, Const, Contract, Input, Pointwise, Ref, StepProgram, arguments


@dataclasses.dataclass(frozen=True)
class Work:
    """One sweep a step needs: its axes, what it loads (with the unit axis of each load,
    ``ANY`` where it can be packed), what it stores and the axes it contracts."""

    axes: frozenset[AxisName]
    loads: tuple[tuple[frozenset[AxisName], AxisName | None], ...]
    ops: int
    contracted: frozenset[AxisName]
    store: tuple[AxisName, ...] = ()
    unit: AxisName | None = None


ANY = "*"


def closure(program: StepProgram, ref: Ref, stop: frozenset[Ref] = frozenset()) -> tuple[set[Ref], int]:
    """The leaves (inputs, contractions and ``stop``) under ``ref`` and the cost of what lies between."""
    leaves: set[Ref] = set()
    seen: set[Ref] = set()
    todo = [ref]
    total = 0
    while todo:
        r = todo.pop()
        if r in seen:
            continue
        seen.add(r)
        node = program.nodes[r]
        if isinstance(node, Const):
            continue
        if not isinstance(node, Pointwise) or (r in stop and r != ref):
            leaves.add(r)
            continue
        total += cost(node.fn)
        todo += arguments(node)
    return leaves, total


def unit_of(operand: Operand, axes: tuple[AxisName, ...]) -> AxisName | None:
    """The unit axis of an operand under the names of the input that reads it."""
    return axes[operand.axes.index(operand.unit)] if operand.unit in operand.axes else None


def find(kernel: Kernel, role: str, index: int) -> Operand | None:
    return next((o for o in kernel.operands if o.role == role and o.index == index), None)


def works(
    kernel: Kernel, program: StepProgram, last: Mapping[int, int], states: Mapping[int, int]
) -> list[Work]:
    """The sweeps of one step, for given positions of the unit dimension of each state."""

    def load(ref: Ref) -> tuple[frozenset[AxisName], AxisName | None]:
        node = program.nodes[ref]
        if not isinstance(node, Input):
            return axes[ref], ANY
        if node.kind == "invariant":
            return axes[ref], ANY
        if node.kind in ("stream", "ahead"):
            operand = find(kernel, "stream", node.index)
            return axes[ref], unit_of(operand, node.axes) if operand else None
        where = (last if node.kind == "carry" else states).get(node.index, -1)
        return axes[ref], node.axes[where] if node.axes else None

    axes = program.axes_of()
    found = []
    for node in program.nodes:
        if isinstance(node, Contract):
            leaves, ops = closure(program, node.arg)
            loads = tuple(load(r) for r in sorted(leaves))
            found.append(Work(axes[node.arg], loads, ops + 1, node.axes))
    for i, carry in enumerate(program.carries):
        leaves, ops = closure(program, carry.next)
        unit = carry.next_axes[last.get(i, -1)] if carry.axes else None
        loads = tuple(load(r) for r in sorted(leaves))
        found.append(Work(frozenset(carry.next_axes), loads, ops, frozenset(), carry.next_axes, unit))
    for i, out in enumerate(program.outs):
        leaves, ops = closure(program, out.ref)
        operand = find(kernel, "out", i)
        target = ANY if out.accumulate else (unit_of(operand, out.axes) if operand else None)
        loads = tuple(load(r) for r in sorted(leaves))
        found.append(Work(frozenset(out.axes), loads, ops, frozenset(), out.axes, target))
    return found


def price(
    work: Work, local: frozenset[AxisName], x: AxisName | None, sizes: Mapping[AxisName, int], lanes: int
) -> float:
    """Estimated cycles of one sweep per step when ``x`` is the vector axis."""
    volume = math.prod(max(sizes[a], 1) for a in work.axes)
    mine = work.axes & local
    if x is None or x not in mine:
        return volume * (work.ops + len(work.loads) + (1 if work.store else 0) + 0.5)
    extent = max(sizes[x], 1)
    each: float = work.ops + 0.5
    for axes, unit in work.loads:
        each += 0.4 if x not in axes else 1 if unit in (x, ANY) else 1.5 * lanes
    if work.store:
        each += 1 if work.unit in (x, ANY) else 1.5 * lanes
    found = volume / extent * math.ceil(extent / lanes) * each
    return found + (volume / extent * 10 if x in work.contracted else 0)


def best_axis(
    work: Work, local: frozenset[AxisName], sizes: Mapping[AxisName, int], lanes: int
) -> tuple[float, AxisName | None]:
    """The cheapest vector axis of one sweep."""
    options: list[tuple[float, AxisName | None]] = [(price(work, local, None, sizes, lanes), None)]
    options += [(price(work, local, x, sizes, lanes), x) for x in sorted(work.axes & local)]
    return min(options, key=lambda o: o[0])


def layouts(
    kernel: Kernel, local: frozenset[AxisName], lanes: int
) -> tuple[float, dict[int, int], dict[int, int]]:
    """Cost, and the position of the unit dimension of each carry and recomputed state."""
    programs = [kernel.program] + ([kernel.recompute] if kernel.recompute else [])
    specs = [kernel.program.carries, kernel.recompute.carries if kernel.recompute else ()]
    chosen: list[dict[int, int]] = [{}, {}]

    def total() -> float:
        found = 0.0
        for i, program in enumerate(programs):
            for work in works(kernel, program, chosen[i], chosen[1]):
                found += best_axis(work, local, program.sizes, lanes)[0]
        return found

    for group, carries in zip(chosen, specs, strict=True):
        for i, carry in enumerate(carries):
            places = [p for p, a in enumerate(carry.axes) if a in local]
            group[i] = max(places, default=len(carry.axes) - 1)
    price_now = total()
    for _ in range(2):
        for group, carries in zip(chosen, specs, strict=True):
            for i, carry in enumerate(carries):
                for place in [p for p, a in enumerate(carry.axes) if a in local]:
                    before, group[i] = group[i], place
                    new = total()
                    if new < price_now:
                        price_now = new
                    else:
                        group[i] = before
    return price_now, chosen[0], chosen[1]


__all__ = ["ANY", "Work", "best_axis", "closure", "find", "layouts", "price", "unit_of", "works"]
