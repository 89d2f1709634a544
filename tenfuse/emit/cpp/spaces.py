"""Which axes become tasks, which tiles, which stay inside a task.

Takes a ``Kernel`` and an ``Isa``; leaves ``Spaces``.  A *task* axis has one index per
task; a *tile* axis is a parallel axis of which a task holds a run of entries (the vector
axis of elementwise work, or the rows that share loads of one big constant); a *full* axis
stays whole inside a task (every mixing axis must).  Refuses states too large for a task.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from tenfuse.emit.cpp.cuts import divisible, task_parallel
from tenfuse.emit.cpp.isa import Isa
from tenfuse.emit.cpp.sweeps import best_axis, closure, layouts, works
from tenfuse.plan.kernel import Kernel
from tenfuse.reasons import TOO_LARGE, refuse
from tenfuse.step.program import AxisName, Contract, Input

STATE_LIMIT = 64 << 20
"""Bytes of state that one task may hold after every parallel axis was tiled."""
FEWEST, MOST = 4, 8
"""Tasks that a kernel should have at least, on few processors and on many.  Every cut of an
axis narrows its rows, and sums over a row of few vectors cost as much as the rest of it."""
FORWARD_BUDGET = 32 << 10
BACKWARD_BUDGET = 1152 << 10
HISTORY = 576 << 10
"""Bytes that a task's states, those of a chunk recomputed among them, may take for more rows
of it to pay: half of a common second-level cache, which also holds what streams past."""
SHARING = 32
"""Most rows of a task that reads a constant for all of them."""
NEAR = 40 << 10
"""Bytes that its states of one step may take for the same: most of a first-level cache of 48 KB."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """``extent`` is the number of entries a task holds (an int when fixed at emission,
    else the C name of a variable), ``capacity`` the most it can be."""

    kind: str
    extent: int | str
    capacity: int | str
    id: int

    @property
    def trips(self) -> int:
        """A guess at ``extent`` for cost estimates."""
        return self.extent if isinstance(self.extent, int) else 64

    @property
    def total(self) -> str:
        return f"N{self.id}"


@dataclasses.dataclass(frozen=True)
class Spaces:
    axes: Mapping[AxisName, Axis]
    row: AxisName | None
    """The tile axis whose entries share loads, or that gives a narrow vector company."""
    shared: bool
    """Whether the rows share loads of a constant (then few threads should split them)."""
    tile: AxisName | None
    """The parallel axis that is vectorised, if a task holds a run of it."""

    def local(self, axes: Iterable[AxisName]) -> frozenset[AxisName]:
        return frozenset(a for a in axes if self.axes[a].kind != "task")

    def task_axes(self) -> tuple[AxisName, ...]:
        return tuple(a for a, x in self.axes.items() if x.kind in ("task", "tile"))


def _divisor(size: int, lanes: int, cap: int, wanted: int) -> int | None:
    """The largest multiple of ``lanes`` up to ``cap`` dividing ``size`` into at least ``wanted`` parts."""
    good = [t for t in range(lanes, min(cap, size) + 1, lanes) if size % t == 0]
    enough = [t for t in good if size // t >= wanted]
    return max(enough) if enough else (min(good) if good else None)


def _state_entries(kernel: Kernel, skip: frozenset[AxisName], steps: int) -> int:
    """Entries of state per task with the axes ``skip`` left out, the recomputed for so many steps.

    Numbers, one for each task, are no state to speak of.
    """
    program, again = kernel.program, kernel.recompute
    held = [c.axes for c in program.carries] + [o.axes for o in program.outs if o.accumulate]
    total = _entries(held, skip, program.sizes)
    return total + (steps * _entries([c.axes for c in again.carries], skip, again.sizes) if again else 0)


def _entries(
    held: Iterable[tuple[AxisName, ...]], skip: frozenset[AxisName], sizes: Mapping[AxisName, int]
) -> int:
    inside = ([max(sizes[a], 1) for a in axes if a not in skip] for axes in held)
    return sum(math.prod(extents) for extents in inside if extents)


def _row_axis(
    kernel: Kernel, par: frozenset[AxisName], tile: AxisName | None, lanes: int
) -> tuple[AxisName | None, bool]:
    """A second parallel axis of which a task holds a few entries: ``(axis, shares loads)``."""
    local = frozenset(kernel.program.sizes) - par | ({tile} if tile else set())
    others = sorted(par - {tile}) if tile else sorted(par)
    reuse: dict[AxisName, int] = {}
    for program in [kernel.program] + ([kernel.recompute] if kernel.recompute else []):
        axes = program.axes_of()
        for node in program.nodes:
            if not isinstance(node, Contract):
                continue
            for leaf in closure(program, node.arg)[0]:
                inner = program.nodes[leaf]
                volume = math.prod(program.sizes[a] for a in axes[leaf] & local)
                if isinstance(inner, Input) and inner.kind in ("invariant", "stream") and volume >= 256:
                    for a in others:
                        if a not in axes[leaf] and a in axes[node.arg]:
                            reuse[a] = reuse.get(a, 0) + volume
    if reuse:
        return max(sorted(reuse), key=lambda a: reuse[a]), True
    widest = 1
    for carry in kernel.program.carries:
        widest = max(widest, math.prod(max(kernel.program.sizes[a], 1) for a in carry.axes if a in local))
    if widest > 8 * lanes or not others:
        return None, False
    votes = [o.unit for o in kernel.operands if o.role in ("out", "stream") and o.unit in others]
    if votes:
        return max(sorted(set(map(str, votes))), key=lambda a: votes.count(a)), False
    carried = [a for c in kernel.program.carries for a in c.axes if a in others]
    return (carried[-1], False) if carried else (None, False)


def _tile_axis(
    kernel: Kernel, par: frozenset[AxisName], mixing: frozenset[AxisName], lanes: int
) -> AxisName | None:
    """The parallel axis that is best vectorised; None where a mixing axis serves better."""
    best: tuple[float, AxisName | None] = (layouts(kernel, mixing, lanes)[0], None)
    for p in sorted(par):
        local = mixing | {p}
        price_now, last, states = layouts(kernel, local, lanes)
        if price_now < best[0] and _leads(kernel, local, p, last, states, lanes):
            best = (price_now, p)
    return best[1]


def _leads(
    kernel: Kernel,
    local: frozenset[AxisName],
    axis: AxisName,
    last: Mapping[int, int],
    states: Mapping[int, int],
    lanes: int,
) -> bool:
    """Whether ``axis`` is the vector axis of at least half of the work, not only of its fringe."""
    mine = total = 0.0
    for program in [kernel.program] + ([kernel.recompute] if kernel.recompute else []):
        for work in works(kernel, program, last if program is kernel.program else states, states):
            cycles, x = best_axis(work, local, program.sizes, lanes)
            total += cycles
            mine += cycles if x == axis else 0.0
    return 2 * mine >= total


def choose(kernel: Kernel, isa: Isa) -> tuple[Spaces, dict[int, int], dict[int, int]]:
    """Roles of all axes, and the unit positions of carries and recomputed states."""
    lanes = isa.lanes(kernel.compute)
    sizes = {**(kernel.recompute.sizes if kernel.recompute else {}), **kernel.program.sizes}
    dynamic = kernel.program.dynamic | (kernel.recompute.dynamic if kernel.recompute else frozenset())
    wanted = min(MOST, max(FEWEST, isa.cores))
    par, cut, tile = _divide(kernel, sizes, lanes, wanted)
    mixing = frozenset(sizes) - par
    row, shared = _row_axis(kernel, par, tile, lanes)
    state = _state(kernel, par)
    if state * max(1, lanes if tile else 1) > STATE_LIMIT:
        raise refuse(
            TOO_LARGE, f"one task needs {state >> 20} MiB of state, more than {STATE_LIMIT >> 20} MiB"
        )
    others = math.prod(sizes[o] for o in par - {tile, row})
    found: dict[AxisName, Axis] = {}
    for i, a in enumerate(sorted(sizes)):
        size: int | str = f"N{i}" if a in dynamic else sizes[a]
        if a in mixing:
            found[a] = Axis("full", size, size, i)
        elif a == tile:
            cap, mixes = _budget(kernel) // max(state, 1), bool(_mixes(kernel, mixing))
            parts = 1 if others >= FEWEST else -(-wanted // max(others, 1))
            found[a] = _tile(sizes[a], a in dynamic, lanes, cap, i, parts, mixes)
        elif a == row:
            beside = found[tile].trips if tile in found else 1
            one = _width(kernel) * _state_entries(kernel, par, 1) * beside
            cap = _rows(kernel, a, shared, a in cut, max(state * beside, 1), max(one, 1), lanes)
            found[a] = Axis("tile", f"n{i}", cap if a in dynamic else min(cap, max(sizes[a], 1)), i)
        else:
            found[a] = Axis("task", 1, 1, i)
    local = frozenset(a for a, x in found.items() if x.kind != "task")
    _, last, states = layouts(kernel, local, lanes)
    return Spaces(found, row, shared, tile), last, states


def _state(kernel: Kernel, skip: frozenset[AxisName]) -> int:
    """Bytes of state per task with the axes ``skip`` left out, those of a whole chunk among them."""
    return _width(kernel) * _state_entries(kernel, skip, max(kernel.checkpoint, 1))


def _width(kernel: Kernel) -> int:
    return 8 if kernel.compute == "f64" else 4


def _budget(kernel: Kernel) -> int:
    """Bytes of state that a task should hold at most."""
    return BACKWARD_BUDGET if kernel.backward else FORWARD_BUDGET


def _divide(
    kernel: Kernel, sizes: Mapping[AxisName, int], lanes: int, wanted: int
) -> tuple[frozenset[AxisName], frozenset[AxisName], AxisName | None]:
    """Axes that tasks are cut along, those among them that are not parallel, and the one vectorised."""
    par = task_parallel(kernel)
    tile = _tile_axis(kernel, par, frozenset(sizes) - par, lanes)
    tasks = math.prod(sizes[a] for a in par - {tile}) * (-(-sizes[tile] // (2 * lanes)) if tile else 1)
    state = _state(kernel, par) * (min(sizes[tile], 2 * lanes) if tile else 1)
    if tasks >= wanted and state <= _budget(kernel):
        return par, frozenset(), tile
    cut = _cut(kernel, par, sizes, lanes, wanted)
    return par | cut, cut, _tile_axis(kernel, par | cut, frozenset(sizes) - par - cut, lanes)


def _rows(kernel: Kernel, axis: AxisName, shared: bool, cut: bool, each: int, one: int, lanes: int) -> int:
    """Most entries of the row axis for one task, of ``each`` bytes of state, ``one`` in a step.

    Few rows at once, or their lines evict each other; more where a result has them side by side, or
    where each task reads the same constant anew at every step.
    """
    beside = any(o.role == "out" and o.unit == axis for o in kernel.operands)
    cap = SHARING if shared else 8 if beside else 4
    limit = max(1, _budget(kernel) * 4 // each)
    if cut and kernel.recompute is None:
        cap = limit
    elif cut:
        cap = max(cap, min(_rows_per_task(kernel, axis), NEAR // one, HISTORY // each))
    cap = min(cap, limit)
    return cap - cap % lanes if cut and cap > lanes else cap


def _cut(
    kernel: Kernel, par: frozenset[AxisName], sizes: Mapping[AxisName, int], lanes: int, wanted: int
) -> frozenset[AxisName]:
    """Axes that tasks are cut along beside ``par``: one if it gives tasks enough, else all.

    Every axis cut makes tasks write sums of their own, and read again what they share.
    """
    every = divisible(kernel, par)
    for a in sorted(every, key=lambda a: (-sizes[a], a)):
        tasks = math.prod(sizes[o] for o in par) * (sizes[a] // (2 * lanes))
        if tasks >= wanted and _state(kernel, par | {a}) * 2 * lanes <= _budget(kernel):
            return frozenset({a})
    return every


def _rows_per_task(kernel: Kernel, axis: AxisName) -> int:
    """Entries of ``axis`` for a task such that sums over it, one per task, add little traffic.

    At most a quarter of what the kernel reads and writes in a step anyway.
    """
    program = kernel.program

    def entries(axes: Sequence[AxisName]) -> int:
        return math.prod(max(program.sizes[a], 1) for a in axes)

    outs = [o.axes for o in program.outs if not o.accumulate]
    flow = sum(entries(axes) for axes in (*program.inputs("stream").values(), *outs))
    sums = sum(entries(axes) for axes in outs if axis not in axes)
    return -(-4 * program.sizes[axis] * sums // max(flow, 1))


def _mixes(kernel: Kernel, mixing: frozenset[AxisName]) -> frozenset[AxisName]:
    return frozenset(a for c in kernel.program.carries for a in c.axes) & mixing


def _tile(size: int, dynamic: bool, lanes: int, cap: int, i: int, parts: int, mixes: bool) -> Axis:
    """The vectorised parallel axis: whole, cut evenly into so many ``parts``, or cut at launch."""
    cap = max(2 * lanes, min(cap, 1024) // (4 * lanes) * (4 * lanes))
    if dynamic:
        return Axis("tile", f"n{i}", cap, i)
    if mixes and size <= cap and parts == 1:
        return Axis("full", size, size, i)
    if mixes:
        even = _divisor(size, lanes, cap, parts)
        if even:
            return Axis("tile", even, even, i)
    if size <= 4 * lanes:
        return Axis("full", size, size, i)
    return Axis("tile", f"n{i}", min(cap, -(-size // lanes) * lanes), i)
