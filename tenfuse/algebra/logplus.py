"""The normal form in (logaddexp, +), however a log-sum-exp is written.

Takes what ``Affine`` takes; leaves what it leaves.  ``m + log sum exp(x - m)`` equals
``logsumexp(x)`` for every finite m that is constant along the summed axes, and its
derivative does not depend on m either, whether m is cut or not.  So values x - m and
exp(x - m) are carried along beside the normal form of x until m is added back: it must be
the very node that was subtracted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from tenfuse.algebra.multiples import Multiples
from tenfuse.algebra.terms import Stuck, Sum
from tenfuse.step.program import Contract, Node, Pointwise, Ref


@dataclasses.dataclass(frozen=True)
class Shifted:
    """``value - shift``, or its exponential."""

    value: Sum
    shift: Ref
    exponential: bool = False


class LogPlus(Multiples):
    """``Multiples`` in the log-plus ring."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.shifted: dict[Ref, Shifted] = {}

    def _computed(self, ref: Ref, node: Node) -> Sum | None:
        found = super()._computed(ref, node)
        if found is None:
            try:
                found = self._shifted(ref, node)
            except Stuck:
                found = None
        return found

    def _shifted(self, ref: Ref, node: Node) -> Sum | None:
        """Note the node if it is a shifted value; the value itself once the shift is undone."""
        if isinstance(node, Contract):
            self._summed(ref, node)
        if not isinstance(node, Pointwise):
            return None
        first, last = node.args[0], node.args[-1]
        one, two = self.shifted.get(first), self.shifted.get(last)
        if node.fn == "sub" and self.values[first] is not None:
            self.shifted[ref] = Shifted(self.value(first), last)
        elif node.fn == "exp" and one and not one.exponential:
            self.shifted[ref] = dataclasses.replace(one, exponential=True)
        elif node.fn == "log" and one and one.exponential:
            self.shifted[ref] = dataclasses.replace(one, exponential=False)
        elif node.fn == "add" and one and two and one.exponential and two.exponential:
            if one.shift == two.shift:
                self.shifted[ref] = dataclasses.replace(one, value=self.algebra.plus(one.value, two.value))
        elif node.fn == "add":
            for side, other in ((one, last), (two, first)):
                if side and not side.exponential and side.shift == other:
                    return side.value
        return None

    def _summed(self, ref: Ref, node: Contract) -> None:
        inner = self.shifted.get(node.arg)
        if inner and inner.exponential and node.op == "sum" and not node.axes & self.axes[inner.shift]:
            value = self.algebra.contract(inner.value, node.axes)
            self.shifted[ref] = dataclasses.replace(inner, value=value)
