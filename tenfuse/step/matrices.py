"""Triangles and diagonals of a state: choices by a mask of positions.

Takes a traced ATen graph and its carries; leaves each ``tril``, ``triu``, ``diagonal``, ``trace`` and
``diag_embed`` that depends on a carry as a choice by a mask, which is the same at every step and so is
made before the loop: zero outside a triangle, and a diagonal as the sum over rows of which one entry is
chosen, so that no other entry is read, be it infinite.  What is state-free, of dynamic size, or an
embedding beside the main diagonal, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.fx as fx

from tenfuse.step.choice import inlined

aten = torch.ops.aten


def masked(graph: fx.Graph, carries: Collection[fx.Node]) -> None:
    """Edit ``graph``, which the caller made."""
    dependent = set(carries)
    for node in list(graph.nodes):
        if not any(a in dependent for a in node.all_input_nodes):
            continue
        dependent.add(node)
        run = _MASKED.get(node.target)
        if run is None or not all(isinstance(s, int) for s in _sides(node)):
            continue
        made = inlined(node, [node.args[0]], run, *node.args[1:])
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        dependent.add(made)


def _sides(node: fx.Node) -> tuple[Any, ...]:
    """The sizes that the mask has."""
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]
    if node.target is aten.diag_embed.default:
        return (shape[-1],) if node.args[1:] in ((), (0,), (0, -2, -1)) else (None,)
    if node.target in (aten.diagonal.default, aten.diagonal_copy.default):
        one, two = node.args[2:4] if len(node.args) == 4 else (0, 1)
        return (shape[one], shape[two])  # type: ignore[index]
    return tuple(shape[-2:])


def _triangle(inside: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def chosen(a: torch.Tensor, diagonal: int = 0) -> torch.Tensor:
        ones = torch.ones(a.shape[-2:], dtype=torch.bool, device=a.device)
        return torch.where(inside(ones, diagonal), a, 0.0)

    return chosen


def _diagonal(a: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> torch.Tensor:
    a = a.movedim((dim1, dim2), (-2, -1))
    low = max(0, -offset)
    length = max(0, min(a.shape[-2] - low, a.shape[-1] - max(0, offset)))
    row, column = (torch.arange(n, device=a.device) for n in (length, a.shape[-1]))
    hit = column == row[:, None] + low + offset
    return torch.where(hit, a[..., low : low + length, :], 0).sum(-1, dtype=a.dtype)


def _trace(a: torch.Tensor) -> torch.Tensor:
    return _diagonal(a).sum(dtype=a.dtype)


def _embedded(a: torch.Tensor, *_: int) -> torch.Tensor:
    place = torch.arange(a.shape[-1], device=a.device)
    return torch.where(place == place[:, None], a.unsqueeze(-1), 0)


_MASKED: dict[Any, Callable[..., torch.Tensor]] = {
    aten.tril.default: _triangle(torch.tril),
    aten.triu.default: _triangle(torch.triu),
    aten.diagonal.default: _diagonal,
    aten.diagonal_copy.default: _diagonal,
    aten.trace.default: _trace,
    aten.diag_embed.default: _embedded,
}

__all__ = ["masked"]
