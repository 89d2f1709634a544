"""What a kernel on tiles is, before it is text: its program, operands, and how axes lie on a card.

Takes step programs; leaves frozen descriptions that an emitter turns into source and the
runtime launches.  Nothing here knows a language or a device.

A ``TileKernel`` runs one program instance per entry of its *grid* axes and per block of its
*split* axes.  An instance holds every value as a tile over the remaining axes, padded to
powers of two, and runs over time with its carries on chip.  The program's step may be a
whole chunk of ``length`` steps, at positions ``rows``: the last chunk may be shorter, and
what a stream holds behind the end is then the last entry again, or zero (``zero``).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

from tenfuse.plan.canonical import canonical
from tenfuse.plan.kernel import Operand
from tenfuse.step.program import AxisName, Ref, StepProgram


@dataclasses.dataclass(frozen=True)
class Tiling:
    """``blocks`` are the tile axes, outermost first, each with its padded size in a tile."""

    blocks: tuple[tuple[AxisName, int], ...]
    split: tuple[AxisName, ...] = ()
    """Tile axes of which an instance holds one block only; nothing mixes their entries."""
    grid: tuple[AxisName, ...] = ()
    warps: int = 4
    stages: int = 1


@dataclasses.dataclass(frozen=True)
class Slice:
    """The sum ``ref`` is taken ``width`` entries along ``axis`` at a time."""

    ref: Ref
    axis: AxisName
    width: int


@dataclasses.dataclass(frozen=True)
class TileKernel:
    """``compute`` ("f32" or "f64") is the dtype of state and arithmetic.

    Operands are those of ``Kernel``.  One that has the positions among its axes does not
    list them: it is a tensor over time.  Others with the role stream or out, and those
    with the roles state, costate and cross, have one entry per iteration.

    ``descending`` runs from the last iteration to the first; ``flipped`` says that position 0
    of chunk 0 is the last entry in memory.
    """

    program: StepProgram
    operands: tuple[Operand, ...]
    tiling: Tiling
    compute: str = "f32"
    parallel: bool = False
    """Whether iterations do not depend on each other: then each has an instance of its own."""
    descending: bool = False
    flipped: bool = False
    rows: tuple[AxisName, ...] = ()
    length: int = 1
    """Steps of one iteration."""
    zero: frozenset[int] = frozenset()
    """Streams that are zero behind the end of time, not the last entry again."""
    within: int = -1
    """A stream that is no operand: whether a position lies before the end of time."""
    shared: tuple[tuple[int, tuple[AxisName, ...]], ...] = ()
    """Outputs of which every instance writes its part: (output, axes that are yet to be summed
    over).  Such an output has these axes, one entry per block or instance, before its own."""
    dots: str = "ieee"
    """What products of matrices multiply: "ieee" or "tf32", or operands rounded to "bf16" or "f16"."""
    slices: tuple[Slice, ...] = ()
    """Sums with matrices that are read again at every step."""
    lightest: bool = False
    """Whether outputs that take the least room are made first, not those that take the most."""

    @functools.cached_property
    def key(self) -> str:
        """A name for the kernel: equal kernels have equal names."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()

    def axes(self) -> tuple[AxisName, ...]:
        """Dynamic axes in the order their sizes are passed at launch."""
        return tuple(sorted(self.program.dynamic))


LARGEST = 1 << 17
"""Entries of a tile that a card can hold in its registers at all; Triton allows more."""
LEAST = 16
"""The side of the smallest matrix that matrix units take."""


def timed(kernel: TileKernel, operand: Operand) -> bool:
    """Whether the first dimension of an operand is time."""
    if operand.role == "out":
        return kernel.parallel or not kernel.program.outs[operand.index].accumulate
    return operand.role in ("stream", "state", "costate", "cross")


def padded(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << max(size - 1, 0).bit_length()


__all__ = ["LARGEST", "LEAST", "Slice", "TileKernel", "Tiling", "padded", "timed"]
