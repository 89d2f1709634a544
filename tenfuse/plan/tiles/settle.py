"""Which plan of a loop is used: of two chunks the faster, and of its plans one that fits the card.

Takes plans, a way to plan again, and a way to try a plan on the card; leaves a plan that was found
sound.  How much registers hold is estimated when tiles are chosen, and known once a compiler has
made the binary.  Where it puts values away, or makes none, the loop is planned again with what it
said in place of the estimates, a few times at most; a plan whose kernels fit is never questioned.
Refuses what no plan does right, for the first plan's reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

from tenfuse.plan.tiles.plan import Pass, TilePlan
from tenfuse.plan.tiles.traffic import NOTHING, Spills, nanoseconds, spilled
from tenfuse.reasons import Refused

Told = TypeVar("Told")
Replan = Callable[[Spills], TilePlan]
"""The plan of a loop, given what compilers said of others."""
_SHORTEST, _GAIN = 16, 0.9
"""Steps of a chunk that none shorter is tried beside, and how much less time than a longer one it takes."""
_ROUNDS = 6
"""Plans of one loop and chunk that are compiled at most."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Of a plan that was tried: what compilers said of its kernels, and why it may not be used."""

    said: Spills = dataclasses.field(default_factory=dict)
    refused: Refused | None = None


def settled(plan: TilePlan, again: Replan, trial: Callable[[TilePlan], Verdict]) -> TilePlan:
    """``plan``, or another of the same loop that takes less time by what compilers said.

    ``again`` plans the loop with that; raises ``Refused`` where no plan may be used.
    """
    said: dict[str, float] = {}
    sound, tried, refused = list[TilePlan](), set[str](), list[Refused]()
    while len(tried) < _ROUNDS and plan.key() not in tried:
        tried.add(plan.key())
        verdict = _verdict(trial, plan)
        said |= verdict.said
        if verdict.refused is None:
            sound.append(plan)
        else:
            refused.append(verdict.refused)
        if not any(verdict.said.values()):
            break
        try:
            plan = again(said)
        except Refused:
            break
    if not sound:
        raise refused[0]
    return min(sound, key=lambda p: _step(p, said))


def _verdict(trial: Callable[[TilePlan], Verdict], plan: TilePlan) -> Verdict:
    try:
        return trial(plan)
    except Refused as refused:
        return Verdict(refused=refused)


def faster_first(plans: Iterator[tuple[Told, TilePlan]]) -> Iterator[tuple[Told, TilePlan]]:
    """The plans of one loop, the first two in the order of what a step takes where both run chunks.

    A shorter chunk leaves more states to be written; a longer one may hold more than an instance can,
    and then takes more passes or smaller blocks, which read again what others have read.
    """
    first = next(plans, None)
    if first is None:
        return
    second = next(plans, None) if first[1].length > _SHORTEST else None
    if second is not None and second[1].length > 1 and _better(second[1], first[1]):
        first, second = second, first
    yield first
    if second is not None:
        yield second
    yield from plans


def _better(short: TilePlan, long: TilePlan) -> bool:
    """Whether steps take clearly less time, and none of it is hoped of registers that do not suffice:
    what is counted of those falls short where they are far too few."""
    return _step(short) < _GAIN * _step(long) and _overflow(short) <= _overflow(long)


def _step(plan: TilePlan, said: Spills = NOTHING) -> float:
    """Nanoseconds of a step, with gradients where there are any."""
    return sum(nanoseconds(p.kernel, said) for p in _all(plan)) / plan.length


def _overflow(plan: TilePlan) -> float:
    """Bytes a step that registers do not hold."""
    return sum(spilled(p.kernel) for p in _all(plan)) / plan.length


def _all(plan: TilePlan) -> tuple[Pass, ...]:
    return plan.saving + (plan.backward.passes if plan.backward is not None else ())


__all__ = ["Replan", "Verdict", "faster_first", "settled"]
