"""What of a step is done for all steps at once, what step after step, and what each costs.

Takes a ``StepProgram`` (of one step or of a chunk); leaves its nodes in parts, by
reachability: ``once`` reads nothing that changes from step to step, ``before`` reads no
carry, ``core`` lies on a way from a carry to a carry, ``after`` reads a carry and feeds
nothing back.  Only the core is sequential.

Operations are counted per step.  A product whose every reader sums it is part of a matrix
product and never stored; a Contract of such a product counts two operations per entry.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from tenfuse.step.program import (
    AxisName,
    Const,
    Contract,
    Input,
    Pointwise,
    Position,
    Ref,
    Rename,
    Scan,
    Shift,
    Solve,
    StepProgram,
    arguments,
)


@dataclasses.dataclass(frozen=True)
class Part:
    """``matmul`` and ``other`` are operations, ``read`` and ``written`` values that enter
    from other parts or from memory and that leave to them, ``kept`` all values in between
    that are no part of a matrix product."""

    nodes: frozenset[Ref]
    matmul: int
    other: int
    read: int
    written: int
    kept: int
    largest: int
    """The largest of those kept."""

    def bytes(self, itemsize: int = 4) -> int:
        """What must be moved if nothing in between is."""
        return (self.read + self.written) * itemsize


@dataclasses.dataclass(frozen=True)
class Parts:
    before: Part
    core: Part
    after: Part
    once: Part


def parts(program: StepProgram, sizes: Mapping[AxisName, int] | None = None) -> Parts:
    """The parts; ``sizes`` override those of the program (dynamic axes)."""
    dependent = reached(program, ("carry",))
    changing = reached(program, ("carry", "stream", "state"))
    needed = feeding(program)
    everything = set(range(len(program.nodes)))
    split = (changing - dependent, dependent & needed, dependent - needed, everything - changing)
    count = _Count(program, {**program.sizes, **(sizes or {})})
    return Parts(*(count.part(frozenset(nodes)) for nodes in split))


def reached(program: StepProgram, kinds: tuple[str, ...]) -> set[Ref]:
    """The nodes that an input of one of the kinds reaches."""
    found: set[Ref] = set()
    for i, node in enumerate(program.nodes):
        entering = isinstance(node, Input) and node.kind in kinds
        if entering or any(a in found for a in arguments(node)):
            found.add(i)
    return found


def feeding(program: StepProgram) -> set[Ref]:
    """The nodes that a carry's next value is computed from."""
    found = {c.next for c in program.carries}
    for i in reversed(range(len(program.nodes))):
        if i in found:
            found |= set(arguments(program.nodes[i]))
    return found


class _Count:
    def __init__(self, program: StepProgram, sizes: Mapping[AxisName, int]) -> None:
        self.program, self.sizes, self.axes = program, sizes, program.axes_of()
        self.readers: dict[Ref, set[Ref]] = {}
        for i, node in enumerate(program.nodes):
            for a in arguments(node):
                self.readers.setdefault(a, set()).add(i)
        self.leaving = set(program.roots())

    def volume(self, axes: frozenset[AxisName]) -> int:
        return math.prod(self.sizes[a] for a in axes)

    def inside(self, ref: Ref) -> bool:
        """Whether the value is a term of sums only, or another view of a value."""
        node, readers = self.program.nodes[ref], self.readers.get(ref, set())
        if isinstance(node, (Const, Input, Position, Rename)):
            return True
        product = isinstance(node, Pointwise) and node.fn == "mul" and len(readers) > 0
        return product and ref not in self.leaving and all(self._sums(r) for r in readers)

    def _sums(self, ref: Ref) -> bool:
        node = self.program.nodes[ref]
        return isinstance(node, Contract) and node.op == "sum"

    def part(self, nodes: frozenset[Ref]) -> Part:
        matmul = other = kept = largest = 0
        for i in nodes:
            work = self._work(i)
            if self._product(i):
                matmul += work
            elif not self.inside(i):
                other += work
            if not self.inside(i):
                volume = self.volume(self.axes[i])
                kept, largest = kept + volume, max(largest, volume)
        entering = {self._origin(a) for i in nodes for a in arguments(self.program.nodes[i])} - nodes
        entering |= {i for i in nodes if isinstance(self.program.nodes[i], Input)}
        leaving = {self._origin(i) for i in nodes if i in self.leaving or self.readers.get(i, set()) - nodes}
        read, written = self._volumes(entering), self._volumes(leaving)
        return Part(nodes, matmul, other, read, written, kept, largest)

    def _origin(self, ref: Ref) -> Ref:
        """The value that a renaming shows."""
        node = self.program.nodes[ref]
        return self._origin(node.arg) if isinstance(node, Rename) else ref

    def _volumes(self, refs: set[Ref]) -> int:
        real = (r for r in refs if not isinstance(self.program.nodes[r], (Const, Position)))
        return sum(self.volume(self.axes[r]) for r in real)

    def _product(self, ref: Ref) -> bool:
        node = self.program.nodes[ref]
        if isinstance(node, Solve):
            return True
        return isinstance(node, Contract) and self._sums(ref) and isinstance(self._factor(node), Pointwise)

    def _factor(self, node: Contract) -> Pointwise | None:
        inner = self.program.nodes[node.arg]
        return inner if isinstance(inner, Pointwise) and inner.fn == "mul" and self.inside(node.arg) else None

    def _work(self, ref: Ref) -> int:
        node, volume = self.program.nodes[ref], self.volume(self.axes[ref])
        if isinstance(node, Contract):
            return self.volume(self.axes[node.arg]) * (2 if self._factor(node) else 1)
        if isinstance(node, Solve):
            return volume * math.prod(self.sizes[a] for a in node.rows)
        if isinstance(node, Scan):
            return 2 * volume * math.prod(self.sizes[a] for a in node.cols)
        return 0 if isinstance(node, (Const, Input, Position, Rename, Shift)) else volume


__all__ = ["Part", "Parts", "feeding", "parts", "reached"]
