"""The lines of one step of a program.

Takes a program and where its carries lie before and after the step; leaves its nests as
text, every other value of it placed: inputs in their tensors or packed copies, values that
cross nests in scratch, results in their tensors, sums or shares.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.arena import Array
from tenfuse.emit.cpp.memory import Memory
from tenfuse.emit.cpp.nest import NestWriter
from tenfuse.emit.cpp.schedule import Scheduler, reads_carry
from tenfuse.emit.cpp.shape import Nest, Store
from tenfuse.step.program import AxisName, Input, Ref, StepProgram

Old = Callable[[int], Access]
"""Where a carry or a state is read, by node."""
New = Callable[[int, tuple[AxisName, ...], bool], Access]
"""Where a carry is written: its number, its axes, and whether that may be where it is read."""


class Places:
    """Where the values of one program lie."""

    def __init__(self, memory: Memory, scheduler: Scheduler, old: Old, new: New, sums: dict[int, Array]):
        self.memory, self.program, self.old, self.new, self.sums = memory, scheduler.program, old, new, sums
        self.main = self.program is memory.settled.kernel.program
        self.axes, self.whole = [tuple(sorted(a)) for a in scheduler.axes], scheduler.whole
        self.scratch: dict[Ref, Array] = {}
        self.inplace: dict[int, bool] = {}

    def read(self, nest: Nest, ref: Ref) -> Access:
        node = self.program.nodes[ref]
        if ref in nest.kept or not isinstance(node, Input):
            return self._held(ref, nest.x)
        if node.kind == "invariant":
            return self.memory.packs.access(node.index, node.axes, nest)
        if node.kind in ("stream", "ahead"):
            found = self._streamed(node, nest.x)
            pointer = f"a{found.pointer[1:]}" if node.kind == "ahead" else found.pointer
            return dataclasses.replace(found, pointer=pointer)
        return self.old(ref)

    def write(self, nest: Nest, store: Store) -> Access:
        kind, index = store.target
        if kind == "scratch":
            return self._held(index, nest.x)
        if kind == "carry":
            return self.new(index, self.program.carries[index].next_axes, self.inplace[index])
        axes = self.program.outs[index].axes
        if kind == "out":
            if self.main and index in self.memory.shares.found:
                return self.memory.shares.access(index, nest.x)
            return self.memory.operands.access("out", index, axes)
        if index not in self.sums:
            self.sums[index] = self.memory.held.along(axes, nest.x)
        return self.sums[index].access(axes)

    def adds(self) -> frozenset[tuple[str, int]]:
        """Targets that are added to."""
        return frozenset(("out", i) for i in self.memory.shares.found if self.main)

    def _held(self, ref: Ref, x: AxisName | None) -> Access:
        if ref not in self.scratch:
            self.scratch[ref] = self.memory.arena.along(self.axes[ref], x, ref in self.whole)
        return self.scratch[ref].access(self.axes[ref])

    def _streamed(self, node: Input, x: AxisName | None) -> Access:
        """A stream; where a task reads a few rows of it, far apart in memory, each vector is
        asked for some steps before it is read.  So are long runs of it when time is walked
        back, which the hardware foresees less well."""
        settled = self.memory.settled
        found = self.memory.operands.access("stream", node.index, node.axes)
        runs = settled.spaces.row in node.axes or settled.kernel.backward
        fixed = all(isinstance(settled.spaces.axes[a].extent, int) for a in node.axes)
        if not self.memory.leads or not runs or fixed or (x, "1") not in found.dims:
            return found
        place = self.memory.operands.place("stream", node.index)
        return dataclasses.replace(found, later=f"(int64_t)sizeof(*{found.pointer}) * lead * s{place}_0")


def nests(
    memory: Memory,
    program: StepProgram,
    last: dict[int, int],
    old: Old,
    new: New,
    sums: dict[int, Array],
    states: dict[int, int] | None = None,
) -> tuple[list[str], dict[int, bool]]:
    """The lines of one step; and which carries may be updated in place."""
    scheduler = memory.settled.scheduler(program, last, states)
    found = scheduler.run()
    places = Places(memory, scheduler, old, new, sums)
    places.inplace = {i: _in_place(scheduler, found, i) for i in range(len(program.carries))}
    lines: list[str] = []
    for nest in found:
        read, write = functools.partial(places.read, nest), functools.partial(places.write, nest)
        lines += NestWriter(scheduler, nest, read, write, places.adds()).text()
        memory.work += memory.settled.volume(nest)
    return lines, places.inplace


def _in_place(scheduler: Scheduler, found: list[Nest], index: int) -> bool:
    """Whether nothing reads the old carry after, or elsewhere while, the new one is written."""
    program = scheduler.program
    spec = program.carries[index]
    written = next(j for j, n in enumerate(found) if any(s.target == ("carry", index) for s in n.stores))
    for j, nest in enumerate(found):
        reads = reads_carry(program, scheduler.computed(nest) - nest.kept, index)
        if reads and j > written:
            return False
        if j == written and any(axes != spec.next_axes for axes in reads):
            return False
    return True


def pointers(memory: Memory, names: list[str], time: str, later: str = "") -> list[str]:
    """Definitions of the per-step pointers that ``names`` (lines of text) use.

    ``later`` is the time of the step run after this one.
    """
    text = "\n".join(names)
    lines, ahead = memory.operands.of_step(text)
    lines += memory.shares.of_step(text)
    lines = [f"const int64_t t = {time};", *lines] if lines or ahead else []
    return lines + ([f"const int64_t b = {later};", *ahead] if ahead else [])


def following(backwards: bool) -> str:
    """The time of the next step in run order, this one's where it is the last."""
    return "t > 0 ? t - 1 : t" if backwards else "t + 1 < steps ? t + 1 : t"


__all__ = ["following", "nests", "pointers"]
