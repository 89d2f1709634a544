"""Calling kernels again on tensors laid out as before, without looking at them anew.

Takes the tensors of one call that has just run, and what it did with them; leaves a
``Replay`` that repeats it on other tensors of the same shapes, strides and dtypes: every
operand is then a known distance from the start of a known tensor.  Refuses (None) calls in
which a tensor was copied first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tenfuse.runtime.launch import Launcher, Numbers
from tenfuse.runtime.reuse import empty

Signature = tuple[Any, ...]


def signature(key: str, way: object, steps: int, tensors: Sequence[torch.Tensor]) -> Signature:
    """What two calls must share for one to replay the other."""
    return (key, way, steps, *[(x.shape, x.stride(), x.dtype, x.is_conj()) for x in tensors])


@dataclasses.dataclass(frozen=True)
class Made:
    """A tensor that every call makes anew; every row from ``zero`` on is zero, if it is set."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    size: int
    zero: int | None = None

    @staticmethod
    def like(x: torch.Tensor, zero: int | None = None) -> Made:
        return Made(x.shape, x.stride(), x.dtype, x.untyped_storage().nbytes(), zero)

    def __call__(self) -> torch.Tensor:
        fresh = empty(self.shape, self.stride, self.dtype, self.size)
        if self.zero is not None:
            (fresh[self.zero :] if self.zero else fresh).zero_()
        return fresh


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
class Added:
    """The sum of a tensor over ``dims``, added to another."""

    source: Spot
    dims: tuple[int, ...]
    target: Spot

    def __call__(self, starts: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
        self.target.view(tensors).add_(self.source.view(tensors).sum(self.dims))


Part = Callable[[Sequence[int], Sequence[torch.Tensor]], None]
"""Something a call does, given where its tensors start and the tensors."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """The tensors of a call are those given, then its results, then what it works in."""

    parts: tuple[Part, ...]
    results: tuple[Made, ...]
    scratch: tuple[Made, ...] = ()

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        results = [made() for made in self.results]
        everything = [*tensors, *results, *[made() for made in self.scratch]]
        starts = [x.data_ptr() for x in everything]
        for part in self.parts:
            part(starts, everything)
        return results


def replay(
    launcher: Launcher,
    steps: int,
    operands: Sequence[tuple[torch.Tensor, int]],
    tensors: Sequence[torch.Tensor],
    results: Sequence[torch.Tensor],
    zeroed: Sequence[tuple[int, int]],
    sizes: dict[str, int],
) -> Replay | None:
    """The replay of a call of one kernel; ``operands`` come with the tensor each is a view of,
    ``zeroed`` are results and their first zero row."""
    numbers = launcher.numbers([x for x, _ in operands], sizes)
    everything = [*tensors, *results]
    if numbers is None or any(x.numel() == 0 or x.device.type != "cpu" for x in everything):
        return None
    if any(_storage(x) != _storage(everything[i]) for x, i in operands):
        return None
    places = tuple((i, x.data_ptr() - everything[i].data_ptr()) for x, i in operands)
    rows = dict(zeroed)
    made = tuple(Made.like(x, rows.get(i)) for i, x in enumerate(results))
    return Replay((Launch(launcher, numbers, steps, places),), made)


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


__all__ = ["Added", "Copied", "Launch", "Made", "Part", "Replay", "Spot", "replay", "signature"]
