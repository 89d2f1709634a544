"""The normal form in (logaddexp, +), however a log-sum-exp is written.

Takes what ``Affine`` takes; leaves what it leaves.  ``m + log sum exp(x - m)`` equals
``logsumexp(x)`` for every finite m that is constant along the summed axes, and its
derivative does not depend on m either, whether m is cut or not.  So values x - m and
exp(x - m) are carried along beside the normal form of x until m is added back: it must be
the very node that was subtracted.

A state may be a multiple of what is linear, ``h = scale * g``: ``-logsumexp(-(h + c))`` is a soft minimum,
``tau * logsumexp((h + c) / tau)`` one of temperature tau.  Multiples of values with a normal form are
carried along too, and the next state must be the multiple that the state is.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

from tenfuse.algebra.affine import Affine
from tenfuse.algebra.scales import factor
from tenfuse.algebra.terms import Stuck, Sum
from tenfuse.step.program import Contract, Input, Node, Pointwise, Ref


@dataclasses.dataclass(frozen=True)
class Shifted:
    """``value - shift``, or its exponential."""

    value: Sum
    shift: Ref
    exponential: bool = False


@dataclasses.dataclass(frozen=True)
class Multiple:
    """``factor * value``; the factor is not 1."""

    value: Sum
    factor: Fraction


class LogPlus(Affine):
    """``Affine`` in the log-plus ring, of states that are ``scale`` times its values."""

    def __init__(self, *args: Any, scale: Fraction, **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = scale
        self.shifted: dict[Ref, Shifted] = {}
        self.multiples: dict[Ref, Multiple] = {}

    def update(self, ref: Ref) -> Sum:
        """The next value of a state, over ``scale``."""
        self.evaluate(ref)
        found = self._multiple(ref, self.scale)
        if found is None:
            raise Stuck
        return found

    def _evaluated(self, ref: Ref) -> Sum | None:
        found = super()._evaluated(ref)
        if found is None or found.free or self.scale == 1 or not isinstance(self.program.nodes[ref], Input):
            return found
        self.multiples[ref] = Multiple(found, self.scale)
        return None

    def _computed(self, ref: Ref, node: Node) -> Sum | None:
        found = super()._computed(ref, node)
        if found is None:
            try:
                found = self._shifted(ref, node)
            except Stuck:
                found = None
        if found is None:
            try:
                found = self._noted(ref, self._times(node))
            except Stuck:
                found = None
        return found

    # -- multiples of values --------------------------------------------------------------

    def _noted(self, ref: Ref, found: Multiple | None) -> Sum | None:
        """The value itself where the factor is 1."""
        if found is None or found.factor == 1:
            return None if found is None else found.value
        self.multiples[ref] = found
        return None

    def _times(self, node: Node) -> Multiple | None:
        """The node as a multiple of a value."""
        if not isinstance(node, Pointwise):
            return None
        if (scaled := factor(self.program, node)) is not None:
            inner = self._known(scaled[0])
            return None if inner is None else Multiple(inner.value, inner.factor * scaled[1])
        if node.fn == "where":
            return self._selected(*node.args)
        if node.fn not in ("add", "sub"):
            return None
        x, y = node.args
        sign = -1 if node.fn == "sub" else 1
        for state, other, first, second in ((x, y, 1, sign), (y, x, sign, 1)):
            inner, free = self._known(state), self.values[other]
            if inner is None or free is None or not free.free:
                continue
            whole = inner.factor * first
            moved = self.algebra.number(self._ref(free), float(second / whole))
            return Multiple(self.algebra.times(inner.value, moved), whole)
        return None

    def _known(self, ref: Ref) -> Multiple | None:
        """A node that depends on the state, as a multiple."""
        value = self.values[ref]
        if value is not None and not value.free:
            return Multiple(value, Fraction(1))
        return self.multiples.get(ref)

    def _selected(self, mask: Ref, x: Ref, y: Ref) -> Multiple | None:
        """A mask chooses between two multiples by the same factor."""
        chosen, known = self.values[mask], self._known(x) or self._known(y)
        if known is None or chosen is None or not chosen.free:
            return None
        one, two = self._multiple(x, known.factor), self._multiple(y, known.factor)
        if one is None or two is None:
            return None
        return Multiple(self.algebra.select(self._ref(chosen), one, two), known.factor)

    def _multiple(self, ref: Ref, by: Fraction) -> Sum | None:
        """What a node is ``by`` times of; any number is, if it is free of the state."""
        value = self.values[ref]
        if value is not None and value.free:
            return Sum((), self.algebra.number(self._ref(value), float(1 / by)))
        known = self._known(ref)
        return known.value if known is not None and known.factor == by else None

    # -- exponentials of values less a shift ----------------------------------------------

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
