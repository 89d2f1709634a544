"""The parts of a call: kernels launched, memory cleared, sums added up.

A call's tensors are numbered: those given, then its results, then its scratch memory.  A part
names its operands by tensor number and byte offset, so that it can be run again on other
tensors with the same layouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from tenfuse.runtime.launch import Launcher, Numbers
from tenfuse.runtime.reuse import empty

Run = Callable[[Sequence[int], Sequence[torch.Tensor]], None]
"""A part as it is run: on the addresses of the call's tensors, and the tensors themselves."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A tensor that every call makes anew."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    size: int

    @staticmethod
    def like(x: torch.Tensor) -> Made:
        return Made(x.shape, x.stride(), x.dtype, x.untyped_storage().nbytes())

    def __call__(self) -> torch.Tensor:
        return empty(self.shape, self.stride, self.dtype, self.size)


@dataclasses.dataclass(frozen=True)
class Launch:
    """``places`` say where operands start: (tensor, bytes), counting the tensors of the call."""

    launcher: Launcher
    numbers: Numbers
    steps: int
    places: tuple[tuple[int, int], ...]

    def __call__(self, starts: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
        self.launcher.launch([starts[i] + offset for i, offset in self.places], self.numbers, self.steps)


@dataclasses.dataclass(frozen=True)
class Spot:
    """A view: of which tensor of the call, from which byte on, and its layout."""

    tensor: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def view(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        base, item = tensors[self.tensor], self.dtype.itemsize
        start = base.storage_offset() * base.element_size() + self.offset
        return torch.empty(0, dtype=self.dtype, device="cpu").set_(
            base.untyped_storage(), start // item, self.shape, self.stride
        )


@dataclasses.dataclass(frozen=True)
class Copied:
    """A launch for which a tensor is copied first, or its result afterwards."""

    launcher: Launcher
    spots: tuple[Spot, ...]
    steps: int
    sizes: tuple[tuple[str, int], ...]

    def __call__(self, starts: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
        self.launcher([s.view(tensors) for s in self.spots], self.steps, dict(self.sizes))


@dataclasses.dataclass(frozen=True)
class Zero:
    """``size`` bytes of a tensor, from ``offset`` on, are cleared."""

    tensor: int
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class Added:
    """The sum of a tensor over ``dims``, or itself where there are none, added to another."""

    source: Spot
    dims: tuple[int, ...]
    target: Spot

    def __call__(self, starts: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
        source = self.source.view(tensors)
        self.target.view(tensors).add_(source.sum(self.dims) if self.dims else source)


@dataclasses.dataclass(frozen=True)
class Multiplied:
    """A sum of products of two tensors' entries, as ``torch.einsum`` writes it, added to a third."""

    equation: str
    left: Spot
    right: Spot
    target: Spot

    def __call__(self, starts: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
        factors = [x.view(tensors).to(self.target.dtype) for x in (self.left, self.right)]
        self.target.view(tensors).add_(torch.einsum(self.equation, *factors))


Part = Launch | Copied | Zero | Added | Multiplied

__all__ = ["Added", "Copied", "Launch", "Made", "Multiplied", "Part", "Run", "Spot", "Zero"]
