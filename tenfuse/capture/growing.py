"""A result that grows by one piece per step: one concatenation of all pieces.

``out = torch.cat([out, y], dim)`` in a loop makes a larger tensor at every step, which no
rolled loop can hand on.  Takes a private copy of a graph and the memory that its nodes
write in place; where the only reader of one concatenation is another along the same
dimension, makes them one.  Leaves alone what anything else reads, pieces that are written
in place, since they are read later now, pieces of several dtypes, whose conversions would
be others, and graphs in which gradients are switched off and on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.views import argument, is_tensor, storage_of, value_of

_CATS = {torch.cat, torch.concat, torch.concatenate}
_MODES = {torch._C._set_grad_enabled, torch.autograd.grad_mode._enter_inference_mode}


def _pieces(node: Any) -> tuple[Sequence[Any], int] | None:
    """What a concatenation joins, and along which dimension."""
    if not isinstance(node, fx.Node) or node.target not in _CATS or "out" in node.kwargs:
        return None
    pieces = argument(node, 0, "tensors")
    dim = argument(node, 1, "dim")
    dim = node.kwargs.get("axis", 0) if dim is None else dim
    if not isinstance(pieces, (list, tuple)) or not all(is_tensor(p) for p in (node, *pieces)):
        return None
    if not isinstance(dim, int) or any(value_of(p).dtype != value_of(node).dtype for p in pieces):
        return None
    return pieces, dim % value_of(node).dim()


def _continued(node: fx.Node) -> bool:
    """Whether all that reads ``node`` is one concatenation along its dimension, once."""
    own = _pieces(node)
    if own is None or len(node.users) != 1:
        return False
    outer = _pieces(next(iter(node.users)))
    return outer is not None and outer[1] == own[1] and list(outer[0]).count(node) == 1


def flatten(graph: fx.Graph, overwritten: Collection[int | None]) -> None:
    """Join every chain of concatenations into its last; ``overwritten`` names memory."""
    if any(n.target in _MODES for n in graph.nodes):
        return
    for last in list(graph.nodes):
        own = _pieces(last)
        if own is None or _continued(last) or not any(_continued(p) for p in own[0]):
            continue
        flat: list[fx.Node] = []
        inner: list[fx.Node] = []
        stack = list(reversed(own[0]))
        while stack:
            piece = stack.pop()
            joined = _pieces(piece) if _continued(piece) else None
            if joined is None:
                flat.append(piece)
            else:
                inner.append(piece)
                stack += reversed(joined[0])
        if any(storage_of(value_of(p)) in {None, *overwritten} for p in flat):
            continue
        last.args, last.kwargs = (flat, own[1]), {}
        for node in inner:
            graph.erase_node(node)


__all__ = ["flatten"]
