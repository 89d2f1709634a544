"""States that no state of their own stage reaches, over a whole chunk: what the updates add.

Takes a stage of the updates ``h_t = b_t`` (a delay line, a state whose gradient is cut at every
step); leaves every later read of the states, and the states after the chunk.  Nothing is scanned:

    h_t = b_t        h_{t-1} = b_{t-1}, at the first position the state before the chunk
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from tenfuse.algebra.chunks.entries import picked
from tenfuse.algebra.chunks.lift import Lift, Read, aligned_to
from tenfuse.algebra.chunks.response import Linear, Response, summed, value
from tenfuse.algebra.recurrence import Stage
from tenfuse.step.program import CarrySpec, Position, Ref, Shift


class ChunkedGiven:
    """The states of a stage's carries; ``row`` is the chunk's only axis of positions."""

    def __init__(self, stage: Stage, carries: Sequence[CarrySpec], lift: Lift) -> None:
        self.lift, self.build, self.sums = lift, lift.build, lift.sums
        (self.row,) = lift.rows
        self.axes = {j: carries[j].next_axes for j in stage.carries}
        self.linear = {
            j: Linear() if u.offset is None else lift.linear(u.offset)
            for j, u in zip(stage.carries, stage.updates, strict=True)
        }

    def read(self, read: Read) -> Ref:
        moved, back = aligned_to(self.build, read, self.axes[read.carry], self.lift.fresh)
        states = self._states(read)
        return self.build.rename(self.sums.product([*moved.factors, states], moved.bound), back)

    def split(self, read: Read) -> Linear | None:
        """The read as a sum linear in the carries before the chunk, where nothing else is a state."""
        linear = self.linear[read.carry]
        if linear.local is not None and self.sums.stateful(linear.local):
            return None
        if not read.after:
            start = Response(self._first(), self._start(read.carry))
            linear = self._at(linear, lambda ref: self.build.add(Shift(ref, self.row, 1)))
            linear = dataclasses.replace(linear, responses=(*linear.responses, start))
        moved, back = aligned_to(self.build, read, self.axes[read.carry], self.lift.fresh)
        return summed(self.sums, self.lift.fresh, linear, moved.factors, moved.bound, back)

    def final(self, carry: int) -> Ref:
        end = self.lift.sizes[self.row] - 1
        return self._value(self._at(self.linear[carry], lambda ref: picked(self.build, ref, self.row, end)))

    def _states(self, read: Read) -> Ref:
        states = self._value(self.linear[read.carry])
        if read.after:
            return states
        earlier = self.build.add(Shift(states, self.row, 1))
        return self.build.call("where", self._first(), self._start(read.carry), earlier)

    def _at(self, linear: Linear, at: Callable[[Ref], Ref]) -> Linear:
        """Taken at other positions: what enters the chunk is the same at all of them."""
        moved = [dataclasses.replace(r, coefficient=at(r.coefficient)) for r in linear.responses]
        return Linear(None if linear.local is None else at(linear.local), tuple(moved))

    def _value(self, linear: Linear) -> Ref:
        return self.sums.add(value(self.sums, linear))

    def _first(self) -> Ref:
        return self.build.call("eq", self.build.add(Position(self.row)), self.build.const(0.0))

    def _start(self, carry: int) -> Ref:
        return self.build.input("carry", carry, self.axes[carry])


__all__ = ["ChunkedGiven"]
