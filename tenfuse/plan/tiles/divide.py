"""A pass that holds too much, in two: ways to cut it, and what the first leaves for the second.

Takes a pass over all chunks at once; leaves the ways to do it in two.  Cut *along an axis*, the
first pass leaves what is summed over the axis, and the second mixes it no longer, so that an
instance may hold a block of it.  Cut *behind all sums* over some axes, the second has none of
these axes.  Cut *between outputs*, the second reads the first's.  What is cheap is computed in
both.  Leaves none where an axis is mixed otherwise than by sums.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from tenfuse.plan.remake import part
from tenfuse.plan.tiles.passes import Part
from tenfuse.step.program import (
    AxisName,
    Contract,
    Input,
    Node,
    OutSpec,
    Ref,
    Rename,
    Solve,
    StepProgram,
    arguments,
    factors,
    mixed,
    only_summed,
)

Two = tuple[Part, Part]


def divided(whole: Part, free: int) -> Iterator[Two]:
    """The two passes, for every cut; values handed on are numbered from ``free``."""
    program = whole.program
    if any(o.accumulate for o in program.outs):
        return
    summed = {a for n in program.nodes if isinstance(n, Contract) for a in n.axes}
    ordered = {a for n in program.nodes for a in mixed(n)}
    axes = sorted(summed - ordered - program.parallel_axes() - program.dynamic)
    for axis in axes:
        with_axis = [j for j, o in enumerate(program.outs) if axis in o.axes]
        for two in _cut(whole, with_axis, [axis], free):
            if axis in two[1].program.parallel_axes():
                yield two
    yield from _cut(whole, [j for j, o in enumerate(program.outs) if not {*axes} & {*o.axes}], axes, free)
    yield from _between(whole)


def _cut(whole: Part, behind: list[int], over: Collection[AxisName], free: int) -> Iterator[Two]:
    """The outputs ``behind`` from what is free of the axes ``over``, and dear."""
    program, axes = whole.program, whole.program.axes_of()
    read = _border(program, [program.outs[j].ref for j in behind], over)
    if not read:
        return
    entering = {r: Input("cross", free + m, tuple(sorted(axes[r]))) for m, r in enumerate(read)}
    front = [j for j in range(len(program.outs)) if j not in behind]
    first = [OutSpec(r, node.axes) for r, node in entering.items()] + [program.outs[j] for j in front]
    names = [("cross", node.index) for node in entering.values()] + [whole.names[j] for j in front]
    yield _two(whole, first, names, entering, behind)


def _between(whole: Part) -> Iterator[Two]:
    """The second outputs from the first, of those that are handed on in any case."""
    outs = whole.program.outs
    order = sorted(range(len(outs)), key=lambda j: outs[j].ref)
    for n in range(1, len(order)):
        handed = [j for j in order[:n] if whole.names[j][0] == "cross"]
        entering = {outs[j].ref: Input("cross", whole.names[j][1], outs[j].axes) for j in handed}
        if handed and not any(outs[j].ref in entering for j in order[n:]):
            first = [outs[j] for j in order[:n]]
            yield _two(whole, first, [whole.names[j] for j in order[:n]], entering, order[n:])


def _two(
    whole: Part,
    outs: list[OutSpec],
    names: list[tuple[str, int]],
    entering: dict[Ref, Input],
    behind: Collection[int],
) -> Two:
    second = part(whole.program, entering, (), [whole.program.outs[j] for j in behind])
    return (
        Part(part(whole.program, {}, (), outs), tuple(names), True),
        Part(second, tuple(whole.names[j] for j in behind), True),
    )


def _border(program: StepProgram, roots: list[Ref], over: Collection[AxisName]) -> list[Ref]:
    """What the roots read that is free of the axes and dear: beside what is not, or summed over them."""
    axes, dear, found = program.axes_of(), _dear(program), set[Ref]()
    inner, seen, left = only_summed(program), set(roots), list(roots)
    while left:
        ref = left.pop()
        read = [f for a in arguments(program.nodes[ref]) for f in factors(program, a, inner)]
        for a in (_unnamed(program, f, over) for f in read):
            last = bool(axes[ref] & {*over}) or _sums(program.nodes[a], over)
            if last and a in dear and not axes[a] & {*over}:
                found.add(a)
            elif a not in seen:
                seen.add(a)
                left.append(a)
    return sorted(found)


def _sums(node: Node, over: Collection[AxisName]) -> bool:
    return isinstance(node, Contract) and bool(node.axes & {*over})


def _unnamed(program: StepProgram, ref: Ref, over: Collection[AxisName]) -> Ref:
    """The value itself where a node is one under other names: what is handed on is read under any."""
    node = program.nodes[ref]
    while isinstance(node, Rename) and not {a for pair in node.names for a in pair} & {*over}:
        ref, node = node.arg, program.nodes[node.arg]
    return ref


def _dear(program: StepProgram) -> set[Ref]:
    """What took a sum or a system, and what is made of that."""
    found = set[Ref]()
    for i, node in enumerate(program.nodes):
        if isinstance(node, (Contract, Solve)) or any(a in found for a in arguments(node)):
            found.add(i)
    return found


__all__ = ["divided"]
