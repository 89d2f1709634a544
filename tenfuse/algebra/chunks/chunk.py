"""Chunk programs: from a step in normal form to a step that is a whole chunk of steps.

Takes a ``StepProgram``, its ``Recurrence`` and a number of steps; leaves a ``Chunk``: a
``StepProgram`` with the same carries whose streams and outputs have the positions in the
chunk as their first axes.  Running it over the chunks of a sequence is running the step
over the steps, and everything that is derived from a step program (its adjoint, what does
not reach the state, its cost) is derived from this one in the same way.

A sequence whose length is no multiple of the chunk ends with a shorter chunk: the program
is built again for that length, nothing is padded.

The chunk's length changes nothing but rounding, with one exception that the plan must know:
where gates exceed one and the update also erases, what a chunk sums grows with the product
of the gates over the chunk while the state itself need not.  A NaN among the inputs of a
step reaches the results of the whole chunk, not only of later steps.

Refuses with ``Unchunkable`` what has no such program: nonlinear stages, sums over time.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from tenfuse.algebra.chunks import detached
from tenfuse.algebra.chunks.decay import Positions
from tenfuse.algebra.chunks.given import ChunkedGiven
from tenfuse.algebra.chunks.lift import Lift, Read, Unchunkable
from tenfuse.algebra.chunks.lowrank import ChunkedLowRank
from tenfuse.algebra.chunks.paths import ChunkedPaths, factors, mixing
from tenfuse.algebra.chunks.products import Group, Products
from tenfuse.algebra.chunks.response import Linear
from tenfuse.algebra.chunks.ring import ChunkedRing
from tenfuse.algebra.chunks.scan import ChunkedScan
from tenfuse.algebra.chunks.summed import Sums
from tenfuse.algebra.chunks.writes import lowrank
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.step.program import (
    AxisName,
    Builder,
    CarrySpec,
    OutSpec,
    Ref,
    StepProgram,
    prune,
    trimmed,
    validate,
)

BLOCK = 16
"""Positions between which the decay of a summed axis is spelled out entry by entry."""


class States(Protocol):
    """The states of a stage's carries within a chunk."""

    def read(self, read: Read) -> Ref: ...

    def split(self, read: Read) -> Linear | None: ...

    def final(self, carry: int) -> Ref: ...


@dataclasses.dataclass(frozen=True)
class Chunk:
    """``program`` runs ``length`` steps; ``rows`` are its axes of positions, in order.

    Positions count in the order in which the steps run: of a loop that runs backwards, the
    streams and outputs are turned around.
    """

    program: StepProgram
    rows: tuple[AxisName, ...]
    length: int
    products: bool = False
    """Whether some states are not spelled out: what is read of them are products over the positions."""


def chunk(program: StepProgram, recurrence: Recurrence, length: int, block: int = BLOCK) -> Chunk:
    """The program of ``length`` steps of ``program``."""
    maker = _Maker(program, recurrence, length, block)
    return Chunk(maker.run(), maker.rows, length, any(g.products for m in maker.made for g in m.groups))


class _Maker:
    def __init__(self, program: StepProgram, recurrence: Recurrence, length: int, block: int) -> None:
        self.program, self.recurrence = program, recurrence
        self.build = Builder()
        self.sizes = {**program.sizes, **recurrence.sizes}
        self.made = [_States(program, recurrence, self.build, self.sizes)]
        if detached.detached(recurrence):
            known = _States(program, detached.values(recurrence), detached.Constants(self.build), self.sizes)
            self.made = [known, _States(program, detached.apart(recurrence), self.build, self.sizes, known)]
        self.at = None if mixing(recurrence) else self._positions(length, block)
        self.rows = self.at.rows if self.at else tuple(self._free("t", n) for n in factors(length))

    def run(self) -> StepProgram:
        for states in self.made:
            states.find(self.rows, self.at)
        found = self.made[-1]
        carries = tuple(
            CarrySpec(c.next_axes, found.states[i].final(i), c.next_axes)
            for i, c in enumerate(self.program.carries)
        )
        outs = tuple(self._out(found, i, out) for i, out in enumerate(self.program.outs))
        made = prune(StepProgram(tuple(self.build.nodes), self.sizes, carries, outs, self.program.dynamic))
        validate(made)
        return trimmed(made)

    def _out(self, found: _States, index: int, spec: OutSpec) -> OutSpec:
        if spec.accumulate:
            raise Unchunkable("an output is summed over time")
        ref = found.lift.forced(found.lift.affine(self.recurrence.outs[index]))
        return OutSpec(ref, (*self.rows, *spec.axes))

    # -- choices ----------------------------------------------------------------------

    def _positions(self, length: int, block: int) -> Positions:
        """Two axes where a gate has an axis that is summed over, and the length allows it."""
        if length > block and length % block == 0 and all(m.wide() for m in self.made):
            many = length // block
            return Positions(
                self._free("t", block), self._free("s", block), self._free("tb", many), self._free("sb", many)
            )
        return Positions(self._free("t", length), self._free("s", length))

    def _free(self, name: AxisName, size: int) -> AxisName:
        found, i = name, 0
        while found in self.sizes:
            found, i = f"{name}{i}", i + 1
        self.sizes[found] = size
        return found


class _States:
    """The states of all carries within a chunk; ``known`` has those that no gradient enters."""

    def __init__(
        self,
        program: StepProgram,
        recurrence: Recurrence,
        build: Builder,
        sizes: dict[AxisName, int],
        known: _States | None = None,
    ) -> None:
        self.program, self.recurrence, self.build, self.sizes = program, recurrence, build, sizes
        self.known = known
        self.products = Products(program, recurrence)
        self.groups = self.products.groups()
        self.states: dict[int, States] = {}

    def wide(self) -> bool:
        """Whether a gate has an axis that is summed over, and every stage has positions in blocks."""
        stages = self.recurrence.stages
        apart = all(len(s.carries) == 1 for s in stages)
        apart = apart and all(g.products and len(g.stages) == 1 for g in self.groups)
        return apart and any(self.products.gated(s) for s in stages)

    def find(self, rows: tuple[AxisName, ...], at: Positions | None) -> None:
        self.sums = Sums(self.build, self.sizes, self.program.dynamic | self.recurrence.dynamic)
        nodes = self.recurrence.nodes
        self.lift = Lift(nodes, self.sums, rows, self._read, self.sizes, self._split, self.known is not None)
        for group in self.groups:
            states = self._group(group, at)
            self.states |= {j: states for stage in group.stages for j in stage.carries}

    def _read(self, read: Read) -> Ref:
        states = self.known.states if read.cut and self.known else self.states
        if read.carry not in states:
            raise Unchunkable("a carry is read before the stage that computes it")
        return states[read.carry].read(read)

    def _split(self, read: Read) -> Linear | None:
        return self.states[read.carry].split(read) if read.carry in self.states and not read.cut else None

    def _group(self, group: Group, at: Positions | None) -> States:
        stage, carries = group.stages[0], self.program.carries
        if stage.form not in ("low-rank", "elementwise", "block", "dense", "semiring"):
            raise Unchunkable(f"a {stage.form} stage has no chunk program")
        if at is None:
            return ChunkedPaths(stage, carries, self.lift)
        if stage.semiring != "sum-product":
            return ChunkedRing(stage, carries, self.lift)
        if not group.products and not any(u.terms for u in stage.updates):
            return ChunkedGiven(stage, carries, self.lift)
        if not group.products:
            return ChunkedScan(stage, carries, self.lift)
        return ChunkedLowRank(lowrank(group.stages, carries, self.lift), self.sums, at, self.lift.fresh)


__all__ = ["BLOCK", "Chunk", "States", "Unchunkable", "chunk"]
