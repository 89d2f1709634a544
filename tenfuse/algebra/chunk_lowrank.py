"""The chunk theorem: a low-rank recurrence over a whole chunk at once.

Takes the parts of ``S_t = a_t S_{t-1} + u_t (w_t . S_{t-1}) + writes_t`` over the positions
of a chunk; leaves every later read of the state, and the state after the chunk.  With
``rho(t, s)`` the product of the gates after s up to t and z_t = w_t . S_{t-1},

    S_t   = rho(t, 0) S_0 + sum_{s <= t} rho(t, s) (writes_s + u_s z_s)
    (I - L) Z = w_t . rho(t-1, 0) S_0 + sum_{s < t} w_t . rho(t-1, s) writes_s
    L[t, s]   = w_t . rho(t-1, s) u_s  for s < t

Writes that add states of an earlier stage are sums ``coefficient * g`` with g the values of its
carries before the chunk (see ``response``): the same two lines hold for the coefficients.
``L`` is strictly lower triangular whatever u and w are.  A step with several u and w has
them along one more axis, which the triangular system takes as the inner part of its order:
it is solved in the order in which the loop itself would have computed Z.
Sources: Bischof and Van Loan 1987, "The WY representation for products of Householder
matrices"; Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over
Sequence Length", section 3; the general gate, rank and read position are derived here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from tenfuse.algebra.decay import Decay, Positions
from tenfuse.algebra.lift import Read, aligned_to
from tenfuse.algebra.lowrank import Erase, Inflow, LowRank, Write
from tenfuse.algebra.response import Linear, Response, added, summed, value
from tenfuse.algebra.summed import Sums
from tenfuse.step.program import AxisName, Position, Ref, Solve


@dataclasses.dataclass(frozen=True)
class System:
    """The triangular system of z: what z reads of a state, ``-L``, and its axes."""

    read: Read
    lower: Ref
    rows: tuple[AxisName, ...]
    cols: tuple[AxisName, ...]


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
        self.writes, self.inflows = list(parts.writes), list(parts.inflows)
        if parts.erases:
            self.erase = self._one(parts.erases)
            self.system = self._triangular()
            self.writes = self._shared([*self.writes, self._solved()])
            self.inflows += [self._passed(w) for w in parts.inflows]

    def read(self, read: Read) -> Ref:
        """The read at every position, over the positions and its free axes."""
        moved, back = aligned_to(self.build, read, self.parts.axes, self.fresh)
        parts = [self._initial(moved), *(self._written(moved, w) for w in self.writes)]
        parts += value(self.sums, Linear(None, tuple(self._response(moved, w) for w in self.inflows)))
        return self.build.rename(self.sums.add(parts), back)

    def split(self, read: Read) -> Linear | None:
        """The read as a sum linear in the carries before the chunk, where only they are states."""
        products = [*(w.factors for w in self.parts.writes), *(w.factors for w in self.inflows)]
        products += [f for e in self.parts.erases for f in (e.u, e.w)]
        coefficients = [self.parts.gate, *(f for factors in products for f in factors)]
        if any(f is not None and self.sums.stateful(f) for f in coefficients):
            return None
        moved, back = aligned_to(self.build, read, self.parts.axes, self.fresh)
        writes, inflows = list(self.parts.writes), list(self.inflows)
        if self.parts.erases:
            known = self._known()
            local = [] if known is None else [Write((*self.erase.u, known), self.erase.rank)]
            writes = self._shared([*writes, *local])
            inflows.append(self._started())
        found = [self._written(moved, w) for w in writes]
        start = self.decay.start(read.after)
        own = Response(self.build.const(1.0) if start is None else start, self.state)
        answers = summed(self.sums, self.fresh, Linear(None, (own,)), moved.factors, moved.bound, back)
        through = Linear(self.sums.add(found), tuple(self._response(moved, w) for w in inflows))
        return added(self.sums, [answers, summed(self.sums, self.fresh, through, (), (), back)])

    def final(self, carry: int) -> Ref:
        """The state after the chunk."""
        kept = [d for d in (self.decay.whole(), self.state) if d is not None]
        ends = [d for d in (self.decay.end(),) if d is not None]
        parts = [self.sums.product(kept)]
        for w in self.writes:
            parts.append(self.sums.product([*w.factors, *ends], w.bound | set(self.at.rows)))
        for one in self.inflows:
            coefficient = self.sums.product([*one.factors, *ends], one.bound | set(self.at.rows))
            parts.append(self.sums.product([coefficient, one.start], one.kept))
        return self.sums.add(parts)

    def _response(self, read: Read, write: Inflow) -> Response:
        """What is read of what an earlier stage's start wrote; its own axes are summed with it."""
        later = write.kept | (read.bound & self.build.axes[write.start])
        first = dataclasses.replace(read, bound=read.bound - later)
        return Response(self._written(first, Write(write.factors, write.bound)), write.start, later)

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

    def _shared(self, writes: Sequence[Write]) -> list[Write]:
        """Writes in the same direction as one: ``k v - k z`` is ``k (v - z)``."""
        contracted = self.erase.contracted
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

    def _triangular(self) -> System:
        """``-L``, and what it is solved over."""
        erase = self.erase
        rank = tuple(sorted(erase.rank))
        read = Read(self.parts.carry, False, self.parts.axes, erase.w, erase.contracted)
        columns = {a: self.fresh(a) for a in rank}
        lower = self.build.call("neg", self._lower(read, erase, columns))
        return System(read, lower, (*self.at.rows, *rank), (*self.at.cols, *columns.values()))

    def _solved(self) -> Write:
        """``u z`` with z the solution of the triangular system."""
        z = self._known()
        initial = self.sums.product([self._kept(), self.state], self.erase.contracted)
        z = initial if z is None else self.build.call("add", z, initial)
        return Write((*self.erase.u, z), self.erase.rank)

    def _known(self) -> Ref | None:
        """The part of z that no state reaches."""
        known = [self._written(self.system.read, w) for w in self.parts.writes]
        return self._solve(self.sums.add(known)) if known else None

    def _kept(self) -> Ref:
        """What z reads of the state before the chunk."""
        start = self.decay.start(False)
        coefficients = [f for f in (*self.erase.w, start) if f is not None]
        return self._solve(self._spread(self.sums.product(coefficients)))

    def _started(self) -> Inflow:
        """``u z`` for what z reads of the state before the chunk."""
        names = {a: self.fresh(a) for a in sorted(self.erase.contracted)}
        kept, start = (self.build.rename(ref, names) for ref in (self._kept(), self.state))
        return Inflow((*self.erase.u, kept), self.erase.rank, start, frozenset(names.values()))

    def _passed(self, write: Inflow) -> Inflow:
        """``u z`` for what z reads of what an earlier stage's start wrote."""
        read = self._response(self.system.read, write)
        z = self._solve(self._spread(read.coefficient))
        return Inflow((*self.erase.u, z), self.erase.rank, read.start, read.bound)

    def _solve(self, right: Ref) -> Ref:
        return self.build.add(Solve(self.system.lower, right, self.system.rows, self.system.cols))

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
