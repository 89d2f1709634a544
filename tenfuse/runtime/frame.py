"""A call worked out on tensors without memory.

Takes the tensors that a call is given; leaves stand-ins on the meta device with the same layouts,
to be cut and viewed as the real ones will be, and finds for each view which tensor of the call it
lies in, and where.  The parts recorded on stand-ins serve all calls with these layouts.
Refuses (``ValueError``) tensors that are not on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tenfuse.runtime.launch import Launcher
from tenfuse.runtime.parts import Copied, Launch, Made, Part, Spot, Zero
from tenfuse.step.program import AxisName

_LINE = 64


class Frame:
    """Tensors are numbered: those given, then results, then the one block the call works in."""

    def __init__(self, given: Sequence[torch.Tensor]) -> None:
        elsewhere = [x.device for x in given if x.device.type != "cpu"]
        if elsewhere:
            raise ValueError(f"a loop compiled for the CPU got a tensor on {elsewhere[0]}")
        self._starts: dict[int, tuple[int, int]] = {}
        self._alive: list[torch.Tensor] = []
        self.given = [self._new(x.shape, x.stride(), x.dtype, (n, 0)) for n, x in enumerate(given)]
        self.results: list[Made] = []
        self._block = 0
        self.parts: list[Part] = []
        self.roles: list[str] = []

    def _new(
        self, shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype, start: tuple[int, int]
    ) -> torch.Tensor:
        fresh = torch.empty_strided(tuple(shape), tuple(stride), dtype=dtype, device="meta")
        self._starts[fresh.untyped_storage()._cdata] = start
        self._alive.append(fresh)
        return fresh

    def grouped(self, groups: Sequence[Sequence[torch.Tensor]]) -> list[list[torch.Tensor]]:
        """The tensors given, in groups of as many as these have."""
        rest = iter(self.given)
        return [[next(rest) for _ in group] for group in groups]

    def result(self, x: torch.Tensor, zero: int | None = None) -> None:
        """``x``, a tensor without memory, is the next result; its rows from ``zero`` on start at zero."""
        number = len(self.given) + len(self.results)
        self._starts[x.untyped_storage()._cdata] = (number, 0)
        self._alive.append(x)
        self.results.append(Made.like(x))
        if zero is not None:
            start = zero and zero * x.stride(0) * x.element_size()
            self.parts.append(Zero(number, start, x.untyped_storage().nbytes() - start))

    def scratch(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory for the time of the call; every result must be known before."""
        start = (len(self.given) + len(self.results), self._block)
        like = torch.empty(tuple(shape), device="meta")
        fresh = self._new(like.shape, like.stride(), dtype, start)
        size = math.prod(shape) * dtype.itemsize
        self._block += -(-size // _LINE) * _LINE
        return fresh

    def spot(self, x: torch.Tensor) -> Spot:
        """Where a view lies, and how."""
        number, start = self._starts[x.untyped_storage()._cdata]
        offset = start + int(x.storage_offset()) * x.element_size()
        return Spot(number, offset, tuple(x.shape), x.stride(), x.dtype)

    def launch(
        self,
        launcher: Launcher,
        role: str,
        operands: Sequence[torch.Tensor],
        steps: int,
        sizes: dict[AxisName, int],
    ) -> None:
        """The call runs a kernel on these views."""
        spots = tuple(self.spot(x) for x in operands)
        numbers = launcher.planned(operands, sizes)
        if numbers is None:
            self.parts.append(Copied(launcher, spots, steps, tuple(sizes.items())))
        else:
            places = tuple((s.tensor, s.offset) for s in spots)
            self.parts.append(Launch(launcher, numbers, steps, places))
        self.roles.append(role)

    def clear(self, x: torch.Tensor) -> None:
        """Scratch that starts at zero."""
        number, start = self._starts[x.untyped_storage()._cdata]
        self.parts.append(Zero(number, start, x.untyped_storage().nbytes()))

    def scratch_block(self) -> tuple[Made, ...]:
        """The one tensor that all scratch memory is a part of, if there is any."""
        block = Made(torch.Size([self._block]), (1,), torch.uint8, self._block)
        return (block,) if self._block else ()


__all__ = ["Frame"]
