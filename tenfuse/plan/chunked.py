"""A loop in chunks: the chunk's length, and its program for any length.

Takes a step program in normal form and a length; leaves a ``ChunkPlan``, which raises
``Unchunkable`` where there is no chunk program.
"""

from __future__ import annotations

import dataclasses

from tenfuse.algebra.chunk import Chunk, chunk
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.step.program import StepProgram


@dataclasses.dataclass(frozen=True)
class ChunkPlan:
    """Run ``step`` in chunks of ``length`` steps, the last one shorter."""

    step: StepProgram
    recurrence: Recurrence
    length: int

    def program(self, length: int) -> Chunk:
        return chunk(self.step, self.recurrence, length)
