"""``where`` with a state-free mask, on sums of terms.

Takes an ``Algebra``, the mask and two sums; leaves their selection.  Every coefficient and
the offset are selected, never multiplied by 0 or 1: what a masked step holds, an infinity
included, does not matter.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tenfuse.algebra.merge import merged
from tenfuse.algebra.rings import SUM_PRODUCT, product
from tenfuse.step.program import Ref

if TYPE_CHECKING:
    from tenfuse.algebra.terms import Algebra, Part, Sum


def selected(algebra: Algebra, mask: Ref, a: Sum, b: Sum) -> Sum:
    """``where(mask, a, b)``."""
    wide = algebra.build.axes[mask]
    same = [p for p in a.parts if p in b.parts and wide <= algebra.axes(p)]
    others = {p.source: p for p in b.parts if not p.contracted and p not in same}
    parts: list[Part] = list(same)
    for part in (p for p in a.parts if p not in same):
        twin = None if part.contracted else others.pop(part.source, None)
        parts.append(_only(algebra, mask, part, True) if twin is None else _either(algebra, mask, part, twin))
    left = [p for p in b.parts if p not in same and (p.contracted or p.source in others)]
    parts += [_only(algebra, mask, p, False) for p in left]
    zero = algebra.build.const(algebra.ring.zero)
    pair = [zero if s.offset is None else s.offset for s in (a, b)]
    offset = None if pair == [zero, zero] else algebra.build.call("where", mask, *pair)
    return dataclasses.replace(a, parts=merged(algebra, parts), offset=offset)


def _either(algebra: Algebra, mask: Ref, part: Part, twin: Part) -> Part:
    """Two uncontracted parts of one source: one part whose coefficient is selected."""
    alike = part.scale == twin.scale and part.factors and twin.factors
    pair = [dataclasses.replace(p, scale=1.0) if alike else p for p in (part, twin)]
    factor = algebra.build.call("where", mask, *(algebra.coefficient(p) for p in pair))
    return dataclasses.replace(part, factors=(factor,), scale=part.scale if alike else 1.0)


def _only(algebra: Algebra, mask: Ref, part: Part, first: bool) -> Part:
    """A part that the mask lets through on one side only."""
    build, ring = algebra.build, algebra.ring
    part = algebra.clear(part, build.axes[mask])
    zero = build.const(ring.zero)

    def picked(ref: Ref) -> Ref:
        return build.call("where", mask, *((ref, zero) if first else (zero, ref)))

    everywhere = all(build.axes[mask] <= build.axes[f] for f in part.factors)
    if part.factors and everywhere and ring is SUM_PRODUCT:
        return dataclasses.replace(part, factors=tuple(sorted(picked(f) for f in part.factors)))
    outside = [f for f in part.factors if not build.axes[f] & part.contracted]
    inside = [f for f in part.factors if build.axes[f] & part.contracted]
    whole = product(build, ring, outside)
    factor = picked(build.const(ring.one) if whole is None else whole)
    return dataclasses.replace(part, factors=tuple(sorted((*inside, factor))))
