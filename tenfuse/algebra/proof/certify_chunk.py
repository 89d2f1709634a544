"""Certificates for chunk programs: one chunk is so many steps, proved over exact symbols.

Takes a ``StepProgram`` and its ``Recurrence``; leaves a ``Certificate``.  Both get tiny
sizes, the chunk program is made at these sizes for a few steps, and every entry of its
final states and outputs is shown to be what the loop, run step by step, computes: as
functions of all streams, invariants and initial states at once.  Equal functions have
equal derivatives, so a chunk program's adjoint, derived node by node, is that of its steps.

It refuses like ``certify``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tenfuse.algebra.chunks.chunk import Chunk, Unchunkable, chunk
from tenfuse.algebra.chunks.paths import mixing
from tenfuse.algebra.proof.cases import by_cases, masked, tied
from tenfuse.algebra.proof.certify import WORK, Certificate, attempt, same
from tenfuse.algebra.proof.evaluate import Array, Evaluator, array
from tenfuse.algebra.proof.shrink import shrunk
from tenfuse.algebra.proof.symbols import Field
from tenfuse.algebra.proof.tiny import least_sizes
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.step.program import AxisName, StepProgram

FIRST, FURTHER = ((2, 1), (2, 2)), ((3, 3), (4, 2))
"""``(steps, block)``: two axes of positions where the formula has two, and one.  Those of
``FIRST`` must be proved; ``FURTHER`` ones as far as a quarter of the work was enough so far,
each costing about four times the one before.  By cases it is more: one step more has many times
the cases."""
Maker = Callable[[StepProgram, Recurrence, int, int], Chunk]


def certify_chunk(
    program: StepProgram, recurrence: Recurrence, work: int = WORK, make: Maker = chunk
) -> Certificate:
    """Whether the chunk programs of ``recurrence`` are so many steps of ``program``."""
    sizes = least_sizes(program, recurrence)
    small, normal = shrunk(program, recurrence, sizes)
    by_case = tied(normal) and not mixing(normal)  # of paths, only derivatives depend on comparisons
    done: dict[int, list[StepProgram]] = {}
    spent, seconds, note = 0, 0.0, ""
    for length, block in (*FIRST, *FURTHER):
        further = (length, block) in FURTHER
        if further and spent > work / (20 if by_case else 4):
            break
        try:
            made = make(small, normal, length, block)
        except Unchunkable as why:
            note = f"there is no chunk program: {why}"
            break
        if made.program in done.get(length, ()):
            continue  # most are the same for every block
        prove = partial(_prove, small, made)
        how = partial(by_cases, prove) if by_case else prove
        found = attempt("", sizes, work - spent, how, not by_case and masked(normal))
        spent, seconds = spent + found.work, seconds + found.seconds
        if not found.proved and not (further and found.unfinished):
            note = found.note
            break
        if found.proved:
            done.setdefault(length, []).append(made.program)
    lengths = " and of ".join(str(n) for n in sorted(done)) or "2"
    claim = f"a chunk of {lengths} steps is these steps, for every input"
    return Certificate(not note, claim, tuple(sorted(sizes.items())), seconds, spent, note)


def _prove(program: StepProgram, made: Chunk, field: Field) -> None:
    Steps(field, program, made.length).compare(made)


@dataclasses.dataclass
class Steps:
    """``length`` steps of a program on symbols, and the same symbols for a chunk."""

    field: Field
    program: StepProgram
    length: int

    def __post_init__(self) -> None:
        self.sizes = self.program.sizes
        self.inits = [self.unknown(c.axes) for c in self.program.carries]
        self.streams = {
            i: [self.unknown(axes) for _ in range(self.length)]
            for i, axes in self.program.inputs("stream").items()
        }
        self.started: list[list[Array]] = []
        self.invariants = {i: self.unknown(axes) for i, axes in self.program.inputs("invariant").items()}

    def unknown(self, axes: Sequence[AxisName]) -> Array:
        return array([self.sizes[a] for a in axes], lambda _: self.field.symbol())

    def unrolled(self) -> tuple[list[Array], list[list[Array]]]:
        """The states after the last step, and every output at every step."""
        run, carries = Evaluator(self.field, self.sizes), self.inits
        rows: list[list[Array]] = [[] for _ in self.program.outs]
        self.started = []
        for t in range(self.length):
            self.started.append(carries)
            inputs = {("carry", i): c for i, c in enumerate(carries)}
            inputs |= {("stream", i): xs[t] for i, xs in self.streams.items()}
            inputs |= {("invariant", i): v for i, v in self.invariants.items()}
            values = run.run(self.program.nodes, inputs)
            carries = [run.expanded(values[c.next], c.next_axes) for c in self.program.carries]
            for row, out in zip(rows, self.program.outs, strict=True):
                row.append(run.expanded(values[out.ref], out.axes))
        return carries, rows

    def states(self) -> list[list[Array]]:
        """The carries at the start of every step."""
        self.unrolled()
        return self.started

    def stacked(self, rows: Sequence[Array], made: Chunk) -> Array:
        """One array per step as one over the chunk's positions."""
        lead = [made.program.sizes[a] for a in made.rows]
        return np.stack(rows).reshape([*lead, *rows[0].shape])

    def compare(self, made: Chunk) -> None:
        """``Differs`` unless the chunk program gives the same finals and outputs."""
        finals, rows = self.unrolled()
        inputs = {("carry", i): c for i, c in enumerate(self.inits)}
        inputs |= {("invariant", i): v for i, v in self.invariants.items()}
        for i, xs in self.streams.items():
            inputs["stream", i] = self.stacked(xs, made)
        run = Evaluator(self.field, made.program.sizes)
        values = run.run(made.program.nodes, inputs)
        for i, (carry, final) in enumerate(zip(made.program.carries, finals, strict=True)):
            got = run.expanded(values[carry.next], carry.next_axes)
            same(self.field, got, final, f"carry {i} after {self.length} steps")
        for i, (out, row) in enumerate(zip(made.program.outs, rows, strict=True)):
            got = run.expanded(values[out.ref], out.axes)
            same(self.field, got.reshape(np.stack(row).shape), np.stack(row), f"output {i}")


__all__ = ["FIRST", "FURTHER", "Maker", "Steps", "certify_chunk"]
