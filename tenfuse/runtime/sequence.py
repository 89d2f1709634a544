"""The parts of a call that need no Python, run by one call.

Takes launches, sums and stretches of zeros, placed in the tensors of a call; leaves one part
that does them all.  A backward in pieces launches dozens of small kernels, and each launch
through Python, whose own memory the kernels have meanwhile pushed out of the caches, costs as
much as a tenth of a piece.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
from collections.abc import Sequence

import torch

from tenfuse.emit.cpp.sequence import LAUNCH, MOST, SUM, TEXT, ZERO
from tenfuse.runtime.compile import load
from tenfuse.runtime.parts import Added, Launch, Part, Run, Zero

_EXACT = {torch.float32, torch.float64}
_FEW = 16
"""Entries along the last axis from which on a sum goes along it."""


def sequenced(parts: Sequence[Part]) -> tuple[Run, ...]:
    """``parts``, with those between any two that Python has to run as one; a launch alone stays."""
    found: list[Run] = []
    for direct, group in itertools.groupby(parts, lambda part: _row(part) is not None):
        run = list(group)
        if direct and not (len(run) == 1 and isinstance(run[0], Launch)):
            found.append(_Together(run))
        else:
            found += [part for part in run if not isinstance(part, Zero)]  # which are all direct
    return tuple(found)


class _Together:
    """Parts that the compiled text runs."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        """Held, for the table points to what they hold."""
        rows = [row for row in map(_row, parts) if row is not None]
        flat = [n for kind, row in rows for n in (kind, len(row) + 2, *row)]
        self._table = (ctypes.c_int64 * len(flat))(*flat)
        self._function = load(TEXT)

    def __call__(self, starts: Sequence[int], tensors: Sequence[torch.Tensor]) -> None:
        places = (ctypes.c_void_p * len(starts))(*starts)
        if self._function(places, self._table, None, len(self.parts), torch.get_num_threads()):
            raise MemoryError("a tenfuse kernel could not allocate its scratch memory")


def _row(part: Part) -> tuple[int, list[int]] | None:
    """What the table says of a part, after its kind; None for what must be run from Python."""
    if isinstance(part, Zero):
        return ZERO, [*dataclasses.astuple(part)]
    if isinstance(part, Launch):
        return _launch(part)
    return _sum(part) if isinstance(part, Added) else None


def _launch(part: Launch) -> tuple[int, list[int]] | None:
    if len(part.places) > MOST:
        return None
    strides, sizes = (ctypes.addressof(x) for x in part.numbers)
    places = [n for place in part.places for n in place]
    return LAUNCH, [part.launcher.address, strides, sizes, part.steps, len(part.places), *places]


def _sum(part: Added) -> tuple[int, list[int]] | None:
    source, target = part.source, part.target
    kept = [d for d in range(len(source.shape)) if d not in part.dims]
    if source.dtype != target.dtype or source.dtype not in _EXACT or not kept:
        return None
    last = kept[-1]
    if source.stride[last] != 1 or source.shape[last] < _FEW:
        return None
    row = [source.dtype.itemsize, source.tensor, source.offset, target.tensor, target.offset]
    row += [len(kept), len(part.dims)]
    for d, stride in zip(kept, target.stride, strict=True):
        row += [source.shape[d], source.stride[d], stride]
    for d in part.dims:
        row += [source.shape[d], source.stride[d]]
    return SUM, row


__all__ = ["sequenced"]
