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

from tenfuse.algebra.chunks.decay import Positions
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
    node_axes,
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
    return Chunk(maker.run(), maker.rows, length, any(g.products for g in maker.groups))


class _Maker:
    def __init__(self, program: StepProgram, recurrence: Recurrence, length: int, block: int) -> None:
        self.program, self.recurrence = program, recurrence
        self.build, self.products = Builder(), Products(program, recurrence)
        self.groups = self.products.groups()
        self.sizes = {**program.sizes, **recurrence.sizes}
        self.axes: list[frozenset[AxisName]] = []
        for node in recurrence.nodes:
            self.axes.append(node_axes(node, self.axes))
        if mixing(recurrence):
            self.rows = tuple(self._free("t", n) for n in factors(length))
        else:
            self.at = self._positions(length, block)
            self.rows = self.at.rows
        self.sums = Sums(self.build, self.sizes, program.dynamic | recurrence.dynamic)
        self.lift = Lift(recurrence.nodes, self.sums, self.rows, self._read, self.sizes, self._split)
        self.states: dict[int, States] = {}

    def run(self) -> StepProgram:
        for group in self.groups:
            states = self._group(group)
            self.states |= {j: states for stage in group.stages for j in stage.carries}
        carries = tuple(
            CarrySpec(c.next_axes, self.states[i].final(i), c.next_axes)
            for i, c in enumerate(self.program.carries)
        )
        outs = tuple(self._out(i, out) for i, out in enumerate(self.program.outs))
        made = prune(StepProgram(tuple(self.build.nodes), self.sizes, carries, outs, self.program.dynamic))
        validate(made)
        return trimmed(made)

    def _read(self, read: Read) -> Ref:
        if read.carry not in self.states:
            raise Unchunkable("a carry is read before the stage that computes it")
        return self.states[read.carry].read(read)

    def _split(self, read: Read) -> Linear | None:
        return self.states[read.carry].split(read) if read.carry in self.states else None

    def _group(self, group: Group) -> States:
        stage = group.stages[0]
        if stage.form not in ("low-rank", "elementwise", "block", "dense", "semiring"):
            raise Unchunkable(f"a {stage.form} stage has no chunk program")
        if mixing(self.recurrence):
            return ChunkedPaths(stage, self.program.carries, self.lift)
        if stage.semiring != "sum-product":
            return ChunkedRing(stage, self.program.carries, self.lift)
        if not group.products:
            return ChunkedScan(stage, self.program.carries, self.lift)
        parts = lowrank(group.stages, self.program.carries, self.lift)
        return ChunkedLowRank(parts, self.sums, self.at, self.lift.fresh)

    def _out(self, index: int, spec: OutSpec) -> OutSpec:
        if spec.accumulate:
            raise Unchunkable("an output is summed over time")
        ref = self.lift.forced(self.lift.affine(self.recurrence.outs[index]))
        return OutSpec(ref, (*self.rows, *spec.axes))

    # -- choices ----------------------------------------------------------------------

    def _positions(self, length: int, block: int) -> Positions:
        """Two axes where a gate has an axis that is summed over, and the length allows it."""
        stages = self.recurrence.stages
        wide = any(self.products.gated(s) for s in stages) and all(len(s.carries) == 1 for s in stages)
        wide = wide and all(g.products and len(g.stages) == 1 for g in self.groups)
        if wide and length > block and length % block == 0:
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


__all__ = ["BLOCK", "Chunk", "States", "Unchunkable", "chunk"]
