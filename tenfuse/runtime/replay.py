"""Calling a kernel again on tensors laid out as before, without looking at them anew.

Takes the tensors and the operands of one call that has just run; leaves a ``Replay`` that
repeats it on other tensors of the same shapes, strides and dtypes: every operand is then a
known distance from the start of a known tensor.  Refuses (None) calls in which a tensor
was copied first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from tenfuse.runtime.launch import Launcher, Numbers
from tenfuse.runtime.pages import SMALLEST, advise

Signature = tuple[Any, ...]


def signature(key: str, save: bool, steps: int, tensors: Sequence[torch.Tensor]) -> Signature:
    """What two calls must share for one to replay the other."""
    return (key, save, steps, *[(x.shape, x.stride(), x.dtype, x.is_conj()) for x in tensors])


@dataclasses.dataclass(frozen=True)
class Replay:
    """``places`` say where operands start: (tensor, bytes), given tensors first, then results."""

    launcher: Launcher
    numbers: Numbers
    steps: int
    places: tuple[tuple[int, int], ...]
    results: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
    large: tuple[int, ...]
    zeroed: tuple[tuple[int, int], ...]
    """Results of which every row from one on is zero."""

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        results = [torch.empty_strided(shape, stride, dtype=dtype) for shape, stride, dtype in self.results]
        for i in self.large:
            advise(results[i])
        for i, row in self.zeroed:
            results[i][row:].zero_()
        starts = [x.data_ptr() for x in (*tensors, *results)]
        self.launcher.launch([starts[i] + offset for i, offset in self.places], self.numbers, self.steps)
        return results


def replay(
    launcher: Launcher,
    steps: int,
    operands: Sequence[tuple[torch.Tensor, int]],
    tensors: Sequence[torch.Tensor],
    results: Sequence[torch.Tensor],
    zeroed: tuple[tuple[int, int], ...],
    sizes: dict[str, int],
) -> Replay | None:
    """The replay of a call; ``operands`` come with the tensor each is a view of."""
    numbers = launcher.numbers([x for x, _ in operands], sizes)
    everything = [*tensors, *results]
    if numbers is None or any(x.numel() == 0 or x.device.type != "cpu" for x in everything):
        return None
    if any(_storage(x) != _storage(everything[i]) for x, i in operands):
        return None
    places = tuple((i, x.data_ptr() - everything[i].data_ptr()) for x, i in operands)
    made = tuple((x.shape, x.stride(), x.dtype) for x in results)
    large = tuple(i for i, x in enumerate(results) if x.untyped_storage().nbytes() >= SMALLEST)
    return Replay(launcher, numbers, steps, places, made, large, zeroed)


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


__all__ = ["Replay", "replay", "signature"]
