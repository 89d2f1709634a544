"""Invariants: read where they lie, or from a copy laid out for the nest that reads them.

Takes ``Settled``, the ``Operands`` and the ``Arena``; leaves an ``Access`` per invariant and
nest, and the lines that fill the copies before the first step.  What is the same for all tasks
is copied once for all threads, each of them copying a part; the rest is each task's own.
"""

from __future__ import annotations

import math

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.arena import Arena, Array
from tenfuse.emit.cpp.copies import copy
from tenfuse.emit.cpp.operands import Operands
from tenfuse.emit.cpp.settle import Settled
from tenfuse.emit.cpp.shape import Nest
from tenfuse.emit.cpp.sweeps import unit_of
from tenfuse.step.program import AxisName
from tenfuse.step.whole import whole_inputs

PANEL_BYTES = 8 << 10
"""Invariants smaller than this stay in the first-level cache in any layout."""

Key = tuple[int, tuple[AxisName, ...], AxisName | None, int]
"""An invariant, the names it is read under, the unit axis of the copy, entries per block."""


class Packs:
    """The copies made of invariants, each once."""

    def __init__(self, settled: Settled, operands: Operands, arena: Arena) -> None:
        self.settled, self.operands, self.arena = settled, operands, arena
        self.common = Arena(settled.spaces, settled.lanes, "common", "common")
        """The copies that all tasks read."""
        self.made: dict[Key, Array] = {}
        programs = [p for p in (settled.kernel.program, settled.kernel.recompute) if p is not None]
        self.whole = frozenset[tuple[str, int]]().union(*map(whole_inputs, programs))

    def access(self, index: int, axes: tuple[AxisName, ...], nest: Nest) -> Access:
        """An invariant: read where it lies if that suits, else from a packed copy."""
        x, whole = nest.x, ("invariant", index) in self.whole
        local = self.settled.spaces.local(axes)
        if not local:
            return self.operands.access("constant", index, axes)
        panel = self._panel(local, nest)
        if panel and x is not None:
            key: Key = (index, axes, x, panel)
            if key not in self.made:
                self.made[key] = self._arena(axes).array(axes, axes.index(x), grain=panel, whole=whole)
            return self.made[key].panels(axes, x, panel)
        if self._lies_well(index, axes, x if x in local else None):
            return self.operands.access("constant", index, axes)
        key = (index, axes, x if x in local else None, 0)
        if key not in self.made:
            self.made[key] = self._arena(axes).along(axes, key[2], whole)
        return self.made[key].access(axes)

    def _arena(self, axes: tuple[AxisName, ...]) -> Arena:
        """Where a copy over these axes lies: with all tasks' if no task has a part of an axis."""
        return self.common if self._same(axes) else self.arena

    def _same(self, axes: tuple[AxisName, ...]) -> bool:
        return all(self.settled.spaces.axes[a].kind == "full" for a in axes)

    def _lies_well(self, index: int, axes: tuple[AxisName, ...], x: AxisName | None) -> bool:
        """Whether the tensor itself serves a nest with the vector axis ``x``."""
        place = self.operands.place("constant", index)
        assert place is not None, f"the kernel has no operand for invariant {index}"
        operand = self.settled.kernel.operands[place]
        if operand.dtype != self.settled.kernel.compute:
            return False
        if x is None:
            return True
        extent = self.settled.spaces.axes[x].extent
        whole = not isinstance(extent, int) or extent % self.settled.lanes == 0
        return unit_of(operand, axes) == x and whole

    def _panel(self, local: frozenset[AxisName], nest: Nest) -> int:
        """Entries per block if a constant should be packed in blocks for this nest, else 0."""
        x, spaces = nest.x, self.settled.spaces
        extents = [spaces.axes[a].extent for a in local]
        if x not in local or not nest.reductions or not all(isinstance(e, int) for e in extents):
            return 0
        block = nest.unroll.get(str(x), 1) * self.settled.lanes
        volume = math.prod(int(e) for e in extents)
        whole = int(spaces.axes[str(x)].extent)
        return block if len(local) > 1 and whole > block and volume * 4 >= PANEL_BYTES else 0

    def fill(self, common: bool) -> list[str]:
        """Lines that fill the copies that all tasks read, all threads together, or a task's own."""
        lines: list[str] = []
        for (index, axes, x, panel), array in self.made.items():
            if self._same(axes) != common:
                continue
            source = self.operands.access("constant", index, axes)
            target = array.panels(axes, x, panel) if panel and x else array.access(axes)
            unroll = panel // self.settled.lanes
            lines += copy(self.settled, axes, source, target, unroll, whole=array.whole, team=common)
        return lines


__all__ = ["Packs"]
