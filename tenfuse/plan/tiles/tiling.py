"""How a step's axes lie on a card: what an instance holds, and how many instances there are.

Takes a step program; leaves a ``Tiling``.  Axes whose entries are mixed are whole in every
tile.  Of the others one is taken in blocks, so that neighbours in memory are neighbours in
a tile, and the rest have an instance per entry.  Refuses (NO_TILES) mixed axes of a size
that is not known, and tiles beyond what a card holds on chip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from tenfuse.plan.kernel import Operand
from tenfuse.plan.tiles.kernel import LARGEST, LEAST, Tiling, padded
from tenfuse.plan.tiles.registers import HELD, peak, room
from tenfuse.plan.tiles.slices import beside_matrices, only_in_slices, slices
from tenfuse.plan.tiles.traffic import CORES
from tenfuse.reasons import NO_TILES, refuse
from tenfuse.step.program import (
    AxisName,
    Contract,
    Pointwise,
    Ref,
    Scan,
    Solve,
    StepProgram,
    mixed,
    multiplied,
    only_summed,
)

BUDGET = 4096
"""Entries of the largest tile that a block is chosen for."""
_WIDEST = 128
FILL = 256
"""Instances that keep a card busy; with fewer, blocks are smaller."""
_EACH, _MATRIX, _GROUP, _MOST_WARPS = 16, 32, 4, 8
"""Entries of a tile that a thread holds, beside several others or beside few; warps that
multiply matrices together, and warps at most."""
_SHORT, _NARROW = 64, 32


def tiling(
    program: StepProgram,
    operands: Collection[Operand],
    rows: tuple[AxisName, ...] = (),
    shared: frozenset[AxisName] = frozenset(),
    alone: bool = True,
    dots: str = "ieee",
    smaller: int = 0,
) -> Tiling:
    """``alone`` says that instances run over time: there are then no others for later times.

    A thread is to hold half as much as it is estimated to have room for, ``smaller`` times over.
    Of the ``shared`` axes, which only outputs sum over, one may be cut; the others are whole.
    """
    one_step = not rows
    rows = tuple(a for a in rows if a in program.sizes)
    parallel = program.parallel_axes()
    free = [a for a in program.sizes if (a in parallel or a in shared) and a not in rows]
    cut = _cut(program, free, operands, parallel, rows)
    cut += _beside(program, free, parallel, cut)
    held = _held(program, operands, rows, free, cut)
    if set(held) & program.dynamic:
        raise refuse(NO_TILES, "an axis that the step sums over has a size that is only known at run time")
    extent = {a: padded(program.sizes[a]) for a in held}
    again = only_in_slices(program, slices(program, extent, dots) if one_step else ())
    inner = _largest(program, extent, skipped=again)
    if inner > LARGEST:
        raise refuse(NO_TILES, f"a value of the step has {inner} entries per tile, more than {LARGEST}")
    beside = beside_matrices(program, extent) if one_step else frozenset[AxisName]()
    widest = {a: max(min(padded(program.sizes[a]), _WIDEST), LEAST if a in beside else 1) for a in cut}
    found = _Blocks(program, extent, widest, dots, one_step)
    found.fit()
    if alone:
        found.spread(math.prod(program.sizes[a] for a in free if a not in cut and a in parallel))
    warps = _warps(program, extent | found.blocks, dots)
    for _ in range(smaller):
        warps = found.smaller(warps)
    blocks = {a: n for a, n in found.blocks.items() if n > 1 or a not in parallel}
    extent |= blocks
    cut = tuple(a for a in blocks if a in parallel or a in program.dynamic or blocks[a] < program.sizes[a])
    grid = tuple(a for a in free if a not in extent and a in parallel)
    return Tiling(tuple(extent.items()), cut, grid, warps)


def _held(
    program: StepProgram,
    operands: Collection[Operand],
    rows: tuple[AxisName, ...],
    free: Collection[AxisName],
    cut: tuple[AxisName, ...],
) -> list[AxisName]:
    """The axes that are whole in every tile: positions, mixed ones, and few entries that read the same."""
    parallel = program.parallel_axes()
    few = {a for a in free if a in parallel and a not in cut and _read_again(program, operands, a)}
    few -= {a for a in few if _for_each(program, a)}
    return [
        a for a in dict.fromkeys((*rows, *_positions(program), *program.sizes))
        if a in rows or a in few or a not in (*parallel, *cut)
    ]  # fmt: skip


class _Blocks:
    """How many entries an instance holds along the axes that are cut, beside those that are whole."""

    def __init__(
        self,
        program: StepProgram,
        extent: Mapping[AxisName, int],
        widest: Mapping[AxisName, int],
        dots: str,
        one_step: bool,
    ) -> None:
        self.program, self.extent, self.widest, self.dots = program, extent, widest, dots
        self.parallel, self.matrices = program.parallel_axes(), _matrices(program)
        self.one_step, self.counted = one_step, self.matrices and not (one_step and dots == "ieee")
        self.least = LEAST if extent else 1
        self.cut, self.blocks = tuple(widest), dict(widest)

    def fit(self) -> None:
        """Halve blocks as long as an instance holds too much."""
        if self.counted:
            self._shorten(self._spills, self.least)
            if not self._spills():
                return
            # What is held whole is too much already: shorter blocks would only read it again.
            self.blocks = dict(self.widest)
        self._shorten(self._large, self.least)
        if _scans(self.program, self._tiles()):
            self._shorten(self._scans_too_much, self.least)
        if not self.matrices and not self.one_step:
            # Tiles of whole chunks are large by themselves: nothing is gained by several at once.
            self._shorten(lambda: _largest(self.program, self._tiles(), self.cut) > BUDGET, 1)

    def spread(self, others: int) -> None:
        """Halve blocks as long as there are too few instances to fill a card; ``others`` of each block."""
        fill = CORES if self.matrices else FILL
        while self.cut and others * _parts(self.program, self.blocks) < fill:
            largest = max(self.cut, key=lambda a: (self.blocks[a], a != self.cut[0]))
            if self.blocks[largest] <= LEAST:
                break
            self.blocks[largest] //= 2

    def smaller(self, warps: int) -> int:
        """Give a thread half as much to hold: more of them, or else a shorter block; the warps then."""
        if warps < _MOST_WARPS:
            return 2 * warps
        self._halved(self.least)
        return warps

    def _tiles(self) -> dict[AxisName, int]:
        return {**self.extent, **self.blocks}

    def _spills(self) -> bool:
        return peak(self.program, self._tiles(), _MOST_WARPS, self.dots) > room(self.dots)

    def _scans_too_much(self) -> bool:
        return peak(self.program, self._tiles(), _MOST_WARPS, self.dots) > HELD

    def _large(self) -> bool:
        budget = BUDGET if len(self.cut) < 2 else 2 * BUDGET
        return _largest(self.program, self._tiles(), self.cut) > budget

    def _shorten(self, too_much: Callable[[], bool], least: int) -> None:
        """Outputs are written in parts where an axis is shared: that is cut when the others are short."""
        while too_much() and self._halved(least):
            pass

    def _halved(self, least: int) -> bool:
        """Whether the longest block could be halved."""
        largest = max(self.cut, key=self._order, default=None)
        if largest is None or self.blocks[largest] <= least:
            return False
        self.blocks[largest] //= 2
        return True

    def _order(self, axis: AxisName) -> tuple[bool, int, bool]:
        block = self.blocks[axis]
        return axis in self.parallel and block > _NARROW, block, axis != self.cut[0]


def _warps(program: StepProgram, extent: Mapping[AxisName, int], dots: str) -> int:
    scans = _scans(program, extent)
    matrices = _matrices(program) and not scans
    warps = padded(_largest(program, extent) // (32 * (_MATRIX if matrices else _EACH)))
    warps = min(max(warps, _GROUP if matrices else 1), _MOST_WARPS)
    most = room(dots) if matrices else HELD
    while (matrices or scans) and warps < _MOST_WARPS and peak(program, extent, warps, dots) > most:
        warps *= 2
    return warps


def _positions(program: StepProgram) -> list[AxisName]:
    """Axes along which order matters: first in tiles, as time is in memory."""
    return [a for n in program.nodes for a in sorted(mixed(n)) if a in program.sizes]


def _beside(
    program: StepProgram, free: Collection[AxisName], parallel: frozenset[AxisName], cut: tuple[AxisName, ...]
) -> tuple[AxisName, ...]:
    """One more axis in blocks beside one that is too short to fill a warp twice."""
    if len(cut) != 1 or cut[0] in program.dynamic or program.sizes[cut[0]] >= _SHORT:
        return ()
    others = [a for a in free if a in parallel and a not in cut and not _for_each(program, a)]
    found = max(others, key=lambda a: program.sizes[a], default=None)
    return () if found is None else (found,)


def _read_again(program: StepProgram, operands: Collection[Operand], axis: AxisName) -> bool:
    """Whether instances along a short axis would all read what does not differ along it."""
    if axis in program.dynamic or program.sizes[axis] > LEAST:
        return False
    read = [o.axes for o in operands if o.role == "stream"]
    return any(axis in axes for axes in read) and any(axis not in axes for axes in read)


def _parts(program: StepProgram, blocks: Mapping[AxisName, int]) -> int:
    return math.prod(-(-program.sizes[a] // n) for a, n in blocks.items())


def _scans(program: StepProgram, extent: Mapping[AxisName, int]) -> bool:
    """Whether a scan runs over tiles as large as any."""
    axes, largest = program.axes_of(), _largest(program, extent)
    return any(
        isinstance(n, Scan) and 2 * math.prod(extent.get(a, 1) for a in axes[i]) >= largest
        for i, n in enumerate(program.nodes)
    )


def _matrices(program: StepProgram) -> bool:
    """Whether the step multiplies matrices, of which few are held at once; else many tiles are."""
    axes = program.axes_of()
    for node in program.nodes:
        if isinstance(node, Contract):
            own = [axes[f] - node.axes for f in multiplied(program.nodes, node.arg)]
            if any(a - b and b - a for a in own for b in own):
                return True
    return False


def _cut(
    program: StepProgram,
    free: Collection[AxisName],
    operands: Collection[Operand],
    parallel: frozenset[AxisName],
    rows: Collection[AxisName],
) -> tuple[AxisName, ...]:
    """The axes taken in blocks: one, and one that is multiplied with it."""
    wide = _vector(program, free, operands, parallel, rows)
    if wide is None:
        return ()
    other = [a for a in free if a != wide and _multiplied(program, wide, a)]
    return (wide, max(other, key=lambda a: program.sizes[a])) if other else (wide,)


def _multiplied(program: StepProgram, one: AxisName, other: AxisName) -> bool:
    """Whether some sum of products has one axis in one factor only, and the other in another."""
    axes = program.axes_of()
    for node in program.nodes:
        if isinstance(node, Contract) and {one, other} <= axes[node.arg] - node.axes:
            factors = [axes[f] for f in multiplied(program.nodes, node.arg)]
            if any(one in a and other not in a for a in factors) and any(
                other in a and one not in a for a in factors
            ):
                return True
    return False


def _vector(
    program: StepProgram,
    free: Collection[AxisName],
    operands: Collection[Operand],
    parallel: frozenset[AxisName],
    rows: Collection[AxisName],
) -> AxisName | None:
    """The axis of blocks: adjacent in memory for most of what is read and written.

    Beside mixed axes not one for each of whose entries there is another matrix.
    """
    free = [a for a in free if not _for_each(program, a)]
    if not free:
        return None
    weight: dict[AxisName, int] = dict.fromkeys(free, 0)
    inputs = program.inputs("stream")
    for o in operands:
        over_time = o.role == "stream" and len(inputs[o.index]) > len(o.axes)
        over_time |= o.role == "out" and len(program.outs[o.index].axes) > len(o.axes)
        if o.unit in weight and (over_time or not rows):
            weight[o.unit] += math.prod(program.sizes[a] for a in o.axes)
    return max(free, key=lambda a: (weight[a], a in parallel, program.sizes[a]))


def _for_each(program: StepProgram, axis: AxisName) -> bool:
    """Whether a product of matrices, or a triangular system, is another one for each entry."""
    axes = program.axes_of()
    for node in program.nodes:
        if isinstance(node, Solve) and axis in axes[node.lower]:
            return True
        if isinstance(node, Contract) and axis not in node.axes:
            factor = program.nodes[node.arg]
            args = factor.args if isinstance(factor, Pointwise) and factor.fn == "mul" else ()
            own = [axes[a] - node.axes for a in args]
            if len(own) == 2 and axis in own[0] & own[1] and own[0] - own[1] and own[1] - own[0]:
                return True
    return False


def _largest(
    program: StepProgram,
    extent: Mapping[AxisName, int],
    over: Collection[AxisName] = (),
    skipped: Collection[Ref] = (),
) -> int:
    """Entries of the largest tile, or of the largest that has one of the axes ``over``."""
    skipped, axes = only_summed(program).union(skipped), program.axes_of()
    volumes = [
        math.prod(extent.get(a, 1) for a in own)
        for i, own in enumerate(axes) if i not in skipped and (not over or set(over) & own)
    ]  # fmt: skip
    return max(volumes, default=1)


__all__ = ["tiling"]
