"""How much of a step an instance holds at once.

Takes a step program and the sizes of its tiles; leaves the largest number of entries that
live between the node that makes them and the last that reads them, in the order in which the
emitter asks for values: outputs first, each from its arguments.  Products that are only summed
are never held, and what enters in 16 bits takes half the room.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tenfuse.step.program import AxisName, Const, Input, Position, Ref, StepProgram, arguments, only_summed


def peak(program: StepProgram, extent: Mapping[AxisName, int], narrow: bool = False) -> int:
    """Entries of 32 bits held at most; ``narrow`` says that what enters from memory has 16 bits."""
    order = _order(program)
    at = {ref: n for n, ref in enumerate(order)}
    inner, last = only_summed(program), dict(at)
    for i in order:
        for a in _read(program, i, inner):
            last[a] = max(last[a], at[i])
    last |= {c.next: len(order) for c in program.carries}
    # A carry that nothing reads is held all the same, and so is a sum over time.
    always = sum(_volume(o.axes, extent) for o in program.outs if o.accumulate)
    change = [0.0] * (len(order) + 2)
    axes = program.axes_of()
    for i in order:
        node = program.nodes[i]
        if isinstance(node, (Const, Position)):
            continue
        carried = isinstance(node, Input) and node.kind == "carry"
        entering = isinstance(node, Input) and not carried
        size = _volume(axes[i], extent) * (0.5 if entering and narrow else 1.0)
        change[0 if carried else at[i]] += size
        change[last[i] + 1] -= size
    held = most = float(always)
    for one in change:
        held += one
        most = max(most, held)
    return int(most)


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
    found = []
    for a in arguments(program.nodes[ref]):
        found += _read(program, a, inner) if a in inner else [a]
    return found


def _volume(axes: object, extent: Mapping[AxisName, int]) -> int:
    assert isinstance(axes, (tuple, frozenset))
    return math.prod(extent.get(a, 1) for a in axes)


__all__ = ["peak"]
