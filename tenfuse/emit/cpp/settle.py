"""Which of a kernel's possible programs and layouts is written.

Takes a ``Kernel`` and an ``Isa``; leaves ``Settled``: programs simplified, contractions taken
a step early where that saves sweeps, axes divided and every state laid out.
"""

from __future__ import annotations

import dataclasses

from tenfuse.emit.cpp.isa import Isa
from tenfuse.emit.cpp.preamble import cost
from tenfuse.emit.cpp.retime import COSTLY, Early, early, repeated, shared, untimed
from tenfuse.emit.cpp.schedule import Scheduler
from tenfuse.emit.cpp.shape import Nest
from tenfuse.emit.cpp.simplify import simplify
from tenfuse.emit.cpp.spaces import Spaces, choose
from tenfuse.plan.kernel import Kernel
from tenfuse.step.program import AxisName, Pointwise, StepProgram


@dataclasses.dataclass(frozen=True)
class Settled:
    """``main`` and ``again`` are the kernel's program and the one it recomputes; ``last`` and
    ``state_last`` are the positions of the unit dimension of their carries."""

    kernel: Kernel
    isa: Isa
    spaces: Spaces
    last: dict[int, int]
    state_last: dict[int, int]
    main: Early
    again: Early | None

    @property
    def lanes(self) -> int:
        return self.isa.lanes(self.kernel.compute)

    def sizes(self) -> dict[AxisName, int]:
        second = self.kernel.recompute.sizes if self.kernel.recompute else {}
        return {**second, **self.kernel.program.sizes}

    def scheduler(
        self, program: StepProgram, last: dict[int, int], states: dict[int, int] | None = None
    ) -> Scheduler:
        positions = self.state_last if states is None else states
        return Scheduler(self.kernel, program, self.spaces, self.isa, last, positions)

    def volume(self, nest: Nest) -> int:
        """Vector iterations of a nest in one step."""
        total = 1
        for a in nest.order:
            axis = self.spaces.axes[a]
            total *= max(1, min(axis.trips, axis.capacity) if isinstance(axis.capacity, int) else axis.trips)
        return max(1, total // (self.lanes if nest.x else 1))

    def swept(self) -> int:
        """Vector iterations of all nests of one step, those with costly functions counted more."""
        total = self._swept(self.main.program, self.last)
        return total + (self._swept(self.again.program, self.state_last) if self.again else 0)

    def _swept(self, program: StepProgram, last: dict[int, int]) -> int:
        scheduler = self.scheduler(program, last)
        total = 0
        for nest in scheduler.run():
            nodes = [program.nodes[r] for r in scheduler.computed(nest) - nest.kept]
            costs = [cost(n.fn) for n in nodes if isinstance(n, Pointwise)]
            total += self.volume(nest) * (1 + sum(c for c in costs if c >= COSTLY) // 5)
        return total


def settle(kernel: Kernel, isa: Isa) -> Settled:
    """The programs and layouts that take the fewest vector iterations per step."""
    again = simplify(kernel.recompute) if kernel.recompute else None
    kernel = dataclasses.replace(kernel, program=simplify(kernel.program), recompute=again)
    options = [_laid_out(kernel, isa, *option) for option in _options(kernel)]
    return min(options, key=Settled.swept)


def _options(kernel: Kernel) -> list[tuple[Early, Early | None]]:
    """Programs that compute the same: with contractions in their own step, or one early."""
    options: list[tuple[Early, Early | None]] = []
    plain = untimed(kernel.recompute) if kernel.recompute else None
    agains = [plain]
    if kernel.recompute:
        kept = repeated(kernel.recompute, kernel.program)
        agains += [early(kernel.recompute)] + ([early(kernel.recompute, kept)] if kept else [])
    for again in agains:
        reading = shared(kernel.program, again) if again else kernel.program
        options += [(untimed(reading), again)] if again is plain or (again and again.first) else []
        options += [(main, again)] if (main := early(reading)).first else []
    return options


def _laid_out(kernel: Kernel, isa: Isa, main: Early, again: Early | None) -> Settled:
    recompute = again.program if again else None
    kernel = dataclasses.replace(kernel, program=main.program, recompute=recompute)
    spaces, last, state_last = choose(kernel, isa)
    return Settled(kernel, isa, spaces, last, state_last, main, again)


__all__ = ["Settled", "settle"]
