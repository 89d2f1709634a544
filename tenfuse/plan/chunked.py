"""A loop in chunks: the chunk's length, and its program for any length.

Takes a step program in normal form and a length; leaves a ``ChunkPlan``.  A chunk of one
step is the normal form itself: whatever does not reach the state is then computed for all
steps at once, matrices that the step would have multiplied one after the other included,
and only the smallest core is left to run step by step.  Raises
``Unchunkable`` where there is no chunk program, or none whose core a kernel can run.
"""

from __future__ import annotations

import dataclasses

from tenfuse.algebra.chunks.chunk import Chunk, Unchunkable, chunk
from tenfuse.algebra.rebuild import rebuild
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.plan.core import Core, cut
from tenfuse.step.program import ORDERED, StepProgram


@dataclasses.dataclass(frozen=True)
class ChunkPlan:
    """Run ``step`` in chunks of ``length`` steps, the last one shorter."""

    step: StepProgram
    recurrence: Recurrence
    length: int

    def program(self, length: int) -> Chunk:
        if self.length == 1:
            return Chunk(rebuild(self.recurrence, self.step), (), 1)
        return chunk(self.step, self.recurrence, length)

    def core(self, length: int) -> tuple[Chunk, Core]:
        """The chunk's program and what of it runs chunk after chunk."""
        made = self.program(length)
        found = cut(made.program)
        ordered = sorted({type(n).__name__ for n in found.program.nodes if isinstance(n, ORDERED)})
        if ordered:
            raise Unchunkable(f"what runs chunk after chunk has a {' and a '.join(ordered)} in it")
        return made, found
