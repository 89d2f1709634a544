"""What becomes of the loops of a function, its values and gradients held against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tenfuse.report.report import LoopReport
from tenfuse.testing import assert_equivalent

FUSED = ["fused"]


def loops(
    f: Callable[..., Any], *shapes: tuple[int, ...], inputs: Sequence[Any] | None = None, grad: bool = True
) -> tuple[LoopReport, ...]:
    """Every loop that was seen; raises where a value or gradient is wrong."""
    torch.manual_seed(0)
    given = [torch.randn(*s) for s in shapes] if inputs is None else inputs
    return assert_equivalent(f, *given, grad=grad).loops


def fates(
    f: Callable[..., Any], *shapes: tuple[int, ...], inputs: Sequence[Any] | None = None, grad: bool = True
) -> list[str]:
    """Status, or code where kept, of every loop."""
    return [loop.code or loop.status for loop in loops(f, *shapes, inputs=inputs, grad=grad)]
