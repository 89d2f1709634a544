"""Calling kernels again on tensors laid out as before, without looking at them anew.

Takes the tensors of one call that has just run, and what it did with them; leaves a
``Replay`` that repeats it on other tensors of the same shapes, strides and dtypes: every
operand is then a known distance from the start of a known tensor.  Refuses (None) calls in
which a tensor was copied first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from tenfuse.runtime.launch import Launcher
from tenfuse.runtime.parts import Launch, Made, Part, Run, Zero
from tenfuse.runtime.sequence import sequenced

Signature = tuple[Any, ...]


def signature(key: str, way: object, steps: int, tensors: Sequence[torch.Tensor]) -> Signature:
    """What two calls must share for one to replay the other."""
    return (key, way, steps, *[(x.shape, x.stride(), x.dtype, x.is_conj()) for x in tensors])


@dataclasses.dataclass(frozen=True)
class Replay:
    """The tensors of a call are those given, then its results, then what it works in."""

    parts: tuple[Run, ...]
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
    ``zeroed`` are results, with nothing between their rows, and their first zero row."""
    numbers = launcher.numbers([x for x, _ in operands], sizes)
    everything = [*tensors, *results]
    if numbers is None or any(x.numel() == 0 or x.device.type != "cpu" for x in everything):
        return None
    if any(_storage(x) != _storage(everything[i]) for x, i in operands):
        return None
    parts: list[Part] = []
    for i, row in zeroed:
        start = row * results[i].stride(0) * results[i].element_size()
        parts.append(Zero(len(tensors) + i, start, results[i].nbytes - start))
    places = tuple((i, x.data_ptr() - everything[i].data_ptr()) for x, i in operands)
    parts.append(Launch(launcher, numbers, steps, places))
    return Replay(sequenced(parts), tuple(Made.like(x) for x in results))


def _storage(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


__all__ = ["Replay", "Signature", "replay", "signature"]
