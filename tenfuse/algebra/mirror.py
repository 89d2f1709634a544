"""The normal form in (max, +) and (min, +) of values that are written with the opposite sign.

Takes what ``Affine`` takes; leaves what it leaves.  Negation maps (max, +) onto (min, +), so a
minimum may be written ``-max(-x, -y)``.  The negative of a value with a normal form is carried along
beside it: the opposite maximum of two such is the negative of their sum in this ring, and a second
negation undoes the first.
"""

from __future__ import annotations

from typing import Any

from tenfuse.algebra.affine import Affine
from tenfuse.algebra.terms import Stuck, Sum
from tenfuse.step.program import Const, Contract, Node, Pointwise, Ref

_OPPOSITE = {"max-plus": ("minimum", "min"), "min-plus": ("maximum", "max")}


class Mirror(Affine):
    """``Affine`` in (max, +) or (min, +)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.negative: dict[Ref, Sum] = {}
        """Nodes that are minus a value with a normal form."""

    def _computed(self, ref: Ref, node: Node) -> Sum | None:
        found = super()._computed(ref, node)
        if found is not None:
            return found
        try:
            found, minus = self._mirrored(node)
        except Stuck:
            return None
        if minus is not None:
            self.negative[ref] = minus
        return found

    def _mirrored(self, node: Node) -> tuple[Sum | None, Sum | None]:
        """The node as a value, or as minus a value."""
        plus, reduce = _OPPOSITE[self.ring.name]
        if isinstance(node, Contract):
            inner = self.negative.get(node.arg) if node.op == reduce else None
            return None, None if inner is None else self.algebra.contract(inner, node.axes)
        if not isinstance(node, Pointwise):
            return None, None
        if (other := self._negated(node)) is not None:
            return self.negative.get(other), self.values[other]
        if node.fn in ("add", "sub"):
            return self._moved(node.fn, *node.args)
        one, two = (self._minus(a) for a in (node.args[0], *node.args)[-2:])
        if one is None or two is None:
            return None, None
        if node.fn == plus:
            return None, self.algebra.plus(one, two)
        mask = self.values[node.args[0]] if node.fn == "where" else None
        free = mask is not None and mask.free
        return None, self.algebra.select(self._ref(mask), one, two) if mask and free else None

    def _negated(self, node: Pointwise) -> Ref | None:
        """x of ``-x`` and of ``-1 * x``."""
        if node.fn == "neg":
            return node.args[0]
        signs = [a for a in node.args if self.program.nodes[a] == Const(-1.0)] if node.fn == "mul" else []
        return next((a for a in node.args if a not in signs), None) if signs else None

    def _moved(self, fn: str, x: Ref, y: Ref) -> tuple[Sum | None, Sum | None]:
        """A sum or difference of which one side is free of the state."""
        by, value = self.values[x], self.values[y]
        if by is not None and by.free:
            there = self._ref(by)
            back = self.build.call("neg", there)
            minus = self.negative.get(y)
            if fn == "add":
                return None, self._times(minus, back)
            return self._times(minus, there), self._times(value, back)
        if value is None or not value.free:
            return None, None
        there = self._ref(value)
        return None, self._times(
            self.negative.get(x), there if fn == "sub" else self.build.call("neg", there)
        )

    def _times(self, value: Sum | None, factor: Ref) -> Sum | None:
        return None if value is None else self.algebra.times(value, factor)

    def _minus(self, ref: Ref) -> Sum | None:
        """A node as minus a value: what is free of the state is minus its negative."""
        value = self.values[ref]
        if value is not None and value.free:
            return Sum((), self.build.call("neg", self._ref(value)))
        return self.negative.get(ref)


__all__ = ["Mirror"]
