"""Which algorithm runs a loop: sequential in one kernel, or chunk by chunk in matmuls.

Takes a step program, its normal form, how many steps there are and how many cores; leaves
a ``Choice``.  Both ways are priced by what they must compute and move and by how many
cores they can use: the kernel runs one task per entry of the parallel axes, matmuls over
all chunks use every core.  A chunked plan is chosen only where it is predicted to be
clearly faster, and always from programs that exist; what cannot be chunked is sequential.
"""

from __future__ import annotations

import dataclasses
import math

from tenfuse.algebra.chunks.chunk import Unchunkable
from tenfuse.algebra.parts import Part, parts
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.plan.chunked import ChunkPlan
from tenfuse.step.program import Pointwise, StepProgram

ALGORITHMS = {
    "elementwise": "scan", "block": "scan", "semiring": "scan", "low-rank": "chunked", "dense": "doubling",
}  # fmt: skip
"""What running in chunks is called, by form."""

LENGTHS = (16, 32, 64, 128)
"""Steps in a chunk that are considered."""

SHORT = 16
"""The longest chunk where a state that is read back may grow: the products of gates above
one that the triangular system holds then lose digits that the loop keeps."""

CONTAINED = "the core of the normal form"
"""What a nonlinear loop is called when everything around its smallest core is batched."""

_MARGIN = 1.3
"""How much faster a chunked plan must be predicted to be."""

_KERNEL, _MATMUL, _MOVE, _CALL, _LANES = 5e10, 7e10, 6e9, 1e-5, 16
"""Per core: operations a second in a kernel and in a matmul, bytes moved a second; seconds
per call of an operator; entries in a vector.  Orders of magnitude of current x86 cores."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Predicted for one forward pass: operations, bytes, steps one after the other, seconds."""

    operations: int
    bytes: int
    depth: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.operations / 1e6:.3g} M operations, {self.bytes / 1e6:.3g} MB,"
            f" {self.depth} steps in sequence, about {1e3 * self.seconds:.2g} ms"
        )


@dataclasses.dataclass(frozen=True)
class Choice:
    """``chunks`` is None for the sequential kernel; ``other`` is the best that was not taken."""

    algorithm: str
    cost: Cost
    chunks: ChunkPlan | None = None
    other: tuple[str, Cost] | None = None

    @property
    def lines(self) -> tuple[str, ...]:
        """What the report says of it."""
        contained = self.chunks is not None and self.chunks.length == 1
        found = [f"predicted, {CONTAINED if contained else self.algorithm}: {self.cost}"]
        if self.other is not None:
            found.append(f"not taken, {self.other[0]}: {self.other[1]}")
        return tuple(found)


def choose(
    program: StepProgram, recurrence: Recurrence | None, steps: int, cores: int, steady: bool = True
) -> Choice:
    """The plan for ``steps`` steps on so many ``cores``.

    Without a ``recurrence`` there is only one.  ``steady`` says that no gate of a state that
    is read back into its own update exceeds one.
    """
    one = sequential(program, steps, cores)
    alone = Choice("sequential", one)
    if recurrence is None or program.dynamic or cuts(program, recurrence):
        return alone
    if recurrence.form not in ALGORITHMS:
        return _contained(alone, ChunkPlan(program, recurrence, 1), steps, cores)
    name = ALGORITHMS[recurrence.form]
    priced: list[tuple[float, Cost, ChunkPlan]] = []
    for length in (n for n in LENGTHS if 2 * n <= steps and (steady or n <= SHORT)):
        plan = ChunkPlan(program, recurrence, length)
        try:
            cost = chunked(plan, steps, cores)
        except Unchunkable:
            return alone
        priced.append((cost.seconds, cost, plan))
    if not priced:
        return alone
    _, cost, best = min(priced, key=lambda p: p[0])
    if cost.seconds * _MARGIN < one.seconds:
        return Choice(name, cost, best, ("sequential", one))
    return Choice("sequential", one, None, (name, cost))


def _contained(alone: Choice, plan: ChunkPlan, steps: int, cores: int) -> Choice:
    """The nonlinear core of the normal form by itself, where it is clearly cheaper than the step."""
    cost = chunked(plan, steps, cores)
    if cost.seconds * _MARGIN < alone.cost.seconds:
        return Choice(alone.algorithm, cost, plan, ("the step as it was read", alone.cost))
    return Choice(alone.algorithm, alone.cost, None, (CONTAINED, cost))


def cuts(program: StepProgram, recurrence: Recurrence) -> bool:
    """Whether the step is a log-sum-exp around its own maximum, whose gradient is cut: chunks of it
    are products of matrices, which cost more than they save."""
    return recurrence.form == "semiring" and any(
        isinstance(n, Pointwise) and n.fn == "cut" for n in program.nodes
    )


def sequential(program: StepProgram, steps: int, cores: int) -> Cost:
    """Everything in one kernel."""
    whole = parts(program)
    everything = (whole.before, whole.core, whole.after)
    operations = steps * sum(_operations(p) for p in everything)
    moved = steps * _flow(program)
    active = min(cores, _tasks(program))
    return Cost(
        operations, moved, steps, max(operations / (_KERNEL * active), moved / (_MOVE * min(cores, active)))
    )


def chunked(plan: ChunkPlan, steps: int, cores: int) -> Cost:
    """Matmuls over all chunks around a kernel over the chunks."""
    made = plan.core(plan.length)[1].whole
    count, found = -(-steps // plan.length), parts(made)
    active = min(cores, _tasks(made))
    core = _operations(found.core) / (_KERNEL * active)
    around = [found.before, found.after]
    matmul = sum(p.matmul for p in around) / (_MATMUL * cores)
    moving = sum(2 * 4 * p.kept + p.bytes() for p in around) / (_MOVE * cores)
    calls = _CALL * sum(len(p.nodes) for p in around)
    operations = count * sum(_operations(p) for p in (*around, found.core))
    moved = count * sum(2 * 4 * p.kept + p.bytes() for p in around)
    return Cost(operations, moved, count, count * (core + matmul + moving) + calls)


def _operations(part: Part) -> int:
    return part.matmul + part.other


def _flow(program: StepProgram) -> int:
    """Bytes that enter and leave per step."""
    entries = sum(math.prod(program.sizes[a] for a in axes) for axes in program.inputs("stream").values())
    entries += sum(math.prod(program.sizes[a] for a in o.axes) for o in program.outs)
    return 4 * entries


def _tasks(program: StepProgram) -> int:
    """Entries of the parallel axes, one of them taken as the vectors of the machine."""
    sizes = sorted((program.sizes[a] for a in program.parallel_axes()), reverse=True)
    if not sizes:
        return 1
    return max(1, -(-sizes[0] // _LANES) * math.prod(sizes[1:]))


__all__ = ["ALGORITHMS", "Choice", "Cost", "choose", "cuts"]
