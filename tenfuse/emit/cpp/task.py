"""What the loops over time of both directions have in common.

Takes the ``Memory`` of a kernel; leaves lines before a loop (carries filled, sums cleared,
what is carried over computed for the first step), of one step, and after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from tenfuse.emit.cpp import ahead
from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.arena import Array
from tenfuse.emit.cpp.copies import copy
from tenfuse.emit.cpp.memory import Memory
from tenfuse.emit.cpp.retime import Early
from tenfuse.emit.cpp.step import nests, pointers
from tenfuse.step.program import AxisName, Input, Ref
from tenfuse.step.whole import whole_inputs


class Task:
    """The carries of the kernel's program and its sums, in the scratch of one task."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.settled, self.operands = memory, memory.settled, memory.operands
        self.program = memory.settled.kernel.program
        self.arrays: list[Array] = []
        self.sums: dict[int, Array] = {}
        self.heads: list[str] = []
        """Definitions of pointers to the carries."""
        self.swapped: list[int] = []
        """Carries whose new value is written beside the old one."""

    def carries(self) -> list[str]:
        """Lines that fill the carries."""
        lines, whole = [], whole_inputs(self.program)
        for i, carry in enumerate(self.program.carries):
            array = self.memory.held.array(carry.axes, self.settled.last.get(i), whole=("carry", i) in whole)
            self.arrays.append(array)
            self.heads.append(f"{array.ctype}* c{i} = {array.name};")
            if i in self.settled.scales.values():
                lines.append(array.ones(f"c{i}"))
            elif self.operands.place("init", i) is None:
                lines.append(array.clear(f"c{i}"))
            else:
                source = self.operands.access("init", i, carry.axes)
                target = self.carry(i, carry.axes)
                lines += copy(self.settled, carry.axes, source, target, whole=array.whole)
        return lines

    def carry(self, i: int, axes: tuple[AxisName, ...], letter: str = "c") -> Access:
        return self.arrays[i].access(axes, f"{letter}{i}")

    def step(self, states: Callable[[Input], Access] | None) -> tuple[list[str], list[str]]:
        """Lines that clear the sums, and those of one step of the kernel's program."""

        def old(ref: Ref) -> Access:
            node = self.program.nodes[ref]
            assert isinstance(node, Input)
            if node.kind == "state":
                assert states is not None
                return states(node)
            return self.carry(node.index, node.axes)

        def new(i: int, axes: tuple[AxisName, ...], inplace: bool) -> Access:
            return self.carry(i, axes, "c" if inplace else "d")

        self.memory.leads = True
        lines, inplace = nests(self.memory, self.program, self.settled.last, old, new, self.sums)
        self.memory.leads = False
        for i in (i for i, fine in inplace.items() if not fine):
            axes, last, whole = self.program.carries[i].axes, self.settled.last.get(i), self.arrays[i].whole
            second = self.memory.arena.array(axes, last, whole=whole)
            self.swapped.append(i)
            self.heads.append(f"{second.ctype}* d{i} = {second.name};")
            lines.append(f"{{ {second.ctype}* e = c{i}; c{i} = d{i}; d{i} = e; }}")
        return [array.clear() for array in self.sums.values()], lines

    def number(self, i: int) -> tuple[Access, tuple[AxisName, ...]] | None:
        """Where the number lies that carry ``i`` is to be multiplied by, and its axes."""
        if i not in self.settled.scales:
            return None
        number = self.settled.scales[i]
        axes = self.program.carries[number].axes
        return self.carry(number, axes), axes

    def home(self) -> list[str]:
        """Lines that bring every carry back to where a later turn of the task looks for it."""
        names = {i: self.arrays[i].name for i in self.swapped}
        return [f"if (c{i} != {n}) memcpy({n}, c{i}, sizeof(*{n}) * {n}_size);" for i, n in names.items()]

    def start(self, time: str) -> list[str]:
        """What the program carries over, for its first step."""
        carries = self.program.carries
        return first_sums(
            self.memory,
            self.settled.main,
            self.settled.last,
            lambda node: self.carry(node.index, node.axes),
            lambda i: self.carry(i, carries[i].axes),
            time,
        )

    def finish(self) -> list[str]:
        """Copy final carries and summed outputs to their tensors."""
        lines = []
        for i, carry in enumerate(self.program.carries):
            if self.operands.place("final", i) is not None:
                target = self.operands.access("final", i, carry.axes)
                source = self.carry(i, carry.axes)
                whole, number = self.arrays[i].whole, self.number(i)
                lines += copy(self.settled, carry.axes, source, target, whole=whole, number=number)
        for i, array in self.sums.items():
            axes = self.program.outs[i].axes
            if i in self.memory.shares.found:
                share = self.memory.shares.access(i, axes[array.places[-1]] if array.places else None)
                lines += copy(self.settled, axes, array.access(axes), share, add=True)
            else:
                lines += copy(self.settled, axes, array.access(axes), self.operands.access("out", i, axes))
        return lines


def first_sums(
    memory: Memory,
    timing: Early,
    last: dict[int, int],
    states: Callable[[Input], Access],
    new: Callable[[int], Access],
    time: str,
) -> list[str]:
    """Lines that compute what ``timing`` carries over, for the first step, at ``time``."""
    program = timing.first
    if program is None:
        return []

    def old(ref: Ref) -> Access:
        node = program.nodes[ref]
        assert isinstance(node, Input)
        return states(node)

    own = {i: last[timing.since + i] for i in range(len(program.carries))}
    lines, _ = nests(
        memory, program, own, old, lambda i, axes, inplace: new(timing.since + i), {}, states=last
    )
    return ["if (steps > 0) {", *pointers(memory, lines, time), *lines, "}"]


def kept(task: Task, i: int, slot: str) -> list[str]:
    """Lines that copy carry ``i`` to its checkpoint ``slot``."""
    memory, axes = task.memory, task.program.carries[i].axes
    place, outside, pointer, whole = _checkpoint(memory, i, axes, slot)
    if ahead.paged(memory.operands, outside, place):
        outside = dataclasses.replace(outside, far="away")
    number = task.number(i)
    lines = copy(memory.settled, axes, task.carry(i, axes), outside, whole=whole, number=number)
    return ["{", pointer, *lines, "}"]


def restored(memory: Memory, i: int, axes: tuple[AxisName, ...], state: Access, slot: str) -> list[str]:
    """Lines that copy it back."""
    _, outside, pointer, whole = _checkpoint(memory, i, axes, slot)
    return ["{", pointer, *copy(memory.settled, axes, outside, state, whole=whole), "}"]


def _checkpoint(
    memory: Memory, i: int, axes: tuple[AxisName, ...], slot: str
) -> tuple[int, Access, str, bool]:
    """The operand that a carry is saved in, where, the definition of the pointer to it, and
    whether it is of integers."""
    place = memory.operands.place("save", i)
    assert place is not None, f"the kernel has no operand for save {i}"
    operand, outside = memory.settled.kernel.operands[place], memory.operands.access("save", i, axes)
    start = f"p{outside.pointer[1:]} + ({slot}) * s{place}_0"
    pointer = f"{memory.operands.ctype(operand)}* const {outside.pointer} = {start};"
    return place, outside, pointer, operand.dtype == "i64"


__all__ = ["Task", "first_sums", "kept", "restored"]
