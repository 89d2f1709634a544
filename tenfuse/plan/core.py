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
from tenfuse.plan.remake import Made, copied, part, remade
from tenfuse.step.program import (
    AxisName,
    Builder,
    Const,
    Input,
    OutSpec,
    Pointwise,
    Ref,
    StepProgram,
    arguments,
    prune,
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
    axes = whole.axes_of()
    read = {i: Input("stream", n, tuple(sorted(axes[i]))) for n, i in enumerate(streams)}
    read |= {i: Input("invariant", n, tuple(sorted(axes[i]))) for n, i in enumerate(invariants)}
    written = [OutSpec(i, tuple(sorted(axes[i]))) for i in outs]
    return part(whole, read, whole.carries, written)


def grouped(program: StepProgram) -> StepProgram:
    """The same program with the state-free factors of every product multiplied first.

    They are multiplied among themselves where that makes nothing larger, so that what is
    left in the core is one product of the state with one coefficient.
    """
    dependent = reached(program, ("carry",))
    readers: dict[Ref, int] = {}
    for node in program.nodes:
        for a in arguments(node):
            readers[a] = readers.get(a, 0) + 1

    def factors(i: Ref, top: bool) -> list[Ref]:
        node = program.nodes[i]
        if isinstance(node, Pointwise) and node.fn == "mul" and i in dependent and (top or readers[i] == 1):
            return [f for a in node.args for f in factors(a, False)]
        return [i]

    def make(build: Builder, i: Ref, place: Made) -> Ref:
        parts = factors(i, True)
        if len(parts) <= 2:
            return copied(program, build, i, place)
        free = [place[f] for f in parts if f not in dependent]
        bound = [place[f] for f in parts if f in dependent]
        return functools.reduce(
            lambda a, b: build.call("mul", a, b), [*_merged(build, program.sizes, free), *bound]
        )

    return remade(program, make)


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
