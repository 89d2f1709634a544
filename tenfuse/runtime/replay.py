"""Calling kernels again on tensors laid out as before, without looking at them anew.

Takes the tensors of a call; leaves its results.  What is launched on what is worked out at the first
call with tensors of one layout, on tensors without memory (``Frame``): every operand is then a known
distance from the start of a known tensor.  Later calls repeat that.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tenfuse.runtime.bind import count, kernel_name
from tenfuse.runtime.frame import Frame
from tenfuse.runtime.parts import Made, Run
from tenfuse.runtime.sequence import sequenced

_MOST = 256
"""Layouts remembered; all are forgotten when there are more."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """The tensors of a call are those given, then its results, then what it works in."""

    parts: tuple[Run, ...]
    results: tuple[Made, ...]
    scratch: tuple[Made, ...]
    launches: tuple[tuple[str, int], ...]
    """The names of the kernels that run, and how often each does."""

    @staticmethod
    def of(frame: Frame, key: str) -> Replay:
        names = Counter(kernel_name(key, role) for role in frame.roles)
        parts = sequenced(frame.parts)
        return Replay(parts, tuple(frame.results), frame.scratch_block(), tuple(names.items()))

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        results = [made() for made in self.results]
        everything = [*tensors, *results, *[made() for made in self.scratch]]
        starts = [x.data_ptr() for x in everything]
        for part in self.parts:
            part(starts, everything)
        return results


class Replays:
    """The calls of one operator, by plan and layout."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Replay] = {}

    def run(
        self,
        key: str,
        way: object,
        steps: int,
        tensors: Sequence[torch.Tensor],
        work_out: Callable[[Frame], None],
    ) -> list[torch.Tensor]:
        """The results of a call; ``way`` is what else ``work_out`` depends on."""
        which = (key, way, steps, *[(x.shape, x.stride(), x.dtype, x.is_conj()) for x in tensors])
        known = self._known.get(which)
        if known is None:
            if any(x.is_conj() for x in tensors):
                return self.run(key, way, steps, [x.resolve_conj() for x in tensors], work_out)
            frame = Frame(tensors)
            work_out(frame)
            if len(self._known) > _MOST:
                self._known.clear()
            known = self._known[which] = Replay.of(frame, key)
        for name, times in known.launches:
            count(name, times)
        return known(tensors)


__all__ = ["Replay", "Replays"]
