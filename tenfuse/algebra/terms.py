"""Sums of terms that are linear in a source: the arithmetic of the normal form.

Takes nodes of a ``Builder`` and the ring to work in; leaves ``Sum`` values, each a number
of ``Part``s (scale x product of state-free factors x source, contracted over some axes)
plus a state-free offset.  A factor is split into its own factors where that separates
axes, so that an outer product k v stays two vectors.  Parts of the same source are merged
where that loses no structure.  Raises ``Stuck`` where a sum has no such form.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from tenfuse.algebra.merge import merged
from tenfuse.algebra.names import Names, original, rename
from tenfuse.algebra.rings import SUM_PRODUCT, Ring, joined, product, reduced, scaled
from tenfuse.step.program import AxisName, Builder, Const, Input, Pointwise, Ref

LIMIT = 64
"""Parts a sum may have: distribution multiplies them."""


class Stuck(Exception):
    """A value has no normal form; it must be an atom, or the ring is the wrong one."""


@dataclasses.dataclass(frozen=True)
class Part:
    """``scale * sum over contracted of (product of factors) * source``."""

    source: Ref
    factors: tuple[Ref, ...] = ()
    contracted: frozenset[AxisName] = frozenset()
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Sum:
    """A value; without parts it is state-free, without offset that is the ring's zero."""

    parts: tuple[Part, ...]
    offset: Ref | None = None

    @property
    def free(self) -> bool:
        return not self.parts


def carry_of(build: Builder, source: Ref) -> Input | None:
    """The carry that a source is, looking through ``cut``; None for an atom."""
    node = build.nodes[source]
    if isinstance(node, Pointwise) and node.fn == "cut":
        node = build.nodes[node.args[0]]
    return node if isinstance(node, Input) else None


class Algebra:
    """Operations on ``Sum`` in one ring, over one builder."""

    def __init__(
        self, build: Builder, sizes: Mapping[AxisName, int], dynamic: Collection[AxisName], ring: Ring
    ) -> None:
        self.build, self.sizes, self.dynamic, self.ring = build, sizes, dynamic, ring
        self.fresh = Names(sizes)
        self._flat: dict[Ref, tuple[float, tuple[Ref, ...]]] = {}

    # -- names and sizes --------------------------------------------------------------

    def size(self, name: AxisName) -> int:
        return self.sizes[original(name, self.sizes)]

    def numel(self, axes: Collection[AxisName]) -> int:
        return math.prod(self.size(a) for a in axes)

    def names(self, part: Part) -> frozenset[AxisName]:
        """Free and contracted axes of a part."""
        return self.build.axes[part.source].union(*(self.build.axes[f] for f in part.factors))

    def axes(self, part: Part) -> frozenset[AxisName]:
        return self.names(part) - part.contracted

    # -- factors ------------------------------------------------------------------------

    def flat(self, ref: Ref) -> tuple[float, tuple[Ref, ...]]:
        """``ref`` as scale and factors, split where that separates axes."""
        if ref not in self._flat:
            scale, factors = self._split(ref) if self.ring is SUM_PRODUCT else (1.0, (ref,))
            if len(factors) > 1 and all(self.build.axes[f] == self.build.axes[ref] for f in factors):
                if scale == 1.0:
                    factors = (ref,)
                else:
                    whole = product(self.build, self.ring, factors)
                    factors = () if whole is None else (whole,)
            self._flat[ref] = scale, factors
        return self._flat[ref]

    def _split(self, ref: Ref) -> tuple[float, tuple[Ref, ...]]:
        node = self.build.nodes[ref]
        if isinstance(node, Const) and math.isfinite(node.value):
            return node.value, ()
        if not isinstance(node, Pointwise):
            return 1.0, (ref,)
        if node.fn == "neg":
            scale, factors = self.flat(node.args[0])
            return -scale, factors
        if node.fn == "mul":
            (a, x), (b, y) = self.flat(node.args[0]), self.flat(node.args[1])
            return a * b, (*x, *y)
        if node.fn == "div":
            return self._ratio(ref, *node.args)
        if node.fn == "where":
            return self._masked(ref, *node.args)
        if node.fn == "cut":
            scale, factors = self.flat(node.args[0])
            return scale, tuple(self.build.call("cut", f) for f in factors)
        return 1.0, (ref,)

    def _ratio(self, ref: Ref, x: Ref, y: Ref) -> tuple[float, tuple[Ref, ...]]:
        below = self.build.nodes[y]
        scale, factors = self.flat(x)
        if isinstance(below, Const):
            usable = below.value != 0 and math.isfinite(1.0 / below.value)
            return (scale / below.value, factors) if usable else (1.0, (ref,))
        if len(factors) < 2:
            return 1.0, (ref,)
        return scale, (*factors, self.build.call("div", self.build.const(1.0), y))

    def _masked(self, ref: Ref, mask: Ref, x: Ref, y: Ref) -> tuple[float, tuple[Ref, ...]]:
        """``where(mask, f g, 0)`` is ``where(mask, f, 0) where(mask, g, 0)``: both are selected."""
        zero = self.build.const(0.0)
        if zero not in (x, y):
            return 1.0, (ref,)
        scale, factors = self.flat(x if y == zero else y)
        shared = frozenset.intersection(*(self.build.axes[f] for f in factors)) if factors else frozenset()
        if len(factors) < 2 or not self.build.axes[mask] <= shared:
            return 1.0, (ref,)
        picked = [(f, zero) if y == zero else (zero, f) for f in factors]
        return scale, tuple(self.build.call("where", mask, *pair) for pair in picked)

    def times(self, value: Sum, factor: Ref) -> Sum:
        """``value`` with a state-free factor applied."""
        scale, factors = self.flat(factor)
        parts = tuple(
            dataclasses.replace(p, factors=tuple(sorted((*p.factors, *factors))), scale=p.scale * scale)
            for p in (self.clear(p, self.build.axes[factor]) for p in value.parts)
        )
        offset = None if value.offset is None else self.build.call(self.ring.times, value.offset, factor)
        return Sum(parts, offset)

    def scaled(self, value: Sum, scale: float) -> Sum:
        """Only in the ring of numbers."""
        parts = tuple(dataclasses.replace(p, scale=p.scale * scale) for p in value.parts)
        return Sum(parts, None if value.offset is None else self.number(value.offset, scale))

    def number(self, ref: Ref, scale: float) -> Ref:
        return scaled(self.build, ref, scale)

    def coefficient(self, part: Part) -> Ref:
        """The factors of an uncontracted part as one node."""
        whole = product(self.build, self.ring, part.factors)
        if self.ring is not SUM_PRODUCT:
            return self.build.const(self.ring.one) if whole is None else whole
        return self.build.const(part.scale) if whole is None else self.number(whole, part.scale)

    # -- sums ---------------------------------------------------------------------------

    def plus(self, a: Sum, b: Sum, sign: float = 1.0) -> Sum:
        b = (
            b
            if sign == 1.0
            else Sum(tuple(dataclasses.replace(p, scale=-p.scale) for p in b.parts), b.offset)
        )
        parts = merged(self, (*a.parts, *b.parts))
        if len(parts) > LIMIT:
            raise Stuck
        if a.offset is None or b.offset is None:
            other = b.offset if b.offset is None or sign == 1.0 else self.number(b.offset, sign)
            return Sum(parts, other if a.offset is None else a.offset)
        if sign != 1.0:
            return Sum(parts, self.build.call("sub", a.offset, b.offset))
        return Sum(parts, joined(self.build, self.ring, a.offset, b.offset))

    def contract(self, value: Sum, axes: frozenset[AxisName]) -> Sum:
        """Reduce over ``axes``; a part that lacks one of them counts it as often as it is long."""
        parts = []
        for part in value.parts:
            scale, factors = self._missing(axes - self.axes(part))
            part = self._bound(part, axes & self.axes(part))
            parts.append(
                dataclasses.replace(
                    part, scale=part.scale * scale, factors=tuple(sorted((*part.factors, *factors)))
                )
            )
        offset = value.offset
        if offset is not None:
            scale, factors = self._missing(axes - self.build.axes[offset])
            offset = reduced(self.build, self.ring, offset, axes & self.build.axes[offset])
            offset = self.number(offset, scale)
            for factor in factors:
                offset = self.build.call(self.ring.times, offset, factor)
        return Sum(merged(self, parts), offset)

    def _missing(self, axes: frozenset[AxisName]) -> tuple[float, tuple[Ref, ...]]:
        """What a reduction over axes along which a value is constant multiplies it by."""
        if not axes or self.ring.reduce in ("max", "min"):
            return 1.0, ()
        if any(original(a, self.sizes) in self.dynamic for a in axes):
            raise Stuck
        count = float(self.numel(axes))
        return (count, ()) if self.ring is SUM_PRODUCT else (1.0, (self.build.const(math.log(count)),))

    def _bound(self, part: Part, axes: frozenset[AxisName]) -> Part:
        """``part`` summed over axes it has, which get fresh names.

        A bare sum over an atom (a norm, a mean) keeps the atom's own names as long as
        nothing else has them: under fresh ones the atom would be computed twice.
        """
        bare = carry_of(self.build, part.source) is None and not part.factors
        names = {} if bare else self._new(part, axes)
        part = self.renamed(part, names)
        part = dataclasses.replace(part, contracted=part.contracted | {names.get(a, a) for a in axes})
        return self._canonical(self._joined(part))

    def _new(self, part: Part, axes: Collection[AxisName]) -> dict[AxisName, AxisName]:
        """Fresh names for some axes of a part."""
        taken = set(self.names(part))
        names: dict[AxisName, AxisName] = {}
        for axis in sorted(axes):
            names[axis] = self.fresh.unused(axis, taken)
            taken.add(names[axis])
        return names

    def clear(self, part: Part, axes: frozenset[AxisName]) -> Part:
        """``part`` without contracted axes of the names ``axes``, which a factor is about to bring."""
        return self.renamed(part, self._new(part, axes & part.contracted)) if axes & part.contracted else part

    def renamed(self, part: Part, names: Mapping[AxisName, AxisName]) -> Part:
        return dataclasses.replace(
            part,
            source=rename(self.build, part.source, names),
            factors=tuple(sorted(rename(self.build, f, names) for f in part.factors)),
            contracted=frozenset(names.get(a, a) for a in part.contracted),
        )

    def _joined(self, part: Part) -> Part:
        """Factors joined by a contracted axis that the source lacks, contracted among themselves."""
        for axis in sorted(part.contracted - self.build.axes[part.source]):
            group = [f for f in part.factors if axis in self.build.axes[f]]
            rest = [f for f in part.factors if axis not in self.build.axes[f]]
            if self._narrow(part, group, axis):
                continue
            whole = product(self.build, self.ring, group)
            assert whole is not None
            whole = reduced(self.build, self.ring, whole, {axis})
            scale, factors = self.flat(whole)
            part = Part(
                part.source, tuple(sorted((*rest, *factors))), part.contracted - {axis}, part.scale * scale
            )
        return part

    def _narrow(self, part: Part, group: Sequence[Ref], axis: AxisName) -> bool:
        """Whether the product through ``axis`` is of lower rank than what it would join to.

        Around a carry it then stays two factors, u and w.  Around an atom, where no scan
        profits from the rank, the products are joined unless that takes more work.
        """
        axes, inner = self.build.axes, part.contracted & self.build.axes[part.source]
        reads = [axes[f] for f in group if axes[f] & inner]
        writes = [axes[f] for f in group if not axes[f] & inner]
        if self.ring is not SUM_PRODUCT or original(axis, self.sizes) in self.dynamic:
            return False
        if not reads or not writes:
            return False
        read, write = frozenset().union(*reads), frozenset().union(*writes)
        if carry_of(self.build, part.source) is not None:
            sides = (read & inner, write - read)
            return self.size(axis) < min(self.numel(side) for side in sides)
        return self.numel((read | write) - {axis}) > self.numel(read) + self.numel(write)

    def _canonical(self, part: Part) -> Part:
        """The contracted axes named by the axis they were, so that equal parts are equal."""
        taken = set(self.axes(part))
        names: dict[AxisName, AxisName] = {}
        fresh = {a for a in part.contracted if self.fresh.mark in a}
        taken |= part.contracted - fresh
        for axis in sorted(fresh, key=lambda a: (a not in self.build.axes[part.source], a)):
            names[axis] = self.fresh.unused(axis, taken)
            taken.add(names[axis])
        return part if all(a == b for a, b in names.items()) else self.renamed(part, names)

    def select(self, mask: Ref, a: Sum, b: Sum) -> Sum:
        """``where(mask, a, b)``: every coefficient and the offset are selected, not multiplied."""
        from tenfuse.algebra.masks import selected

        return selected(self, mask, a, b)

    def cut(self, value: Sum) -> Sum:
        """``cut`` of a sum of products: of every factor, of the source and of the offset."""

        def once(ref: Ref) -> Ref:
            node = self.build.nodes[ref]
            return ref if isinstance(node, Pointwise) and node.fn == "cut" else self.build.call("cut", ref)

        parts = tuple(
            dataclasses.replace(p, source=once(p.source), factors=tuple(sorted(map(once, p.factors))))
            for p in value.parts
        )
        return Sum(parts, None if value.offset is None else once(value.offset))

    # -- back to nodes --------------------------------------------------------------------

    def node(self, value: Sum) -> Ref:
        """The value as a node."""
        total: Ref | None = None
        for part in value.parts:
            term, scale = self.term(part), part.scale
            if total is None:
                total = self.number(term, scale)
            elif scale == -1.0:
                total = self.build.call("sub", total, term)
            else:
                total = self.build.call(self.ring.plus, total, self.number(term, scale))
        if value.offset is not None:
            total = value.offset if total is None else self.build.call(self.ring.plus, total, value.offset)
        return self.build.const(self.ring.zero) if total is None else total

    def term(self, part: Part) -> Ref:
        """A part without its scale; what is not contracted stands outside the contraction."""
        ref, left = part.source, list(part.factors)
        bound = set(part.contracted)
        while bound:
            now = bound & self.build.axes[ref]
            if not now:
                raise ValueError(f"a term contracts axes that it does not have: {part}")
            here = [f for f in left if self.build.axes[f] & now]
            left = [f for f in left if f not in here]
            whole = product(self.build, self.ring, here)
            ref = ref if whole is None else self.build.call(self.ring.times, whole, ref)
            ref = reduced(self.build, self.ring, ref, now)
            bound -= now
        whole = product(self.build, self.ring, left)
        return ref if whole is None else self.build.call(self.ring.times, whole, ref)
