"""Windows that slide over a state: a convolution as a sum over its places, by a matrix of the weight.

Takes a traced ATen graph, the nodes that feed the state and the placeholders of the state; leaves
each convolution among them of a state by a weight that does not depend on it, whose window slides, as

    y[o, q] = bias[o] + sum_{c, p} (p in window(q) ? w[o, c, tap(q, p)] * x[c, p] : 0)

with tap(q, p) = (p + padding - stride q) / dilation in every dimension.  The matrix
w[o, c, tap(q, p)] is the same at every step, so it is made before the loop, and the gradient of the
weight goes back through it.  What is outside a window is not read: a NaN spreads no further than in
torch.  Leaves alone windows that stand still (``rules/convolution`` has them) and, so to a refusal by
the reader, what it has no rule for, and matrices so large that torch's operator is faster.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.fx as fx

from tenfuse.step.axes import hint
from tenfuse.step.choice import inlined, replaced

aten = torch.ops.aten

MOST = 1 << 14
"""Entries of a matrix, at most."""

WORK = 1 << 16
"""Products in a step, at most: forward and backward, torch's operator takes a quarter longer there."""


def slid(graph: fx.Graph, feeding: Collection[fx.Node], carries: Collection[fx.Node]) -> None:
    """Edit ``graph``, which the caller made."""
    replaced(graph, feeding, carries, _made)


def _made(node: fx.Node, dependent: Collection[fx.Node]) -> fx.Node | None:
    if node.target is not aten.convolution.default or any(a in dependent for a in node.args[1:3]):
        return None
    args: list[Any] = list(node.args)
    source, weight, bias, stride, padding, dilation, transposed, _, groups = args
    value, taps = source.meta["val"], weight.meta["val"].shape[2:]
    sizes, places = value.shape[2:], node.meta["val"].shape[2:]
    counted = (*sizes, *places, *weight.meta["val"].shape[:2])
    if transposed or value.is_complex() or not all(isinstance(s, int) for s in (*counted, *taps)):
        return None
    entries = math.prod(counted)
    if not slides(sizes, taps, stride, padding, dilation) or not 0 < entries <= MOST:
        return None
    if value.dim() != weight.meta["val"].dim() or entries * hint(value.shape[0]) > WORK:
        return None
    given = [source, weight] if bias is None else [source, weight, bias]
    along = [every(each, sizes) for each in (stride, padding, dilation)]
    return inlined(node, given, _convolved, tuple(places), along, groups)


def _convolved(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    *bias, places, along, groups = rest
    sizes, taps = x.shape[2:], weight.shape[2:]
    out, channels = weight.shape[:2]
    rank = len(taps)
    tap, inside = _tap(places, sizes, taps, along, x.device)
    matrix = weight.reshape(groups, out // groups, channels, -1)[..., tap]
    x = x.reshape(-1, groups, 1, channels, *[1] * rank, *sizes)
    terms = torch.where(inside, matrix * x, 0.0)
    found = terms.sum([3, *range(4 + rank, 4 + 2 * rank)]).reshape(-1, out, *places)
    return found + bias[0].reshape(1, out, *[1] * rank) if bias else found


def around(
    x: torch.Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> torch.Tensor | None:
    """``torch.nn.functional.pad`` around a circle: entries picked by their places; else None."""
    if mode != "circular":
        return None
    for i, (left, right) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        size = x.shape[-1 - i]
        place = torch.arange(-left, size + right, device=x.device)
        x = x.index_select(x.dim() - 1 - i, place % size) if left or right else x
    return x


def _tap(
    places: Sequence[int], sizes: Sequence[int], taps: Sequence[int], along: Any, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which entry of the weight (q, p) of each place meet in, over all dimensions, and whether any."""
    rank = len(taps)
    found, inside = torch.zeros((), dtype=torch.int64, device=device), None
    for d, (stride, padding, dilation) in enumerate(zip(*along, strict=True)):
        q = torch.arange(places[d], device=device).view(*_alone(d, 2 * rank))
        p = torch.arange(sizes[d], device=device).view(*_alone(rank + d, 2 * rank))
        offset = p + padding - stride * q
        tap = offset // dilation
        mine = (offset >= 0) & (offset % dilation == 0) & (tap < taps[d])
        found = found * taps[d] + torch.where(mine, tap, 0)
        inside = mine if inside is None else inside & mine
    assert inside is not None
    return found, inside


def _alone(position: int, rank: int) -> list[int]:
    return [-1 if i == position else 1 for i in range(rank)]


def slides(
    sizes: Sequence[Any],
    taps: Sequence[Any],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Whether some entry is read at several places of the window, or at none."""
    across = zip(taps, sizes, every(stride, sizes), every(dilation, sizes), strict=True)
    return any(p != 0 for p in padding) or not all(_still(*window) for window in across)


def _still(taps: Any, size: Any, stride: int, dilation: int) -> bool:
    """Whether every entry is read at one place of the window."""
    if taps == 1:
        return stride == 1 or (isinstance(size, int) and size == 1)
    return isinstance(size, int) and taps == size and dilation == 1


def every(values: Sequence[int], sizes: Sequence[Any]) -> list[int]:
    """One value per dimension, of which torch may be given one for all."""
    return list(values) * len(sizes) if len(values) == 1 else list(values)


__all__ = ["around", "slid", "slides"]
