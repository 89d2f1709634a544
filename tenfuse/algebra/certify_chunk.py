"""Certificates for chunk programs: one chunk is so many steps, proved over exact symbols.

Takes a ``StepProgram`` and its ``Recurrence``; leaves a ``Certificate``.  Both get tiny
sizes, the chunk program is made at these sizes for a few steps, and every entry of its
final states and outputs is shown to be what the loop, run step by step, computes: as
functions of all streams, invariants and initial states at once.  Equal functions have
equal derivatives, so the adjoint of the one is that of the other; ``certify_adjoint``
shows it of the derived programs themselves.

It refuses like ``certify``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from tenfuse.algebra.certify import SECONDS, Certificate, Differs, attempt, same
from tenfuse.algebra.chunk import Chunk, Unchunkable, chunk
from tenfuse.algebra.evaluate import Array, Evaluator, array
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.algebra.shrink import shrunk
from tenfuse.algebra.symbols import Field
from tenfuse.algebra.tiny import PARALLEL, sizes_for
from tenfuse.step.program import AxisName, StepProgram

LENGTHS = ((3, 3), (4, 2))
"""``(steps, block)``: one axis of positions, and two where the formula has two."""
Maker = Callable[[StepProgram, Recurrence, int, int], Chunk]


def certify_chunk(
    program: StepProgram, recurrence: Recurrence, seconds: float = SECONDS, make: Maker = chunk
) -> Certificate:
    """Whether the chunk programs of ``recurrence`` are so many steps of ``program``."""
    claim = "a chunk of 3 and of 4 steps is these steps, for every input"
    axes = {**program.sizes, **recurrence.sizes}
    sizes = dict.fromkeys(sizes_for([program.nodes, recurrence.nodes], program.carries, axes), PARALLEL)

    def prove(field: Field) -> None:
        small, normal = shrunk(program, recurrence, sizes)
        for length, block in LENGTHS:
            try:
                made = make(small, normal, length, block)
            except Unchunkable as why:
                raise Differs(f"there is no chunk program: {why}") from why
            _Steps(field, small, length).compare(made)

    return attempt(claim, sizes, seconds, prove)


@dataclasses.dataclass
class _Steps:
    """``length`` steps of a program on symbols, and the same symbols for a chunk."""

    field: Field
    program: StepProgram
    length: int

    def __post_init__(self) -> None:
        self.sizes = self.program.sizes
        self.inits = [self._unknown(c.axes) for c in self.program.carries]
        self.streams = {
            i: [self._unknown(axes) for _ in range(self.length)]
            for i, axes in self.program.inputs("stream").items()
        }
        self.invariants = {i: self._unknown(axes) for i, axes in self.program.inputs("invariant").items()}

    def _unknown(self, axes: Sequence[AxisName]) -> Array:
        return array([self.sizes[a] for a in axes], lambda _: self.field.symbol())

    def unrolled(self) -> tuple[list[Array], list[list[Array]]]:
        """The states after the last step, and every output at every step."""
        run, carries = Evaluator(self.field, self.sizes), self.inits
        rows: list[list[Array]] = [[] for _ in self.program.outs]
        for t in range(self.length):
            inputs = {("carry", i): c for i, c in enumerate(carries)}
            inputs |= {("stream", i): xs[t] for i, xs in self.streams.items()}
            inputs |= {("invariant", i): v for i, v in self.invariants.items()}
            values = run.run(self.program.nodes, inputs)
            carries = [run.expanded(values[c.next], c.next_axes) for c in self.program.carries]
            for row, out in zip(rows, self.program.outs, strict=True):
                row.append(run.expanded(values[out.ref], out.axes))
        return carries, rows

    def compare(self, made: Chunk) -> None:
        """``Differs`` unless the chunk program gives the same finals and outputs."""
        finals, rows = self.unrolled()
        lead = [made.program.sizes[a] for a in made.rows]
        inputs = {("carry", i): c for i, c in enumerate(self.inits)}
        inputs |= {("invariant", i): v for i, v in self.invariants.items()}
        for i, xs in self.streams.items():
            inputs["stream", i] = np.stack(xs).reshape([*lead, *xs[0].shape])
        run = Evaluator(self.field, made.program.sizes)
        values = run.run(made.program.nodes, inputs)
        for i, (carry, final) in enumerate(zip(made.program.carries, finals, strict=True)):
            got = run.expanded(values[carry.next], carry.next_axes)
            same(self.field, got, final, f"carry {i} after {self.length} steps")
        for i, (out, row) in enumerate(zip(made.program.outs, rows, strict=True)):
            got = run.expanded(values[out.ref], out.axes)
            same(self.field, got.reshape(np.stack(row).shape), np.stack(row), f"output {i}")


__all__ = ["LENGTHS", "certify_chunk"]
