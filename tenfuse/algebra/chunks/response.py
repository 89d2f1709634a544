"""What a value within a chunk takes from the states before the chunk, as sums linear in them.

Takes state-free coefficients and carries as they enter the chunk; leaves ``Linear``: a part
that no state reaches, plus responses ``sum over bound of coefficient * start``.  A later
recurrence that adds such a value to its own state scans the coefficients instead of the
value, so that its scans read no state either (superposition: a linear recurrence answers a
sum of inputs by the sum of its answers).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from tenfuse.algebra.chunks.summed import Sums
from tenfuse.step.program import AxisName, Position, Ref


@dataclasses.dataclass(frozen=True)
class Response:
    """``sum over bound of coefficient * start``; no state reaches the coefficient."""

    coefficient: Ref
    start: Ref
    """A carry as it enters the chunk."""
    bound: frozenset[AxisName] = frozenset()


@dataclasses.dataclass(frozen=True)
class Linear:
    """``local + sum of responses``; no ``local`` is zero."""

    local: Ref | None = None
    responses: tuple[Response, ...] = ()


def value(sums: Sums, linear: Linear) -> list[Ref]:
    """The summands of ``linear``."""
    found = [sums.product([r.coefficient, r.start], r.bound) for r in linear.responses]
    return found if linear.local is None else [linear.local, *found]


def added(sums: Sums, parts: Iterable[Linear]) -> Linear:
    """The sum, what reads the same entry of the same carry as one response."""
    parts = list(parts)
    locals_ = [p.local for p in parts if p.local is not None]
    alike: dict[Ref, list[Ref]] = {}
    apart: list[Response] = []
    for response in (r for p in parts for r in p.responses):
        if response.bound:
            apart.append(response)
        else:
            alike.setdefault(response.start, []).append(response.coefficient)
    together = [Response(sums.add(coefficients), start) for start, coefficients in alike.items()]
    return Linear(sums.add(locals_) if locals_ else None, (*together, *apart))


def summed(
    sums: Sums,
    fresh: Callable[[AxisName], AxisName],
    linear: Linear,
    factors: Sequence[Ref],
    bound: Collection[AxisName],
    back: Mapping[AxisName, AxisName],
) -> Linear:
    """``sum over bound of the product of factors and linear``, its axes then named by ``back``.

    Axes that the start itself has are summed with the start, under names of their own.
    """
    b = sums.build
    local = None if linear.local is None else b.rename(sums.product([*factors, linear.local], bound), back)
    found = []
    for r in linear.responses:
        later = r.bound | (frozenset(bound) & b.axes[r.start])
        coefficient = sums.product([*factors, r.coefficient], set(bound) - later)
        names = {**{a: n for a, n in back.items() if a not in later}, **{a: fresh(a) for a in sorted(later)}}
        found.append(
            Response(
                b.rename(coefficient, names), b.rename(r.start, names), frozenset(names[a] for a in later)
            )
        )
    return Linear(local, tuple(found))


def apart(
    sums: Sums, fresh: Callable[[AxisName], AxisName], response: Response, axes: Collection[AxisName]
) -> Response:
    """The same with the start's entries along ``axes`` told from the response's, by an identity matrix."""
    b = sums.build
    names = {a: fresh(a) for a in sorted((b.axes[response.start] & set(axes)) - response.bound)}
    same = [b.call("eq", b.add(Position(a)), b.add(Position(n))) for a, n in names.items()]
    return Response(
        sums.product([response.coefficient, *same]),
        b.rename(response.start, names),
        response.bound | frozenset(names.values()),
    )


__all__ = ["Linear", "Response", "added", "apart", "summed", "value"]
