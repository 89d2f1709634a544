"""Runs that fit together: where in a stretch the operands of each node follow one rule.

Takes a ``Sequence`` and a ``Stretch``; leaves ``Segment``s.  Within a segment every operand
slot is one of: a node of the same run, a node of an earlier run at a fixed distance (after
as many runs that start it from outside), or a node from before the segment; and every
index moves by a constant amount.  A change of rule ends a segment; the next one starts
there, so two loops of equal body that touch come apart.
"""

from __future__ import annotations

import dataclasses
import operator

import numpy as np
import torch
import torch.fx as fx

from tenfuse.capture.loop import detach_some
from tenfuse.capture.periods import Sequence, Shape, Stretch
from tenfuse.capture.views import value_of

ARITHMETIC = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.neg, operator.lt,
    operator.le, operator.gt, operator.ge, operator.eq, operator.ne, operator.mod, operator.floordiv,
    torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.remainder, torch.fmod, torch.where,
    torch.lerp, torch.clamp, torch.masked_fill, torch.tensor, "add", "sub", "mul", "div", "pow", "lt", "le",
    "gt", "ge", "eq", "ne", "remainder", "fmod", "where", "lerp", "clamp", "masked_fill",
}  # fmt: skip
"""Operations whose number operands may take any value at each step."""

SCALED = {
    torch.add: "alpha", torch.sub: "alpha", torch.addcmul: "value", torch.addcdiv: "value",
    "add": "alpha", "sub": "alpha", "addcmul": "value", "addcdiv": "value",
}  # fmt: skip
"""Operations of tensors with a number by name that scales one operand, or the product of two."""

FILLS = {torch.full, torch.full_like, "new_full", detach_some}
"""The last operand may."""


def free_numbers(node: fx.Node, shape: Shape) -> range:
    """Which numbers of ``node`` may take any value at each step; the others are sizes, axes, indices."""
    count = len(shape.numbers)
    if node.target in ARITHMETIC or node.target in SCALED or gathers(node):
        return range(count)
    if node.target in FILLS:
        filler = node.kwargs.get("fill_value", node.args[-1])
        return range(count - 1, count) if type(filler) in (int, float) else range(0)
    return range(0)


def gathers(node: fx.Node) -> bool:
    """``x[rows, t, columns]``: nothing but tensors of indices, and numbers that select."""
    index = node.args[1] if node.target is operator.getitem and len(node.args) == 2 else None
    if not isinstance(index, tuple) or not all(isinstance(i, fx.Node) or type(i) is int for i in index):
        return False
    tensors = [value_of(i) for i in index if isinstance(i, fx.Node)]
    return bool(tensors) and all(
        isinstance(t, torch.Tensor) and t.dtype in (torch.int64, torch.int32) and t.dim() > 0 for t in tensors
    )


@dataclasses.dataclass(frozen=True)
class Segment:
    """``runs`` runs of ``period`` nodes from position ``start``."""

    period: int
    start: int
    runs: int

    @property
    def stop(self) -> int:
        return self.start + self.runs * self.period


class Operands:
    """Operand positions and index numbers of every node, flattened once per graph."""

    def __init__(self, seq: Sequence) -> None:
        counts = [len(s.nodes) for s in seq.shapes]
        self.offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.flat = np.array([seq.position[n] for s in seq.shapes for n in s.nodes], dtype=np.int64)
        numbers: list[float] = []
        counts = []
        for node, shape in zip(seq.nodes, seq.shapes, strict=True):
            free = free_numbers(node, shape)
            own = [float(n) for k, n in enumerate(shape.numbers) if isinstance(n, int) and k not in free]
            numbers += own
            counts.append(len(own))
        self.index_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.indices = np.array(numbers, dtype=np.float64)

    def table(self, start: int, period: int, runs: int) -> np.ndarray:
        """Positions of the operands, one row per run."""
        lo, hi = self.offsets[start], self.offsets[start + period * runs]
        return self.flat[lo:hi].reshape(runs, -1)

    def index_table(self, start: int, period: int, runs: int) -> np.ndarray:
        lo, hi = self.index_offsets[start], self.index_offsets[start + period * runs]
        return self.indices[lo:hi].reshape(runs, -1)


def grow(ops: Operands, start: int, period: int, runs: int, least: int = 3) -> list[Segment]:
    """The segments of at least ``least`` runs, in order."""
    table = ops.table(start, period, runs)
    steps = np.diff(ops.index_table(start, period, runs), axis=0)
    same_step = (
        np.concatenate([[True], (steps[1:] == steps[:-1]).all(axis=1)]) if runs > 1 else np.array([True])
    )
    relative = table - (start + period * np.arange(runs, dtype=np.int64))[:, None]
    found: list[Segment] = []
    first = 0
    while first < runs:
        stop, by_index = _extent(table, relative, same_step, start, period, first)
        if stop - first >= least:
            found.append(Segment(period, start + first * period, stop - first))
        first = stop - 1 if by_index and stop - first == 2 else stop
    return found


def _extent(
    table: np.ndarray, relative: np.ndarray, same_step: np.ndarray, start: int, period: int, first: int
) -> tuple[int, bool]:
    """(the run at which the segment from ``first`` ends, whether an index ended it)."""
    base = start + first * period
    known = table[first] >= base
    delta = np.where(known, relative[first], 0)
    settled = False
    run = first + 1
    while run < len(table):
        if run - first >= 2 and not same_step[run - 1]:
            return run, True
        row = relative[run]
        if settled:
            if not (row[known] == delta[known]).all() or (table[run][~known] >= base).any():
                return run, False
            run += 1
            continue
        inside = table[run] >= base
        new = inside & ~known
        if (known & (row != delta)).any() or (new & (-(row // period) != run - first)).any():
            return run, False
        settled = not new.any() and run - first > 4
        known |= new
        delta = np.where(new, row, delta)
        run += 1
    return run, False


def crossings(ops: Operands, start: int, period: int, runs: int) -> np.ndarray:
    """For each phase, how many values of a middle run are still needed past that border."""
    middle = runs // 2
    count = np.zeros(period, dtype=np.int64)
    last: dict[int, int] = {}
    lo = start + middle * period
    stop = start + runs * period
    for position in range(lo, min(stop, lo + 2 * period)):
        for operand in ops.flat[ops.offsets[position] : ops.offsets[position + 1]].tolist():
            if lo - period <= operand < position:
                last[operand] = position
    for made, used in last.items():
        if not lo <= made < lo + period:
            continue
        span = min(used - made, period)
        for i in range(1, span + 1):
            count[(made - lo + i) % period] += 1
    return count


def with_phase(stretch: Stretch, period: int, phase: int) -> tuple[int, int]:
    """(start, runs) of the stretch cut at positions congruent to ``phase``."""
    start = stretch.start + (phase - stretch.start) % period
    return start, max(0, (stretch.stop - start) // period)
