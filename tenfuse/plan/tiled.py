"""The plan of one fused loop on tiles: its kernels, and what they leave for one another.

Takes the ``LoopPlan`` of a loop, which says where its tensors lie, and the program whose
step its kernels run: the loop's own step, or a whole chunk of steps.  Leaves a ``TilePlan``.
The states that the adjoint reads are written by the forward kernel at the start of every
iteration: of every chunk, or of every step where a step is all that a kernel can run.
"""

from __future__ import annotations

import dataclasses
import hashlib

from tenfuse.plan.keep import keeping, reading_kept
from tenfuse.plan.kernel import Operand
from tenfuse.plan.loop import FORMAT, LoopPlan, canonical
from tenfuse.plan.partial import partial, shareable
from tenfuse.plan.tile import TileKernel
from tenfuse.plan.tiling import tiling
from tenfuse.step.adjoint import Adjoint, adjoint
from tenfuse.step.program import AxisName, StepProgram


@dataclasses.dataclass(frozen=True)
class Stepped:
    """What the kernels run: ``program``, a chunk of steps at the positions ``rows`` or one step.

    ``within`` is the stream that says whether a position lies before the end of time.
    """

    program: StepProgram
    rows: tuple[AxisName, ...] = ()
    within: int = -1


@dataclasses.dataclass(frozen=True)
class TileBackward:
    kernel: TileKernel
    adjoint: Adjoint


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """``base`` places the loop's tensors; its kernels are not used."""

    base: LoopPlan
    forward: TileKernel
    saving: TileKernel | None
    """The forward kernel that also writes the ``kept`` carries, as streams over iterations."""
    kept: tuple[int, ...]
    backward: TileBackward | None

    @property
    def length(self) -> int:
        """Steps of one iteration."""
        return self.forward.length

    def key(self) -> str:
        """A name for the plan: equal plans have equal names."""
        return hashlib.sha256(f"{FORMAT}:tiles:{canonical(self)}".encode()).hexdigest()[:32]


def tile_plan(base: LoopPlan, stepped: Stepped, dots: str) -> TilePlan:
    """The kernels of ``base``'s loop on tiles; raises ``Refused`` where there are none."""
    return _Planner(base, stepped, dots).plan()


class _Planner:
    def __init__(self, base: LoopPlan, stepped: Stepped, dots: str) -> None:
        self.base, self.stepped, self.dots = base, stepped, dots
        self.program, self.rows = stepped.program, stepped.rows
        self.known = {(o.role, o.index): o for o in base.forward.operands}
        self.compute, self.reverse = base.forward.compute, base.forward.reverse
        self.count = len(base.streams)
        self.given = max(self.count, stepped.within + 1)

    def plan(self) -> TilePlan:
        operands = self._forward_operands()
        forward = self._kernel(self.program, operands, False)
        if self.base.backward is None:
            return TilePlan(self.base, forward, None, (), None)
        back = adjoint(self.program, self._wanted("streams"), self._wanted("invariants"), self.given)
        kept = tuple(back.program.inputs("state"))
        first = len(self.program.outs)
        states = tuple(self._state("out", first + n, i) for n, i in enumerate(kept))
        saving = self._kernel(keeping(self.program, kept), (*operands, *states), False) if kept else forward
        return TilePlan(self.base, forward, saving, kept, self._backward(back, kept))

    def _wanted(self, group: str) -> list[int]:
        marks = getattr(self.base.wanted, group)
        return [i for i, p in enumerate(getattr(self.base, group)) if marks[p.source]]

    def _kernel(self, program: StepProgram, operands: tuple[Operand, ...], backward: bool) -> TileKernel:
        lies = tiling(program, operands, self.rows, shareable(program))
        found = partial(program, set(lies.split) - program.parallel_axes())
        program = found.program
        shared = tuple((j, axes) for j, axes in enumerate(found.outs) if axes)
        operands = tuple(
            dataclasses.replace(o, axes=(*found.outs[o.index], *o.axes)) if o.role == "out" else o
            for o in operands
        )
        zero = frozenset(range(self.given, self.given + len(self.program.outs))) if backward else frozenset()
        chunked = bool(self.rows)
        return TileKernel(
            program, operands, lies, self.compute,
            descending=backward if chunked else backward != self.reverse,
            flipped=chunked and self.reverse,
            rows=self.rows, zero=zero, within=self.stepped.within, shared=shared, dots=self.dots,
        )  # fmt: skip

    # -- operands -----------------------------------------------------------------------

    def _like(self, role: str, index: int, source: tuple[str, int], axes: tuple[AxisName, ...]) -> Operand:
        """An operand in the memory of another, its axes named ``axes`` and without positions."""
        known = self.known[source]
        names = axes[len(axes) - len(known.axes) :]
        unit = None if known.unit is None else names[known.axes.index(known.unit)]
        return Operand(role, index, known.dtype, names, unit)

    def _state(self, role: str, index: int, carry: int) -> Operand:
        axes = self.program.carries[carry].axes
        return Operand(role, index, self.compute, axes, axes[-1] if axes else None)

    def _entering(self, program: StepProgram) -> list[Operand]:
        found = [
            self._like("stream", i, ("stream", i), axes)
            for i, axes in program.inputs("stream").items() if i < self.count
        ]  # fmt: skip
        return found + [
            self._like("constant", i, ("constant", i), axes)
            for i, axes in program.inputs("invariant").items()
        ]

    def _forward_operands(self) -> tuple[Operand, ...]:
        program = self.program
        carries = [(i, c.axes) for i, c in enumerate(program.carries)]
        return (
            *(self._like("init", i, ("init", i), axes) for i, axes in carries),
            *self._entering(program),
            *(self._like("final", i, ("final", i), axes) for i, axes in carries),
            *(self._like("out", j, ("out", j), o.axes) for j, o in enumerate(program.outs)),
        )

    def _backward(self, back: Adjoint, kept: tuple[int, ...]) -> TileBackward:
        first = self.given + len(self.program.outs)
        program = reading_kept(back.program, {i: first + n for n, i in enumerate(kept)})
        found = [self._like("init", i, ("final", i), c.axes) for i, c in enumerate(program.carries)]
        found += self._entering(program)
        for i, axes in program.inputs("stream").items():
            if self.given <= i < first:
                found.append(self._like("stream", i, ("out", i - self.given), axes))
        found += [self._state("stream", first + n, i) for n, i in enumerate(kept)]
        found += [self._like("final", i, ("final", i), c.next_axes) for i, c in enumerate(program.carries)]
        source = {out: i for i, out in back.streams.items()}
        for k, out in enumerate(program.outs):
            if k in source:
                found.append(self._like("out", k, ("stream", source[k]), out.axes))
            else:
                axes = out.axes if out.accumulate else tuple(a for a in out.axes if a not in self.rows)
                found.append(Operand("out", k, self.compute, axes, axes[-1] if axes else None))
        return TileBackward(self._kernel(program, tuple(found), True), back)


__all__ = ["Stepped", "TileBackward", "TilePlan", "tile_plan"]
