"""The semirings in which a step may be linear.

Takes and leaves nothing but the table ``RINGS``.  A ring names the function that adds
terms (``plus``), the one that applies a factor (``times``), the reduction that contracts an
axis, and the numbers that are neutral for them.  Source: Mohri, "Semiring frameworks and
algorithms for shortest-distance problems" (2002), section 2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection

from tenfuse.step.program import AxisName, Builder, Ref


@dataclasses.dataclass(frozen=True)
class Ring:
    """``reduce`` is a ``Contract.op``, or "logsumexp", which the IR composes."""

    name: str
    plus: str
    times: str
    reduce: str
    zero: float
    one: float


SUM_PRODUCT = Ring("sum-product", "add", "mul", "sum", 0.0, 1.0)
RINGS = {
    ring.name: ring
    for ring in (
        SUM_PRODUCT,
        Ring("max-plus", "maximum", "add", "max", -math.inf, 0.0),
        Ring("min-plus", "minimum", "add", "min", math.inf, 0.0),
        Ring("log-plus", "logaddexp", "add", "logsumexp", -math.inf, 0.0),
        Ring("or-and", "logical_or", "logical_and", "max", 0.0, 1.0),
    )
}


def product(build: Builder, ring: Ring, factors: Collection[Ref]) -> Ref | None:
    """The factors applied to one another; None if there are none."""
    total: Ref | None = None
    for factor in factors:
        total = factor if total is None else build.call(ring.times, total, factor)
    return total


def reduced(build: Builder, ring: Ring, ref: Ref, axes: Collection[AxisName]) -> Ref:
    """``ref`` contracted over ``axes``, all of which it has."""
    if not axes:
        return ref
    if ring.reduce != "logsumexp":
        return build.contract(ref, *axes, op=ring.reduce)
    top = build.call("cut", build.contract(ref, *axes, op="max"))
    infinite = build.call("eq", build.call("abs", top), build.const(math.inf))
    top = build.call("where", infinite, build.const(0.0), top)
    total = build.contract(build.call("exp", build.call("sub", ref, top)), *axes)
    none = build.call("eq", total, build.const(0.0))  # the logarithm of nothing has no derivative
    found = build.call("log", build.call("where", none, build.const(1.0), total))
    return build.call("where", none, build.const(ring.zero), build.call("add", found, top))


def scaled(build: Builder, ref: Ref, scale: float) -> Ref:
    """``scale * ref``, a product of numbers."""
    if scale == 1.0:
        return ref
    if scale == -1.0:
        return build.call("neg", ref)
    return build.call("mul", build.const(scale), ref)


def joined(build: Builder, ring: Ring, a: Ref, b: Ref) -> Ref:
    """``a + b``; where ``a`` is the ring's zero that is ``b``, with the derivative of it.

    The derivative of a logaddexp of two infinities would be NaN.
    """
    if ring.plus != "logaddexp":
        return build.call(ring.plus, a, b)
    none = build.call("eq", a, build.const(ring.zero))
    found = build.call(ring.plus, build.call("where", none, build.const(0.0), a), b)
    return build.call("where", none, b, found)


__all__ = ["RINGS", "SUM_PRODUCT", "Ring", "joined", "product", "reduced", "scaled"]
