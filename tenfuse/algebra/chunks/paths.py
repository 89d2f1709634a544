"""Matrices in another semiring over a whole chunk: products of steps, in a tree.

Takes a stage ``h_t = A_t h_{t-1} + b_t`` of one carry whose sums and products are those of
(max, +), (min, +), (logaddexp, +) or (or, and), A a matrix over axes of the carry; leaves every
later read of the state, and the state after the chunk.  Steps are pairs (A, b), and two steps are
one:

    (A_2, b_2) (A_1, b_1) = (A_2 A_1, A_2 b_1 + b_2)

A chunk has one axis of positions per prime factor of its length.  Up the tree, the steps along
the innermost axis become one, then those of the next; the last pair, which no state reaches, takes
the state over the whole chunk by one product.  Down the tree, the states before every position
follow from that before the chunk by products with vectors.
Sources: Blelloch 1990, "Prefix sums and their applications"; Särkkä and García-Fernández 2021,
"Temporal parallelization of Bayesian smoothers", for the same scan over Markov models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from tenfuse.algebra.chunks.lift import Lift, Read, Unchunkable, aligned_to
from tenfuse.algebra.chunks.response import Linear
from tenfuse.algebra.recurrence import Recurrence, Stage
from tenfuse.algebra.rings import RINGS, joined, product, reduced
from tenfuse.step.program import AxisName, CarrySpec, Position, Ref

Pair = tuple[Ref, Ref | None]
"""A matrix over rows and columns, and a vector over rows; no vector is the semiring's zero."""


def mixing(recurrence: Recurrence) -> bool:
    """Whether every stage is over another semiring, and one of them has a matrix."""
    terms = [t for s in recurrence.stages for u in s.updates for t in u.terms]
    others = all(s.semiring != "sum-product" for s in recurrence.stages)
    return others and any(t.contracted for t in terms)


def factors(length: int) -> list[int]:
    """The prime factors, smallest first."""
    found, p = [], 2
    while length > 1:
        while length % p == 0:
            found.append(p)
            length //= p
        p += 1
    return found or [1]


class ChunkedPaths:
    """The states of one carry."""

    def __init__(self, stage: Stage, carries: Sequence[CarrySpec], lift: Lift) -> None:
        if len(stage.carries) > 1:
            raise Unchunkable("several carries are coupled in another semiring than sum and product")
        self.lift, self.build, self.ring = lift, lift.build, RINGS[stage.semiring]
        (self.carry,) = stage.carries
        self.axes = carries[self.carry].next_axes
        reads = self._reads(stage)
        self.rows = tuple(own for i, own in enumerate(self.axes) if any(r.names[i] in r.bound for r in reads))
        self.cols = tuple(lift.fresh(a) for a in self.rows)
        offset = stage.updates[0].offset
        step = self._matrix(reads), None if offset is None else self._truth(lift.value(offset))
        self.start = self.build.input("carry", self.carry, self.axes)
        levels = self._up(step)
        self.whole = levels.pop()
        self.before = self._down(levels)
        self.after = self._applied(step, self.before)

    # -- what is read of the state ------------------------------------------------------

    def read(self, read: Read) -> Ref:
        moved, back = aligned_to(self.build, read, self.axes, self.lift.fresh)
        value = self.after if read.after else self.before
        return self.build.rename(self.lift.sums.product([*moved.factors, value], moved.bound), back)

    def split(self, read: Read) -> Linear | None:
        """No sum over numbers is linear in another semiring's states."""
        return None

    def final(self, carry: int) -> Ref:
        return self._applied(self.whole, self.start)

    # -- the tree -------------------------------------------------------------------------

    def _up(self, step: Pair) -> list[Pair]:
        """The pairs of one step, of the steps along the last axis of positions, and so on."""
        found = [step]
        for axis in reversed(self.lift.rows):
            total = self._picked(found[-1], axis, 0)
            for i in range(1, self.lift.sizes[axis]):
                total = self._composed(self._picked(found[-1], axis, i), total)
            found.append(total)
        return found

    def _down(self, levels: Sequence[Pair]) -> Ref:
        """The state before every position."""
        before = self.start
        for axis, level in zip(self.lift.rows, reversed(levels), strict=True):
            states = [before]
            for i in range(self.lift.sizes[axis] - 1):
                states.append(self._applied(self._picked(level, axis, i), states[-1]))
            before = states[-1]
            for i, state in reversed(list(enumerate(states[:-1]))):
                here = self.build.call("le", self.build.add(Position(axis)), self.build.const(i))
                before = self.build.call("where", here, state, before)
        return before

    def _composed(self, later: Pair, earlier: Pair) -> Pair:
        (a, b), (c, d) = later, earlier
        middle = {x: self.lift.fresh(x) for x in self.rows}
        left = self.build.rename(a, {y: middle[x] for x, y in zip(self.rows, self.cols, strict=True)})
        whole = self._product(left, self.build.rename(c, middle), tuple(middle.values()))
        return whole, b if d is None else self._applied((a, b), d)

    def _applied(self, pair: Pair, vector: Ref) -> Ref:
        matrix, offset = pair
        names = dict(zip(self.rows, self.cols, strict=True))
        found = self._product(matrix, self.build.rename(vector, names), self.cols)
        return found if offset is None else joined(self.build, self.ring, offset, found)

    def _product(self, left: Ref, right: Ref, axes: tuple[AxisName, ...]) -> Ref:
        return self._reduced(self.build.call(self.ring.times, left, right), axes)

    def _reduced(self, ref: Ref, axes: Collection[AxisName]) -> Ref:
        """The ring's sum over ``axes``; along those that ``ref`` lacks its entries are the same."""
        own = self.build.axes[ref]
        absent = [a for a in axes if a not in own]
        found = reduced(self.build, self.ring, ref, [a for a in axes if a in own])
        if not absent or self.ring.name != "log-plus":
            return found
        if self.lift.sums.dynamic & set(absent):
            raise Unchunkable("a constant is summed over a dimension of dynamic size")
        many = math.log(math.prod(self.lift.sizes[a] for a in absent))
        return self.build.call("add", found, self.build.const(many))

    def _picked(self, pair: Pair, axis: AxisName, index: int) -> Pair:
        matrix, offset = pair
        return self._entry(matrix, axis, index), None if offset is None else self._entry(offset, axis, index)

    def _entry(self, ref: Ref, axis: AxisName, index: int) -> Ref:
        if axis not in self.build.axes[ref]:
            return ref
        here = self.build.call("eq", self.build.add(Position(axis)), self.build.const(index))
        return self.build.contract(self.build.call("where", here, ref, self.build.const(0.0)), axis)

    # -- the step -------------------------------------------------------------------------

    def _reads(self, stage: Stage) -> tuple[Read, ...]:
        form = self.lift.affine(dataclasses.replace(stage.updates[0], offset=None))
        if form.offset is not None:
            raise Unchunkable("the update reads a nonlinear function of the state")
        for read in form.reads:
            if (read.carry, read.after) != (self.carry, False):
                raise Unchunkable("the update reads another carry")
            kept = zip(self.axes, read.names, strict=True)
            if any(own != name for own, name in kept if name not in read.bound):
                raise Unchunkable("the update permutes dimensions of its carry")
        if not form.reads:
            raise Unchunkable("the update does not read its carry")
        return form.reads

    def _matrix(self, reads: Sequence[Read]) -> Ref:
        """``A`` over ``rows`` and ``cols``."""
        cols = dict(zip(self.rows, self.cols, strict=True))
        parts = [self._coefficient(read, cols) for read in reads]
        total = parts[0]
        for part in parts[1:]:
            total = joined(self.build, self.ring, total, part)
        return total

    def _coefficient(self, read: Read, cols: Mapping[AxisName, AxisName]) -> Ref:
        """One term's entries: where it does not sum over a mixed axis, on the diagonal."""
        b = self.build
        names = {
            name: cols[own] for own, name in zip(self.axes, read.names, strict=True) if name in read.bound
        }
        found = product(b, self.ring, [self._truth(b.rename(f, names)) for f in read.factors])
        found = b.const(self.ring.one) if found is None else found
        found = self._reduced(found, sorted(read.bound - set(names)))
        for own, col in cols.items():
            if col not in names.values():
                here = b.call("eq", b.add(Position(own)), b.add(Position(col)))
                found = b.call("where", here, found, b.const(self.ring.zero))
        return found

    def _truth(self, ref: Ref) -> Ref:
        """Where the ring is that of truth values, any number but zero is true."""
        return self.build.call("ne", ref, self.build.const(0.0)) if self.ring.name == "or-and" else ref


__all__ = ["ChunkedPaths", "factors", "mixing"]
