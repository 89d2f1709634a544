"""Writing through a view, without writing: the tensor a write would leave.

Takes a tensor, the view operations that select the entries and their new value; leaves a
new tensor, by ``select_scatter`` and ``slice_scatter`` along the chain of views, so that
the step it stands in stays functional; one value for all entries of a view that merges
dimensions is chosen by a mask.  Views it cannot invert are written into a clone, which
later stages refuse.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tenfuse.capture.loop import ViewOp

Inverse = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Simple = tuple[Callable[[torch.Tensor], torch.Tensor], Inverse]
"""A view, and what turns (base, new value of the view) into the new base."""


def scattered(base: torch.Tensor, views: Sequence[ViewOp], value: Any) -> torch.Tensor:
    """``base`` with the entries that ``views`` selects replaced by ``value`` (broadcast)."""
    chain: list[Simple] = []
    part, merged = base, False
    for op in views:
        steps = _simple(op, part)
        if steps is None:
            return _overwritten(base, views, value)
        chain += steps
        shown = op.target(part, *op.args, **dict(op.kwargs))
        merged = merged or (_name(op) in _MERGING and shown.dim() < part.dim())
        part = shown
    if merged and not (isinstance(value, torch.Tensor) and value.dim()):
        # one value for all entries: a mask says which, and no entry of the state changes its place
        mask = _write(torch.zeros(base.shape, dtype=torch.bool, device=base.device), chain, True)
        single = torch.as_tensor(value, dtype=base.dtype, device=base.device)
        return torch.where(mask, single, base)
    return _write(base, chain, value)


_MERGING = ("view", "reshape", "flatten")


def _name(op: ViewOp) -> str:
    return op.target if isinstance(op.target, str) else getattr(op.target, "__name__", "")


def _overwritten(base: torch.Tensor, views: Sequence[ViewOp], value: Any) -> torch.Tensor:
    result = base.clone()
    part = result
    for op in views:
        part = op.target(part, *op.args, **dict(op.kwargs))
    part[...] = value
    return result


def _write(base: torch.Tensor, chain: Sequence[Simple], value: Any) -> torch.Tensor:
    if not chain:
        if not isinstance(value, torch.Tensor):
            return torch.full_like(base, value)
        return value.to(base.dtype).expand(base.shape)
    view, inverse = chain[0]
    return inverse(base, _write(view(base), chain[1:], value))


def _simple(op: ViewOp, base: torch.Tensor) -> list[Simple] | None:
    """``op`` as views with a known inverse."""
    kwargs = dict(op.kwargs)
    if op.target is operator.getitem and not kwargs:
        return _index(op.args[0], base)
    name = _name(op)
    if name in ("view", "reshape", "flatten", "unflatten", "squeeze"):
        return [_reshaped(op)]
    if name == "t" and base.dim() == 2:
        return [_transpose(0, 1)]
    if name == "permute" and not kwargs:
        return [_permuted(op.args if isinstance(op.args[0], int) else op.args[0])]
    if name == "diagonal":
        return _diagonal(base, *op.args, **kwargs) if base.dim() > 1 else None
    if name in ("transpose", "swapaxes", "unsqueeze", "select", "narrow") and not kwargs:
        known: dict[str, Callable[..., Simple]] = {
            "transpose": _transpose, "swapaxes": _transpose, "unsqueeze": _unsqueeze, "select": _select,
            "narrow": lambda dim, start, length: _slice(dim, start, start + length),
        }  # fmt: skip
        return [known[name](*op.args)]
    return None


def _select(dim: int, index: int) -> Simple:
    return (
        lambda x: x.select(dim, index),
        lambda x, y: torch.select_scatter(x, y, dim, index),
    )


def _slice(dim: int, start: int, stop: int, step: int = 1) -> Simple:
    if step == 1:
        return (
            lambda x: x.narrow(dim, start, stop - start),
            lambda x, y: torch.slice_scatter(x, y, dim, start, stop),
        )
    index = (*[slice(None)] * dim, slice(start, stop, step))
    return lambda x: x[index], lambda x, y: torch.slice_scatter(x, y, dim, start, stop, step)


def _unsqueeze(dim: int) -> Simple:
    return lambda x: x.unsqueeze(dim), lambda x, y: y.squeeze(dim)


def _transpose(i: int, j: int) -> Simple:
    return lambda x: x.transpose(i, j), lambda x, y: y.transpose(i, j)


def _reshaped(op: ViewOp) -> Simple:
    """The same entries in the same order under other dimensions."""
    return lambda x: op.target(x, *op.args, **dict(op.kwargs)), lambda x, y: y.reshape(x.shape)


def _permuted(order: Sequence[int]) -> Simple:
    order = [d % len(order) for d in order]
    back = [order.index(d) for d in range(len(order))]
    return lambda x: x.permute(order), lambda x, y: y.permute(back)


def _diagonal(base: torch.Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> list[Simple] | None:
    """The main diagonal of square matrices, chosen by its positions."""
    size = base.shape[dim1]
    if offset != 0 or not isinstance(size, int) or base.shape[dim2] != size:
        return None

    def inverse(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        place = torch.arange(size, device=x.device)
        matrices = x.movedim((dim1, dim2), (-2, -1))
        chosen = torch.where(place == place[:, None], y.unsqueeze(-1), matrices)
        return chosen.movedim((-2, -1), (dim1, dim2))

    return [(lambda x: x.diagonal(0, dim1, dim2), inverse)]


def _index(index: Any, base: torch.Tensor) -> list[Simple] | None:
    """A basic index as selects, slices and new dimensions."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not all(
        i is None or i is Ellipsis or (isinstance(i, (int, slice)) and not isinstance(i, bool)) for i in items
    ):
        return None
    taken = sum(isinstance(i, (int, slice)) for i in items)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (base.dim() - taken)
    chain: list[Simple] = []
    dim = source = 0
    for item in items:
        if item is None:
            chain.append(_unsqueeze(dim))
            dim += 1
            continue
        size = base.shape[source]
        source += 1
        if isinstance(item, int):
            chain.append(_select(dim, item))
            continue
        if not (item.start is None and item.stop is None and item.step is None):
            if not isinstance(size, int):
                return None
            start, stop, step = item.indices(size)
            chain.append(_slice(dim, start, max(start, stop), step))
        dim += 1
    return chain
