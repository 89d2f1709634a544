"""The normal form in another semiring than that of numbers, of values multiplied by numbers.

Takes what ``Affine`` takes, and the ``scale`` of the state; leaves what it leaves.  A state may be a multiple
of what is linear, ``h = scale * g``: ``-logsumexp(-(h + c))`` is a soft minimum, ``tau * logsumexp((h + c) /
tau)`` one of temperature tau.  Multiples of values with a normal form are carried along beside it until a
number undoes the factor; the next state must be the multiple that the state is.  In (or, and), whose product
is no addition, there are none.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

from tenfuse.algebra.affine import Affine
from tenfuse.algebra.scales import factor
from tenfuse.algebra.terms import Stuck, Sum
from tenfuse.step.program import Input, Node, Pointwise, Ref


@dataclasses.dataclass(frozen=True)
class Multiple:
    """``factor * value``; the factor is not 1."""

    value: Sum
    factor: Fraction


class Multiples(Affine):
    """``Affine`` of states that are ``scale`` times the ring's values."""

    def __init__(self, *args: Any, scale: Fraction = Fraction(1), **options: Any) -> None:
        super().__init__(*args, **options)
        self.scale = scale
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
        if found is not None or self.ring.times != "add":
            return found
        try:
            multiple = self._times(node)
        except Stuck:
            return None
        if multiple is None or multiple.factor == 1:
            return None if multiple is None else multiple.value
        self.multiples[ref] = multiple
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


__all__ = ["Multiple", "Multiples"]
