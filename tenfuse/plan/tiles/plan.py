"""The plan of one fused loop on tiles: its kernels, and what they leave for one another.

Takes the ``LoopPlan`` of a loop, which says where its tensors lie, and the program whose
step its kernels run: the loop's own step, or a whole chunk of steps.  Leaves a ``TilePlan``:
for each direction one pass, or several where a chunk has costly parts that do not wait for
the state (see ``passes``).  The states that the adjoint reads are those at the start of every
iteration: of every chunk, or of every step where a step is all that a kernel can run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

from tenfuse.plan.canonical import canonical
from tenfuse.plan.kernel import Operand
from tenfuse.plan.loop import FORMAT, LoopPlan
from tenfuse.plan.tiles.divide import divided
from tenfuse.plan.tiles.kernel import TileKernel
from tenfuse.plan.tiles.partial import partial, shareable
from tenfuse.plan.tiles.passes import Part, passes, whole
from tenfuse.plan.tiles.slices import slices
from tenfuse.plan.tiles.tiling import tiling
from tenfuse.plan.tiles.traffic import NOTHING, Spills, nanoseconds, spilled
from tenfuse.plan.tiles.ways import Way, cheapest
from tenfuse.step.adjoint import Adjoint, adjoint
from tenfuse.step.program import AxisName, StepProgram

_SMALLER = 3
"""How many times at most tiles are made smaller that a compiler is known not to keep in registers."""
_HOPED = 64
"""Bytes of a thread that another order of values may save."""


@dataclasses.dataclass(frozen=True)
class Stepped:
    """What the kernels run: ``program``, a chunk of steps at the positions ``rows`` or one step.

    ``within`` is the stream that says whether a position lies before the end of time.
    """

    program: StepProgram
    rows: tuple[AxisName, ...] = ()
    within: int = -1
    apart: bool = False
    """Whether costly parts that do not wait for the state get kernels of their own."""
    sums: bool = False
    """Whether what a chunk amounts to is among these: chunks are then done side by side."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """``names`` say what the kernel's outputs are, in order: ("out", j) of the whole program,
    ("cross", m), ("state", i) or ("costate", i)."""

    kernel: TileKernel
    names: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class TileBackward:
    passes: tuple[Pass, ...]
    adjoint: Adjoint


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """``base`` places the loop's tensors; its kernels are not used."""

    base: LoopPlan
    program: StepProgram
    """Of one iteration."""
    length: int
    """Steps of one iteration."""
    forward: tuple[Pass, ...]
    saving: tuple[Pass, ...]
    """The forward passes that also leave the states ``kept``."""
    kept: tuple[int, ...]
    backward: TileBackward | None
    handed: str = "f32"
    """The dtype of what one pass leaves for another: that in which matrices are multiplied."""

    def key(self) -> str:
        """A name for the plan: equal plans have equal names."""
        return hashlib.sha256(f"{FORMAT}:tiles:{canonical(self)}".encode()).hexdigest()[:32]


def tile_plan(base: LoopPlan, stepped: Stepped, dots: str, said: Spills = NOTHING) -> TilePlan:
    """The kernels of ``base``'s loop on tiles; raises ``Refused`` where there are none.

    ``said`` is what compilers found of kernels of earlier plans.
    """
    return _Planner(base, stepped, dots, said).plan()


class _Planner:
    def __init__(self, base: LoopPlan, stepped: Stepped, dots: str, said: Spills) -> None:
        self.base, self.stepped, self.dots, self.said = base, stepped, dots, {**said}
        self.program, self.rows = stepped.program, stepped.rows
        self.known = {(o.role, o.index): o for o in base.forward.operands}
        self.compute, self.reverse = base.forward.compute, base.forward.reverse
        self.handed = dots if dots in ("bf16", "f16") and stepped.apart else self.compute
        self.count = len(base.streams)
        self.given = max(self.count, stepped.within + 1)
        self.free = 0
        """The next number of a value that one pass hands on to another."""

    def plan(self) -> TilePlan:
        back = None
        if self.base.backward is not None:
            back = adjoint(self.program, self._wanted("streams"), self._wanted("invariants"), self.given)
        kept = tuple(back.program.inputs("state")) if back is not None else ()
        # Forward passes are the same with and without gradients, but for the states that are written.
        way, saving = self._best(self.program, "state", kept, None)
        forward = self._passes(way, "state", (), None) if kept else saving
        length = forward[0].kernel.length
        found = TilePlan(self.base, self.program, length, forward, saving, kept, None, self.handed)
        if back is None:
            return found
        backward = TileBackward(self._best(back.program, "costate", (), back)[1], back)
        return dataclasses.replace(found, backward=backward)

    def _wanted(self, group: str) -> list[int]:
        marks = getattr(self.base.wanted, group)
        return [i for i, p in enumerate(getattr(self.base, group)) if marks[p.source]]

    def _best(
        self, program: StepProgram, held: str, kept: tuple[int, ...], back: Adjoint | None
    ) -> tuple[Way, tuple[Pass, ...]]:
        """The passes that take the least time."""

        def make(way: Way) -> tuple[Pass, ...]:
            return self._passes(way, held, kept, back)

        if not self.stepped.apart or self.stepped.sums:
            return Way(program), make(Way(program))
        return cheapest(program, make, self._time)

    def _passes(self, way: Way, held: str, kept: tuple[int, ...], back: Adjoint | None) -> tuple[Pass, ...]:
        if not self.stepped.apart:
            parts = whole(way.program, held, kept)
        else:
            parts = passes(way.program, held, kept, self.rows if self.stepped.sums else (), way.within)
        return self._fitting(parts, back)

    def _fitting(self, parts: tuple[Part, ...], back: Adjoint | None) -> tuple[Pass, ...]:
        """The passes; those that would not fit in registers in two or more, where that takes less time."""
        self.free = 1 + max((i for p in parts for kind, i in p.names if kind == "cross"), default=-1)
        return tuple(p for part in parts for p in self._least(part, back))

    def _least(self, part: Part, back: Adjoint | None) -> tuple[Pass, ...]:
        alone = (self._pass(part, back),)
        if not part.parallel or not spilled(alone[0].kernel, self.said):
            return alone
        best, time = tuple[Part, ...]((part,)), self._time(alone)
        for two in divided(part, self.free):
            other = self._time([self._pass(one, back) for one in two])
            best, time = (two, other) if other < time else (best, time)
        if len(best) == 1:
            return alone
        self.free += sum(kind == "cross" for kind, _ in best[0].names)
        return tuple(p for one in best for p in self._least(one, back))

    def _pass(self, part: Part, back: Adjoint | None) -> Pass:
        """On the tiles that are estimated to fit; where a compiler has denied that, perhaps in another
        order, or on smaller ones."""
        found = [self._tiled(part, back, 0)]
        for smaller in range(1, _SMALLER + 1):
            away = self.said.get(found[-1].kernel.key, 0.0)
            if not away:
                break
            found += [self._reordered(found[-1], away)] if math.isfinite(away) else []
            found.append(self._tiled(part, back, smaller))
        return min(found, key=lambda p: self._time([p]))

    def _reordered(self, one: Pass, away: float) -> Pass:
        """Its values made in another order, which is hoped to put less away than this one does."""
        other = dataclasses.replace(one.kernel, lightest=True)
        self.said.setdefault(other.key, max(away - _HOPED, 0.0))
        return dataclasses.replace(one, kernel=other)

    def _time(self, passes: Sequence[Pass]) -> float:
        return _time(passes, self.said)

    def _tiled(self, part: Part, back: Adjoint | None, smaller: int) -> Pass:
        program, operands = part.program, self._operands(part, back)
        shared, alone = shareable(program), not part.parallel
        lies = tiling(program, operands, self.rows, shared, alone, self.dots, smaller)
        found = partial(program, set(lies.split) - program.parallel_axes())
        operands = tuple(
            dataclasses.replace(o, axes=(*found.outs[o.index], *o.axes)) if o.role == "out" else o
            for o in operands
        )
        chunked = bool(self.rows)
        kernel = TileKernel(
            found.program, operands, lies, self.compute,
            parallel=part.parallel,
            descending=(back is not None) if chunked else (back is not None) != self.reverse,
            flipped=chunked and self.reverse,
            rows=self.rows,
            length=math.prod(self.program.sizes[a] for a in self.rows),
            zero=frozenset(range(self.given, self.given + len(self.program.outs))) if back else frozenset(),
            within=self.stepped.within,
            shared=tuple((j, axes) for j, axes in enumerate(found.outs) if axes),
            dots=self.dots,
            slices=() if self.rows else slices(found.program, dict(lies.blocks), self.dots),
        )  # fmt: skip
        return Pass(kernel, part.names)

    # -- operands -----------------------------------------------------------------------

    def _operands(self, part: Part, back: Adjoint | None) -> tuple[Operand, ...]:
        program = part.program
        init = "init" if back is None else "final"
        found = [self._like("init", i, (init, i), c.axes) for i, c in enumerate(program.carries)]
        for i, axes in program.inputs("stream").items():
            if i < self.count:
                found.append(self._like("stream", i, ("stream", i), axes))
            elif i != self.stepped.within:
                found.append(self._like("stream", i, ("out", i - self.given), axes))
        for i, axes in program.inputs("invariant").items():
            found.append(self._like("constant", i, ("constant", i), axes))
        for kind in ("state", "costate", "cross"):
            found += [self._own(kind, i, axes, self.handed) for i, axes in program.inputs(kind).items()]
        carries = enumerate(program.carries)
        found += [
            self._like("final", i, ("final", i), c.axes if back is None else c.next_axes) for i, c in carries
        ]
        return (*found, *(self._out(j, name, program, back) for j, name in enumerate(part.names)))

    def _out(self, j: int, name: tuple[str, int], program: StepProgram, back: Adjoint | None) -> Operand:
        kind, index = name
        axes = program.outs[j].axes
        if kind != "out":
            return self._own("out", j, axes, self.handed)
        if back is None:
            return self._like("out", j, ("out", index), axes)
        source = {out: i for i, out in back.streams.items()}
        if index in source:
            return self._like("out", j, ("stream", source[index]), axes)
        timed = not back.program.outs[index].accumulate
        return self._own("out", j, tuple(a for a in axes if not (timed and a in self.rows)), self.compute)

    def _like(self, role: str, index: int, source: tuple[str, int], axes: tuple[AxisName, ...]) -> Operand:
        """An operand in the memory of another, its axes named ``axes`` and without positions."""
        known = self.known[source]
        names = (
            tuple(a for a in axes if a not in self.rows)
            if role == "out"
            else axes[len(axes) - len(known.axes) :]
        )
        unit = None if known.unit is None else names[known.axes.index(known.unit)]
        return Operand(role, index, known.dtype, names, unit)

    def _own(self, role: str, index: int, axes: tuple[AxisName, ...], dtype: str) -> Operand:
        return Operand(role, index, dtype, axes, axes[-1] if axes else None)


def _time(passes: Sequence[Pass], said: Spills = NOTHING) -> float:
    return sum(nanoseconds(p.kernel, said) for p in passes)


__all__ = ["Pass", "Stepped", "TileBackward", "TilePlan", "tile_plan"]
