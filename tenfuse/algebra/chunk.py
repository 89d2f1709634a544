"""Chunk programs: from a step in normal form to a step that is a whole chunk of steps.

Takes a ``StepProgram``, its ``Recurrence`` and a number of steps; leaves a ``Chunk``: a
``StepProgram`` with the same carries whose streams and outputs have the positions in the
chunk as their first axes.  Running it over the chunks of a sequence is running the step
over the steps, and everything that is derived from a step program (its adjoint, what does
not reach the state, its cost) is derived from this one in the same way.

A sequence whose length is no multiple of the chunk ends with a shorter chunk: the program
is built again for that length, nothing is padded.

Refuses with ``Unchunkable`` what has no such program: nonlinear stages, sums over time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from tenfuse.algebra.chunk_lowrank import ChunkedLowRank
from tenfuse.algebra.decay import Positions
from tenfuse.algebra.lift import Lift, Read, Unchunkable
from tenfuse.algebra.lowrank import lowrank
from tenfuse.algebra.recurrence import Recurrence, Stage
from tenfuse.algebra.summed import Sums
from tenfuse.step.program import (
    AxisName,
    Builder,
    CarrySpec,
    Input,
    OutSpec,
    Ref,
    StepProgram,
    node_axes,
    prune,
    validate,
)

BLOCK = 16
"""Positions between which the decay of a summed axis is spelled out entry by entry."""


class States(Protocol):
    """The states of a carry within a chunk."""

    def read(self, read: Read) -> Ref: ...

    def final(self) -> Ref: ...


@dataclasses.dataclass(frozen=True)
class Chunk:
    """``program`` runs ``length`` steps; ``rows`` are its axes of positions, in order."""

    program: StepProgram
    rows: tuple[AxisName, ...]
    length: int


def chunk(program: StepProgram, recurrence: Recurrence, length: int, block: int = BLOCK) -> Chunk:
    """The program of ``length`` steps of ``program``."""
    maker = _Maker(program, recurrence, length, block)
    return Chunk(maker.run(), maker.at.rows, length)


class _Maker:
    def __init__(self, program: StepProgram, recurrence: Recurrence, length: int, block: int) -> None:
        self.program, self.recurrence = program, recurrence
        self.build = Builder()
        self.sizes = {**program.sizes, **recurrence.sizes}
        self.at = self._positions(length, block)
        self.sums = Sums(self.build, self.sizes)
        self.lift = Lift(recurrence.nodes, self.sums, self.at.rows, self._read, self.sizes)
        self.states: dict[int, States] = {}

    def run(self) -> StepProgram:
        for stage in self.recurrence.stages:
            self._stage(stage)
        carries = tuple(
            CarrySpec(c.next_axes, self.states[i].final(), c.next_axes)
            for i, c in enumerate(self.program.carries)
        )
        outs = tuple(self._out(i, out) for i, out in enumerate(self.program.outs))
        made = StepProgram(tuple(self.build.nodes), self.sizes, carries, outs, self.program.dynamic)
        made = prune(made)
        used = {a for axes in made.axes_of() for a in axes}
        validate(made)
        return dataclasses.replace(made, sizes={a: n for a, n in self.sizes.items() if a in used})

    def _read(self, read: Read) -> Ref:
        if read.carry not in self.states:
            raise Unchunkable("a carry is read before the stage that computes it")
        return self.states[read.carry].read(read)

    def _stage(self, stage: Stage) -> None:
        if stage.form not in ("low-rank", "elementwise"):
            raise Unchunkable(f"a {stage.form} stage has no chunk program")
        parts = lowrank(stage, self.program.carries, self.lift)
        self.states[parts.carry] = ChunkedLowRank(parts, self.sums, self.at, self.lift.fresh)

    def _out(self, index: int, spec: OutSpec) -> OutSpec:
        if spec.accumulate:
            raise Unchunkable("an output is summed over time")
        ref = self.lift.forced(self.lift.affine(self.recurrence.outs[index]))
        return OutSpec(ref, (*self.at.rows, *spec.axes))

    # -- positions ------------------------------------------------------------------

    def _positions(self, length: int, block: int) -> Positions:
        """Two axes where a gate has an axis that is summed over, and the length allows it."""
        wide = any(self._gated(stage) for stage in self.recurrence.stages)
        if wide and length > block and length % block == 0:
            names = [
                self._free(n, size)
                for n, size in zip("tsbc", (block,) * 2 + (length // block,) * 2, strict=True)
            ]
            return Positions(*names)
        return Positions(self._free("t", length), self._free("s", length))

    def _free(self, name: AxisName, size: int) -> AxisName:
        taken, found, i = set(self.sizes), name, 0
        while found in taken:
            found, i = f"{name}{i}", i + 1
        self.sizes[found] = size
        return found

    def _gated(self, stage: Stage) -> bool:
        """Whether a gate of the stage differs along an axis that something sums over."""
        mixing = set(self.sizes) - self.program.parallel_axes()
        axes = self._axes()
        for j, update in zip(stage.carries, stage.updates, strict=True):
            names = self.program.carries[j].next_axes
            for term in update.terms:
                source = self.recurrence.nodes[term.source]
                in_place = isinstance(source, Input) and source.axes == names
                if in_place and any(axes[f] & mixing & set(names) for f in term.factors):
                    return True
        return False

    def _axes(self) -> Sequence[frozenset[AxisName]]:
        found: list[frozenset[AxisName]] = []
        for node in self.recurrence.nodes:
            found.append(node_axes(node, found))
        return found


__all__ = ["BLOCK", "Chunk", "States", "Unchunkable", "chunk"]
