"""Matrices in another semiring over a whole chunk: products of steps, in a tree.

Takes a stage ``h_t = A_t h_{t-1} + b_t`` whose sums and products are those of (max, +), (min, +),
(logaddexp, +) or (or, and), A a matrix over axes of the carry, over several carries, or both; leaves
every later read of the states, and the states after the chunk.  Steps are pairs (A, b), and two steps
are one:

    (A_2, b_2) (A_1, b_1) = (A_2 A_1, A_2 b_1 + b_2)

A chunk has one axis of positions per prime factor of its length.  Up the tree, the steps along
the innermost axis become one, then those of the next; the last pair, which no state reaches, takes
the state over the whole chunk by one product.  Down the tree, the states before every position
follow from that before the chunk by products with vectors.

Refuses carries that are coupled in (or, and): one that takes the place of another keeps its number,
and a product of truth values would make it 1.
Sources: Blelloch 1990, "Prefix sums and their applications"; Särkkä and García-Fernández 2021,
"Temporal parallelization of Bayesian smoothers", for the same scan over Markov models.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from tenfuse.algebra.chunks.entries import picked, stacked
from tenfuse.algebra.chunks.lift import Lift, Read, Unchunkable, aligned_to
from tenfuse.algebra.chunks.response import Linear
from tenfuse.algebra.recurrence import Affine, Recurrence, Stage
from tenfuse.algebra.rings import RINGS, joined, product, reduced, scaled
from tenfuse.step.program import AxisName, CarrySpec, Position, Ref

Pair = tuple[Ref, Ref | None]
"""A matrix over rows and columns, and a vector over rows; no vector is the semiring's zero."""


def mixing(recurrence: Recurrence) -> bool:
    """Whether every stage is over another semiring, and one has a matrix over axes or over carries."""
    terms = [t for s in recurrence.stages for u in s.updates for t in u.terms]
    others = all(s.semiring != "sum-product" for s in recurrence.stages)
    coupled = any(len(s.carries) > 1 for s in recurrence.stages)
    return others and (coupled or any(t.contracted for t in terms))


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
    """The states of a stage's carries, over the names ``axes`` of the first one's update."""

    def __init__(self, stage: Stage, carries: Sequence[CarrySpec], lift: Lift) -> None:
        self.lift, self.build, self.ring = lift, lift.build, RINGS[stage.semiring]
        self.carries, self.names = stage.carries, [carries[j].next_axes for j in stage.carries]
        self.axes = self.names[0]
        self._fit()
        reads = [self._reads(i, u) for i, u in enumerate(stage.updates)]
        several = len(self.carries) > 1
        self.member = lift.fresh("member", len(self.carries)) if several else ""
        self.rows = ((self.member,) if several else ()) + self._mixed(reads)
        self.cols = tuple(lift.fresh(a) for a in self.rows)
        step = self._matrix(reads), self._offset(stage)
        self.scale = stage.scale
        starts = [self.build.input("carry", j, self.axes) for j in self.carries]
        self.starts = [scaled(self.build, start, 1 / self.scale) for start in starts]
        levels = self._up(step)
        self.whole = levels.pop()
        self.before = self._down(levels)
        self.after = self._applied(step, self.before)

    # -- what is read of the state ------------------------------------------------------

    def read(self, read: Read) -> Ref:
        moved, back = aligned_to(self.build, read, self.axes, self.lift.fresh)
        states = self.after if read.after else self.before
        value = picked(self.build, states, self.member, self.carries.index(read.carry))
        value = scaled(self.build, value, self.scale)
        return self.build.rename(self.lift.sums.product([*moved.factors, value], moved.bound), back)

    def split(self, read: Read) -> Linear | None:
        """No sum over numbers is linear in another semiring's states."""
        return None

    def final(self, carry: int) -> Ref:
        i = self.carries.index(carry)
        line, total = self._picked(self.whole, self.member, i)
        column = dict(zip(self.rows, self.cols, strict=True))
        member = column.pop(self.member, "")
        for k, start in enumerate(self.starts):  # one by one: what runs chunk after chunk has no positions
            begun = self.build.rename(start, column)
            found = self._product(picked(self.build, line, member, k), begun, tuple(column.values()))
            total = found if total is None else joined(self.build, self.ring, total, found)
        assert total is not None
        total = scaled(self.build, total, self.scale)
        return self.build.rename(total, dict(zip(self.axes, self.names[i], strict=True)))

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
        before = stacked(self.build, self.starts, self.member)
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
        matrix, offset = (None if ref is None else picked(self.build, ref, axis, index) for ref in pair)
        assert matrix is not None
        return matrix, offset

    # -- the step -------------------------------------------------------------------------

    def _fit(self) -> None:
        if len(self.carries) > 1 and self.ring.name == "or-and":
            raise Unchunkable("carries are coupled by truth values")
        lengths = {tuple(self.lift.sizes[a] for a in own) for own in self.names}
        if len(lengths) > 1:
            raise Unchunkable("coupled carries have different axes")

    def _reads(self, i: int, update: Affine) -> list[Read]:
        """What the update of the ``i``-th carry reads, over the common names."""
        form = self.lift.affine(dataclasses.replace(update, offset=None))
        if form.offset is not None:
            raise Unchunkable("the update reads a nonlinear function of the state")
        names, found = dict(zip(self.names[i], self.axes, strict=True)), []
        for read in form.reads:
            if read.carry not in self.carries or read.after:
                raise Unchunkable("the update reads another carry")
            kept = zip(self.names[i], read.names, strict=True)
            if any(own != name for own, name in kept if name not in read.bound):
                raise Unchunkable("the update permutes dimensions of its carry")
            here = tuple(a if a in read.bound else names[a] for a in read.names)
            factors = tuple(self.build.rename(f, names) for f in read.factors)
            found.append(dataclasses.replace(read, names=here, factors=factors))
        if not found:
            raise Unchunkable("the update does not read its carry")
        return found

    def _mixed(self, reads: Sequence[Sequence[Read]]) -> tuple[AxisName, ...]:
        """The axes of the carries that some term sums over."""
        every = [r for line in reads for r in line]
        return tuple(own for k, own in enumerate(self.axes) if any(r.names[k] in r.bound for r in every))

    def _offset(self, stage: Stage) -> Ref | None:
        """``b`` over ``rows``."""
        if all(u.offset is None for u in stage.updates):
            return None
        entries = []
        for own, update in zip(self.names, stage.updates, strict=True):
            zero = self.build.const(self.ring.zero)
            offset = zero if update.offset is None else self._truth(self.lift.value(update.offset))
            entries.append(self.build.rename(offset, dict(zip(own, self.axes, strict=True))))
        return stacked(self.build, entries, self.member)

    def _matrix(self, reads: Sequence[Sequence[Read]]) -> Ref:
        """``A`` over ``rows`` and ``cols``."""
        cols = dict(zip(self.rows, self.cols, strict=True))
        member = cols.pop(self.member, "")
        lines = []
        for line in reads:
            entries = [[self._coefficient(r, cols) for r in line if r.carry == j] for j in self.carries]
            lines.append(stacked(self.build, [self._plus(parts) for parts in entries], member))
        return stacked(self.build, lines, self.member)

    def _plus(self, parts: Sequence[Ref]) -> Ref:
        """Their sum; of none, the semiring's zero."""
        total = parts[0] if parts else self.build.const(self.ring.zero)
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
