"""Elementwise, block and dense recurrences over a whole chunk: a scan from zero, then the start.

Takes a stage whose updates are ``h_t = A_t h_{t-1} + b_t``, A a gate, a small matrix over
the stage's carries, or a matrix over axes of the carry; leaves every later read of the
states and the states after the chunk:

    l_t = A_t l_{t-1} + b_t from l_0 = b_0        P_t = A_t A_{t-1} ... A_1
    h_t = l_t + P_t h_0

Only the last line reads the state.  Where A is the same at every step, P is the same for
all chunks.  Where b_t adds the states of an earlier stage, b_t = c_t + sum_i B_t,i g_i with g
the values of its carries before the chunk, l answers to c and one more scan to every B_i (see
``response``), so that no scan reads a state.
Sources: Blelloch 1990, "Prefix sums and their applications"; Martin and Cundy 2018,
"Parallelizing linear recurrent neural nets over sequence length".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from tenfuse.algebra.chunks.decay import running
from tenfuse.algebra.chunks.entries import picked, stacked
from tenfuse.algebra.chunks.lift import Form, Lift, Read, Unchunkable, aligned_to
from tenfuse.algebra.chunks.response import Linear, Response, apart, summed, value
from tenfuse.algebra.recurrence import Stage
from tenfuse.step.program import (
    AxisName,
    CarrySpec,
    Position,
    Ref,
    Scan,
    Shift,
)


class ChunkedScan:
    """The states of a stage's carries, over the names ``axes`` of the first one's update.

    ``row`` is the chunk's only axis of positions.
    """

    def __init__(self, stage: Stage, carries: Sequence[CarrySpec], lift: Lift) -> None:
        self.stage, self.lift, self.build, self.sums = stage, lift, lift.build, lift.sums
        (self.row,) = lift.rows
        self.specs = [carries[j] for j in stage.carries]
        self.axes = self.specs[0].next_axes
        self.member: AxisName = ""
        self.local: Ref | None = None
        self.answers: tuple[Response, ...] = ()
        """What earlier stages' values before the chunk add to the states; like ``local``."""
        self._fit()
        self.inflows: list[tuple[Response, ...]] = []
        """What the update of every carry adds of earlier stages."""
        forms = [self._form(i) for i in range(len(self.specs))]
        self.mixed = self._mixed(forms)
        several = len(self.specs) > 1
        self.member = lift.fresh("member", len(self.specs)) if several else ""
        lead = (self.member,) if several else ()
        self.rows = (*lead, *self.mixed)
        self.cols = tuple(lift.fresh(a) for a in self.rows)
        self.starts = tuple(lift.fresh(a) for a in self.rows)
        self._build(forms)

    # -- what is read of the states ---------------------------------------------------

    def read(self, read: Read) -> Ref:
        i = self.stage.carries.index(read.carry)
        moved, back = aligned_to(self.build, read, self.axes, self.lift.fresh)
        value = self._state(i) if read.after else self._before(i)
        return self.build.rename(self.sums.product([*moved.factors, value], moved.bound), back)

    def split(self, read: Read) -> Linear | None:
        """The read as a sum linear in the carries before the chunk, where the gate reads no state."""
        if self.sums.stateful(self.power):
            return None
        i = self.stage.carries.index(read.carry)
        moved, back = aligned_to(self.build, read, self.axes, self.lift.fresh)
        states = self._linear(i, (lambda ref: ref) if read.after else self._earlier)
        if not read.after:
            first = self.build.call("eq", self.build.add(Position(self.row)), self.build.const(0.0))
            start = self.build.input("carry", read.carry, self.axes)
            states = dataclasses.replace(states, responses=(*states.responses, Response(first, start)))
        return summed(self.sums, self.lift.fresh, states, moved.factors, moved.bound, back)

    def _earlier(self, ref: Ref) -> Ref:
        return self.build.add(Shift(ref, self.row, 1))

    def _linear(self, i: int, at: Callable[[Ref], Ref]) -> Linear:
        """``l + P h_0 + answers`` of carry ``i``, every scan taken ``at`` other positions."""
        local = None if self.local is None else picked(self.build, at(self.local), self.member, i)
        return Linear(local, (*self._own(i, at(self.power)), *self._answers(i, at)))

    def _answers(self, i: int, at: Callable[[Ref], Ref]) -> list[Response]:
        return [
            dataclasses.replace(a, coefficient=picked(self.build, at(a.coefficient), self.member, i))
            for a in self.answers
        ]

    def final(self, carry: int) -> Ref:
        i = self.stage.carries.index(carry)
        names = dict(zip(self.axes, self.specs[i].next_axes, strict=True))
        local = None if self.local is None else self._end(self.local)
        return self.build.rename(self._joined(i, local, self._end(self.power), self._end), names)

    def _end(self, ref: Ref) -> Ref:
        return picked(self.build, ref, self.row, self._length() - 1)

    def _state(self, i: int) -> Ref:
        return self._joined(i, self.local, self.power, lambda ref: ref)

    def _before(self, i: int) -> Ref:
        first = self.build.call("eq", self.build.add(Position(self.row)), self.build.const(0.0))
        start = self.build.input("carry", self.stage.carries[i], self.axes)
        return self.build.call("where", first, start, self._earlier(self._state(i)))

    def _joined(self, i: int, local: Ref | None, power: Ref, at: Callable[[Ref], Ref]) -> Ref:
        """``l + P h_0`` of carry ``i``, and what earlier stages add."""
        found = self._started(i, power)
        if local is not None:
            found = self.build.call("add", picked(self.build, local, self.member, i), found)
        answers = value(self.sums, Linear(None, tuple(self._answers(i, at))))
        return self.sums.add([found, *answers]) if answers else found

    def _started(self, i: int, power: Ref) -> Ref:
        """``P h_0``: what is left of the carries' values before the chunk."""
        if not self.rows:
            return self.build.call("mul", power, self.build.input("carry", self.stage.carries[i], self.axes))
        return self.sums.add(value(self.sums, Linear(None, tuple(self._own(i, power)))))

    def _own(self, i: int, power: Ref) -> list[Response]:
        """``P h_0``, carry by carry."""
        names = dict(zip(self.rows, self.starts, strict=True))
        power = picked(self.build, power, self.member, i)
        found = []
        for k, j in enumerate(self.stage.carries):
            start = self.build.input("carry", j, tuple(names.get(a, a) for a in self.axes))
            mine = picked(self.build, power, names.get(self.member, ""), k)
            found.append(Response(mine, start, frozenset(names[a] for a in self.mixed)))
        return found

    def _length(self) -> int:
        return self.lift.sizes[self.row]

    # -- building -----------------------------------------------------------------------

    def _fit(self) -> None:
        sizes = self.lift.sizes
        for spec in self.specs:
            if [sizes[a] for a in spec.next_axes] != [sizes[a] for a in self.axes]:
                raise Unchunkable("coupled carries have different axes")

    def _form(self, i: int) -> Form:
        """The update of carry ``i`` over the common names."""
        own = self.specs[i].next_axes
        names = dict(zip(own, self.axes, strict=True))
        form = self._affine(i)
        reads = []
        for read in form.reads:
            if read.carry not in self.stage.carries or read.after:
                raise Unchunkable("the update reads another carry")
            for name, mine in zip(read.names, own, strict=True):
                if name != mine and name not in read.bound:
                    raise Unchunkable("the update permutes dimensions of its carry")
            reads.append(
                dataclasses.replace(
                    read,
                    names=tuple(a if a in read.bound else names[a] for a in read.names),
                    factors=tuple(self.build.rename(f, names) for f in read.factors),
                )
            )
        inflow = self._inflow(self.stage.updates[i].offset)
        self.inflows.append(
            tuple(
                Response(self.build.rename(r.coefficient, names), self.build.rename(r.start, names), r.bound)
                for r in inflow.responses
            )
        )
        offset = None if inflow.local is None else self.build.rename(inflow.local, names)
        return Form(tuple(reads), offset)

    def _affine(self, i: int) -> Form:
        form = self.lift.affine(dataclasses.replace(self.stage.updates[i], offset=None))
        if form.offset is not None:
            raise Unchunkable("the update reads a nonlinear function of the state")
        return form

    def _inflow(self, offset: Ref | None) -> Linear:
        """What an update adds, as a sum linear in the states of earlier stages where it is one."""
        return Linear() if offset is None else self.lift.linear(offset)

    def _mixed(self, forms: Sequence[Form]) -> tuple[AxisName, ...]:
        """The axes of the carry that some term sums over."""
        found = {
            own
            for form in forms
            for read in form.reads
            for own, name in zip(self.axes, read.names, strict=True)
            if name in read.bound
        }
        return tuple(a for a in self.axes if a in found)

    def _build(self, forms: Sequence[Form]) -> None:
        b = self.build
        if not self.rows:
            self._build_gate(forms[0])
            return
        matrix = self._matrix(forms)
        offsets = [b.const(0.0) if f.offset is None else f.offset for f in forms]
        self.local = b.add(
            Scan(self.row, matrix, stacked(self.build, offsets, self.member), False, self.rows, self.cols)
        )
        first = b.call("eq", b.add(Position(self.row)), b.const(0.0))
        moved = b.rename(matrix, dict(zip(self.cols, self.starts, strict=True)))
        begin = b.call("where", first, moved, b.const(0.0))
        self.power = b.add(Scan(self.row, matrix, begin, False, self.rows, self.cols))
        self._answer(lambda arg: b.add(Scan(self.row, matrix, arg, False, self.rows, self.cols)))

    def _answer(self, scanned: Callable[[Ref], Ref]) -> None:
        """The states' answers to what the updates add of earlier stages."""
        zero, entries = self.build.const(0.0), dict[tuple[Ref, frozenset[AxisName]], list[Ref]]()
        for i, inflow in enumerate(self.inflows):
            for one in inflow:
                r = apart(self.sums, self.lift.fresh, one, self.mixed)
                row = entries.setdefault((r.start, r.bound), [zero] * len(self.inflows))
                row[i] = self.sums.add([row[i], r.coefficient]) if row[i] != zero else r.coefficient
        self.answers = tuple(
            Response(scanned(stacked(self.build, row, self.member)), start, bound)
            for (start, bound), row in entries.items()
        )

    def _build_gate(self, form: Form) -> None:
        b = self.build
        gate = self.sums.add(self.sums.product(r.factors, r.bound) for r in form.reads)
        if form.offset is not None:
            self.local = b.add(Scan(self.row, gate, form.offset))
        self._answer(lambda arg: b.add(Scan(self.row, gate, arg)))
        self.power = running(b, gate, self.row, self._length())

    def _matrix(self, forms: Sequence[Form]) -> Ref:
        """``A`` over ``rows`` and ``cols``."""
        cols = dict(zip(self.rows, self.cols, strict=True))
        lines = []
        for form in forms:
            entries = [
                self.sums.add(self._coefficient(r, cols) for r in form.reads if r.carry == j)
                for j in self.stage.carries
            ]
            lines.append(stacked(self.build, entries, cols.get(self.member, "")))
        return stacked(self.build, lines, self.member)

    def _coefficient(self, read: Read, cols: dict[AxisName, AxisName]) -> Ref:
        """One term's entries: where it does not sum over a mixed axis, on the diagonal."""
        b = self.build
        names, factors = {}, []
        for own, name in zip(self.axes, read.names, strict=True):
            if own in self.mixed and name in read.bound:
                names[name] = cols[own]
            elif own in self.mixed:
                factors.append(b.call("eq", b.add(Position(own)), b.add(Position(cols[own]))))
        factors += [b.rename(f, names) for f in read.factors]
        return self.sums.product(factors, read.bound - set(names))


__all__ = ["ChunkedScan"]
