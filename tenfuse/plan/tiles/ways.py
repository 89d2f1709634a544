"""Which passes a chunk's step is run in: the way that takes the least time on the assumed card.

Takes the step and what makes and weighs the passes of a way; leaves the cheapest way.  A pass
more reads again what another had at hand; a pass less has fewer instances, of which each then
waits for itself.  Which outputs the recurrence computes, and whether a pass in front hands
on the solutions of triangular systems or the inverses, is therefore tried and counted
(``traffic``), not known beforehand.  Refuses what no way can do, for the first way's reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from tenfuse.plan.tiles.inverse import inverted
from tenfuse.plan.tiles.passes import Group, groups
from tenfuse.reasons import Refused
from tenfuse.step.program import StepProgram

Made = TypeVar("Made")
_GAIN = 0.9
"""Of the time before, at most, for one more output in the recurrence: what is counted is no measurement."""


@dataclasses.dataclass(frozen=True)
class Way:
    """``program`` is the step, or the step with inverses; the recurrence computes ``within``."""

    program: StepProgram
    within: frozenset[Group] = frozenset()


def cheapest(
    program: StepProgram, make: Callable[[Way], Made], weigh: Callable[[Made], float]
) -> tuple[Way, Made]:
    """The way whose passes weigh least, the first of equal ones."""
    tried = _Tried(make, weigh)
    for form in _forms(program):
        within, left = frozenset[Group](), set(groups(form))
        tried.better(Way(form), alone=True)
        while left:
            ahead = [g for g in sorted(left, key=sorted) if tried.better(Way(form, within | {g}))]
            if not ahead:
                break
            within |= {ahead[-1]}
            left -= within
    return tried.found()


def _forms(program: StepProgram) -> Iterator[StepProgram]:
    yield program
    other = inverted(program)
    if other is not program:
        yield other


class _Tried(Generic[Made]):
    def __init__(self, make: Callable[[Way], Made], weigh: Callable[[Made], float]) -> None:
        self.make, self.weigh = make, weigh
        self.best: tuple[float, Way, Made] | None = None
        self.least = float("inf")
        self.refused: Refused | None = None

    def better(self, way: Way, alone: bool = False) -> bool:
        """Whether a way weighs less than all of its form; ``alone`` starts a form."""
        try:
            made = self.make(way)
        except Refused as refused:
            self.refused = self.refused or refused
            if alone:
                self.least = float("inf")
            return False
        weight = self.weigh(made)
        less = alone or weight < _GAIN * self.least
        self.least = weight if less else self.least
        if less and (self.best is None or weight < self.best[0]):
            self.best = weight, way, made
        return less

    def found(self) -> tuple[Way, Made]:
        if self.best is None:
            assert self.refused is not None
            raise self.refused
        return self.best[1], self.best[2]


__all__ = ["Way", "cheapest"]
