"""The loops that are open while a nest is written, and the names of values inside them.

Takes a ``Nest``; leaves lines, indented.  A value has one variable per unrolled entry of its
axes: its name is its number in the program and its position among those entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.blocks import Entry
from tenfuse.emit.cpp.schedule import Scheduler
from tenfuse.emit.cpp.shape import Nest
from tenfuse.step.program import AxisName, Contract, Ref

Combo = dict[AxisName, int]
"""An unrolled position along each of some axes."""


class Frame:
    """``bind`` holds the positions of every open loop."""

    def __init__(self, scheduler: Scheduler, nest: Nest) -> None:
        self.scheduler, self.nest = scheduler, nest
        self.nodes, self.axes = scheduler.program.nodes, scheduler.axes
        self.lines: list[str] = []
        self.bind: dict[AxisName, list[Entry]] = {}
        self.depth = 0

    def put(self, line: str) -> None:
        self.lines.append("  " * self.depth + line)

    def combos(self, axes: frozenset[AxisName]) -> Iterator[Combo]:
        """Every unrolled position over ``axes``."""
        mine = [a for a in self.nest.order if a in axes]
        for places in itertools.product(*(range(self.count(a)) for a in mine)):
            yield dict(zip(mine, places, strict=True))

    def count(self, axis: AxisName) -> int:
        return len(self.bind[axis]) if axis in self.bind else self.nest.unroll.get(axis, 1)

    def name(self, ref: Ref, at: Combo, letter: str = "v") -> str:
        axes = self.axes[ref]
        marks = "".join(f"_{at[a]}" for a in self.nest.order if a in axes and self.unrolled(a))
        return f"{letter}{ref}{marks}"

    def unrolled(self, axis: AxisName) -> bool:
        return self.nest.unroll.get(axis, 1) > 1

    def vector(self, axes: frozenset[AxisName]) -> bool:
        return self.nest.x is not None and self.nest.x in axes

    def level(self, ref: Ref) -> int:
        return self.nest.level(self.axes[ref])

    def argument(self, ref: Ref) -> Ref:
        node = self.nodes[ref]
        assert isinstance(node, Contract)
        return node.arg

    def argued(self, ref: Ref) -> frozenset[AxisName]:
        """The axes of a contraction's argument."""
        return self.axes[self.argument(ref)]

    def op(self, ref: Ref) -> str:
        node = self.nodes[ref]
        assert isinstance(node, Contract)
        return node.op

    def type(self, axes: frozenset[AxisName], whole: bool = False) -> str:
        scalar, vector = ("Z", "ZV") if whole else ("T", "V")
        return vector if self.vector(axes) else scalar

    def address(self, access: Access, at: Combo) -> tuple[str, str, str]:
        """The address of the entry, the stride along the vector axis and the lane count."""
        terms, stride, count = [access.pointer], "", ""
        for axis, step in access.dims:
            entry = self.bind[axis][at.get(axis, 0)]
            if axis == self.nest.x:
                stride, count = step, entry.count
            if axis == self.nest.x and access.panel:
                terms += [f"{entry.base} * {access.panel}"] if entry.base != "0" else []
                terms += [str(entry.offset)] if entry.offset else []
            elif entry.index != "0":
                wrapped = f"({entry.index})" if "+" in entry.index else entry.index
                terms.append(wrapped if step == "1" else f"{wrapped} * {step}")
        return " + ".join(terms), stride, count


__all__ = ["Combo", "Frame"]
