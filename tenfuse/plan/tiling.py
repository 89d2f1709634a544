"""How a step's axes lie on a card: what an instance holds, and how many instances there are.

Takes a step program; leaves a ``Tiling``.  Axes whose entries are mixed are whole in every
tile.  Of the others one is taken in blocks, so that neighbours in memory are neighbours in
a tile, and the rest have an instance per entry.  Refuses (NO_TILES) mixed axes of a size
that is not known, and tiles beyond what a card holds on chip.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from tenfuse.plan.kernel import Operand
from tenfuse.plan.tile import Tiling, padded
from tenfuse.reasons import NO_TILES, refuse
from tenfuse.step.program import AxisName, Contract, Pointwise, Solve, StepProgram, only_summed

BUDGET = 4096
"""Entries of the largest tile that a block is chosen for."""
LARGEST = 1 << 17
"""Entries of a tile that a card can hold in its registers at all."""
_WIDEST = 128
_LEAST = 16
"""The side of the smallest matrix that tensor cores take."""


def tiling(
    program: StepProgram,
    operands: Collection[Operand],
    rows: tuple[AxisName, ...] = (),
    shared: frozenset[AxisName] = frozenset(),
) -> Tiling:
    """Of the ``shared`` axes, which only outputs sum over, one may be cut; the others are whole."""
    parallel = program.parallel_axes()
    free = [a for a in program.sizes if (a in parallel or a in shared) and a not in rows]
    cut = _vector(program, free, operands, parallel)
    mixed = [
        a for a in dict.fromkeys((*rows, *program.sizes)) if a in rows or (a not in parallel and a != cut)
    ]
    dynamic = sorted(set(mixed) & program.dynamic)
    if dynamic:
        raise refuse(NO_TILES, "an axis that the step sums over has a size that is only known at run time")
    extent = {a: padded(program.sizes[a]) for a in mixed}
    inner = _largest(program, extent)
    if inner > LARGEST:
        raise refuse(NO_TILES, f"a value of the step has {inner} entries per tile, more than {LARGEST}")
    wide = cut
    blocks = [(a, extent[a]) for a in mixed]
    if wide is not None:
        room = max(BUDGET // _largest(program, extent, wide), 1)
        block = min(padded(program.sizes[wide]), _WIDEST, 1 << (room.bit_length() - 1))
        block = max(block, min(_LEAST, padded(program.sizes[wide]))) if mixed else block
        blocks.append((wide, block))
        inner = max(inner, _largest(program, {**extent, wide: block}))
    grid = tuple(a for a in free if a != wide and a in parallel)
    warps = 1 if inner <= 512 else 2 if inner <= 1024 else 4 if inner <= 8192 else 8
    return Tiling(tuple(blocks), (wide,) if wide is not None else (), grid, warps)


def _vector(
    program: StepProgram,
    free: Collection[AxisName],
    operands: Collection[Operand],
    parallel: frozenset[AxisName],
) -> AxisName | None:
    """The axis of blocks: adjacent in memory for most of what is read and written.

    Beside mixed axes not one for each of whose entries there is another matrix.
    """
    free = [a for a in free if not _for_each(program, a)]
    if not free:
        return None
    weight: dict[AxisName, int] = dict.fromkeys(free, 0)
    for o in operands:
        if o.unit in weight:
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


def _largest(program: StepProgram, extent: Mapping[AxisName, int], with_axis: AxisName = "") -> int:
    """Entries of the largest tile; with an axis: of the largest that has it, without it."""
    skipped, axes = only_summed(program), program.axes_of()
    volumes = [
        math.prod(extent.get(a, 1) for a in own)
        for i, own in enumerate(axes) if i not in skipped and (not with_axis or with_axis in own)
    ]  # fmt: skip
    return max(volumes, default=1)


__all__ = ["tiling"]
