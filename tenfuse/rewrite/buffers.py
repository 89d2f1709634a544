"""Views of the user's tensors, and buffers that a loop fills step by step.

Takes the views through which a loop reads or writes a tensor; leaves nodes that take them, and
which dimension of a buffer is time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.loop import ViewOp


def view_ops(graph: fx.Graph, value: fx.Node, ops: Sequence[ViewOp]) -> fx.Node:
    for op in ops:
        value = graph.call_function(op.target, (value, *op.args), dict(op.kwargs))
    return value


FACTORIES = {
    torch.empty, torch.zeros, torch.ones, torch.full, torch.empty_like, torch.zeros_like, torch.ones_like,
    torch.full_like, "new_empty", "new_zeros", "new_ones", "new_full",
}  # fmt: skip
"""Calls that make a tensor of constants."""


def laid_out(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype


def time_in(buffer: torch.Tensor, ops: Sequence[ViewOp]) -> int | None:
    """The dimension of ``buffer`` that ``ops`` bring to the front, if that is all they do."""
    if not all(isinstance(n, int) for n in (*buffer.shape, *buffer.stride())):
        return None
    whole = torch.empty_strided(buffer.shape, buffer.stride(), device="meta")
    seen = whole
    for op in ops:
        seen = op.target(seen, *op.args, **dict(op.kwargs))
    places = [(d, whole.movedim(d, 0)) for d in range(whole.dim())]
    alike = [d for d, v in places if (v.shape, v.stride()) == (seen.shape, seen.stride())]
    return alike[0] if alike and seen.storage_offset() == 0 else None


__all__ = ["FACTORIES", "laid_out", "time_in", "view_ops"]
