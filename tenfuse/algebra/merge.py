"""Merge the parts of a sum that read the same source in the same way.

Takes an ``Algebra`` and parts; leaves fewer parts of the same value:

* uncontracted parts of one source become one, their coefficients added: h - z h is (1-z) h;
* of contracted parts, those with equal factors outside the contraction become one with
  the inner factors added, u (w1 + w2) S, and those with equal inner factors likewise.

A merge never joins an outer factor with an inner one, so a rank is never lost.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tenfuse.algebra.rings import SUM_PRODUCT, joined, product
from tenfuse.step.program import AxisName, Input, Ref

if TYPE_CHECKING:
    from tenfuse.algebra.terms import Algebra, Part


def merged(algebra: Algebra, parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same sum with as few parts as keep its structure."""
    found: list[Part] = []
    for part in parts:
        place, joined = _place(algebra, found, part)
        if place is None or joined is None:
            found.append(part)
        else:
            found[place] = joined
    return tuple(found) if len(found) == len(parts) else merged(algebra, found)


def _place(algebra: Algebra, found: list[Part], part: Part) -> tuple[int | None, Part | None]:
    """Which part of ``found`` takes ``part`` in, if any, and what becomes of it."""
    for i, other in enumerate(found):
        if not part.contracted and not other.contracted:
            if part.source == other.source:
                return i, _added(algebra, other, part, ())
            continue
        aligned = _aligned(algebra, part, other)
        if aligned is None:
            continue
        ranked = other.contracted - algebra.build.axes[other.source]
        for side in (inner,) if ranked else (outer, inner):
            shared = side(algebra, other)
            if shared == side(algebra, aligned):
                return i, _added(algebra, other, aligned, shared)
    return None, None


def outer(algebra: Algebra, part: Part) -> tuple[Ref, ...]:
    """Factors without a contracted axis."""
    return tuple(f for f in part.factors if not algebra.build.axes[f] & part.contracted)


def inner(algebra: Algebra, part: Part) -> tuple[Ref, ...]:
    """Factors with a contracted axis."""
    return tuple(f for f in part.factors if algebra.build.axes[f] & part.contracted)


def _aligned(algebra: Algebra, part: Part, other: Part) -> Part | None:
    """``part`` with the contracted names of ``other``, if both read one source alike."""
    if part.contracted and part.source == other.source and part.contracted == other.contracted:
        return part
    ours, theirs = (algebra.build.nodes[p.source] for p in (part, other))
    if not (isinstance(ours, Input) and isinstance(theirs, Input)) or not part.contracted:
        return None
    if (ours.kind, ours.index) != (theirs.kind, theirs.index):
        return None
    pairs = [(a, b) for a, b in zip(ours.axes, theirs.axes, strict=True) if a != b]
    if any(a not in part.contracted or b not in other.contracted for a, b in pairs):
        return None
    names: dict[AxisName, AxisName] = dict(pairs)
    taken = algebra.names(part) | algebra.names(other)
    for axis in sorted(part.contracted - set(names)):
        if axis in names.values():
            names[axis] = algebra.fresh.unused(axis, taken)
    part = algebra.renamed(part, names)
    return part if part.source == other.source and part.contracted == other.contracted else None


def _added(algebra: Algebra, one: Part, two: Part, shared: tuple[Ref, ...]) -> Part:
    """One part for two that agree in ``shared`` and in how they read their source."""
    build, ring = algebra.build, algebra.ring
    left, right = list(one.factors), list(two.factors)
    for factor in shared:
        left.remove(factor)
        right.remove(factor)
    if not shared:
        common = [f for f in left if f in right and not build.axes[f] & one.contracted]
        common = [f for i, f in enumerate(common) if f not in common[:i]]
        for factor in common:
            left.remove(factor)
            right.remove(factor)
        shared = tuple(common)
    if left == right:
        return _rescaled(algebra, one, two)
    scale = one.scale if abs(one.scale) == abs(two.scale) != 0 else 1.0
    a, b = _weighted(algebra, left, one.scale / scale), _weighted(algebra, right, two.scale / scale)
    sign = two.scale / scale == -1.0 and ring is SUM_PRODUCT
    total = build.call("sub", a, _weighted(algebra, right, 1.0)) if sign else joined(build, ring, a, b)
    return dataclasses.replace(one, factors=tuple(sorted((*shared, total))), scale=scale)


def _rescaled(algebra: Algebra, one: Part, two: Part) -> Part:
    """Parts that differ in their scale alone.

    h - h stays 0 h, which is NaN where h is infinite, and keeps the axes of h.
    """
    if algebra.ring is SUM_PRODUCT:
        return dataclasses.replace(one, scale=one.scale + two.scale)
    extra = {"log-plus": math.log(2.0), "or-and": 1.0}.get(algebra.ring.name)
    if extra is None:
        return one
    # x or x is 1 or 0 even where x is some other number: the factor says so.
    return dataclasses.replace(one, factors=tuple(sorted((*one.factors, algebra.build.const(extra)))))


def _weighted(algebra: Algebra, factors: Sequence[Ref], scale: float) -> Ref:
    whole = product(algebra.build, algebra.ring, factors)
    if whole is None:
        return algebra.build.const(scale if algebra.ring is SUM_PRODUCT else algebra.ring.one)
    return algebra.number(whole, scale)
