"""One loop nest as C++ text.

Takes a ``Nest`` and, for every value it reads or stores, an ``Access``; leaves lines.
Unrolling is textual: a value has one variable per unrolled entry of its axes, so register
tiles do not depend on the compiler's own unrolling.
"""

from __future__ import annotations

import itertools

from tenfuse.emit.cpp.blocks import Entry, blocks
from tenfuse.emit.cpp.deferred import units
from tenfuse.emit.cpp.frame import Combo, Frame
from tenfuse.emit.cpp.levels import Levels
from tenfuse.emit.cpp.schedule import Scheduler
from tenfuse.emit.cpp.shape import Nest, Store
from tenfuse.emit.cpp.sums import Sums
from tenfuse.emit.cpp.values import Read, Values, Write
from tenfuse.step.program import AxisName, Ref

TEAM = "#pragma omp for schedule(static)"
"""Before a loop that the threads share."""


class Once:
    """What has been written already, by its position along the axes it has."""

    def __init__(self, order: list[AxisName]) -> None:
        self.order = order
        self.seen: set[tuple[str, int, tuple[int, ...]]] = set()

    def new(self, kind: str, number: int, own: frozenset[AxisName], at: Combo) -> bool:
        key = (kind, number, tuple(at[a] for a in self.order if a in own))
        fresh = key not in self.seen
        self.seen.add(key)
        return fresh


class NestWriter:
    """Writes one nest; ``read(ref)`` and ``write(store)`` say where values lie.

    A ``team`` of threads shares the outermost loop; where its length is only known at launch, one
    of them does it all.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        nest: Nest,
        read: Read,
        write: Write,
        adds: frozenset[tuple[str, int]] = frozenset(),
        team: bool = False,
    ) -> None:
        self.scheduler, self.nest, self.axes = scheduler, nest, scheduler.axes
        self.frame, self.levels = Frame(scheduler, nest), Levels(scheduler, nest)
        self.values, self.write = Values(self.frame, read, write, adds), write
        self.sums = Sums(self.frame, self.levels, self.values)
        self.units = units(scheduler.program, self.values.computed)
        fixed = nest.order and isinstance(scheduler.spaces.axes[nest.order[0]].extent, int)
        self.team, self.alone = bool(team and fixed), bool(team and not fixed)

    def text(self) -> list[str]:
        if self.alone:
            self.frame.put("#pragma omp single")
        self.frame.put("{")
        self.frame.depth += 1
        for ref in self.nest.reductions:
            if ref in self.nest.memory:
                self.sums.clear(ref)
        self._scope(0)
        self.frame.depth -= 1
        self.frame.put("}")
        return self.frame.lines

    def _scope(self, level: int) -> None:
        """Everything at one level: values, inner loops, finished contractions, stores."""
        stores = [s for s in self.nest.stores if self.nest.level(s.axes) == level]
        waiting = [r for r in self.nest.reductions if self.sums.open_at(r) == level]
        done = [r for r in self.nest.reductions if r not in self.nest.memory and self.frame.level(r) == level]
        ready = [s for s in stores if level == len(self.nest.order) and s.ref not in self.levels.late]
        self._positions(level, [r for r in done if r not in waiting], ready)
        for ref in waiting:
            self.sums.declare(ref)
        if level < len(self.nest.order):
            self._versions(level)
        self.sums.finish(done, waiting)
        for ref in self.levels.after[level]:
            for at in self.frame.combos(self.axes[ref]):
                self.values.define(ref, at)
        for store in stores:
            if store not in ready:
                self._finished(store, list(self.frame.combos(store.axes)))

    def _finished(self, store: Store, places: list[Combo]) -> None:
        """A store behind the inner loops: two entries at once where both are lanes of a vector."""
        while places:
            at, *places = places
            if places and self._side_by_side(store, at, places[0]):
                vector, lane = self.sums.lanes[self.frame.name(store.ref, at)]
                self.frame.put(f"st2({self.frame.address(self.write(store), at)[0]}, {vector}, {lane});")
                places = places[1:]
            else:
                self.values.store(store, at)

    def _side_by_side(self, store: Store, one: Combo, other: Combo) -> bool:
        """Whether two sums lie in neighbouring lanes, the first of them even, and in memory too."""
        found = [self.sums.lanes.get(self.frame.name(store.ref, at)) for at in (one, other)]
        apart = [a for a in one if one[a] != other[a]]
        if store.target[0] != "scratch" or None in found or len(apart) != 1:
            return False
        (vector, lane), entries = found[0], self.frame.bind[apart[0]]  # type: ignore[misc]
        before, after = entries[one[apart[0]]], entries[other[apart[0]]]
        close = before.base == after.base and after.offset == before.offset + 1
        return close and lane % 2 == 0 and found[1] == (vector, lane + 1) and self._dense(store, apart[0])

    def _dense(self, store: Store, axis: AxisName) -> bool:
        return (axis, "1") in self.write(store).dims

    def _positions(self, level: int, direct: list[Ref], ready: list[Store]) -> None:
        """Values, sums and stores of one level, as many unrolled positions together as have
        their values in registers: compilers keep much of the order they are given.
        """
        here = [r for r in self.nest.reductions if self.frame.level(self.frame.argument(r)) == level]
        adding = [r for r in here if r not in direct and r not in self.nest.memory]
        values, once = self.levels.before[level], Once(self._order(level))
        positions = self._open(once.order)
        many = max(1, self.scheduler.isa.registers // max(1, len(values)))
        while positions:
            batch, positions = positions[:many], positions[many:]
            for ref, at in itertools.product(values, batch):
                if once.new("value", ref, self.axes[ref], at):
                    self.values.define(ref, at)
            for ref, at in itertools.product(adding, batch):
                if once.new("sum", ref, self.frame.argued(ref), at):
                    self.sums.add(ref, at)
            for ref, at in itertools.product(direct, batch):
                if once.new("sum", ref, self.frame.argued(ref), at):
                    self.sums.join_in(ref, at, once.new("entry", ref, self.axes[ref], at))
            for (n, store), at in itertools.product(enumerate(ready), batch):
                if once.new("store", n, store.axes, at):
                    self.values.store(store, at)
        for ref in here:
            if ref in self.nest.memory:
                self.sums.add_in_memory(ref)

    def _order(self, level: int) -> list[AxisName]:
        """The axes of the open loops, the vector axis last."""
        return sorted(self.nest.order[:level], key=lambda a: a == self.nest.x)

    def _open(self, order: list[AxisName]) -> list[Combo]:
        """Every unrolled position of the open loops."""
        places = itertools.product(*(range(self.frame.count(a)) for a in order))
        return [dict(zip(order, each, strict=True)) for each in places]

    def _versions(self, level: int) -> None:
        """The inner loops; where products with a number are nothing in most steps, without them too."""
        ones = {r for r in self.units if level == 0 and self.frame.level(r) == 0}
        if not ones:
            self._loops(level)
            return
        self.frame.put(f"if ({' && '.join(f'{self.frame.name(r, {})} == 1' for r in sorted(ones))}) {{")
        for self.values.ones in (ones, set()):
            self._loops(level)
            self.frame.put("} else {" if self.values.ones else "}")

    def _loops(self, level: int) -> None:
        axis = self.nest.order[level]
        role = self.scheduler.spaces.axes[axis]
        lanes = self.scheduler.lanes if axis == self.nest.x else 1
        if not isinstance(role.extent, int):
            self.frame.put(f"int64_t i{role.id} = 0;")
        for head, entries in blocks(f"i{role.id}", role.extent, self.nest.unroll.get(axis, 1), lanes):
            self._block(level, axis, head, entries)

    def _block(self, level: int, axis: AxisName, head: str, entries: list[Entry]) -> None:
        if self.team and level == 0:
            self.frame.put(TEAM if head else "#pragma omp single")
        self.frame.put(f"{head} {{".strip())
        self.frame.depth += 1
        self.frame.bind[axis] = entries
        self._scope(level + 1)
        del self.frame.bind[axis]
        self.frame.depth -= 1
        self.frame.put("}")


__all__ = ["TEAM", "NestWriter"]
