"""A program and its normal form at tiny sizes.

Takes a ``StepProgram``, its ``Recurrence`` and tiny sizes; leaves both at these sizes.  A
normal form may hold constants that count entries (a sum over an axis that a term lacks is
that term times the axis's size).  It is then derived again at the tiny sizes, and used if
it is the same but for constants that are the same multiple of the same product of sizes:
at the sizes given, at the tiny ones, and at a third set that tells all axes apart.
Otherwise the one given is used as it stands.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

from tenfuse.algebra.proof.tiny import classes_for
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.step.program import AxisName, Const, StepProgram

_MOST = 3
"""A constant counts the entries along so many axes at most."""


def shrunk(
    program: StepProgram, recurrence: Recurrence, sizes: Mapping[AxisName, int]
) -> tuple[StepProgram, Recurrence]:
    """Both over the same axes, with ``sizes``."""
    small = dataclasses.replace(program, sizes={a: sizes[a] for a in program.sizes})
    given = dataclasses.replace(recurrence, sizes={a: sizes[a] for a in recurrence.sizes})
    if not any(isinstance(n, Const) for n in recurrence.nodes):
        return small, given
    from tenfuse.algebra.analyse import analyse

    again = analyse(small)
    if again.nodes == recurrence.nodes or not _alike(recurrence, again):
        return small, given
    classes = classes_for([program.nodes], program.carries, program.sizes)
    odd = {c: p for c, p in zip(sorted(set(classes.values())), _primes(), strict=False)}
    if len(odd) < len(set(classes.values())):
        return small, given
    third = analyse(dataclasses.replace(program, sizes={a: odd[classes[a]] for a in program.sizes}))
    counts = [
        (program.sizes[axis] / sizes[axis], odd[classes[axis]] / sizes[axis])
        for axis in sorted(program.sizes)
    ]
    same = _alike(recurrence, third) and _counted(recurrence, again, third, counts)
    return small, again if same else given


def _primes() -> list[int]:
    return [p for p in range(11, 200) if all(p % q for q in range(2, 15) if q < p)]


def _alike(one: Recurrence, other: Recurrence) -> bool:
    """Equal but for the values of constants."""
    return (
        len(one.nodes) == len(other.nodes)
        and one.outs == other.outs
        and one.stages == other.stages
        and all(
            a == b or (isinstance(a, Const) and isinstance(b, Const))
            for a, b in zip(one.nodes, other.nodes, strict=True)
        )
    )


def _counted(
    large: Recurrence, small: Recurrence, third: Recurrence, counts: list[tuple[float, float]]
) -> bool:
    """Whether each constant grows from ``small`` to the two others by the same axes' counts."""
    growth = {
        (math.prod(a for a, _ in some), math.prod(b for _, b in some))
        for some in itertools.combinations_with_replacement(sorted({*counts, (1.0, 1.0)}), _MOST)
    }
    for a, b, c in zip(large.nodes, small.nodes, third.nodes, strict=True):
        if not (isinstance(a, Const) and isinstance(b, Const) and isinstance(c, Const)):
            continue
        if not any(_close(a.value, b.value * x) and _close(c.value, b.value * y) for x, y in growth):
            return False
    return True


def _close(a: float, b: float) -> bool:
    return a == b or math.isclose(a, b, rel_tol=1e-12)


__all__ = ["shrunk"]
