"""The normal form in (max, +) and (min, +) of values that are written as multiples of another.

Takes what ``Affine`` takes; leaves what it leaves.  Negation maps (max, +) onto (min, +), so a minimum may
be written ``-max(-x, -y)``: of negative multiples by the same number the opposite maximum is that of their
values, and of positive ones the ring's own is.
"""

from __future__ import annotations

from tenfuse.algebra.multiples import Multiple, Multiples
from tenfuse.step.program import Contract, Node, Pointwise

_OPPOSITE = {"max-plus": ("minimum", "min"), "min-plus": ("maximum", "max")}


class Mirror(Multiples):
    """``Multiples`` in (max, +) or (min, +)."""

    def _times(self, node: Node) -> Multiple | None:
        plus, reduce = _OPPOSITE[self.ring.name]
        if isinstance(node, Contract):
            inner = self.multiples.get(node.arg)
            if inner is None or node.op != (self.ring.reduce if inner.factor > 0 else reduce):
                return None
            return Multiple(self.algebra.contract(inner.value, node.axes), inner.factor)
        if not isinstance(node, Pointwise) or node.fn not in (plus, self.ring.plus):
            return super()._times(node)
        known = self._known(node.args[0]) or self._known(node.args[1])
        if known is None or node.fn != (self.ring.plus if known.factor > 0 else plus):
            return None
        one, two = (self._multiple(a, known.factor) for a in node.args)
        if one is None or two is None:
            return None
        return Multiple(self.algebra.plus(one, two), known.factor)


__all__ = ["Mirror"]
