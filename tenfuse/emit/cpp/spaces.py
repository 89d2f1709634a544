"""Which axes become tasks, which tiles, which stay inside a task; and array layouts.

Takes a ``Kernel`` and an ``Isa``; leaves ``Spaces``.  A *task* axis has one index per
task; a *tile* axis is a parallel axis of which a task holds a run of entries (the vector
axis of elementwise work, or the rows that share loads of one big constant); a *full* axis
stays whole inside a task (every mixing axis must).  Refuses states too large for a task.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from tenfuse.emit.cpp.isa import Isa
from tenfuse.emit.cpp.preamble import cost
from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.reasons import TOO_LARGE, refuse
from tenfuse.step.program import AxisName, Const, Contract, Input, Pointwise, Ref, StepProgram, arguments

STATE_LIMIT = 64 << 20
"""Bytes of state that one task may hold after every parallel axis was tiled."""
TASKS = 8
"""Tasks below which the processors of a common machine would not all have work."""
FORWARD_BUDGET = 32 << 10
BACKWARD_BUDGET = 1152 << 10


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


@dataclasses.dataclass(frozen=True)
class Work:
    """One sweep a step needs: its axes, what it loads (with the unit axis of each load,
    ``ANY`` where it can be packed), what it stores and the axes it contracts."""

    axes: frozenset[AxisName]
    loads: tuple[tuple[frozenset[AxisName], AxisName | None], ...]
    ops: int
    contracted: frozenset[AxisName]
    store: tuple[AxisName, ...] = ()
    unit: AxisName | None = None


ANY = "*"


def partial_sums(program: StepProgram, axis: AxisName) -> frozenset[Ref] | None:
    """The nodes that hold a share of a sum when ``axis`` is cut among tasks.

    None if it must not be cut: a carry, or anything not linear in the shares, would see a
    share instead of the sum.
    """
    axes = program.axes_of()
    share: set[Ref] = set()
    for i, node in enumerate(program.nodes):
        below = [a for a in arguments(node) if a in share]
        if isinstance(node, Contract) and axis in node.axes:
            if node.op != "sum" or below:
                return None
            share.add(i)
        elif below:
            if axis in axes[i] or not _linear(node, share):
                return None
            share.add(i)
    moved = any(
        before != after and axis in (before, after)
        for c in program.carries
        for before, after in zip(c.axes, c.next_axes, strict=True)
    )
    return None if moved or any(c.next in share for c in program.carries) else frozenset(share)


def _linear(node: object, share: set[Ref]) -> bool:
    """Whether summing a node over tasks equals computing it from the summed shares."""
    if isinstance(node, Contract):
        return node.op == "sum"
    assert isinstance(node, Pointwise)
    mine = [a in share for a in node.args]
    if node.fn in ("add", "sub"):
        return all(mine)
    if node.fn == "mul":
        return mine.count(True) == 1
    return node.fn == "neg" or (node.fn == "div" and mine == [True, False])


def divisible(kernel: Kernel, par: frozenset[AxisName]) -> frozenset[AxisName]:
    """Axes that tasks may be cut along if outputs are then summed over tasks.

    Every share must be computed by one task only: an output summed over one such axis may
    lack no other axis that tasks are cut along.  Nor may it be spread along that axis again:
    a task writes only the entries of its own cut.
    """
    programs = [kernel.program] + ([kernel.recompute] if kernel.recompute else [])
    good = {
        a
        for a in kernel.program.sizes
        if a not in par and all(partial_sums(p, a) is not None for p in programs)
    } - _renamed(kernel)
    shares = {a: partial_sums(kernel.program, a) or frozenset() for a in good | par}
    for out in kernel.program.outs:
        good -= {a for a in out.axes if a in shares and out.ref in shares[a]}
        lost = {a for a in good | par if a not in out.axes}
        if any(out.ref in shares[a] for a in lost) and not all(out.ref in shares[a] for a in lost):
            good -= lost
    return frozenset(good)


def task_parallel(kernel: Kernel) -> frozenset[AxisName]:
    """Axes along which tasks may be cut: parallel in every program of the kernel."""
    found = kernel.program.parallel_axes()
    if kernel.recompute is not None:
        found &= kernel.recompute.parallel_axes()
    return found - _renamed(kernel)


def _renamed(kernel: Kernel) -> frozenset[AxisName]:
    """Axes under which an input reads a state along another of the state's axes."""
    found: set[AxisName] = set()
    for program in [kernel.program] + ([kernel.recompute] if kernel.recompute else []):
        for node in program.nodes:
            if isinstance(node, Input) and node.kind in ("carry", "state"):
                owner = program if node.kind == "carry" else kernel.recompute
                assert owner is not None
                for mine, its in zip(node.axes, owner.carries[node.index].axes, strict=True):
                    if mine != its:
                        found |= {mine, its}
    return frozenset(found)


def closure(program: StepProgram, ref: Ref, stop: frozenset[Ref] = frozenset()) -> tuple[set[Ref], int]:
    """The leaves (inputs, contractions and ``stop``) under ``ref`` and the cost of what lies between."""
    leaves: set[Ref] = set()
    seen: set[Ref] = set()
    todo = [ref]
    total = 0
    while todo:
        r = todo.pop()
        if r in seen:
            continue
        seen.add(r)
        node = program.nodes[r]
        if isinstance(node, Const):
            continue
        if not isinstance(node, Pointwise) or (r in stop and r != ref):
            leaves.add(r)
            continue
        total += cost(node.fn)
        todo += arguments(node)
    return leaves, total


def unit_of(operand: Operand, axes: tuple[AxisName, ...]) -> AxisName | None:
    """The unit axis of an operand under the names of the input that reads it."""
    return axes[operand.axes.index(operand.unit)] if operand.unit in operand.axes else None


def find(kernel: Kernel, role: str, index: int) -> Operand | None:
    return next((o for o in kernel.operands if o.role == role and o.index == index), None)


def works(
    kernel: Kernel, program: StepProgram, last: Mapping[int, int], states: Mapping[int, int]
) -> list[Work]:
    """The sweeps of one step, for given positions of the unit dimension of each state."""

    def load(ref: Ref) -> tuple[frozenset[AxisName], AxisName | None]:
        node = program.nodes[ref]
        if not isinstance(node, Input):
            return axes[ref], ANY
        if node.kind == "invariant":
            return axes[ref], ANY
        if node.kind in ("stream", "ahead"):
            operand = find(kernel, "stream", node.index)
            return axes[ref], unit_of(operand, node.axes) if operand else None
        where = (last if node.kind == "carry" else states).get(node.index, -1)
        return axes[ref], node.axes[where] if node.axes else None

    axes = program.axes_of()
    found = []
    for node in program.nodes:
        if isinstance(node, Contract):
            leaves, ops = closure(program, node.arg)
            loads = tuple(load(r) for r in sorted(leaves))
            found.append(Work(axes[node.arg], loads, ops + 1, node.axes))
    for i, carry in enumerate(program.carries):
        leaves, ops = closure(program, carry.next)
        unit = carry.next_axes[last.get(i, -1)] if carry.axes else None
        loads = tuple(load(r) for r in sorted(leaves))
        found.append(Work(frozenset(carry.next_axes), loads, ops, frozenset(), carry.next_axes, unit))
    for i, out in enumerate(program.outs):
        leaves, ops = closure(program, out.ref)
        operand = find(kernel, "out", i)
        target = ANY if out.accumulate else (unit_of(operand, out.axes) if operand else None)
        loads = tuple(load(r) for r in sorted(leaves))
        found.append(Work(frozenset(out.axes), loads, ops, frozenset(), out.axes, target))
    return found


def price(
    work: Work, local: frozenset[AxisName], x: AxisName | None, sizes: Mapping[AxisName, int], lanes: int
) -> float:
    """Estimated cycles of one sweep per step when ``x`` is the vector axis."""
    volume = math.prod(max(sizes[a], 1) for a in work.axes)
    mine = work.axes & local
    if x is None or x not in mine:
        return volume * (work.ops + len(work.loads) + (1 if work.store else 0) + 0.5)
    extent = max(sizes[x], 1)
    each: float = work.ops + 0.5
    for axes, unit in work.loads:
        each += 0.4 if x not in axes else 1 if unit in (x, ANY) else 1.5 * lanes
    if work.store:
        each += 1 if work.unit in (x, ANY) else 1.5 * lanes
    found = volume / extent * math.ceil(extent / lanes) * each
    return found + (volume / extent * 10 if x in work.contracted else 0)


def best_axis(
    work: Work, local: frozenset[AxisName], sizes: Mapping[AxisName, int], lanes: int
) -> tuple[float, AxisName | None]:
    """The cheapest vector axis of one sweep."""
    options: list[tuple[float, AxisName | None]] = [(price(work, local, None, sizes, lanes), None)]
    options += [(price(work, local, x, sizes, lanes), x) for x in sorted(work.axes & local)]
    return min(options, key=lambda o: o[0])


def layouts(
    kernel: Kernel, local: frozenset[AxisName], lanes: int
) -> tuple[float, dict[int, int], dict[int, int]]:
    """Cost, and the position of the unit dimension of each carry and recomputed state."""
    programs = [kernel.program] + ([kernel.recompute] if kernel.recompute else [])
    specs = [kernel.program.carries, kernel.recompute.carries if kernel.recompute else ()]
    chosen: list[dict[int, int]] = [{}, {}]

    def total() -> float:
        found = 0.0
        for i, program in enumerate(programs):
            for work in works(kernel, program, chosen[i], chosen[1]):
                found += best_axis(work, local, program.sizes, lanes)[0]
        return found

    for group, carries in zip(chosen, specs, strict=True):
        for i, carry in enumerate(carries):
            places = [p for p, a in enumerate(carry.axes) if a in local]
            group[i] = max(places, default=len(carry.axes) - 1)
    price_now = total()
    for _ in range(2):
        for group, carries in zip(chosen, specs, strict=True):
            for i, carry in enumerate(carries):
                for place in [p for p, a in enumerate(carry.axes) if a in local]:
                    before, group[i] = group[i], place
                    new = total()
                    if new < price_now:
                        price_now = new
                    else:
                        group[i] = before
    return price_now, chosen[0], chosen[1]


def _divisor(size: int, lanes: int, cap: int, wanted: int) -> int | None:
    """The largest multiple of ``lanes`` up to ``cap`` dividing ``size`` into at least ``wanted`` parts."""
    good = [t for t in range(lanes, min(cap, size) + 1, lanes) if size % t == 0]
    enough = [t for t in good if size // t >= wanted]
    return max(enough) if enough else (min(good) if good else None)


def _state_entries(kernel: Kernel, skip: frozenset[AxisName]) -> int:
    """Entries of state per task with the axes ``skip`` left out."""
    total = 0
    size = kernel.program.sizes
    for carry in kernel.program.carries:
        total += math.prod(max(size[a], 1) for a in carry.axes if a not in skip)
    for out in kernel.program.outs:
        if out.accumulate:
            total += math.prod(max(size[a], 1) for a in out.axes if a not in skip)
    if kernel.recompute is not None:
        size = kernel.recompute.sizes
        for carry in kernel.recompute.carries:
            total += max(kernel.checkpoint, 1) * math.prod(
                max(size[a], 1) for a in carry.axes if a not in skip
            )
    return total


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
    program = kernel.program
    sizes = {**(kernel.recompute.sizes if kernel.recompute else {}), **program.sizes}
    dynamic = program.dynamic | (kernel.recompute.dynamic if kernel.recompute else frozenset())
    par = task_parallel(kernel)
    width = 8 if kernel.compute == "f64" else 4
    budget = BACKWARD_BUDGET if kernel.backward else FORWARD_BUDGET
    tile = _tile_axis(kernel, par, frozenset(sizes) - par, lanes)
    tasks = math.prod(sizes[a] for a in par - {tile}) * (-(-sizes[tile] // (2 * lanes)) if tile else 1)
    state = width * _state_entries(kernel, par) * (min(sizes[tile], 2 * lanes) if tile else 1)
    cut: frozenset[AxisName] = frozenset()
    if tasks < TASKS or state > budget:
        cut = _cut(kernel, par, sizes, lanes, budget)
        par |= cut
        tile = _tile_axis(kernel, par, frozenset(sizes) - par, lanes)
    mixing = frozenset(sizes) - par
    row, shared = _row_axis(kernel, par, tile, lanes)
    skip = par - {tile, row}
    per_entry = width * _state_entries(kernel, par)
    if per_entry * max(1, lanes if tile else 1) > STATE_LIMIT:
        raise refuse(
            TOO_LARGE, f"one task needs {per_entry >> 20} MiB of state, more than {STATE_LIMIT >> 20} MiB"
        )
    found: dict[AxisName, Axis] = {}
    for i, a in enumerate(sorted(sizes)):
        size: int | str = f"N{i}" if a in dynamic else sizes[a]
        if a in mixing:
            found[a] = Axis("full", size, size, i)
        elif a == tile:
            found[a] = _tile(
                sizes[a],
                a in dynamic,
                lanes,
                budget // max(per_entry, 1),
                i,
                math.prod(sizes[o] for o in skip),
                bool(_mixes(kernel, mixing)),
            )
        elif a == row:
            # Few rows at once, or their lines evict each other; more where a result has them side by side.
            beside = any(o.role == "out" and o.unit == a for o in kernel.operands)
            cap = 8 if shared or beside else 4
            limit = max(1, budget * 4 // max(per_entry * (found[tile].trips if tile in found else 1), 1))
            if a in cut:
                cap = limit if kernel.recompute is None else max(cap, _rows_per_task(kernel, a))
            cap = min(cap, limit) if a in dynamic else min(cap, limit, max(sizes[a], 1))
            found[a] = Axis("tile", f"n{i}", cap, i)
        else:
            found[a] = Axis("task", 1, 1, i)
    local = frozenset(a for a, x in found.items() if x.kind != "task")
    _, last, states = layouts(kernel, local, lanes)
    return Spaces(found, row, shared, tile), last, states


def _cut(
    kernel: Kernel, par: frozenset[AxisName], sizes: Mapping[AxisName, int], lanes: int, budget: int
) -> frozenset[AxisName]:
    """Axes that tasks are cut along beside ``par``: one if it gives tasks enough, else all.

    Every axis cut makes tasks write sums of their own, and read again what they share.
    """
    every = divisible(kernel, par)
    width = 8 if kernel.compute == "f64" else 4
    for a in sorted(every, key=lambda a: (-sizes[a], a)):
        tasks = math.prod(sizes[o] for o in par) * (sizes[a] // (2 * lanes))
        if tasks >= TASKS and width * _state_entries(kernel, par | {a}) * 2 * lanes <= budget:
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


def _tile(size: int, dynamic: bool, lanes: int, cap: int, i: int, others: int, mixes: bool) -> Axis:
    """The vectorised parallel axis: whole, cut evenly, or cut at launch."""
    cap = max(2 * lanes, min(cap, 1024) // (4 * lanes) * (4 * lanes))
    if dynamic:
        return Axis("tile", f"n{i}", cap, i)
    if mixes and size <= cap and others >= 4:
        return Axis("full", size, size, i)
    if mixes:
        even = _divisor(size, lanes, cap, max(1, 8 // max(others, 1)))
        if even:
            return Axis("tile", even, even, i)
    if size <= 4 * lanes:
        return Axis("full", size, size, i)
    return Axis("tile", f"n{i}", min(cap, -(-size // lanes) * lanes), i)
