"""What of a chunk's step truly is a recurrence: its core, cut out.

Takes a ``StepProgram`` (of a chunk of steps); leaves a ``Core``: a smaller program with the
same carries, the nodes whose values it reads, all of them state-free and so computable for
every chunk at once, and the nodes whose values the rest of the program reads from it.
Refuses nothing; a program without structure is all core.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from tenfuse.algebra.parts import feeding, reached
from tenfuse.step.program import (
    AxisName,
    Builder,
    CarrySpec,
    Const,
    Input,
    OutSpec,
    Pointwise,
    Ref,
    StepProgram,
    arguments,
    prune,
    trimmed,
    validate,
    with_arguments,
)


@dataclasses.dataclass(frozen=True)
class Core:
    """``whole`` is the program, its products grouped; refs point into it."""

    whole: StepProgram
    program: StepProgram
    streams: tuple[Ref, ...]
    """Node of ``whole`` that is stream i of ``program``, over its sorted axes."""
    invariants: tuple[Ref, ...]
    """The same for invariants: nodes that no stream reaches."""
    outs: tuple[Ref, ...]
    """Node of ``whole`` that is output j of ``program``."""


def cut(program: StepProgram) -> Core:
    """The core of ``program``."""
    whole = prune(grouped(program))
    dependent = reached(whole, ("carry",))
    inside = feeding(whole) & dependent
    entering = sorted(
        {a for i in inside for a in arguments(whole.nodes[i]) if a not in dependent}
        | {c.next for c in whole.carries if c.next not in dependent}
    )
    entering = [i for i in entering if not isinstance(whole.nodes[i], Const)]
    varying = reached(whole, ("stream",))
    streams = tuple(i for i in entering if i in varying)
    invariants = tuple(i for i in entering if i not in varying)
    leaving = {a for i, n in enumerate(whole.nodes) if i in dependent - inside for a in arguments(n)}
    leaving |= {o.ref for o in whole.outs}
    outs = tuple(sorted(leaving & _core_values(whole, inside, dependent)))
    return Core(whole, _program(whole, streams, invariants, outs), streams, invariants, outs)


def _core_values(whole: StepProgram, inside: set[Ref], dependent: set[Ref]) -> set[Ref]:
    carried = {i for i, n in enumerate(whole.nodes) if isinstance(n, Input) and n.kind == "carry"}
    return inside | (carried & dependent)


def _program(
    whole: StepProgram, streams: tuple[Ref, ...], invariants: tuple[Ref, ...], outs: tuple[Ref, ...]
) -> StepProgram:
    build, axes = Builder(), whole.axes_of()
    place: dict[Ref, Ref] = {}

    def made(i: Ref) -> Ref:
        if i not in place:
            node = whole.nodes[i]
            if i in streams:
                place[i] = build.input("stream", streams.index(i), tuple(sorted(axes[i])))
            elif i in invariants:
                place[i] = build.input("invariant", invariants.index(i), tuple(sorted(axes[i])))
            else:
                place[i] = build.add(with_arguments(node, [made(a) for a in arguments(node)]))
        return place[i]

    carries = tuple(CarrySpec(c.axes, made(c.next), c.next_axes) for c in whole.carries)
    written = tuple(OutSpec(made(i), tuple(sorted(axes[i]))) for i in outs)
    found = trimmed(prune(StepProgram(tuple(build.nodes), whole.sizes, carries, written)))
    validate(found)
    return found


def grouped(program: StepProgram) -> StepProgram:
    """The same program with the state-free factors of every product multiplied first.

    They are multiplied among themselves where that makes nothing larger, so that what is
    left in the core is one product of the state with one coefficient.
    """
    dependent, build = reached(program, ("carry",)), Builder()
    readers: dict[Ref, int] = {}
    for node in program.nodes:
        for a in arguments(node):
            readers[a] = readers.get(a, 0) + 1
    place: dict[Ref, Ref] = {}

    def factors(i: Ref, top: bool) -> list[Ref]:
        node = program.nodes[i]
        if isinstance(node, Pointwise) and node.fn == "mul" and i in dependent and (top or readers[i] == 1):
            return [f for a in node.args for f in factors(a, False)]
        return [i]

    for i, node in enumerate(program.nodes):
        parts = factors(i, True)
        if len(parts) > 2:
            free = [place[f] for f in parts if f not in dependent]
            bound = [place[f] for f in parts if f in dependent]
            place[i] = functools.reduce(
                lambda a, b: build.call("mul", a, b), [*_merged(build, program.sizes, free), *bound]
            )
        else:
            place[i] = build.add(with_arguments(node, [place[a] for a in arguments(node)]))
    return dataclasses.replace(
        program,
        nodes=tuple(build.nodes),
        carries=tuple(dataclasses.replace(c, next=place[c.next]) for c in program.carries),
        outs=tuple(dataclasses.replace(o, ref=place[o.ref]) for o in program.outs),
    )


def _merged(build: Builder, sizes: dict[AxisName, int], free: list[Ref]) -> list[Ref]:
    """Factors multiplied pairwise as long as a product is no larger than both together."""
    found = list(free)
    changed = True
    while changed:
        changed = False
        for i in range(len(found)):
            for j in range(i):
                both = _entries(sizes, build.axes[found[i]] | build.axes[found[j]])
                if both <= _entries(sizes, build.axes[found[i]]) + _entries(sizes, build.axes[found[j]]):
                    product = build.call("mul", found[j], found[i])
                    found = [f for n, f in enumerate(found) if n not in (i, j)] + [product]
                    changed = True
                    break
            if changed:
                break
    return found


def _entries(sizes: dict[AxisName, int], axes: frozenset[AxisName]) -> int:
    return math.prod(sizes[a] for a in axes)


__all__ = ["Core", "cut", "grouped"]
