"""Which of a kernel's possible programs and layouts is written.

Takes a ``Kernel`` and an ``Isa``; leaves ``Settled``: programs simplified, decays deferred,
contractions taken a step early where that saves sweeps, axes divided and every state laid out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from tenfuse.emit.cpp.deferred import Deferred, numbers, together
from tenfuse.emit.cpp.isa import Isa
from tenfuse.emit.cpp.preamble import cost
from tenfuse.emit.cpp.retime import COSTLY, Early, early, repeated, shared
from tenfuse.emit.cpp.schedule import Scheduler
from tenfuse.emit.cpp.shape import Nest
from tenfuse.emit.cpp.simplify import simplify
from tenfuse.emit.cpp.spaces import Spaces, choose
from tenfuse.plan.kernel import Kernel
from tenfuse.step.program import AxisName, Pointwise, Ref, StepProgram


@dataclasses.dataclass(frozen=True)
class Settled:
    """``main`` and ``again`` are the kernel's program and the one it recomputes; ``last`` and
    ``state_last`` are the positions of the unit dimension of their carries, ``scales`` and
    ``state_scales`` the carries that are numbers which others are multiplied by."""

    kernel: Kernel
    isa: Isa
    spaces: Spaces
    last: dict[int, int]
    state_last: dict[int, int]
    main: Early
    again: Early | None
    scales: Mapping[int, int]
    state_scales: Mapping[int, int]

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
    main, states = together(simplify(kernel.program), again)
    options = [_laid_out(kernel, isa, main, states, *option) for option in _options(main, states)]
    return min(options, key=Settled.swept)


def _options(main: Deferred, states: Deferred | None) -> list[tuple[Early, Early | None]]:
    """Programs that compute the same: with contractions in their own step, or one early."""
    agains: list[Early | None] = [None]
    if states is not None:
        agains = list(_timed(states.program, states))
        kept = repeated(states.program, main.program)
        agains += [next(_timed(states.program, states, kept, True))] if kept else []
    options: list[tuple[Early, Early | None]] = []
    for again in agains:
        reading = shared(main.program, again) if again else main.program
        options += [(timed, again) for timed in _timed(reading, main)]
    return options


def _timed(
    program: StepProgram, found: Deferred, kept: Sequence[Ref] = (), always: bool = False
) -> Iterator[Early]:
    """``program`` with what follows from added carries taken early, without sums and with them."""
    early_ones = [*kept, *numbers(program, found.scales.values())]
    if not always:
        yield early(program, early_ones, sums=False)
    whole = early(program, early_ones)
    if always or len(whole.program.carries) > len(program.carries) + len(early_ones):
        yield whole


def _laid_out(
    kernel: Kernel, isa: Isa, found: Deferred, states: Deferred | None, main: Early, again: Early | None
) -> Settled:
    recompute = again.program if again else None
    kernel = dataclasses.replace(kernel, program=main.program, recompute=recompute)
    spaces, last, state_last = choose(kernel, isa)
    numbers_of = found.scales, states.scales if states else {}
    return Settled(kernel, isa, spaces, last, state_last, main, again, *numbers_of)


__all__ = ["Settled", "settle"]
