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

from tenfuse.algebra.chunk_lowrank import ChunkedLowRank
from tenfuse.algebra.chunk_paths import ChunkedPaths, factors, mixing
from tenfuse.algebra.chunk_ring import ChunkedRing
from tenfuse.algebra.chunk_scan import ChunkedScan
from tenfuse.algebra.decay import Positions
from tenfuse.algebra.lift import Lift, Read, Unchunkable
from tenfuse.algebra.lowrank import lowrank, separated
from tenfuse.algebra.recurrence import Recurrence, Stage
from tenfuse.algebra.response import Linear
from tenfuse.algebra.summed import Sums
from tenfuse.step.program import (
    AxisName,
    Builder,
    CarrySpec,
    Contract,
    Input,
    OutSpec,
    Pointwise,
    Ref,
    StepProgram,
    arguments,
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


def chunk(program: StepProgram, recurrence: Recurrence, length: int, block: int = BLOCK) -> Chunk:
    """The program of ``length`` steps of ``program``."""
    maker = _Maker(program, recurrence, length, block)
    return Chunk(maker.run(), maker.rows, length)


class _Maker:
    def __init__(self, program: StepProgram, recurrence: Recurrence, length: int, block: int) -> None:
        self.program, self.recurrence = program, recurrence
        self.build = Builder()
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
        for stage in self.recurrence.stages:
            states = self._stage(stage)
            self.states |= {j: states for j in stage.carries}
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

    def _stage(self, stage: Stage) -> States:
        if stage.form not in ("low-rank", "elementwise", "block", "dense", "semiring"):
            raise Unchunkable(f"a {stage.form} stage has no chunk program")
        if mixing(self.recurrence):
            return ChunkedPaths(stage, self.program.carries, self.lift)
        if stage.semiring != "sum-product":
            return ChunkedRing(stage, self.program.carries, self.lift)
        if not self._by_rank(stage):
            return ChunkedScan(stage, self.program.carries, self.lift)
        parts = lowrank(stage, self.program.carries, self.lift)
        return ChunkedLowRank(parts, self.sums, self.at, self.lift.fresh)

    def _out(self, index: int, spec: OutSpec) -> OutSpec:
        if spec.accumulate:
            raise Unchunkable("an output is summed over time")
        ref = self.lift.forced(self.lift.affine(self.recurrence.outs[index]))
        return OutSpec(ref, (*self.rows, *spec.axes))

    # -- choices ----------------------------------------------------------------------

    def _by_rank(self, stage: Stage) -> bool:
        """Whether products of what is read and written cost less than the states themselves.

        So it is where the update sums over the state.  Where it is elementwise, all that is
        read of the state must be summed over some of its axes, all that is written be
        products of factors with fewer axes, and the gate must not join axes summed over to
        axes kept: then what is read times what is written is a matrix for each kept entry.
        Beside another state that is read and written so, a state that keeps no axis (a
        normaliser) goes with it, so that both have the same positions.
        """
        if stage.form != "elementwise" or len(stage.carries) > 1:
            return stage.form == "low-rank"
        (j,), (update,) = stage.carries, stage.updates
        summed = self._summed(j)
        if update.offset is None or not summed:
            return False
        gate = {a for term in update.terms for f in term.factors for a in self.axes[f]}
        writes = separated(self.recurrence.nodes, self.axes, update.offset)
        common = frozenset.intersection(*(self.axes[f] for w in writes for f in w.factors))
        kept = set(self.program.carries[j].next_axes) - summed - common
        apart = all(len(w.factors) > 1 for w in writes)
        beside = not kept and any(s.form == "low-rank" for s in self.recurrence.stages)
        return (apart or beside) and not (gate & summed and gate & kept)

    def _summed(self, j: int) -> set[AxisName]:
        """The axes of carry ``j`` that every read sums over; none where it is read otherwise."""
        own = self.program.carries[j].next_axes
        terms = [t for out in self.recurrence.outs for t in out.terms]
        found: list[set[AxisName]] = []
        for ref, node in enumerate(self.recurrence.nodes):
            if isinstance(node, Input) and node.kind in ("carry", "next") and node.index == j:
                sums = [t.contracted for t in terms if t.source == ref] + self._sums_over(ref)
                pairs = tuple(zip(own, node.axes, strict=True))
                found += [{mine for mine, name in pairs if name in axes} for axes in sums]
        return set[AxisName].intersection(*found) if found else set()

    def _sums_over(self, ref: Ref) -> list[frozenset[AxisName]]:
        """The axes that each node above ``ref`` sums its products over."""
        found: list[frozenset[AxisName]] = []
        for i, node in enumerate(self.recurrence.nodes):
            if ref not in arguments(node):
                continue
            if isinstance(node, Contract) and node.op == "sum":
                found.append(node.axes)
            elif isinstance(node, Pointwise) and node.fn == "mul":
                found += self._sums_over(i) or [frozenset()]
            else:
                found.append(frozenset())
        return found

    def _positions(self, length: int, block: int) -> Positions:
        """Two axes where a gate has an axis that is summed over, and the length allows it."""
        stages = self.recurrence.stages
        wide = any(self._gated(s) for s in stages) and all(self._by_rank(s) for s in stages)
        wide = wide and all(len(s.carries) == 1 for s in stages)
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

    def _gated(self, stage: Stage) -> bool:
        """Whether a gate of the stage differs along an axis that something sums over."""
        mixing = set(self.sizes) - self.program.parallel_axes()
        for j, update in zip(stage.carries, stage.updates, strict=True):
            names = self.program.carries[j].next_axes
            for term in update.terms:
                source = self.recurrence.nodes[term.source]
                in_place = isinstance(source, Input) and source.axes == names
                if in_place and any(self.axes[f] & mixing & set(names) for f in term.factors):
                    return True
        return False


__all__ = ["BLOCK", "Chunk", "States", "Unchunkable", "chunk"]
