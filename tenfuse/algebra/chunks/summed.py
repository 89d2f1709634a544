"""Sums of products over named axes, in an order that makes matrix products of them.

Takes factors and the axes to sum over; leaves nodes in a ``Builder``.  Every axis is summed
as soon as the factors that have it are multiplied, the cheapest first, and the last two
factors of such a product stay apart: ``Contract(mul(x, y))`` is a matrix product.  Factors
that do not depend on the state are multiplied with each other first, so that as little as
possible is left to do with the state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tenfuse.step.program import AxisName, Builder, Const, Input, Ref, arguments

_STORED = 8
"""What storing an entry of an intermediate result costs, in multiplications."""
_DEEP = 5
"""Axes to sum over up to which every order is tried."""


def _merged(
    sets: Sequence[frozenset[AxisName]], bound: frozenset[AxisName], axis: AxisName
) -> tuple[set[frozenset[AxisName]], frozenset[AxisName], tuple[frozenset[AxisName], ...]]:
    """The factors' axes that have ``axis``, what can be summed once they are multiplied, the rest."""
    rest = tuple(s for s in sets if axis not in s)
    chosen = {s for s in sets if axis in s}
    here = frozenset[AxisName]().union(*chosen)
    return chosen, (bound & here) - frozenset[AxisName]().union(*rest), rest


class Unchunkable(Exception):
    """No chunk program: the sequential one remains.  Says why in one sentence."""


class Sums:
    """``sizes`` may still grow while programs are built."""

    def __init__(
        self, build: Builder, sizes: Mapping[AxisName, int], dynamic: frozenset[AxisName] = frozenset()
    ) -> None:
        self.build, self.sizes, self.dynamic = build, sizes, dynamic
        self._stateful: dict[Ref, bool] = {}

    def stateful(self, ref: Ref) -> bool:
        """Whether a carry reaches ``ref``."""
        if ref not in self._stateful:
            node = self.build.nodes[ref]
            reads = isinstance(node, Input) and node.kind in ("carry", "state")
            self._stateful[ref] = reads or any(self.stateful(a) for a in arguments(node))
        return self._stateful[ref]

    def product(self, factors: Iterable[Ref], bound: Iterable[AxisName] = ()) -> Ref:
        """The sum over ``bound`` of the product of ``factors``."""
        left = list(factors)
        axes = set(bound)
        absent = sorted(a for a in axes if not any(a in self.build.axes[f] for f in left))
        axes -= set(absent)
        while axes:
            group, done = self._next(left, frozenset(axes))
            left = [f for f in left if f not in group]
            left.append(self.build.contract(self._times(group), *done))
            axes -= set(done)
        if self.dynamic & set(absent):
            raise Unchunkable("a constant is summed over a dimension of dynamic size")
        if absent:
            left.append(self.build.const(math.prod(self.sizes[a] for a in absent)))
        return self._times(left)

    def add(self, parts: Iterable[Ref]) -> Ref:
        """The sum of ``parts``; those without the state first."""
        ordered = sorted(parts, key=self.stateful)
        total = ordered[0] if ordered else self.build.const(0.0)
        for part in ordered[1:]:
            total = self.build.call("add", total, part)
        return total

    def _next(self, factors: Sequence[Ref], bound: frozenset[AxisName]) -> tuple[list[Ref], list[AxisName]]:
        """The factors to multiply first, and the axes to sum that product over."""
        sets = tuple(self.build.axes[f] for f in factors)
        look = _DEEP if len(bound) <= _DEEP else 1
        _, axis = self._best(sets, bound, look)
        chosen, done, _ = _merged(sets, bound, axis)
        return [f for f, own in zip(factors, sets, strict=True) if own in chosen], sorted(done)

    def _best(
        self, sets: tuple[frozenset[AxisName], ...], bound: frozenset[AxisName], look: int
    ) -> tuple[int, AxisName]:
        """The least work to sum over ``bound`` (its first ``look`` axes), and the first axis."""
        found = []
        for axis in sorted(bound):
            chosen, done, rest = _merged(sets, bound, axis)
            whole = frozenset[AxisName]().union(*chosen)
            work = self._size(whole) + _STORED * self._size(whole - done)
            if look > 1 and bound - done:
                work += self._best((*rest, whole - done), bound - done, look - 1)[0]
            found.append((work, axis))
        return min(found)

    def _size(self, axes: frozenset[AxisName]) -> int:
        return math.prod(self.sizes[a] for a in axes)

    def _volume(self, refs: Sequence[Ref]) -> int:
        return self._size(frozenset[AxisName]().union(*(self.build.axes[r] for r in refs)))

    def _times(self, factors: Sequence[Ref]) -> Ref:
        """Smaller factors into larger ones that have their axes; then the cheapest pairs."""
        left = self._signed(factors)
        while len(left) > 1:
            one, other = min(
                ((x, y) for i, x in enumerate(left) for y in left[i + 1 :]),
                key=lambda pair: self._rank(*pair),
            )
            left.remove(one)
            left.remove(other)
            left.append(self.build.call("mul", one, other))
        return left[0] if left else self.build.const(1.0)

    def _rank(self, x: Ref, y: Ref) -> tuple[bool, bool, int]:
        a, b = self.build.axes[x], self.build.axes[y]
        return self.stateful(x) or self.stateful(y), not (a <= b or b <= a), self._volume([x, y])

    def _signed(self, factors: Sequence[Ref]) -> list[Ref]:
        """Numbers multiplied into one, and that into the smallest factor."""
        number, left = 1.0, []
        for f in factors:
            node = self.build.nodes[f]
            if isinstance(node, Const):
                number *= node.value
            else:
                left.append(f)
        if number == 1.0 or not left:
            return left if number == 1.0 else [self.build.const(number)]
        small = min(left, key=lambda f: (self.stateful(f), self._volume([f])))
        scaled = (
            self.build.call("neg", small)
            if number == -1.0
            else self.build.call("mul", small, self.build.const(number))
        )
        left[left.index(small)] = scaled
        return left


__all__ = ["Sums", "Unchunkable"]
