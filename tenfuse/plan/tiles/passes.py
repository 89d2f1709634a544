"""A chunk's step in passes: what is parallel over chunks in front, the recurrence, what is parallel behind.

Takes a step program; leaves its parts as programs of their own.  What no carry reaches and is
costly is computed for all chunks at once and handed on ("cross" values); the recurrence is
then as short as it can be and leaves the carries at the start of every chunk; all outputs
follow from these for all chunks at once.  Cheap values are computed again where they are read.
Refuses nothing: a program without costly parts is one pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

from tenfuse.algebra.parts import feeding, reached
from tenfuse.plan.keep import keeping
from tenfuse.plan.remake import part
from tenfuse.plan.tiles.inverse import is_inverse
from tenfuse.step.program import (
    AxisName,
    Contract,
    Input,
    OutSpec,
    Ref,
    Scan,
    Solve,
    StepProgram,
    arguments,
    factors,
    only_summed,
)

COSTLY = 1 << 12
"""Entries of a product from which its sum is not computed twice."""


Group = frozenset[AxisName]
"""Outputs, by the axes of the state that they have."""


@dataclasses.dataclass(frozen=True)
class Part:
    """``names`` say what every output of ``program`` is: ("out", j) of the whole, a ("cross", m)
    value, or the carry i at the start of an iteration, called (``held``, i)."""

    program: StepProgram
    names: tuple[tuple[str, int], ...]
    parallel: bool
    """Whether iterations do not depend on each other."""


def whole(program: StepProgram, held: str, kept: Collection[int]) -> tuple[Part, ...]:
    """One pass, which also writes the carries ``kept``."""
    names = [("out", j) for j in range(len(program.outs))] + [(held, i) for i in kept]
    return (Part(keeping(program, kept), tuple(names), False),)


def passes(
    program: StepProgram,
    held: str,
    kept: Collection[int],
    rows: Collection[str] = (),
    within: Collection[Group] = (),
) -> tuple[Part, ...]:
    """In front, the recurrence, behind; ``kept`` carries are written in any case.

    With ``rows``, the positions in a chunk, all that the recurrence reads of a chunk without
    them counts as costly.  The recurrence itself computes the outputs of the groups ``within``.
    """
    return _Splitter(program, held, kept, frozenset(rows)).run(within)


def groups(program: StepProgram) -> tuple[Group, ...]:
    """The groups of outputs of which each has a pass behind the recurrence, or is computed in it."""
    splitter = _Splitter(program, "", (), frozenset())
    return tuple(dict.fromkeys(splitter.group(o) for o in program.outs))


class _Splitter:
    def __init__(self, program: StepProgram, held: str, kept: Collection[int], rows: frozenset[str]) -> None:
        self.rows = rows
        self.program, self.held, self.kept = program, held, tuple(kept)
        self.axes = program.axes_of()
        self.free = _batch(program)
        self.dependent = reached(program, ("carry",))
        self.core = feeding(program) & self.dependent
        self.inner = only_summed(program)
        systems = {i for i, n in enumerate(program.nodes) if isinstance(n, Solve)} - self.dependent
        only = all(is_inverse(program, i) for i in systems)
        self.inverses = systems if only else set[Ref]()
        self.solved = systems if only else self._above(lambda n: isinstance(n, Solve))
        self.costly = self._costly()

    def run(self, within: Collection[Group]) -> tuple[Part, ...]:
        inside = [j for j, o in enumerate(self.program.outs) if self.group(o) in within]
        outside = [j for j in range(len(self.program.outs)) if j not in inside]
        behind = self._reading(outside)
        cross = set(self.inverses)
        cross |= {r for i in behind | self._reading(inside) for r in self._frontier(i) if r in self.solved}
        if outside or not inside:
            cross |= {r for i in self.core for r in self._frontier(i) if r in self.costly and self._worth(r)}
        else:
            cross |= {r for i in self.core for r in self._frontier(i) if r in self.solved}
        handed = sorted(cross)
        passed = sorted(self._passed(behind, outside) - cross)
        return (
            *self._front(handed),
            self._recurrence(handed, passed, inside, bool(outside)),
            *self._behind(handed, passed, outside),
        )

    def _reading(self, outs: Collection[int]) -> set[Ref]:
        """What outputs read of a state and no state reads."""
        return (self._needed([self.program.outs[j].ref for j in outs]) & self.dependent) - self.core

    # -- what is costly -----------------------------------------------------------------

    def _above(self, chosen: object) -> set[Ref]:
        """State-free nodes that one of the ``chosen`` nodes reaches."""
        assert callable(chosen)
        found: set[Ref] = set()
        for i, node in enumerate(self.program.nodes):
            if i not in self.dependent and (chosen(node) or any(a in found for a in arguments(node))):
                found.add(i)
        return found

    def _costly(self) -> set[Ref]:
        def heavy(node: object) -> bool:
            if isinstance(node, Contract):
                return self._entries(node.arg) >= COSTLY
            return isinstance(node, Solve) or (isinstance(node, Scan) and bool(node.rows))

        found = self._above(heavy)
        over = self._above(lambda n: isinstance(n, Input) and bool(self.rows & set(n.axes)))
        return found | {i for i in over if not self.axes[i] & self.rows} if self.rows else found

    def _entries(self, ref: Ref) -> int:
        return math.prod(self.program.sizes[a] for a in self.axes[ref] if a not in self.free)

    def _worth(self, ref: Ref) -> bool:
        """Whether handing a value on moves less than what it is computed from, or saves a system."""
        if ref in self.solved:
            return True
        leaves = {
            r for r in self._needed([ref]) if isinstance(self.program.nodes[r], Input)
        }  # fmt: skip
        return 2 * self._entries(ref) <= sum(self._entries(r) for r in leaves)

    def _passed(self, behind: set[Ref], outside: Collection[int]) -> set[Ref]:
        """What the recurrence computes at a cost and passes on: values that what is behind reads."""
        read = {f for i in behind for a in arguments(self.program.nodes[i]) for f in self._factors(a)}
        read |= {self.program.outs[j].ref for j in outside}
        carried = {c.next for c in self.program.carries}
        limit = max((self._entries(r) for r in carried), default=0)
        return {r for r in read & self.core if self._entries(r) < limit and self._heavy_core(r)}

    def _heavy_core(self, ref: Ref) -> bool:
        nodes = self._needed([ref]) & self.core
        return any(
            isinstance(n, Contract) and self._entries(n.arg) >= COSTLY
            for n in (self.program.nodes[i] for i in nodes)
        )

    def _frontier(self, ref: Ref) -> set[Ref]:
        """State-free values that a node reads; of a product that is only summed, its factors."""
        found: set[Ref] = set()
        for a in arguments(self.program.nodes[ref]):
            if a in self.dependent:
                continue
            found |= {*self._factors(a)}
        return found

    def _factors(self, ref: Ref) -> list[Ref]:
        return factors(self.program, ref, self.inner)

    def _needed(self, roots: Collection[Ref]) -> set[Ref]:
        found = set(roots)
        for i in reversed(range(len(self.program.nodes))):
            if i in found:
                found |= set(arguments(self.program.nodes[i]))
        return found

    # -- the programs -------------------------------------------------------------------

    def _front(self, cross: list[Ref]) -> tuple[Part, ...]:
        if not cross:
            return ()
        outs = [OutSpec(r, tuple(sorted(self.axes[r]))) for r in cross]
        names = tuple(("cross", m) for m in range(len(cross)))
        return (Part(part(self.program, {}, (), outs), names, True),)

    def _recurrence(self, cross: list[Ref], passed: list[Ref], inside: list[int], all_kept: bool) -> Part:
        """``all_kept`` says that what is behind may read any of the carries."""
        outs = [OutSpec(r, tuple(sorted(self.axes[r]))) for r in passed]
        outs += [self.program.outs[j] for j in inside]
        names = [("cross", len(cross) + m) for m in range(len(passed))] + [("out", j) for j in inside]
        carries = self.program.carries
        states = [*range(len(carries))] if all_kept else [*self.kept]
        carried = [(Input("carry", i, carries[i].axes), i) for i in states]
        made = part(self.program, self._read(cross), carries, outs, [node for node, _ in carried])
        return Part(made, (*names, *((self.held, i) for _, i in carried)), False)

    def _behind(self, cross: list[Ref], passed: list[Ref], outside: list[int]) -> tuple[Part, ...]:
        read: dict[Ref, Input] = self._read([*cross, *passed])
        for i, node in enumerate(self.program.nodes):
            if isinstance(node, Input) and node.kind == "carry":
                read[i] = Input(self.held, node.index, node.axes)
        found: dict[Group, list[int]] = {}
        for j in outside:
            found.setdefault(self.group(self.program.outs[j]), []).append(j)
        return tuple(
            Part(
                part(self.program, read, (), [self.program.outs[j] for j in chosen]),
                tuple(("out", j) for j in chosen),
                True,
            )
            for chosen in found.values()
        )

    def group(self, out: OutSpec) -> Group:
        """Outputs over the same axes of the state are computed together: apart from the others they
        need no tile over all axes, which would not fit in registers beside the others'."""
        state = {a for c in self.program.carries for a in c.axes} - self.free
        if math.prod(self.program.sizes[a] for a in state) < COSTLY:
            return frozenset()
        return frozenset(out.axes) & frozenset(state)

    def _read(self, cross: list[Ref]) -> dict[Ref, Input]:
        return {r: Input("cross", m, tuple(sorted(self.axes[r]))) for m, r in enumerate(cross)}


def _batch(program: StepProgram) -> frozenset[str]:
    """The parallel axes that every stream and every state has."""
    over = [n.axes for n in program.nodes if isinstance(n, Input) and n.kind != "invariant"]
    over += [c.axes for c in program.carries]
    return frozenset(a for a in program.parallel_axes() if all(a in own for own in over))


__all__ = ["Group", "Part", "groups", "passes", "whole"]
