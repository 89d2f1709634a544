"""How much of a step an instance holds at once.

Takes a step program, the sizes of its tiles and warps; leaves the most entries of a thread that
live between the node that makes them and the last that reads them, in the order in which the
emitter makes values (``schedule``).  Products that are only summed are never held, what enters
in 16 bits takes half the room, and what runs along an axis holds as much again meanwhile.

It is an estimate, fitted to what compilers report for sm_90 and 16 bits, and errs both ways: kernels
below ``HELD`` mostly spill nothing, but some do, by a few hundred bytes (the table made by
``benchmarks.aot`` says which), and some above do not.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from tenfuse.plan.tiles.schedule import schedule
from tenfuse.step.program import (
    AxisName,
    Const,
    Contract,
    Input,
    Position,
    Ref,
    Scan,
    Shift,
    Solve,
    StepProgram,
    arguments,
    factors,
    only_summed,
)

_ROWS, _WIDE = 16, 64
"""Rows of a product's result that a warp holds, and from which on they lie so."""
HELD = 272
"""Entries that a thread holds at once without spilling, beside what it counts and addresses with."""


def room(dots: str) -> int:
    """Entries for which a thread has room; in full precision each factor is three numbers meanwhile."""
    return HELD // 2 if dots == "ieee" else HELD


def peak(
    program: StepProgram, extent: Mapping[AxisName, int], warps: int, dots: str, lightest: bool = False
) -> float:
    """Entries of 32 bits that a thread holds at most.

    What products make lies on tensor cores by rows, 16 to a warp where there are 64 or more: warps
    beyond that hold it again.  Without products a tile is in equal shares.
    """
    places = {a: n for n, a in enumerate(extent)}
    narrow, inner = dots in ("bf16", "f16"), only_summed(program)
    products = any(isinstance(n, Contract) and n.arg in inner for n in program.nodes)

    def share(own: Collection[AxisName], entering: bool) -> float:
        axes = sorted((a for a in own if a in places), key=places.__getitem__)
        volume = math.prod(extent[a] for a in axes)
        if entering or len(axes) < 2:
            return volume / (32 * warps) * (0.5 if narrow and entering else 1.0)
        rows = extent[axes[0]] if products else 1
        return volume / (32 * (warps if rows < _WIDE else min(warps, rows // _ROWS)))

    reads = _reads(program)
    order = _order(program, extent, reads, lightest)
    at = {ref: n for n, ref in enumerate(order)}
    last = dict(at)
    for i in order:
        for a in reads[i]:
            last[a] = max(last[a], at[i])
    last |= {c.next: len(order) for c in program.carries}
    # A carry that nothing reads is held all the same, and so is a sum over time.
    always = sum(share(o.axes, False) for o in program.outs if o.accumulate)
    change = [0.0] * (len(order) + 2)
    axes = program.axes_of()
    for i in order:
        node = program.nodes[i]
        if isinstance(node, (Const, Position)):
            continue
        carried = isinstance(node, Input) and node.kind == "carry"
        size = share(axes[i], isinstance(node, Input) and not carried)
        change[0 if carried else at[i]] += size
        change[last[i] + 1] -= size
        meanwhile = 0.0
        if isinstance(node, (Scan, Shift)):
            meanwhile = math.prod(extent.get(a, 1) for a in axes[i]) / (32 * warps)
        elif isinstance(node, Contract) and len(reads[i]) > 1:
            meanwhile = _operands(node, axes[i], extent, warps) * (0.5 if narrow else 1.0)
        change[at[i]] += meanwhile
        change[at[i] + 1] -= meanwhile
    held = most = always
    for one in change:
        held += one
        most = max(most, held)
    return most


def _operands(
    node: Contract, axes: Collection[AxisName], extent: Mapping[AxisName, int], warps: int
) -> float:
    """Entries of a product's operands, and what lays them out: of few rows they are multiplied
    from registers, in which warps beside each other hold the same."""
    own = [a for a in extent if a in axes]
    if len(own) < 2 or extent[own[0]] >= _WIDE:
        return 0.0
    rows, columns = extent[own[0]], math.prod(extent[a] for a in own[1:])
    depth = math.prod(extent.get(a, 1) for a in node.axes)
    above = min(warps, max(rows // _ROWS, 1))
    beside = max(warps // above, 1)
    return 3 * depth * (rows / above + columns / beside) / 32


def _reads(program: StepProgram) -> list[list[Ref]]:
    """What each node reads; of a product that is only summed, its factors."""
    inner = only_summed(program)
    return [[f for a in arguments(n) for f in factors(program, a, inner)] for n in program.nodes]


def _order(
    program: StepProgram, extent: Mapping[AxisName, int], reads: list[list[Ref]], lightest: bool
) -> list[Ref]:
    """The matrices of systems first, as the emitter makes them, then the rest."""
    found, seen = list[Ref](), set[Ref]()

    def visit(ref: Ref) -> None:
        if ref not in seen:
            seen.add(ref)
            for a in reads[ref]:
                visit(a)
            found.append(ref)

    for node in program.nodes:
        if isinstance(node, Solve):
            visit(node.lower)
    return [*found, *schedule(program, extent, reads.__getitem__, found, lightest)]


__all__ = ["HELD", "peak", "room"]
