"""What a plan knows of a loop's tensors: example values, dtypes, and how they lie in memory.

Takes tensors (fake ones will do) and the views that a step has of them.  Refuses (DTYPE) what a
kernel cannot compute with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from tenfuse.reasons import DTYPE, refuse
from tenfuse.step.program import AxisName
from tenfuse.step.reader import View

NAMES = {
    torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16",
    torch.bool: "bool", torch.complex64: "f32", torch.complex128: "f64",
    torch.int64: "i64", torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8",
}  # fmt: skip

Extent = int | tuple[AxisName, int]
"""A static size, or a dynamic axis times a number."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A tensor the op allocates: ``[steps, *shape]``, time after ``lead`` dimensions in memory."""

    shape: tuple[Extent, ...]
    dtype: torch.dtype
    lead: int = 0


@dataclasses.dataclass(frozen=True)
class Examples:
    """Example tensors (fake ones will do), in the order the op takes them.

    ``streams`` have time first; ``exports`` are the example values of one step.  ``wide``
    says that the step computes in double precision somewhere.
    """

    carries: Sequence[torch.Tensor]
    streams: Sequence[torch.Tensor]
    invariants: Sequence[torch.Tensor]
    exports: Sequence[torch.Tensor]
    wide: bool = False

    @property
    def compute(self) -> str:
        """The type that a kernel computes in."""
        doubles = (NAMES.get(t.dtype) == "f64" for t in (*self.carries, *self.exports))
        return "f64" if self.wide or any(doubles) else "f32"


def dtype_name(dtype: torch.dtype) -> str:
    if dtype not in NAMES:
        raise refuse(DTYPE, f"a tensor of the loop is {dtype}")
    return NAMES[dtype]


def unit_axis(tensor: torch.Tensor, view: View, lead: int) -> AxisName | None:
    """The axis of ``view`` along which the tensor's entries are adjacent."""
    if view.part is not None:
        return None
    for axis, (dim, step) in zip(view.axes, view.dims, strict=True):
        stride = tensor.stride(dim + lead)
        if isinstance(stride, int) and stride * step == 1:
            return axis
    return None


def dense_like(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the same shape, its dimensions in the same order in memory."""
    return torch.empty_like(tensor, memory_format=torch.preserve_format)


__all__ = ["NAMES", "Examples", "Extent", "Layout", "dense_like", "dtype_name", "unit_axis"]
