"""Calling a compiled kernel on tensors.

Takes a ``Kernel`` and, per call, tensors viewed as the kernel's operands say; leaves
results in the tensors with the roles final, out and save.  Decides nothing: an input that
breaks a promised unit stride is copied, an output that does is filled through a copy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch

from tenfuse.emit.cpp import emit
from tenfuse.emit.cpp.source import timed
from tenfuse.plan.kernel import Kernel
from tenfuse.runtime.compile import compiler, load
from tenfuse.step.program import AxisName

DTYPES = {
    "f32": torch.float32,
    "f64": torch.float64,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "bool": torch.bool,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
}
_RESULTS = ("final", "out")
Numbers = tuple["ctypes.Array[ctypes.c_int64]", "ctypes.Array[ctypes.c_int64]"]
"""Strides of all operands, and sizes of all axes, as the kernel takes them."""


class Launcher:
    """One kernel, compiled once, called many times and from any thread."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.source = emit(kernel, compiler().isa)
        self._function = load(self.source)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value or 0
        """Where the function lies, for those who call it from elsewhere than Python."""
        second = kernel.recompute.sizes if kernel.recompute else {}
        known = {**second, **kernel.program.sizes}
        self._names = tuple(sorted(known))
        self._static = tuple(known[a] for a in self._names)
        self._dynamic = frozenset(kernel.program.dynamic) | (
            kernel.recompute.dynamic if kernel.recompute else frozenset()
        )
        self._ranks = tuple(len(o.axes) + timed(kernel, o) for o in kernel.operands)
        self._unit = tuple(
            (i, o.axes.index(o.unit) + timed(kernel, o))
            for i, o in enumerate(kernel.operands)
            if o.unit in o.axes
        )
        self._pointers = ctypes.c_void_p * max(1, len(kernel.operands))
        self._strides: dict[tuple[tuple[int, ...], ...], ctypes.Array[ctypes.c_int64]] = {}
        self._sizes: dict[tuple[int, ...], ctypes.Array[ctypes.c_int64]] = {}

    def __call__(
        self, tensors: Sequence[torch.Tensor], steps: int, sizes: Mapping[AxisName, int] | None = None
    ) -> None:
        """Run ``steps`` steps; ``tensors`` stand in the order of ``kernel.operands``."""
        given = self._axis_sizes(sizes or {})
        strides = tuple([x.stride() for x in tensors])
        cached = self._strides.get(strides)
        fixed: list[tuple[torch.Tensor, torch.Tensor]] = []
        if cached is None:
            tensors, fixed = self._checked(tensors, given)
            strides = tuple([x.stride() for x in tensors])
            cached = self._stride_array(strides, remember=not fixed)
        self.launch([x.data_ptr() for x in tensors], (cached, self._size_array(given)), steps)
        for mine, theirs in fixed:
            theirs.copy_(mine)

    def launch(self, starts: Sequence[int], numbers: Numbers, steps: int) -> None:
        """Run on operands that start at these addresses."""
        failed = self._function(self._pointers(*starts), *numbers, steps, torch.get_num_threads())
        if failed:
            raise MemoryError("a tenfuse kernel could not allocate its scratch memory")

    def planned(self, tensors: Sequence[torch.Tensor], sizes: Mapping[AxisName, int]) -> Numbers | None:
        """Strides and sizes for tensors laid out as these are, which need no memory; None if one
        of them would have to be copied."""
        given = self._axis_sizes(sizes)
        self._match(tensors, given)
        if any(tensors[i].stride(dim) != 1 for i, dim in self._unit):
            return None
        strides = tuple([x.stride() for x in tensors])
        found = self._strides.get(strides)
        if found is None:
            found = self._stride_array(strides, remember=True)
        return found, self._size_array(given)

    def _axis_sizes(self, sizes: Mapping[AxisName, int]) -> tuple[int, ...]:
        if not self._dynamic:
            return self._static
        return tuple(
            sizes.get(a, n) if a in self._dynamic else n
            for a, n in zip(self._names, self._static, strict=True)
        )

    def _size_array(self, given: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
        found = self._sizes.get(given)
        if found is None:
            if len(self._sizes) > 256:
                self._sizes.clear()
            found = self._sizes[given] = (ctypes.c_int64 * max(1, len(given)))(*given)
        return found

    def _stride_array(
        self, strides: tuple[tuple[int, ...], ...], remember: bool
    ) -> ctypes.Array[ctypes.c_int64]:
        flat = [s for each in strides for s in each]
        found = (ctypes.c_int64 * max(1, len(flat)))(*flat)
        if remember:
            if len(self._strides) > 256:
                self._strides.clear()
            self._strides[strides] = found
        return found

    def _match(self, tensors: Sequence[torch.Tensor], given: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless types and shapes are those of the kernel's operands."""
        size = dict(zip(self._names, given, strict=True))
        if len(tensors) != len(self.kernel.operands):
            raise ValueError(f"the kernel takes {len(self.kernel.operands)} tensors, got {len(tensors)}")
        for i, (operand, x) in enumerate(zip(self.kernel.operands, tensors, strict=True)):
            if x.dtype != DTYPES[operand.dtype] or x.dim() != self._ranks[i]:
                raise ValueError(f"operand {i} ({operand}) got {x.dtype} {tuple(x.shape)}")
            lead = timed(self.kernel, operand)
            if tuple(x.shape[lead:]) != tuple(size[a] for a in operand.axes):
                raise ValueError(f"operand {i} ({operand}) got the shape {tuple(x.shape)}")

    def _checked(
        self, tensors: Sequence[torch.Tensor], given: tuple[int, ...]
    ) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """Tensors that keep every promise, and the copies to write back afterwards."""
        self._match(tensors, given)
        fine, fixed = list(tensors), []
        for i, x in enumerate(fine):
            if x.device.type != "cpu":
                raise ValueError(f"operand {i} ({self.kernel.operands[i]}) is on {x.device}")
        for i, dim in self._unit:
            x = fine[i]
            if x.stride(dim) == 1:
                continue
            order = [d for d in range(x.dim()) if d != dim] + [dim]
            back = [order.index(d) for d in range(x.dim())]
            packed = x.permute(order).clone(memory_format=torch.contiguous_format).permute(back)
            if packed.stride(dim) != 1:
                packed = _unit_last(packed, order, back)
            fine[i] = packed
            role = self.kernel.operands[i].role
            if role in _RESULTS or (role == "save" and not self.kernel.backward):
                fixed.append((packed, x))
        return fine, fixed


def _unit_last(x: torch.Tensor, order: list[int], back: list[int]) -> torch.Tensor:
    """The same entries with stride 1 in the last dimension of ``order``, however small it is."""
    moved = x.permute(order)
    fresh = torch.empty(moved.numel(), dtype=x.dtype).view(moved.shape)
    return fresh.copy_(moved).permute(back)


__all__ = ["DTYPES", "Launcher"]
