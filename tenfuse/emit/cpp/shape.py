"""The shape of one loop nest: vector axis, order of loops, unrolling.

Takes an iteration space and the contractions that are taken in it; leaves a ``Nest``, and
answers what can be computed or stored at which of its loops.
"""

from __future__ import annotations

import dataclasses

from tenfuse.emit.cpp.spaces import Spaces
from tenfuse.emit.cpp.sweeps import Work, closure, price
from tenfuse.step.program import AxisName, Contract, Ref, StepProgram


@dataclasses.dataclass(frozen=True)
class Store:
    """Write ``ref`` over the local axes ``axes`` to ``target``.

    ``target`` is ("carry", i), ("out", i), ("sum", i) for accumulating outputs,
    ("scratch", ref) or ("copy", i).
    """

    ref: Ref
    axes: frozenset[AxisName]
    target: tuple[str, int]


@dataclasses.dataclass
class Nest:
    order: list[AxisName]
    x: AxisName | None
    unroll: dict[AxisName, int]
    reductions: list[Ref]
    stores: list[Store]
    kept: set[Ref] = dataclasses.field(default_factory=set)
    """Nodes read from scratch instead of computed here."""
    memory: set[Ref] = dataclasses.field(default_factory=set)
    """Contractions summed in scratch because a loop of theirs lies outside a kept one."""

    def level(self, axes: frozenset[AxisName]) -> int:
        """How many loops must be open before a value over ``axes`` can be computed."""
        return max((self.order.index(a) + 1 for a in axes), default=0)


class Shapes:
    """Shapes nests of one program; ``registers`` is the number of vector registers."""

    def __init__(self, program: StepProgram, spaces: Spaces, lanes: int, registers: int) -> None:
        self.program, self.spaces, self.lanes, self.registers = program, spaces, lanes, registers
        self.axes = [spaces.local(a) for a in program.axes_of()]
        self.sizes = {a: x.trips for a, x in spaces.axes.items()}

    def nest(self, space: frozenset[AxisName], refs: list[Ref], hints: list[Work]) -> Nest:
        """A nest over ``space`` finalising ``refs``: vector axis, loop order, unrolling."""
        local = frozenset(self.sizes)
        local = frozenset(a for a in local if self.spaces.axes[a].kind != "task")
        x = self._vector_axis(space, hints, local)
        kept_by_all = set(space)
        for r in refs:
            kept_by_all &= self.axes[r]
        outer = sorted(kept_by_all - {x}, key=self._rank)
        rest = sorted(space - kept_by_all - {x}, key=self._rank)
        middle = [x] if x else []
        x_first = x is not None and any(x in self.axes[r] and self.axes[r] != space for r in refs)
        whole = x is not None and self._fits(x)
        order = (
            [*middle, *outer, *rest] if whole else outer + middle + rest if x_first else outer + rest + middle
        )
        if x is not None and not whole and refs and x in kept_by_all and self.spaces.row in outer:
            # A block of the constant stays in the first-level cache while all rows pass over it.
            outer.remove(self.spaces.row)
            order = [*outer, x, self.spaces.row, *rest]
        nest = Nest(order, x, {}, refs, [])
        self._unroll(nest, refs)
        nest.memory = {r for r in refs if not self.in_registers(nest, r)}
        return nest

    def _fits(self, x: AxisName) -> bool:
        """Whether all entries along the vector axis fit in one register tile: values over
        that axis alone then stay in registers, and its loop can stand anywhere."""
        extent = self.spaces.axes[x].extent
        return isinstance(extent, int) and extent <= 4 * self.lanes

    def _rank(self, axis: AxisName) -> tuple[int, int]:
        return (0 if axis == self.spaces.row else 1, self.spaces.axes[axis].id)

    def _vector_axis(
        self, space: frozenset[AxisName], hints: list[Work], local: frozenset[AxisName]
    ) -> AxisName | None:
        if not space:
            return None
        options: dict[AxisName | None, float] = {}
        for x in [None, *sorted(space)]:
            options[x] = sum(price(w, local, x, self.sizes, self.lanes) for w in hints)
        return min(options, key=lambda a: (options[a], a is None, str(a)))

    def _unroll(self, nest: Nest, refs: list[Ref]) -> None:
        """How many entries of each axis are taken at once: as many sums as have registers."""
        x = nest.x
        if x is None:
            return
        budget = 16 if self.registers >= 32 else 8
        rows = [a for a in nest.order if a != x and all(a in self.axes[r] for r in refs)]
        row = rows[-1] if rows and refs and self._shares(nest, refs, rows[-1]) else None
        width = self._wide(x, refs, row, budget)
        if width > 1:
            nest.unroll[x] = width
        count = max(1, len(refs)) * width
        if row is not None and count * 2 <= budget:
            tall = self._parts_of(row, min(budget // count, 8))
            if tall > 1:
                nest.unroll[row] = tall
                count *= tall
        self._unroll_inner(nest, x, refs, 2 * count <= budget // 2)

    def _wide(self, x: AxisName, refs: list[Ref], row: AxisName | None, budget: int) -> int:
        """Vectors along ``x`` taken at once."""
        extent, count = self.spaces.axes[x].extent, max(1, len(refs))
        vectors = -(-extent // self.lanes) if isinstance(extent, int) else 64
        keeping = [r for r in refs if x in self.axes[r]]
        if (keeping and len(keeping) < len(refs) and vectors <= 8) or self._fits(x):
            return max(1, vectors)
        most = 2 if not refs else max(1, min(4, budget // count))
        if row is not None and self.spaces.axes[row].capacity != 1:
            # In tall tiles a row's entry, that a multiply-add can read from memory in all lanes, is
            # read for fewer vectors, and the other factor is read for more rows.
            capacity, tall = self.spaces.axes[row].capacity, max(4, 8 // count)
            rows = min(tall, capacity) if isinstance(capacity, int) else tall
            most = max(1, min(most, budget // (rows * count)))
        return _parts(vectors, most)

    def _parts_of(self, axis: AxisName, most: int) -> int:
        role = self.spaces.axes[axis]
        most = min(most, role.capacity) if isinstance(role.capacity, int) else most
        return _parts(role.extent, most) if isinstance(role.extent, int) else most

    def _unroll_inner(self, nest: Nest, x: AxisName, refs: list[Ref], room: bool) -> None:
        """The innermost loop, where it is not along the vector axis."""
        inner = nest.order[-1]
        size = self.spaces.axes[inner].extent
        if not refs or inner == x:
            return
        across = [r for r in refs if x not in self.axes[r] and inner in self.axes[r]]
        if across and inner not in nest.unroll and self.trivial(nest, x):
            # Rows taken together share one tree of additions across lanes.
            least = 2 if len(across) > 1 else 1
            most = max(least, min(8 // nest.unroll.get(x, 1), self.lanes // len(across)))
            nest.unroll[inner] = _parts(size, most) if isinstance(size, int) else most
        if all(inner not in self.axes[r] for r in refs) and room and isinstance(size, int) and size % 2 == 0:
            nest.unroll[inner] = 2

    def _shares(self, nest: Nest, refs: list[Ref], row: AxisName) -> bool:
        """Whether unrolling ``row`` saves loads or overlaps horizontal sums."""
        if any(nest.x not in self.axes[r] for r in refs):
            return True
        for r in refs:
            node = self.program.nodes[r]
            assert isinstance(node, Contract)
            leaves, _ = closure(self.program, node.arg)
            if any(nest.x in self.axes[leaf] and row not in self.axes[leaf] for leaf in leaves):
                return True
        return False

    # -- questions about a nest -------------------------------------------------------

    def trivial(self, nest: Nest, axis: AxisName) -> bool:
        """Whether the loop over ``axis`` runs exactly once."""
        extent = self.spaces.axes[axis].extent
        if not isinstance(extent, int):
            return False
        return extent <= nest.unroll.get(axis, 1) * (self.lanes if axis == nest.x else 1)

    def in_registers(self, nest: Nest, ref: Ref) -> bool:
        """Whether no loop over a contracted axis lies outside one over a kept axis."""
        kept = self.axes[ref]
        outer = nest.order[: nest.level(kept)]
        return all(a in kept or self.trivial(nest, a) for a in outer)

    def scope_is(self, nest: Nest, level: int, axes: frozenset[AxisName]) -> bool:
        return all(a in axes or self.trivial(nest, a) for a in nest.order[:level])

    def store_level(self, nest: Nest, store: Store) -> int | None:
        if not store.axes <= set(nest.order):
            return None
        level = nest.level(store.axes)
        return level if self.scope_is(nest, level, store.axes) else None

    def redundancy(self, nest: Nest, axes: frozenset[AxisName]) -> float:
        """How often the nest would compute each vector of a value over ``axes``."""
        level = nest.level(axes)
        again = 1.0
        for a in nest.order[:level]:
            if a not in axes and not self.trivial(nest, a):
                block = nest.unroll.get(a, 1) * (self.lanes if a == nest.x else 1)
                again *= max(1.0, self.spaces.axes[a].trips / block)
        if axes and nest.x is not None and nest.x not in axes:
            again *= min(self.lanes, max(self.sizes[a] for a in axes))
        return again


def _parts(count: int, most: int) -> int:
    """How many of ``count`` to take at once: a divisor of it if one is near ``most``."""
    if count <= most:
        return max(1, count)
    for part in range(most, most // 2, -1):
        if count % part == 0:
            return part
    return most


__all__ = ["Nest", "Shapes", "Store"]
