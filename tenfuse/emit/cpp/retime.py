"""Contractions of a state taken one step early, while the state is still in registers.

Takes a ``StepProgram``; leaves one with further carries.  A contraction that a step takes
of the state as it enters needs a sweep over the state of its own, before the sweep that
updates it.  The same sum, with the streams of the *next* step and the state as it leaves,
can be taken in the updating sweep and carried over.  The numbers are the same, operation
for operation: only the time changes.

Streams of the next step are inputs of kind "ahead"; past the last step they may be
anything.  Values that the recomputed forward program carries so are states that the
adjoint need not sum again (``shared``); costly functions of its streams are carried too,
for the adjoint to read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tenfuse.emit.cpp.preamble import cost
from tenfuse.step.program import (
    AxisName,
    Builder,
    CarrySpec,
    Contract,
    Input,
    Node,
    Pointwise,
    Ref,
    StepProgram,
    arguments,
    prune,
    with_arguments,
)
from tenfuse.step.whole import is_whole

SMALLER = 4
"""A sum is carried over only if it has this many times fewer entries than what is summed."""
COSTLY = 10
"""Operations from which on a value is worth storing and loading again."""
_COMMUTES = frozenset({"add", "mul", "maximum", "minimum", "eq", "ne", "logical_and", "logical_or"})


@dataclasses.dataclass(frozen=True)
class Early:
    """``first`` computes the added carries for the first step: it reads the carries as
    inputs of kind "state", and its own carries are the added ones, from ``since`` on."""

    program: StepProgram
    first: StepProgram | None
    since: int


def early(program: StepProgram, kept: Sequence[Ref] = (), sums: bool = True) -> Early:
    """``program`` with the nodes ``kept`` carried over and, with ``sums``, every contraction that can be."""
    stage = _stages(program)
    found = [r for r in _live(program) if r in kept or (sums and _can_move(program, stage, r))]
    since = len(program.carries)
    if not found:
        return Early(program, None, since)
    build = Builder()
    place = _copied(program, build, {r: since + n for n, r in enumerate(found)})
    carries = [dataclasses.replace(c, next=place[c.next]) for c in program.carries]
    axes = program.axes_of()
    for r in found:
        own = tuple(a for a in program.sizes if a in axes[r])
        carries.append(CarrySpec(own, _later(program, build, place, r), own))
    outs = tuple(dataclasses.replace(o, ref=place[o.ref]) for o in program.outs)
    moved = dataclasses.replace(program, nodes=tuple(build.nodes), carries=tuple(carries), outs=outs)
    return Early(prune(moved), _first(program, found, carries[since:]), since)


def _stages(program: StepProgram) -> list[int]:
    """How many contractions lie below each node."""
    found: list[int] = []
    for node in program.nodes:
        below = max((found[a] for a in arguments(node)), default=0)
        found.append(below + isinstance(node, Contract))
    return found


def _live(program: StepProgram) -> list[Ref]:
    return sorted(_needed(program, set()))


def _inputs(program: StepProgram, ref: Ref) -> list[Input]:
    """The inputs under ``ref``."""
    seen, todo, found = set[Ref](), [ref], list[Input]()
    while todo:
        r = todo.pop()
        if r in seen:
            continue
        seen.add(r)
        node = program.nodes[r]
        if isinstance(node, Input):
            found.append(node)
        todo += arguments(node)
    return found


def _can_move(program: StepProgram, stage: list[int], ref: Ref) -> bool:
    """Whether ``ref`` sums a whole carry, and that carry's update waits for another sum."""
    node, axes = program.nodes[ref], program.axes_of()
    if not isinstance(node, Contract) or stage[node.arg] > 0 or is_whole(program.nodes, ref):
        return False
    inputs = _inputs(program, node.arg)
    if any(n.kind not in ("carry", "stream", "invariant") for n in inputs):
        return False
    swept = False
    for n in inputs:
        if n.kind != "carry":
            continue
        spec = program.carries[n.index]
        if not n.axes == spec.axes == spec.next_axes or axes[spec.next] != frozenset(spec.axes):
            return False
        swept |= axes[node.arg] == frozenset(spec.axes) and stage[spec.next] > 0
    return swept and _volume(program, axes[ref]) * SMALLER <= _volume(program, axes[node.arg])


def _volume(program: StepProgram, axes: frozenset[AxisName]) -> int:
    return math.prod(max(program.sizes[a], 1) for a in axes)


def _rebuilt(node: Node, place: list[Ref] | dict[Ref, Ref]) -> Node:
    return with_arguments(node, [place[a] for a in arguments(node)])


def _copied(program: StepProgram, build: Builder, carried: dict[Ref, int]) -> list[Ref]:
    """Every node of ``program`` in ``build``, those in ``carried`` as carries."""
    place: list[Ref] = []
    axes = program.axes_of()
    for r, node in enumerate(program.nodes):
        if r in carried:
            own = tuple(a for a in program.sizes if a in axes[r])
            place.append(build.input("carry", carried[r], own))
        else:
            place.append(build.add(_rebuilt(node, place)))
    return place


def _later(program: StepProgram, build: Builder, place: list[Ref], ref: Ref) -> Ref:
    """``ref`` as the next step computes it."""
    moved: dict[Ref, Ref] = {}
    for r in _under(program, ref):
        node = program.nodes[r]
        if isinstance(node, Input) and node.kind == "carry":
            moved[r] = place[program.carries[node.index].next]
        elif isinstance(node, Input) and node.kind == "stream":
            moved[r] = build.input("ahead", node.index, node.axes)
        else:
            moved[r] = build.add(_rebuilt(node, moved))
    return moved[ref]


def _under(program: StepProgram, ref: Ref) -> list[Ref]:
    below = {ref}
    for i in range(ref, -1, -1):
        if i in below:
            below |= set(arguments(program.nodes[i]))
    return sorted(below)


def _first(program: StepProgram, found: list[Ref], specs: list[CarrySpec]) -> StepProgram:
    """The carried contractions of the step about to be run."""
    build, moved = Builder(), dict[Ref, Ref]()
    for r in sorted({u for f in found for u in _under(program, f)}):
        node = program.nodes[r]
        if isinstance(node, Input) and node.kind == "carry":
            moved[r] = build.input("state", node.index, node.axes)
        else:
            moved[r] = build.add(_rebuilt(node, moved))
    carries = tuple(dataclasses.replace(s, next=moved[f]) for s, f in zip(specs, found, strict=True))
    return dataclasses.replace(program, nodes=tuple(build.nodes), carries=carries, outs=())


def shared(adjoint: StepProgram, forward: Early) -> StepProgram:
    """``adjoint`` with the contractions that ``forward`` carries read as states."""
    if forward.first is None:
        return adjoint
    names = _Names()
    known = {}
    ids = names.of(forward.first)
    for n, spec in enumerate(forward.first.carries):
        known[ids[spec.next]] = Input("state", forward.since + n, spec.axes)
    mine = names.of(adjoint)
    build, place = Builder(), list[Ref]()
    for r, node in enumerate(adjoint.nodes):
        place.append(build.add(known.get(mine[r]) or _rebuilt(node, place)))
    return prune(
        dataclasses.replace(
            adjoint,
            nodes=tuple(build.nodes),
            carries=tuple(dataclasses.replace(c, next=place[c.next]) for c in adjoint.carries),
            outs=tuple(dataclasses.replace(o, ref=place[o.ref]) for o in adjoint.outs),
        )
    )


def repeated(forward: StepProgram, adjoint: StepProgram) -> list[Ref]:
    """Costly functions of streams and invariants in ``forward`` that ``adjoint`` computes too.

    What they take in the cache, one value for each step of a chunk, is at most what the
    states take.
    """
    names = _Names()
    mine, its = names.of(forward), {n: r for r, n in enumerate(names.of(adjoint))}
    needed = _needed(adjoint, set())
    axes = forward.axes_of()
    room = sum(_volume(forward, frozenset(c.axes)) for c in forward.carries)
    found: list[Ref] = []
    for r in reversed(_live(forward)):
        node, twin = forward.nodes[r], its.get(mine[r])
        if not isinstance(node, Pointwise) or cost(node.fn) < COSTLY or twin not in needed:
            continue
        kinds = {n.kind for n in _inputs(forward, r)}
        size = _volume(forward, axes[r])
        if "stream" in kinds and kinds <= {"stream", "invariant"} and size <= room:
            room -= size
            found.append(r)
            needed = _needed(adjoint, {its[mine[f]] for f in found})
    return sorted(found)


def _needed(program: StepProgram, known: set[Ref]) -> set[Ref]:
    """The nodes to compute when those in ``known`` are."""
    live = set(program.roots())
    for i in range(len(program.nodes) - 1, -1, -1):
        if i in live and i not in known:
            live |= set(arguments(program.nodes[i]))
    return live - known


class _Names:
    """One number for equal values of two programs, arguments of sums and products in any order."""

    def __init__(self) -> None:
        self.index: dict[object, int] = {}

    def of(self, program: StepProgram) -> list[int]:
        found: list[int] = []
        for node in program.nodes:
            key: object = node
            if isinstance(node, Pointwise):
                args = tuple(found[a] for a in node.args)
                key = (node.fn, tuple(sorted(args)) if node.fn in _COMMUTES else args)
            elif isinstance(node, Contract):
                key = (node.op, node.axes, found[node.arg])
            elif not isinstance(node, Input):
                key = repr(node)
            found.append(self.index.setdefault(key, len(self.index)))
        return found


__all__ = ["COSTLY", "Early", "early", "repeated", "shared"]
