"""The chunk theorem: a low-rank recurrence over a whole chunk at once.

Takes the parts of ``S_t = a_t S_{t-1} + u_t (w_t . S_{t-1}) + writes_t`` over the positions
of a chunk; leaves every later read of the state, and the state after the chunk.  With
``rho(t, s)`` the product of the gates after s up to t and z_t = w_t . S_{t-1},

    S_t   = rho(t, 0) S_0 + sum_{s <= t} rho(t, s) (writes_s + u_s z_s)
    (I - L) Z = w_t . rho(t-1, 0) S_0 + sum_{s < t} w_t . rho(t-1, s) writes_s
    L[t, s]   = w_t . rho(t-1, s) u_s  for s < t

Carries that read each other are one state with one more axis: a and rho are small matrices
over it, u and w vectors; written out, the lines above are sums over the carries.  Nothing of
the size of a state is computed where no chain of gates leads from one carry to the other.

Writes that add states of an earlier stage are sums ``coefficient * g`` with g the values of its
carries before the chunk (see ``response``): the same two lines hold for the coefficients.
``L`` is strictly lower triangular whatever u and w are.  A step with several u and w has
them along one more axis, which the triangular system takes as the inner part of its order:
it is solved in the order in which the loop itself would have computed Z.
Sources: Bischof and Van Loan 1987, "The WY representation for products of Householder
matrices"; Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over
Sequence Length", section 3; the general gate, rank, coupling and read position are derived here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from tenfuse.algebra.chunks.decay import Positions
from tenfuse.algebra.chunks.decays import decays
from tenfuse.algebra.chunks.entries import picked, stacked
from tenfuse.algebra.chunks.lift import Read, aligned_to
from tenfuse.algebra.chunks.response import Linear, Response, added, summed, value
from tenfuse.algebra.chunks.summed import Sums
from tenfuse.algebra.chunks.writes import Erase, Inflow, LowRank, Product, Write
from tenfuse.step.program import AxisName, Position, Ref, Solve


@dataclasses.dataclass(frozen=True)
class System:
    """The triangular system of z: what z reads of the states, ``-L``, and its axes."""

    reads: tuple[tuple[int, Read], ...]
    lower: Ref
    rows: tuple[AxisName, ...]
    cols: tuple[AxisName, ...]


class ChunkedLowRank:
    """The states of a stage's carries within a chunk, read but never spelled out.

    In what follows i, j and k count the stage's carries; ``writes`` and ``inflows`` say which
    carry they go to.
    """

    def __init__(
        self,
        parts: LowRank,
        sums: Sums,
        at: Positions,
        fresh: Callable[..., AxisName],
    ) -> None:
        self.parts, self.sums, self.build, self.at, self.fresh = parts, sums, sums.build, at, fresh
        self.sizes = sums.sizes
        self.members = range(len(parts.carries))
        self.decay = decays(self.build, parts.gates, at, self.sizes, fresh)
        self.states = [self.build.input("carry", j, parts.axes) for j in parts.carries]
        self.writes = [(k, w) for k in self.members for w in parts.writes[k]]
        self.inflows = [(k, f) for k in self.members for f in parts.inflows[k]]
        if parts.erases:
            self.erase = self._one(parts.erases)
            self.system = self._triangular()
            passed = [written for k, f in self.inflows for written in self._passed(k, f)]
            self.writes = self._shared([*self.writes, *self._erased(self._z())])
            self.inflows += passed

    def read(self, read: Read) -> Ref:
        """The read at every position, over the positions and its free axes."""
        i = self.parts.carries.index(read.carry)
        moved, back = aligned_to(self.build, read, self.parts.axes, self.fresh)
        parts = self._initial(i, moved)
        parts += [p for k, w in self.writes for p in self._written(i, moved, k, w)]
        parts += value(self.sums, Linear(None, tuple(self._responses(i, moved, self.inflows))))
        return self.build.rename(self.sums.add(parts), back)

    def split(self, read: Read) -> Linear | None:
        """The read as a sum linear in the carries before the chunk, where only they are states."""
        if any(self.sums.stateful(f) for f in self._coefficients()):
            return None
        i = self.parts.carries.index(read.carry)
        moved, back = aligned_to(self.build, read, self.parts.axes, self.fresh)
        writes = [(k, w) for k in self.members for w in self.parts.writes[k]]
        inflows = list(self.inflows)
        if self.parts.erases:
            known = self._known()
            writes = self._shared([*writes, *(self._erased(known) if known is not None else [])])
            inflows += self._started()
        found = [p for k, w in writes for p in self._written(i, moved, k, w)]
        through = Linear(self.sums.add(found), tuple(self._responses(i, moved, inflows)))
        own = Linear(None, tuple(self._own(i, read.after)))
        answers = summed(self.sums, self.fresh, own, moved.factors, moved.bound, back)
        return added(self.sums, [answers, summed(self.sums, self.fresh, through, (), (), back)])

    def final(self, carry: int) -> Ref:
        """The state after the chunk."""
        i = self.parts.carries.index(carry)
        parts = [
            self.sums.product([*kept, state])
            for j, state in enumerate(self.states)
            if (kept := self.decay.whole(i, j)) is not None
        ]
        rows = set(self.at.rows)
        for k, w in self.writes:
            if (end := self.decay.end(i, k)) is not None:
                parts.append(self.sums.product([*w.factors, *end], w.bound | rows))
        for k, f in self.inflows:
            if (end := self.decay.end(i, k)) is not None:
                coefficient = self.sums.product([*f.factors, *end], f.bound | rows)
                parts.append(self.sums.product([coefficient, f.start], f.kept))
        names = dict(zip(self.parts.axes, self.parts.names[i], strict=True))
        return self.build.rename(self.sums.add(parts), names)

    def _coefficients(self) -> Iterator[Ref]:
        """Everything that the updates read beside the states."""
        products: list[Product | None] = [w.factors for own in self.parts.writes for w in own]
        products += [f.factors for _, f in self.inflows]
        products += [p for e in self.parts.erases for p in (*e.u, *e.w)]
        yield from (f for p in products if p is not None for f in p)
        yield from (g for line in self.parts.gates for g in line if g is not None)

    def _own(self, i: int, inclusive: bool) -> Iterator[Response]:
        """What carry ``i`` has of the carries before the chunk by decay alone."""
        for j, state in enumerate(self.states):
            if (start := self.decay.start(i, j, inclusive)) is not None:
                yield Response(self.sums.product(start), state)

    def _responses(self, i: int, read: Read, inflows: Sequence[tuple[int, Inflow]]) -> Iterator[Response]:
        """What is read of what earlier stages' starts wrote; their own axes are summed with them."""
        for k, f in inflows:
            later = f.kept | (read.bound & self.build.axes[f.start])
            first = dataclasses.replace(read, bound=read.bound - later)
            found = self._written(i, first, k, Write(f.factors, f.bound))
            if found:
                yield Response(self.sums.add(found), f.start, later)

    def _initial(self, i: int, read: Read) -> list[Ref]:
        return [
            self._spread(self.sums.product([*read.factors, *start, state], read.bound))
            for j, state in enumerate(self.states)
            if (start := self.decay.start(i, j, read.after)) is not None
        ]

    def _spread(self, ref: Ref) -> Ref:
        """Over the positions even where it is the same at all of them."""
        for axis in self.at.rows:
            if axis not in self.build.axes[ref]:
                there = self.build.call("ge", self.build.add(Position(axis)), self.build.const(0.0))
                ref = self.build.call("where", there, ref, self.build.const(0.0))
        return ref

    def _written(self, i: int, read: Read, k: int, write: Write) -> list[Ref]:
        """What earlier positions wrote to carry ``k`` of what is read of ``i``, in the read's own block
        and before it."""
        parts = []
        if (decay := self.decay.near(i, k, read.after)) is not None:
            near = self._columns(write, self.at.within)
            bound = {*read.bound, *near.bound, self.at.col}
            parts.append(self.sums.product([*read.factors, *decay, *near.factors], bound))
        if self.at.row_block and (decay := self.decay.far(i, k, read.after)) is not None:
            far = self._columns(write, self.at.to_cols)
            bound = {*read.bound, *far.bound, *self.at.cols}
            parts.append(self.sums.product([*read.factors, *decay, *far.factors], bound))
        return parts

    def _columns(self, write: Write, names: dict[AxisName, AxisName]) -> Write:
        names = {**names, **{a: self.fresh(a) for a in sorted(write.bound)}}
        factors = tuple(self.build.rename(f, names) for f in write.factors)
        return Write(factors, frozenset(names[a] for a in write.bound))

    def _shared(self, writes: Sequence[tuple[int, Write]]) -> list[tuple[int, Write]]:
        """Writes in the same direction as one: ``k v - k z`` is ``k (v - z)``."""
        contracted = self.erase.contracted
        found: dict[tuple[int, tuple[Ref, ...]], list[Ref]] = {}
        alone = [(k, w) for k, w in writes if w.bound]
        for k, w in writes:
            if not w.bound:
                along = [f for f in w.factors if self.build.axes[f] & contracted]
                rest = [f for f in w.factors if f not in along]
                found.setdefault((k, tuple(sorted(along))), []).append(self.sums.product(rest))
        shared = [(k, Write((*along, self.sums.add(rests)))) for (k, along), rests in found.items()]
        return [*shared, *alone]

    def _one(self, erases: Sequence[Erase]) -> Erase:
        """Several erases as one, along a new axis."""
        if len(erases) == 1:
            return erases[0]
        flat = [one for e in erases for one in self._unrolled(e)]
        rank = self.fresh("rank", len(flat))
        u = tuple(self._along([e.u[i] for e in flat], rank) for i in self.members)
        w = tuple(self._along([e.w[i] for e in flat], rank) for i in self.members)
        return Erase(u, w, erases[0].contracted, frozenset({rank}))

    def _along(self, products: Sequence[Product | None], rank: AxisName) -> Product | None:
        """The products as entries along ``rank``."""
        if all(p is None for p in products):
            return None
        zero = self.build.const(0.0)
        entries = [zero if p is None else self.sums.product(p) for p in products]
        return (stacked(self.build, entries, rank),)

    def _unrolled(self, erase: Erase) -> list[Erase]:
        """The entries along the erase's own rank axes."""
        found = [erase]
        for axis in sorted(erase.rank):
            found = [
                Erase(
                    tuple(self._entry(u, axis, i) for u in e.u),
                    tuple(self._entry(w, axis, i) for w in e.w),
                    e.contracted,
                )
                for e in found
                for i in range(self.sizes[axis])
            ]
        return found

    def _entry(self, product: Product | None, axis: AxisName, index: int) -> Product | None:
        return None if product is None else tuple(picked(self.build, f, axis, index) for f in product)

    def _triangular(self) -> System:
        """``-L``, and what it is solved over."""
        erase = self.erase
        rank = tuple(sorted(erase.rank))
        reads = tuple(
            (j, Read(self.parts.carries[j], False, self.parts.axes, w, erase.contracted))
            for j, w in enumerate(erase.w)
            if w is not None
        )
        columns = {a: self.fresh(a) for a in rank}
        lower = self.build.call("neg", self._lower(reads, columns))
        return System(reads, lower, (*self.at.rows, *rank), (*self.at.cols, *columns.values()))

    def _erased(self, z: Ref) -> list[tuple[int, Write]]:
        """``u z``, carry by carry."""
        return [(k, Write((*u, z), self.erase.rank)) for k, u in enumerate(self.erase.u) if u is not None]

    def _z(self) -> Ref:
        """The solution of the triangular system."""
        known = self._known()
        parts = [] if known is None else [known]
        for j, state in enumerate(self.states):
            if (kept := self._kept(j)) is not None:
                parts.append(self.sums.product([kept, state], self.erase.contracted))
        return self.sums.add(parts)

    def _known(self) -> Ref | None:
        """The part of z that no state reaches."""
        known = [
            p
            for j, read in self.system.reads
            for k in self.members
            for w in self.parts.writes[k]
            for p in self._written(j, read, k, w)
        ]
        return self._solve(self.sums.add(known)) if known else None

    def _kept(self, j: int) -> Ref | None:
        """What z reads of carry ``j`` before the chunk."""
        parts = [
            self.sums.product([*read.factors, *start])
            for i, read in self.system.reads
            if (start := self.decay.start(i, j, False)) is not None
        ]
        return self._solve(self._spread(self.sums.add(parts))) if parts else None

    def _started(self) -> list[tuple[int, Inflow]]:
        """``u z`` for what z reads of the states before the chunk."""
        found = []
        for j, state in enumerate(self.states):
            kept = self._kept(j)
            if kept is None:
                continue
            names = {a: self.fresh(a) for a in sorted(self.erase.contracted)}
            kept, start = self.build.rename(kept, names), self.build.rename(state, names)
            found += self._flowing(kept, start, frozenset(names.values()))
        return found

    def _passed(self, k: int, inflow: Inflow) -> list[tuple[int, Inflow]]:
        """``u z`` for what z reads of what an earlier stage's start wrote to carry ``k``."""
        found = [r for j, read in self.system.reads for r in self._responses(j, read, [(k, inflow)])]
        by: dict[tuple[Ref, frozenset[AxisName]], list[Ref]] = {}
        for r in found:
            by.setdefault((r.start, r.bound), []).append(r.coefficient)
        return [
            flowing
            for (start, bound), coefficients in by.items()
            for flowing in self._flowing(self._solve(self._spread(self.sums.add(coefficients))), start, bound)
        ]

    def _flowing(self, z: Ref, start: Ref, kept: frozenset[AxisName]) -> list[tuple[int, Inflow]]:
        return [
            (k, Inflow((*u, z), self.erase.rank, start, kept))
            for k, u in enumerate(self.erase.u)
            if u is not None
        ]

    def _solve(self, right: Ref) -> Ref:
        return self.build.add(Solve(self.system.lower, right, self.system.rows, self.system.cols))

    def _lower(self, reads: Sequence[tuple[int, Read]], columns: dict[AxisName, AxisName]) -> Ref:
        """``L`` over the positions as rows and as columns."""
        b, at = self.build, self.at
        here, there = list[Ref](), list[Ref]()
        for j, read in reads:
            for k, u in enumerate(self.erase.u):
                if u is None:
                    continue
                if (decay := self.decay.near(j, k, False)) is not None:
                    near = [b.rename(f, {**at.within, **columns}) for f in u]
                    here.append(self.sums.product([*read.factors, *decay, *near], read.bound))
                if at.row_block and (decay := self.decay.far(j, k, False)) is not None:
                    far = [b.rename(f, {**at.to_cols, **columns}) for f in u]
                    there.append(self.sums.product([*read.factors, *decay, *far], read.bound))
        if not there:
            return self.sums.add(here)
        same = b.call("eq", b.add(Position(at.row_block)), b.add(Position(at.col_block)))
        return b.call("where", same, self.sums.add(here), self.sums.add(there))


__all__ = ["ChunkedLowRank"]
