"""A pass that holds too much, in two: what is summed over an axis first, then block by block.

Takes a pass over all chunks at once; leaves ways to do it in two.  In the first no value is
left with an axis that it sums over, and what the rest reads of it is handed on; in the second
the axis is mixed no longer, so that an instance may hold a block of it.  What is cheap is
computed in both.  Leaves none where an axis is mixed otherwise than by sums.
"""

from __future__ import annotations

from collections.abc import Iterator

from tenfuse.plan.passes import Part
from tenfuse.plan.remake import part
from tenfuse.step.program import (
    AxisName,
    Contract,
    Input,
    OutSpec,
    Ref,
    Solve,
    StepProgram,
    arguments,
    only_summed,
)


def divided(whole: Part, free: int) -> Iterator[tuple[Part, Part]]:
    """The two passes, for every axis that allows it; values handed on are numbered from ``free``."""
    program = whole.program
    summed = {a for n in program.nodes if isinstance(n, Contract) for a in n.axes}
    for axis in sorted(summed - program.parallel_axes() - program.dynamic):
        found = _along(whole, axis, free)
        if found is not None:
            yield found


def _along(whole: Part, axis: AxisName, free: int) -> tuple[Part, Part] | None:
    program, axes = whole.program, whole.program.axes_of()
    behind = [j for j, o in enumerate(program.outs) if axis in o.axes]
    front = [j for j in range(len(program.outs)) if j not in behind]
    read = _border(program, [program.outs[j].ref for j in behind], axis)
    if not behind or not read or any(program.outs[j].accumulate for j in behind):
        return None
    entering = {r: Input("cross", free + m, tuple(sorted(axes[r]))) for m, r in enumerate(read)}
    second = part(program, entering, (), [program.outs[j] for j in behind])
    if axis not in second.parallel_axes():
        return None
    handed = [OutSpec(r, node.axes) for r, node in entering.items()]
    first = part(program, {}, (), [*handed, *(program.outs[j] for j in front)])
    names = [("cross", node.index) for node in entering.values()]
    return (
        Part(first, (*names, *(whole.names[j] for j in front)), True),
        Part(second, tuple(whole.names[j] for j in behind), True),
    )


def _border(program: StepProgram, roots: list[Ref], axis: AxisName) -> list[Ref]:
    """What the roots read without ``axis``, and from there on only that, that took a sum or a system."""
    axes, dear, found = program.axes_of(), _dear(program), set[Ref]()
    inner, seen, left = only_summed(program), set(roots), list(roots)
    while left:
        for a in arguments(program.nodes[left.pop()]):
            if a in dear and a not in inner and axis not in axes[a]:
                found.add(a)
            elif a not in seen:
                seen.add(a)
                left.append(a)
    return sorted(found)


def _dear(program: StepProgram) -> set[Ref]:
    found = set[Ref]()
    for i, node in enumerate(program.nodes):
        if isinstance(node, (Contract, Solve)) or any(a in found for a in arguments(node)):
            found.add(i)
    return found


__all__ = ["divided"]
