"""Recurrences in another semiring over a whole chunk: a scan by itself, then the start.

Takes a stage ``h_t = a_t x h_{t-1} + b_t`` of one carry, entry by entry, in (max, +), (min, +),
(logaddexp, +) or (or, and); leaves every later read of the state, and the state after the chunk:

    l_t = a_t x l_{t-1} + b_t from l_0 = b_0        P_t = a_t x ... x a_1
    h_t = l_t + P_t x h_0

A maximum's derivative is a choice where it is tied, and the loop takes half of each side at every
step, in the order of the steps.  So the values of a maximum or minimum are routed: the share
s_t in {0, 1/2, 1} that h_t takes of a_t + h_{t-1} is read off the values, and

    h_t = s_t (h_{t-1} + a_t) + (1 - s_t) b_t

is a sum that has the loop's derivative.  Of the state after the chunk, where l and P + h_0 are
tied, half of the share of the earliest b_s that attains l goes to the start.  At infinite
values the shares of a tie are those of l and P + h_0.
Sources: Blelloch 1990, "Prefix sums and their applications"; Mohri 2002, "Semiring frameworks
and algorithms for shortest-distance problems"; the shares at ties are derived here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tenfuse.algebra.chunks.decay import running
from tenfuse.algebra.chunks.entries import picked
from tenfuse.algebra.chunks.lift import Lift, Read, Unchunkable, aligned_to
from tenfuse.algebra.chunks.response import Linear
from tenfuse.algebra.recurrence import Stage
from tenfuse.algebra.rings import RINGS, joined, scaled
from tenfuse.step.program import CarrySpec, Position, Ref, Scan, Shift

_BEATS = {"max-plus": "gt", "min-plus": "lt"}


class ChunkedRing:
    """The states of one carry; ``row`` is the chunk's only axis of positions."""

    def __init__(self, stage: Stage, carries: Sequence[CarrySpec], lift: Lift) -> None:
        if len(stage.carries) > 1:
            raise Unchunkable("several carries are coupled beside a recurrence over numbers")
        self.lift, self.build, self.ring = lift, lift.build, RINGS[stage.semiring]
        (self.row,) = lift.rows
        (self.carry,) = stage.carries
        self.axes = carries[self.carry].next_axes
        self.gate, self.offset = self._parts(stage)
        self.first = self.build.call("eq", self.build.add(Position(self.row)), self.build.const(0.0))
        self.scale = stage.scale
        start = self.build.input("carry", self.carry, self.axes)
        self.start = scaled(self.build, start, 1 / self.scale)
        self.power = self._power()
        self.local = None if self.offset is None else self._scan(self.gate, self.offset)
        self.routed = self.local is not None and stage.semiring in _BEATS
        self.states = self._states()

    # -- what is read of the state ------------------------------------------------------

    def read(self, read: Read) -> Ref:
        moved, back = aligned_to(self.build, read, self.axes, self.lift.fresh)
        value = self.states if read.after else self._where(self.first, self.start, self._earlier(self.states))
        value = scaled(self.build, value, self.scale)
        return self.build.rename(self.lift.sums.product([*moved.factors, value], moved.bound), back)

    def split(self, read: Read) -> Linear | None:
        """No sum over numbers is linear in another semiring's states."""
        return None

    def final(self, carry: int) -> Ref:
        return scaled(self.build, self._last(), self.scale)

    def _last(self) -> Ref:
        """The state after the chunk."""
        begun = self.build.call(self.ring.times, self._end(self.power), self.start)
        if self.local is None:
            return begun
        if not self.routed:
            return joined(self.build, self.ring, self._end(self.local), begun)
        return self._finally(begun)

    # -- building -----------------------------------------------------------------------

    def _parts(self, stage: Stage) -> tuple[Ref, Ref | None]:
        """The gate, and what is added."""
        (update,) = stage.updates
        form = self.lift.affine(dataclasses.replace(update, offset=None))
        if form.offset is not None:
            raise Unchunkable("the update reads a nonlinear function of the state")
        for read in form.reads:
            if (read.carry, read.after) != (self.carry, False):
                raise Unchunkable("the update reads another carry")
            if read.bound:
                raise Unchunkable("a matrix in another semiring than sum and product")
            if read.names != self.axes:
                raise Unchunkable("the update permutes dimensions of its carry")
        if not form.reads:
            raise Unchunkable("the update does not read its carry")
        one = self.build.const(self.ring.one)
        gates = [self._chained(self.ring.times, one, [self._truth(f) for f in r.factors]) for r in form.reads]
        offset = None if update.offset is None else self._truth(self.lift.value(update.offset))
        return self._chained(self.ring.plus, one, gates), offset

    def _truth(self, ref: Ref) -> Ref:
        """Where the ring is that of truth values, any number but zero is true."""
        zero = self.build.const(0.0)
        return self.build.call("ne", ref, zero) if self.ring.name == "or-and" else ref

    def _chained(self, fn: str, none: Ref, refs: Sequence[Ref]) -> Ref:
        total = refs[0] if refs else none
        for ref in refs[1:]:
            total = self.build.call(fn, total, ref)
        return total

    def _power(self) -> Ref:
        if self.ring.name == "or-and":
            length = self.lift.sizes[self.row]
            return running(self.build, self.gate, self.row, length, semiring=self.ring.name)
        return self._sum(self.build.const(1.0), self.gate)

    def _states(self) -> Ref:
        """At every position, after the step."""
        begun = self.build.call(self.ring.times, self.power, self.start)
        if self.local is None:
            return begun
        found = joined(self.build, self.ring, self.local, begun)
        return (
            self._route(found, self._where(self.first, self.start, self._earlier(found)))
            if self.routed
            else found
        )

    # -- maximum and minimum --------------------------------------------------------------

    def _route(self, values: Ref, before: Ref) -> Ref:
        """``values`` with the derivative of the steps: each takes the larger side, of a tie half."""
        b = self.build
        share = self._share(b.call("add", before, self.gate), values)
        begin = self._where(self.first, self._part(share, self.start), b.const(0.0))
        taken = self._taken(share, values)
        found = self._sum(share, b.call("add", taken, begin))
        return self._where(self._ordinary(values), found, values)

    def _finally(self, begun: Ref) -> Ref:
        """The larger of ``l`` and ``P + h_0`` after the chunk; see above for a tie of the two."""
        b, local = self.build, self.local
        assert local is not None and self.offset is not None
        none, half = b.const(0.0), b.const(0.5)
        held = self._where(self.first, self.offset, b.call("add", self._earlier(local), self.gate))
        share = self._where(self.first, none, self._share(held, local))
        wins = b.call("eq", share, none)
        route = self._sum(share, self._taken(share, local))
        alone = self._where(self._ordinary(self._end(local)), self._end(route), self._end(local))
        lost = self._end(self._sum(share, self._where(wins, half, none)))
        path = self._where(self._ordinary(local), self._where(wins, self.offset, self.gate), none)
        earliest = self._end(self._sum(b.call("ne", share, none), path))
        swap = b.call("mul", lost, b.call("sub", begun, earliest))
        tied = b.call("logical_and", b.call("eq", alone, begun), self._ordinary(begun))
        return self._where(tied, b.call("add", alone, swap), b.call(self.ring.plus, alone, begun))

    def _share(self, held: Ref, values: Ref) -> Ref:
        """What a step takes of ``held``: all of it, half at a tie, nothing; of infinite values nothing."""
        b = self.build
        assert self.offset is not None
        beats = b.call(_BEATS[self.ring.name], held, self.offset)
        share = self._where(b.call("eq", held, self.offset), b.const(0.5), beats)
        return self._where(self._ordinary(values), share, b.const(0.0))

    def _taken(self, share: Ref, values: Ref) -> Ref:
        """What the steps add: the gate's share and the offset's."""
        assert self.offset is not None
        rest = self.build.call("sub", self.build.const(1.0), share)
        both = self.build.call("add", self._part(share, self.gate), self._part(rest, self.offset))
        return self._where(self._ordinary(values), both, self.build.const(0.0))

    def _part(self, share: Ref, ref: Ref) -> Ref:
        """``share * ref``, of infinite values too where the share is nothing."""
        return self._where(share, self.build.call("mul", share, ref), self.build.const(0.0))

    def _ordinary(self, ref: Ref) -> Ref:
        """Neither infinite nor NaN."""
        return self.build.call("lt", self.build.call("abs", ref), self.build.const(math.inf))

    # -- nodes ----------------------------------------------------------------------------

    def _scan(self, gate: Ref, arg: Ref) -> Ref:
        # No scan reads its first gate; its derivative would compare it.
        if self.ring.name in _BEATS:
            gate = self._where(self.first, self.build.const(self.ring.zero), gate)
        return self.build.add(Scan(self.row, gate, arg, semiring=self.ring.name))

    def _sum(self, decay: Ref, arg: Ref) -> Ref:
        return self.build.add(Scan(self.row, decay, arg))

    def _where(self, condition: Ref, yes: Ref, no: Ref) -> Ref:
        return self.build.call("where", condition, yes, no)

    def _earlier(self, ref: Ref) -> Ref:
        return self.build.add(Shift(ref, self.row, 1))

    def _end(self, ref: Ref) -> Ref:
        return picked(self.build, ref, self.row, self.lift.sizes[self.row] - 1)


__all__ = ["ChunkedRing"]
