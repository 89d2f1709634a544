"""Matrices of which a step reads one slice after the other, at every step again.

Takes a step program and the sizes of its tiles; leaves, for sums over a product with a matrix that
is the same at every step, the axis of the sum and how much of it is taken at once.  What is held
from the first step to the last is fastest as long as an instance has room for all of its matrices;
beyond that they are left to the card's caches.  Other sums stay whole.
Refuses (NO_TILES) matrices beyond what caches hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tenfuse.plan.tiles.kernel import LEAST, Slice
from tenfuse.reasons import NO_TILES, refuse
from tenfuse.step.program import AxisName, Contract, Input, Ref, StepProgram, arguments, factors, only_summed

ROOM = 96 << 10
"""Bytes of matrices that an instance holds: tiles need as much again."""
MOST = 1 << 22
"""Entries of all matrices of a step, which every instance reads at every step."""
_LARGE, _WIDEST = 4096, 64
"""Entries of a matrix that is worth a loop, and of a slice along the axis."""
_AT_ONCE = 1 << 14
"""Bytes of a slice: what is on its way from memory is in registers."""
_BYTES = {"bf16": 2, "f16": 4, "tf32": 4, "ieee": 6}
"""Of an entry as it is multiplied; in full precision it is three numbers."""


def slices(program: StepProgram, extent: Mapping[AxisName, int], dots: str) -> tuple[Slice, ...]:
    """Of the sums of a step; none where all of the matrices can be held."""
    found = _matrices(program, extent)
    axes = program.axes_of()
    entries = sum(math.prod(extent.get(a, 1) for a in axes[m]) for m in set(found.values()))
    if entries > MOST:
        raise refuse(NO_TILES, f"a step multiplies by {entries} entries of matrices, more than {MOST}")
    if entries * _BYTES[dots] <= ROOM:
        return ()
    most = _AT_ONCE // (2 if dots == "bf16" else 4)
    return tuple(_slice(program, ref, matrix, extent, most) for ref, matrix in found.items())


def only_in_slices(program: StepProgram, found: tuple[Slice, ...]) -> set[Ref]:
    """The nodes that are never made whole."""
    whole, stack = set[Ref](), list(program.roots())
    inner, cut = only_summed(program), {s.ref: s for s in found}
    axes = program.axes_of()
    while stack:
        ref = stack.pop()
        if ref in whole:
            continue
        whole.add(ref)
        read = [f for a in arguments(program.nodes[ref]) for f in factors(program, a, inner)]
        if ref in cut:
            read = [f for f in read if not (_fixed(program, f) and cut[ref].axis in axes[f])]
        stack += read
    return set(range(len(program.nodes))) - whole - inner


def beside_matrices(program: StepProgram, extent: Mapping[AxisName, int]) -> frozenset[AxisName]:
    """The axes along which many vectors are multiplied by one such matrix."""
    axes = program.axes_of()
    return frozenset(a for ref, m in _matrices(program, extent).items() for a in axes[ref] - axes[m])


def _matrices(program: StepProgram, extent: Mapping[AxisName, int]) -> dict[Ref, Ref]:
    found = ((ref, _matrix(program, ref, extent)) for ref in range(len(program.nodes)))
    return {ref: matrix for ref, matrix in found if matrix is not None}


def _matrix(program: StepProgram, ref: Ref, extent: Mapping[AxisName, int]) -> Ref | None:
    """The large factor of a sum that is the same at every step, beside one that is not."""
    node, axes = program.nodes[ref], program.axes_of()
    if not isinstance(node, Contract) or node.op != "sum":
        return None
    own = factors(program, node.arg, only_summed(program))
    fixed = [
        f for f in own
        if _fixed(program, f) and axes[f] & node.axes and axes[f] - node.axes
        and math.prod(extent.get(a, 1) for a in axes[f]) >= _LARGE
    ]  # fmt: skip
    if not fixed or all(_fixed(program, f) for f in own):
        return None
    return max(fixed, key=lambda f: math.prod(extent.get(a, 1) for a in axes[f]))


def _fixed(program: StepProgram, ref: Ref) -> bool:
    """Whether a value is the same at every step."""
    node = program.nodes[ref]
    if isinstance(node, Input) and node.kind != "invariant":
        return False
    return all(_fixed(program, a) for a in arguments(node))


def _slice(program: StepProgram, ref: Ref, matrix: Ref, extent: Mapping[AxisName, int], most: int) -> Slice:
    """Of ``most`` entries of the matrix."""
    node, axes = program.nodes[ref], program.axes_of()
    assert isinstance(node, Contract)
    axis = max(sorted(axes[matrix] & node.axes), key=lambda a: extent.get(a, 1))
    rest = math.prod(extent.get(a, 1) for a in axes[matrix] - {axis})
    others = math.prod(extent.get(a, 1) for a in axes[ref] - axes[matrix])
    if others < LEAST:
        # No matrix units: all is multiplied out.
        rest *= others
    return Slice(ref, axis, min(max(most // rest, LEAST), _WIDEST, extent.get(axis, 1)))


__all__ = ["MOST", "beside_matrices", "only_in_slices", "slices"]
