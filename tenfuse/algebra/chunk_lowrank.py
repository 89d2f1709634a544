"""The chunk theorem: a low-rank recurrence over a whole chunk at once.

Takes the parts of ``S_t = a_t S_{t-1} + u_t (w_t . S_{t-1}) + writes_t`` over the positions
of a chunk; leaves every later read of the state, and the state after the chunk.  With
``rho(t, s)`` the product of the gates after s up to t and z_t = w_t . S_{t-1},

    S_t   = rho(t, 0) S_0 + sum_{s <= t} rho(t, s) (writes_s + u_s z_s)
    (I - L) Z = w_t . rho(t-1, 0) S_0 + sum_{s < t} w_t . rho(t-1, s) writes_s
    L[t, s]   = w_t . rho(t-1, s) u_s  for s < t

``L`` is strictly lower triangular whatever u and w are.  A step with several u and w has
them along one more axis, which the triangular system takes as the inner part of its order:
it is solved in the order in which the loop itself would have computed Z.
Sources: Bischof and Van Loan 1987, "The WY representation for products of Householder
matrices"; Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over
Sequence Length", section 3; the general gate, rank and read position are derived here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tenfuse.algebra.decay import Decay, Positions
from tenfuse.algebra.lift import Read, aligned_to
from tenfuse.algebra.lowrank import Erase, LowRank, Write
from tenfuse.algebra.summed import Sums
from tenfuse.step.program import AxisName, Position, Ref, Solve


class ChunkedLowRank:
    """The states of one carry within a chunk, read but never spelled out."""

    def __init__(
        self,
        parts: LowRank,
        sums: Sums,
        at: Positions,
        fresh: Callable[..., AxisName],
    ) -> None:
        self.parts, self.sums, self.build, self.at, self.fresh = parts, sums, sums.build, at, fresh
        self.sizes = sums.sizes
        self.decay = Decay(sums.build, parts.gate, at, sums.sizes)
        self.state = self.build.input("carry", parts.carry, parts.axes)
        self.writes = list(parts.writes)
        if parts.erases:
            erase = self._one(parts.erases)
            self.writes = self._shared([*self.writes, self._solved(erase)], erase.contracted)

    def read(self, read: Read) -> Ref:
        """The read at every position, over the positions and its free axes."""
        moved, back = aligned_to(self.build, read, self.parts.axes, self.fresh)
        parts = [self._initial(moved), *(self._written(moved, w) for w in self.writes)]
        return self.build.rename(self.sums.add(parts), back)

    def final(self, carry: int) -> Ref:
        """The state after the chunk."""
        kept = [d for d in (self.decay.whole(), self.state) if d is not None]
        ends = [d for d in (self.decay.end(),) if d is not None]
        parts = [self.sums.product(kept)]
        for w in self.writes:
            parts.append(self.sums.product([*w.factors, *ends], w.bound | set(self.at.rows)))
        return self.sums.add(parts)

    def _initial(self, read: Read) -> Ref:
        start = self.decay.start(read.after)
        factors = [f for f in (*read.factors, start, self.state) if f is not None]
        return self._spread(self.sums.product(factors, read.bound))

    def _spread(self, ref: Ref) -> Ref:
        """Over the positions even where it is the same at all of them."""
        for axis in self.at.rows:
            if axis not in self.build.axes[ref]:
                there = self.build.call("ge", self.build.add(Position(axis)), self.build.const(0.0))
                ref = self.build.call("where", there, ref, self.build.const(0.0))
        return ref

    def _written(self, read: Read, write: Write) -> Ref:
        """What earlier positions wrote of what is read, in the read's own block and before it."""
        near, far = self._columns(write, self.at.within), self._columns(write, self.at.to_cols)
        bound = read.bound | near.bound
        parts = [
            self.sums.product(
                [*read.factors, self.decay.near(read.after), *near.factors], {*bound, self.at.col}
            )
        ]
        if self.at.row_block:
            factors = [*read.factors, *self.decay.far(read.after), *far.factors]
            bound = read.bound | far.bound
            parts.append(self.sums.product(factors, {*bound, *self.at.cols}))
        return self.sums.add(parts)

    def _columns(self, write: Write, names: dict[AxisName, AxisName]) -> Write:
        names = {**names, **{a: self.fresh(a) for a in sorted(write.bound)}}
        factors = tuple(self.build.rename(f, names) for f in write.factors)
        return Write(factors, frozenset(names[a] for a in write.bound))

    def _shared(self, writes: Sequence[Write], contracted: frozenset[AxisName]) -> list[Write]:
        """Writes in the same direction as one: ``k v - k z`` is ``k (v - z)``."""
        found: dict[tuple[Ref, ...], list[Ref]] = {}
        alone = [w for w in writes if w.bound]
        for w in writes:
            if not w.bound:
                along = [f for f in w.factors if self.build.axes[f] & contracted]
                rest = [f for f in w.factors if f not in along]
                found.setdefault(tuple(sorted(along)), []).append(self.sums.product(rest))
        return [*(Write((*along, self.sums.add(rests))) for along, rests in found.items()), *alone]

    def _one(self, erases: Sequence[Erase]) -> Erase:
        """Several erases as one, along a new axis."""
        if len(erases) == 1:
            return erases[0]
        flat = [one for e in erases for one in self._unrolled(e)]
        rank = self.fresh("rank", len(flat))
        u = self._stacked([self.sums.product(e.u) for e in flat], rank)
        w = self._stacked([self.sums.product(e.w) for e in flat], rank)
        return Erase((u,), (w,), erases[0].contracted, frozenset({rank}))

    def _unrolled(self, erase: Erase) -> list[Erase]:
        """The entries along the erase's own rank axes."""
        found = [erase]
        for axis in sorted(erase.rank):
            found = [
                Erase(
                    tuple(self._picked(u, axis, i) for u in e.u),
                    tuple(self._picked(w, axis, i) for w in e.w),
                    e.contracted,
                )
                for e in found
                for i in range(self.sizes[axis])
            ]
        return found

    def _picked(self, ref: Ref, axis: AxisName, index: int) -> Ref:
        b = self.build
        if axis not in b.axes[ref]:
            return ref
        here = b.call("eq", b.add(Position(axis)), b.const(index))
        return b.contract(b.call("where", here, ref, b.const(0.0)), axis)

    def _stacked(self, refs: Sequence[Ref], axis: AxisName) -> Ref:
        b, found = self.build, refs[-1]
        for i, ref in reversed(list(enumerate(refs[:-1]))):
            here = b.call("le", b.add(Position(axis)), b.const(i))
            found = b.call("where", here, ref, found)
        return found

    def _solved(self, erase: Erase) -> Write:
        """``u z`` with z the solution of the triangular system."""
        rank = tuple(sorted(erase.rank))
        read = Read(self.parts.carry, False, self.parts.axes, erase.w, erase.contracted)
        columns = {a: self.fresh(a) for a in rank}
        rows, cols = (*self.at.rows, *rank), (*self.at.cols, *columns.values())
        lower = self.build.call("neg", self._lower(read, erase, columns))
        known = [self._written(read, w) for w in self.parts.writes]
        z = self._solve(lower, self.sums.add(known), rows, cols) if known else None
        start = self.decay.start(False)
        coefficients = [f for f in (*erase.w, start) if f is not None]
        kept = self._solve(lower, self._spread(self.sums.product(coefficients)), rows, cols)
        initial = self.sums.product([kept, self.state], erase.contracted)
        z = initial if z is None else self.build.call("add", z, initial)
        return Write((*erase.u, z), erase.rank)

    def _solve(self, lower: Ref, right: Ref, rows: tuple[AxisName, ...], cols: tuple[AxisName, ...]) -> Ref:
        return self.build.add(Solve(lower, right, rows, cols))

    def _lower(self, read: Read, erase: Erase, columns: dict[AxisName, AxisName]) -> Ref:
        """``L`` over the positions as rows and as columns."""
        b, at = self.build, self.at
        near = [b.rename(u, {**at.within, **columns}) for u in erase.u]
        here = self.sums.product([*read.factors, self.decay.near(False), *near], read.bound)
        if not at.row_block:
            return here
        far = [b.rename(u, {**at.to_cols, **columns}) for u in erase.u]
        there = self.sums.product([*read.factors, *self.decay.far(False), *far], read.bound)
        same = b.call("eq", b.add(Position(at.row_block)), b.add(Position(at.col_block)))
        return b.call("where", same, here, there)


__all__ = ["ChunkedLowRank"]
