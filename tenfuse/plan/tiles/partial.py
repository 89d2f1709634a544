"""Sums that several instances share: each writes its part, and the parts are added up behind.

Takes a step program; leaves the axes that no state is mixed along but outputs are summed
over, and the program for them.  Cutting such an axis into blocks leaves every output
that is linear in a sum over it a sum over the blocks: in an adjoint all are, as gradients
are linear in the cotangents.  What is added to such a sum without being one itself must be
added by the first block only: it is multiplied by the input "first".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from tenfuse.plan.remake import Made, remade
from tenfuse.step.program import (
    AxisName,
    Builder,
    Const,
    Contract,
    Input,
    Pointwise,
    Position,
    Ref,
    Rename,
    Scan,
    Shift,
    Solve,
    StepProgram,
    arguments,
    mixed,
    prune,
    validate,
    with_arguments,
)

FIRST = Input("first", 0, ())
"""Whether an instance holds the first block of every axis that is shared."""


@dataclasses.dataclass(frozen=True)
class Partial:
    """``outs[j]`` are the shared axes over which output ``j`` of ``program`` is yet to be summed."""

    program: StepProgram
    outs: tuple[tuple[AxisName, ...], ...]


def shareable(program: StepProgram) -> frozenset[AxisName]:
    """The axes of carries that outputs sum over, linearly, and no state is mixed along."""
    core = prune(dataclasses.replace(program, outs=()))
    carried = {a for c in core.carries for a in c.axes}
    wanted = (core.parallel_axes() & carried) - program.parallel_axes()
    return frozenset(a for a in sorted(wanted) if _linear(program, a) is not None)


def partial(program: StepProgram, shared: Collection[AxisName]) -> Partial:
    """``program`` with the axes ``shared``, which must be ``shareable``, cut."""
    marks = {a: _linear(program, a) or set() for a in shared}
    once = {a: _beside(program, found) for a, found in marks.items()}
    outs = tuple(
        tuple(a for a in sorted(marks) if out.ref in marks[a]) for out in program.outs
    )  # fmt: skip
    return Partial(_guarded(program, once), outs)


def _linear(program: StepProgram, axis: AxisName) -> set[Ref] | None:
    """The nodes that are linear in sums over ``axis``; None if one is otherwise in them."""
    found: set[Ref] = set()
    axes = program.axes_of()
    for i, node in enumerate(program.nodes):
        if isinstance(node, Contract) and axis in node.axes:
            if node.op != "sum" or node.arg in found:
                return None
            found.add(i)
            continue
        within = [a in found for a in arguments(node)]
        if any(within):
            if axis in axes[i] or not _keeps(program, node, within):
                return None
            found.add(i)
    ordered = {a for n in program.nodes if not isinstance(n, Position) for a in mixed(n)}
    carried = {
        a for c in program.carries for p, q in zip(c.axes, c.next_axes, strict=True) if p != q for a in (p, q)
    }
    if axis in ordered | carried or any(c.next in found for c in program.carries):
        return None
    return found


def _keeps(program: StepProgram, node: object, within: list[bool]) -> bool:
    """Whether a node is linear in those of its arguments that are sums."""
    if isinstance(node, Pointwise):
        if node.fn in ("add", "sub", "neg", "cut"):
            return True
        if node.fn == "mul":
            return sum(within) == 1
        return within[0] if node.fn == "div" and not within[1] else node.fn == "where" and not within[0]
    if isinstance(node, Contract):
        return node.op == "sum"
    if isinstance(node, Scan):
        return within == [False, True] and node.semiring == "sum-product"
    if isinstance(node, Solve):
        return within == [False, True]
    return isinstance(node, Rename) or (isinstance(node, Shift) and node.fill == 0.0)


def _beside(program: StepProgram, found: set[Ref]) -> set[tuple[Ref, Ref]]:
    """``(node, argument)`` where something else is added to a sum."""
    pairs = set()
    for i in found:
        node = program.nodes[i]
        if isinstance(node, Pointwise) and node.fn in ("add", "sub", "where"):
            args = node.args[1:] if node.fn == "where" else node.args
            pairs |= {(i, a) for a in args if a not in found and program.nodes[a] != Const(0.0)}
    return pairs


def _guarded(program: StepProgram, once: dict[AxisName, set[tuple[Ref, Ref]]]) -> StepProgram:
    """What is added once only, by the first block only."""
    pairs = {p for found in once.values() for p in found}
    if not pairs:
        return program

    def make(build: Builder, i: Ref, place: Made) -> Ref:
        args = []
        for a in arguments(program.nodes[i]):
            if (i, a) in pairs:
                args.append(build.call("where", build.add(FIRST), place[a], build.const(0.0)))
            else:
                args.append(place[a])
        return build.add(with_arguments(program.nodes[i], args))

    made = remade(program, make)
    validate(made)
    return made


__all__ = ["FIRST", "Partial", "partial", "shareable"]
