"""What a kernel on tiles moves, and about how long an iteration of it takes on a card.

Takes a ``TileKernel``; leaves numbers, by which plans of one loop are compared: those
of a roofline's kind (Williams, Waterman, Patterson 2009), without overlap: bytes at the
card's bandwidth, products at the rate of its cores, and waits; at least what one instance
takes for itself where it runs over time, since nothing can then be done in its place.  Sizes
that are only known at launch are those of the example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tenfuse.plan.kernel import Operand
from tenfuse.plan.tiles.kernel import TileKernel, timed
from tenfuse.plan.tiles.registers import peak, room
from tenfuse.step.program import Contract, Ref, Solve, factors, only_summed

CORES = 128
"""Of the assumed card, on each of which an instance runs."""
_BANDWIDTH = 4000
"""Bytes per nanosecond."""
_RATE = {"bf16": 3000, "f16": 3000, "tf32": 1500, "ieee": 500}
"""Operations on matrices per nanosecond and core, about half of what data sheets say."""
_LATENCY, _SOLVED = 800, 3000
"""Nanoseconds that an instance waits for what it loads, and for a triangular system's substitutions."""
_BESIDE = 4
"""Instances whose waits a core fills with one another's work."""
_BACK = 3
"""How often what registers do not hold is moved: put away, taken up, and waited for."""
Spills = Mapping[str, float]
"""Bytes that a thread of a kernel puts away, by the kernel's key; infinite where there is no binary."""
NOTHING: Spills = {}
BYTES = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2, "bool": 1}


def moved(kernel: TileKernel, steps: int) -> int:
    """Bytes that all instances load and store: an operand once per instance that has it.

    Parts that instances leave of a sum are read once more, to be added up.
    """
    extent, sizes, count = dict(kernel.tiling.blocks), kernel.program.sizes, -(-steps // kernel.length)
    over = {a: sizes[a] for a in kernel.tiling.grid}
    over |= {a: -(-sizes[a] // extent[a]) for a in kernel.tiling.split}
    shared, found = dict(kernel.shared), 0
    for operand in kernel.operands:
        parts = shared.get(operand.index, ()) if operand.role == "out" else ()
        entries = math.prod(over[a] if a in parts else sizes[a] for a in operand.axes[: len(parts)])
        entries *= math.prod(sizes[a] for a in operand.axes[len(parts) :])
        entries *= math.prod(times for axis, times in over.items() if axis not in operand.axes)
        if timed(kernel, operand):
            entries *= steps if _by_position(kernel, operand) else count
        elif kernel.parallel:
            entries *= count
        summed = operand.role == "out" and kernel.program.outs[operand.index].accumulate
        entries *= 2 if parts or (summed and kernel.parallel) else 1
        found += entries * BYTES[operand.dtype]
    return found


def _by_position(kernel: TileKernel, operand: Operand) -> bool:
    """Whether an operand over time has an entry per position of a chunk, not per chunk."""
    if operand.role == "out":
        return bool(set(kernel.rows) & set(kernel.program.outs[operand.index].axes) - set(operand.axes))
    axes = kernel.program.inputs(operand.role).get(operand.index, ())
    return operand.role == "stream" and len(axes) > len(operand.axes)


def instances(kernel: TileKernel) -> int:
    """Of one iteration."""
    extent, sizes = dict(kernel.tiling.blocks), kernel.program.sizes
    blocks = math.prod(-(-sizes[a] // extent[a]) for a in kernel.tiling.split)
    return blocks * math.prod(sizes[a] for a in kernel.tiling.grid)


def nanoseconds(kernel: TileKernel, said: Spills = NOTHING) -> float:
    """Of one iteration of all instances, in the middle of a long sequence."""
    many, far = max(instances(kernel), 1), 64
    bytes_ = (moved(kernel, 2 * far * kernel.length) - moved(kernel, far * kernel.length)) / far
    products, waits = _work(kernel)
    products += spilled(kernel, said) * CORES / _BANDWIDTH
    together = bytes_ / _BANDWIDTH + many * products / CORES
    if kernel.parallel:
        return together + many * waits / (CORES * _BESIDE)
    return max(together, waits + products + bytes_ / many * CORES / _BANDWIDTH)


def _work(kernel: TileKernel) -> tuple[float, float]:
    """Nanoseconds that an instance multiplies matrices in an iteration, and that it waits."""
    program, extent = kernel.program, dict(kernel.tiling.blocks)
    axes, inner, entries = program.axes_of(), only_summed(program), 0
    solved = set[Ref]()
    for node in program.nodes:
        if isinstance(node, Contract) and node.arg in inner:
            over = {a for f in factors(program, node.arg, inner) for a in axes[f]}
            entries += math.prod(extent.get(a, 1) for a in over)
        elif isinstance(node, Solve):
            solved.add(node.lower)
            entries += math.prod(extent.get(a, 1) for a in axes[node.arg] | set(node.cols))
    return 2 * entries / _RATE[kernel.dots], _LATENCY + len(solved) * _SOLVED


def spilled(kernel: TileKernel, said: Spills = NOTHING) -> float:
    """Bytes that an instance puts away and takes up again since its registers do not hold them: as
    its compiler said, or else estimated."""
    threads = 32 * kernel.tiling.warps
    if said and kernel.key in said:
        return _BACK * threads * said[kernel.key]
    held = peak(kernel.program, dict(kernel.tiling.blocks), kernel.tiling.warps, kernel.dots, kernel.lightest)
    return _BACK * 4 * threads * max(held - room(kernel.dots), 0)


__all__ = ["CORES", "NOTHING", "Spills", "instances", "moved", "nanoseconds", "spilled"]
