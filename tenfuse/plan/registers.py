"""How much of a step an instance holds at once.

Takes a step program, the sizes of its tiles and warps; leaves the most entries of a thread that
live between the node that makes them and the last that reads them, in the order in which the
emitter asks for values: outputs first, each from its arguments.  Products that are only summed
are never held, and what enters in 16 bits takes half the room.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from tenfuse.step.program import (
    AxisName,
    Const,
    Input,
    Position,
    Ref,
    StepProgram,
    arguments,
    factors,
    only_summed,
)

_ROWS, _WIDE = 16, 64
"""Rows of a product's result that a warp holds, and from which on they lie so."""


def peak(program: StepProgram, extent: Mapping[AxisName, int], warps: int, narrow: bool = False) -> float:
    """Entries of 32 bits that a thread holds at most; ``narrow`` says that what enters has 16 bits.

    What products make lies on tensor cores by rows, 16 to a warp where there are 64 or more: warps
    beyond that hold it again.
    """
    places = {a: n for n, a in enumerate(extent)}

    def share(own: Collection[AxisName], entering: bool) -> float:
        axes = sorted((a for a in own if a in places), key=places.__getitem__)
        volume = math.prod(extent[a] for a in axes)
        if entering or len(axes) < 2:
            return volume / (32 * warps) * (0.5 if narrow and entering else 1.0)
        rows = extent[axes[0]]
        return volume / (32 * (warps if rows < _WIDE else min(warps, rows // _ROWS)))

    order = _order(program)
    at = {ref: n for n, ref in enumerate(order)}
    inner, last = only_summed(program), dict(at)
    for i in order:
        for a in _read(program, i, inner):
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
    held = most = always
    for one in change:
        held += one
        most = max(most, held)
    return most


def _order(program: StepProgram) -> list[Ref]:
    inner, found, seen = only_summed(program), list[Ref](), set[Ref]()

    def visit(ref: Ref) -> None:
        if ref not in seen:
            seen.add(ref)
            for a in _read(program, ref, inner):
                visit(a)
            found.append(ref)

    for ref in [*(o.ref for o in program.outs), *(c.next for c in program.carries)]:
        visit(ref)
    return found


def _read(program: StepProgram, ref: Ref, inner: set[Ref]) -> list[Ref]:
    """What a node reads; of a product that is only summed, its factors."""
    return [f for a in arguments(program.nodes[ref]) for f in factors(program, a, inner)]


__all__ = ["peak"]
