"""What a kernel on tiles runs per iteration: a chunk of steps, or one step.

Takes a loop's program, its normal form and its number of steps; leaves candidates, the
best first by what an instance must hold: the longest chunk whose largest tile is no larger
than the state itself or ``ROOM`` entries.  A chunk program needs its certificates, which
the caller checks before it asks; one step at a time needs none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tenfuse.algebra.chunks.chunk import Unchunkable, chunk
from tenfuse.algebra.chunks.ragged import ragged
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.plan.choose import ALGORITHMS, SHORT, cuts
from tenfuse.plan.tiles.kernel import padded
from tenfuse.plan.tiles.plan import Stepped
from tenfuse.plan.tiles.tiling import FILL
from tenfuse.step.program import StepProgram, only_summed

LENGTHS = (64, 32, 16)
_BLOCK = 64
"""Entries along axes that may be cut that one instance holds of a scan."""
ROOM, SCANNED = 1 << 14, 1 << 8
"""Entries of the largest tile of a chunk program along axes that cannot be split: where it
multiplies matrices, and where it scans, which holds many tiles at once."""


def candidates(
    program: StepProgram, recurrence: Recurrence | None, steps: int | None, steady: bool, length: int | None
) -> Iterator[tuple[str, Stepped]]:
    """``(algorithm, what runs)``; ``steps`` is None where it is not known.

    ``length`` is the user's choice of a chunk.  Without a ``recurrence`` there is only the step.
    """
    if recurrence is not None and recurrence.form in ALGORITHMS and not cuts(program, recurrence):
        for n in (length,) if length else LENGTHS:
            if n < 2 or (steps is not None and padded(steps) < n) or not (steady or n <= SHORT or length):
                continue
            found = stepped(program, recurrence, n, ragged_end=steps is None or steps % n != 0)
            if found is not None:
                yield ALGORITHMS[recurrence.form], found
    yield "sequential", Stepped(program)


def stepped(program: StepProgram, recurrence: Recurrence, length: int, ragged_end: bool) -> Stepped | None:
    """A chunk of so many steps; None where there is no such program or its tiles are too large."""
    within = 1 + max(program.inputs("stream"), default=-1) if ragged_end else -1
    normal = ragged(program, recurrence, within) if ragged_end else recurrence
    try:
        made = chunk(program, normal, length, length)
    except Unchunkable:
        return None
    matrices = made.products or recurrence.form == "dense"
    room = max(ROOM, _inner(program, frozenset())) if matrices else SCANNED
    if length > LENGTHS[-1] and _inner(made.program, frozenset(made.rows)) > room:
        return None
    few = not matrices and _instances(program) < FILL // 4
    return Stepped(made.program, made.rows, within, apart=matrices or few, sums=few)


def _instances(program: StepProgram) -> int:
    """Blocks of the axes that may be cut."""
    entries = math.prod(program.sizes[a] for a in program.parallel_axes())
    return entries // _BLOCK


def _inner(program: StepProgram, rows: frozenset[str]) -> int:
    """Entries of the largest tile along axes that an instance must hold whole."""
    free = program.parallel_axes() - rows
    skipped = only_summed(program)
    return max(
        math.prod(padded(program.sizes[a]) for a in own if a not in free)
        for i, own in enumerate(program.axes_of()) if i not in skipped
    )  # fmt: skip


__all__ = ["LENGTHS", "candidates", "stepped"]
