"""Entries picked by an index that the state decides, and the index of an extreme, as arithmetic.

Takes a traced ATen graph, the nodes that feed the state and the placeholders of the state;
leaves each ``gather``, ``index_select``, ``embedding`` and ``x[i, j]`` among them whose source or
index depends on the state, and each ``argmax`` and ``argmin``, as comparisons with positions:

    x[i] = sum_j (j == i ? x_j : 0)        argmax x = min_j (x_j == max x ? j : n)

One term of the sum is not zero, so the picked entry comes through exactly, and the derivative is
torch's: all of it to that entry.  At a tie the first index wins, and the first NaN beats every
number, as in torch on the CPU.  Indices that do not depend on the state are applied to what does not
as they are, for all steps at once.  An index outside the dimension, for which torch raises an error, picks
zero.  Refuses picks from so many entries that reading them all would take longer than the
operator; leaves alone, and so to a refusal by the reader, what it has no rule for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.fx as fx

from tenfuse.reasons import UNSUPPORTED_OP, refuse, where
from tenfuse.step.axes import hint
from tenfuse.step.choice import inlined, replaced

aten = torch.ops.aten

MOST = 1 << 15
"""Entries that a step compares with an index at most: some ten microseconds of one core, what an
operator costs that picks them."""

_EXACT = 1 << 24
"""Positions that a float32 still tells apart."""


def spell_out(graph: fx.Graph, feeding: Collection[fx.Node], carries: Sequence[fx.Node]) -> None:
    """Edit ``graph``, which the caller made."""
    replaced(graph, feeding, carries, _made)


def _made(node: fx.Node, dependent: Collection[fx.Node]) -> fx.Node | None:
    args: list[Any] = list(node.args)
    options: dict[str, Any] = dict(node.kwargs)
    if node.target in (aten.argmax.default, aten.argmin.default):
        return _position(node, *args, **options)
    if node.target is aten.gather.default:
        return _gathered(node, args[0], args[1], args[2])
    if node.target is aten.index_select.default:
        return _picked(node, args[0], [None] * (args[1] % args[0].meta["val"].dim()) + [args[2]], dependent)
    if node.target is aten.embedding.default and not any(a not in (-1, False) for a in args[2:]):
        return _picked(node, args[0], [args[1]], dependent)
    if node.target is aten.index.Tensor:
        return _picked(node, args[0], list(args[1]), dependent)
    return None


def _few(node: fx.Node, picks: Sequence[Any], along: Sequence[Any]) -> None:
    """Refuse to compare too many entries with an index, or to count entries when run."""
    if not all(isinstance(s, int) for s in along):
        said = f"{node.target} by the state along a dimension of dynamic size"
        raise refuse(UNSUPPORTED_OP, said, where(node))
    compared = math.prod(map(hint, (*picks, *along)))
    if compared > MOST:
        said = f"{node.target} by the state, which compares {compared} entries with an index"
        raise refuse(UNSUPPORTED_OP, said, where(node))


def _position(node: fx.Node, source: Any, dim: Any = None, keepdim: bool = False) -> fx.Node | None:
    value = source.meta["val"]
    if not value.is_floating_point() or value.dim() == 0:
        return None
    size = value.numel() if dim is None else value.shape[dim]
    if not isinstance(size, int) or not 0 < size < _EXACT:
        return None
    largest = node.target is aten.argmax.default

    def run(a: torch.Tensor) -> torch.Tensor:
        flat, along = (a.reshape(-1), 0) if dim is None else (a, dim % a.dim())
        top = torch.amax(flat, along, True) if largest else torch.amin(flat, along, True)
        place = _along(size, along, flat, torch.float32)
        found = torch.amin(torch.where((flat == top) | torch.isnan(flat), place, float(size)), along, keepdim)
        found = found.reshape([1] * a.dim()) if dim is None and keepdim else found
        return found.to(torch.int64)

    return inlined(node, [source], run)


def _along(size: int, dim: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0, 1, 2, ... along one dimension."""
    shape = [1] * like.dim()
    shape[dim] = size
    return torch.arange(size, dtype=dtype, device=like.device).view(shape)


def _gathered(node: fx.Node, source: Any, dim: int, index: Any) -> fx.Node | None:
    value, wanted = source.meta["val"], index.meta["val"]
    if value.dim() == 0 or value.is_complex():
        return None
    dim %= value.dim()
    if any(i != dim and a != b for i, (a, b) in enumerate(zip(value.shape, wanted.shape, strict=True))):
        return None
    _few(node, wanted.shape, [value.shape[dim]])

    def run(a: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        entries, chosen = a.movedim(dim, -1).unsqueeze(dim), i.unsqueeze(-1)
        hit = _along(a.shape[dim], a.dim(), chosen, torch.int64) == chosen
        return _summed(torch.where(hit, entries, _zero(a)), [-1], a.dtype)

    return inlined(node, [source, index], run)


def _zero(a: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=a.dtype, device=a.device)


def _summed(x: torch.Tensor, dims: list[int], dtype: torch.dtype) -> torch.Tensor:
    """The one entry that is not zero."""
    return x.any(dims[0]) if dtype is torch.bool else x.sum(dims, dtype=dtype)


def _picked(
    node: fx.Node, source: Any, indices: Sequence[Any], dependent: Collection[fx.Node]
) -> fx.Node | None:
    """``source[indices]``, the indexed dimensions side by side."""
    value = source.meta["val"]
    places = [p for p, i in enumerate(indices) if i is not None]
    given = [indices[p] for p in places]
    sound = all(i.meta["val"].dtype in (torch.int64, torch.int32) for i in given)
    if places != list(range(places[0], places[-1] + 1)) or not sound or value.is_complex():
        return None
    compared = [source in dependent or i in dependent for i in given]
    free = [p for p, c in zip(places, compared, strict=True) if not c]
    bound = [p for p, c in zip(places, compared, strict=True) if c]
    if not bound or value.dtype is torch.bool:
        return None
    _few(node, node.meta["val"].shape, [value.shape[p] for p in bound])
    rest = [p for p in range(value.dim()) if p not in places]

    def run(a: torch.Tensor, *every: torch.Tensor) -> torch.Tensor:
        common = torch.broadcast_shapes(*(i.shape for i in every))
        index = dict(zip(places, every, strict=True))
        moved = a.permute([*free, *bound, *rest])
        if free:
            moved = moved[tuple(index[p].expand(common) for p in free)]
        else:
            moved = moved.reshape([1] * len(common) + list(moved.shape))
        hit = None
        for n, p in enumerate(bound):
            chosen, size = index[p].expand(common), a.shape[p]
            chosen = torch.where(chosen < 0, chosen + size, chosen)
            chosen = chosen.reshape([*common, *([1] * (len(bound) + len(rest)))])
            one = _along(size, len(common) + n, chosen, torch.int64) == chosen
            hit = one if hit is None else hit & one
        assert hit is not None
        dims = list(range(len(common), len(common) + len(bound)))
        found = _summed(torch.where(hit, moved, _zero(a)), dims, a.dtype)
        lead = [p for p in rest if p < places[0]]
        order = list(range(found.dim()))
        own, others = order[: len(common)], order[len(common) :]
        return found.permute([*others[: len(lead)], *own, *others[len(lead) :]])

    return inlined(node, [source, *given], run)


__all__ = ["spell_out"]
