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


class Sums:
    """``sizes`` may still grow while programs are built."""

    def __init__(self, build: Builder, sizes: Mapping[AxisName, int]) -> None:
        self.build, self.sizes = build, sizes
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
            group, done = min(
                (self._group(left, axes, a) for a in sorted(axes)), key=lambda pair: self._cost(*pair)
            )
            left = [f for f in left if f not in group]
            left.append(self.build.contract(self._times(group), *done))
            axes -= set(done)
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

    def _group(
        self, factors: Sequence[Ref], bound: set[AxisName], axis: AxisName
    ) -> tuple[list[Ref], list[AxisName]]:
        """The factors that have ``axis``, and the axes that can be summed once they are multiplied."""
        group = [f for f in factors if axis in self.build.axes[f]]
        rest = frozenset[AxisName]().union(*(self.build.axes[f] for f in factors if f not in group))
        here = frozenset[AxisName]().union(*(self.build.axes[f] for f in group))
        return group, sorted((bound & here) - rest)

    def _cost(self, group: Sequence[Ref], done: Sequence[AxisName]) -> tuple[int, int]:
        volume = self._volume(group)
        return volume, volume // max(1, math.prod(self.sizes[a] for a in done))

    def _volume(self, refs: Sequence[Ref]) -> int:
        axes = frozenset[AxisName]().union(*(self.build.axes[r] for r in refs))
        return math.prod(self.sizes[a] for a in axes)

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


__all__ = ["Sums"]
