"""What a kernel is, before it is text: programs, operands, time.

Takes step programs; leaves frozen descriptions that an emitter turns into source and the
runtime launches.  Nothing here knows a language or a device.

A *forward* kernel runs ``program`` over all steps.  With ``checkpoint = C > 0`` it also
writes the carries as they are before steps 0, C, 2C, ... (in run order).

A *backward* kernel has a ``recompute`` program too (the forward program, outputs
removed).  It walks the chunks of ``C`` steps from the last to the first: it reruns
``recompute`` from the checkpoint keeping every state of the chunk on chip, then runs
``program`` (the adjoint step) over the chunk's steps in opposite run order.  Inputs of
kind "state" are those recomputed carries; ``reverse`` is that of the forward loop.
"""

from __future__ import annotations

import dataclasses

from tenfuse.step.program import AxisName, StepProgram

DTYPES = ("f32", "f64", "bf16", "f16", "bool", "i64", "i32", "i16", "i8", "u8")


@dataclasses.dataclass(frozen=True)
class Operand:
    """One tensor a kernel reads or writes, with one stride per axis (plus time).

    ``role`` and ``index``:

    ======== =================================================== ==========
    role     index                                               time stride
    ======== =================================================== ==========
    init     carry of ``program``                                no
    stream   stream of ``program`` (and ``recompute``)           yes
    constant invariant of ``program`` (and ``recompute``)        no
    save     carry of the forward program, per chunk             per chunk
    final    carry of ``program``                                no
    out      output of ``program``                               yes, unless it accumulates
    ======== =================================================== ==========

    ``save`` is written by forward kernels and read by backward kernels.  ``unit`` is the
    axis whose stride is known to be 1 at every launch, if any.  Strides of the other axes
    are given at launch and may be 0 (expanded inputs) or negative-free arbitrary otherwise.
    """

    role: str
    index: int
    dtype: str
    axes: tuple[AxisName, ...]
    unit: AxisName | None = None


@dataclasses.dataclass(frozen=True)
class Kernel:
    """``compute`` ("f32" or "f64") is the dtype of state and arithmetic."""

    program: StepProgram
    operands: tuple[Operand, ...]
    compute: str = "f32"
    reverse: bool = False
    checkpoint: int = 0
    recompute: StepProgram | None = None

    @property
    def backward(self) -> bool:
        return self.recompute is not None

    def axes(self) -> tuple[AxisName, ...]:
        """Dynamic axes in the order their sizes are passed at launch."""
        return tuple(sorted(self.program.dynamic))
