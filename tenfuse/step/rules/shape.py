"""Rules of operators that only rearrange, cut or join dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tenfuse.reasons import UNSUPPORTED_OP, refuse
from tenfuse.step.rules.base import lift, linear, product, rule
from tenfuse.step.tensors import Space, Value

aten, prims = torch.ops.aten, torch.ops.prims


@rule(aten.unsqueeze.default)
def _unsqueeze(space: Space, target: Any, a: Value, dim: int) -> Value:
    return space.unsqueeze(a, dim)


@rule(aten.squeeze.default)
def _squeeze_all(space: Space, target: Any, a: Value) -> Value:
    return space.squeeze(a, range(len(a.dims)))


@rule(aten.squeeze.dim, aten.squeeze.dims, prims.squeeze.default)
def _squeeze(space: Space, target: Any, a: Value, dims: Any) -> Value:
    return space.squeeze(a, [dims] if isinstance(dims, int) else dims)


@rule(aten.permute.default, prims.transpose.default)
def _permute(space: Space, target: Any, a: Value, order: Sequence[int]) -> Value:
    return space.permute(a, [o % len(a.dims) for o in order])


@rule(aten.transpose.int, aten.t.default, aten.mT.default)
def _transpose(space: Space, target: Any, a: Value, i: int = -1, j: int = -2) -> Value:
    order = list(range(len(a.dims)))
    if len(order) > 1:
        order[i], order[j] = order[j], order[i]
    return space.permute(a, order)


@rule(aten.expand.default, aten.broadcast_to.default)
def expand(space: Space, target: Any, a: Value, shape: Sequence[Any], **kwargs: Any) -> Value:
    lead = len(shape) - len(a.dims)
    full = [
        space.length(a.dims[i - lead]) if isinstance(s, int) and s == -1 else s for i, s in enumerate(shape)
    ]
    return space.expand(a, full)


def filled(space: Space, shape: Sequence[Any], number: Any) -> Value:
    return expand(space, None, lift(space, number), list(shape))


@rule(prims.broadcast_in_dim.default)
def _broadcast_in_dim(
    space: Space, target: Any, a: Value, shape: Sequence[Any], dims: Sequence[int]
) -> Value:
    placed = list(a.dims)
    full = [placed[dims.index(i)] if i in dims else () for i in range(len(shape))]
    return space.expand(Value(tuple(full), a.pieces), shape)


@rule(aten.slice.Tensor)
def _slice(
    space: Space, target: Any, a: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    size = space.length(a.dims[dim])
    if start in (None, 0) and (end is None or (isinstance(end, int) and end >= 2**62)) and step == 1:
        return a
    if not isinstance(size, int):
        raise refuse(UNSUPPORTED_OP, "a slice of a dimension of dynamic size")
    low = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
    high = size if end is None else min(max(end + (size if end < 0 else 0), low), size)
    if low == high:
        shape = space.shape(a)
        return filled(space, [*shape[: dim % len(shape)], 0, *shape[dim % len(shape) + 1 :]], 0.0)
    if step == 1:
        return space.slice(a, dim, low, high)
    if size % step or low >= step or high <= low + size - step:
        raise refuse(UNSUPPORTED_OP, "a strided slice of the state that is no column of its rows")
    dim %= len(a.dims)
    shape = [space.length(d) for d in a.dims]
    rows = space.reshape(a, (*shape[:dim], size // step, step, *shape[dim + 1 :]))
    return select(space, target, rows, dim + 1, low)


@rule(aten.slice_scatter.default)
def _slice_scatter(
    space: Space,
    target: Any,
    a: Value,
    b: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    size = space.length(a.dims[dim])
    if not isinstance(size, int):
        raise refuse(UNSUPPORTED_OP, "a slice of a dimension of dynamic size is written")
    low, high, _ = slice(start, end).indices(size)
    if step != 1:
        return _column(space, target, a, b, dim % len(a.dims), low, high, step)
    parts = [space.slice(a, dim, 0, low)] if low else []
    parts.append(b)
    parts += [space.slice(a, dim, high, size)] if high < size else []
    return parts[0] if len(parts) == 1 else space.cat(parts, dim)


def _column(space: Space, target: Any, a: Value, b: Value, dim: int, low: int, high: int, step: int) -> Value:
    """Every ``step``-th entry replaced: a column of the entries in rows of ``step``."""
    shape = [space.length(d) for d in a.dims]
    size = shape[dim]
    if not isinstance(size, int) or size % step or low >= step or high <= low + size - step:
        raise refuse(UNSUPPORTED_OP, "a strided slice of the state is written that is no column of its rows")
    rows = space.reshape(a, (*shape[:dim], size // step, step, *shape[dim + 1 :]))
    made = _select_scatter(space, target, rows, b, dim + 1, low)
    return space.reshape(made, shape)


@rule(aten.select_scatter.default)
def _select_scatter(space: Space, target: Any, a: Value, b: Value, dim: int, index: int) -> Value:
    size = space.length(a.dims[dim])
    if not isinstance(size, int):
        raise refuse(UNSUPPORTED_OP, "one entry of a dimension of dynamic size is written")
    index %= size
    return _slice_scatter(space, target, a, space.unsqueeze(b, dim % len(a.dims)), dim, index, index + 1)


@rule(aten.select.int)
def select(space: Space, target: Any, a: Value, dim: int, index: int) -> Value:
    size = space.length(a.dims[dim])
    if isinstance(size, int) and size == 1:
        part = a
    elif not isinstance(size, int):
        raise refuse(UNSUPPORTED_OP, "one entry of a dimension of dynamic size is selected")
    else:
        part = space.slice(a, dim, index % size, index % size + 1)
    return space.squeeze(part, [dim])


@rule(aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)
def _split_with_sizes(space: Space, target: Any, a: Value, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [space.slice(a, dim, end - size, end) for end, size in zip(ends, sizes, strict=True)]


@rule(aten.split.Tensor, aten.unsafe_split.Tensor)
def _split(space: Space, target: Any, a: Value, size: int, dim: int = 0) -> list[Value]:
    total = space.length(a.dims[dim])
    if not isinstance(total, int):
        raise refuse(UNSUPPORTED_OP, "a dimension of dynamic size is split")
    return [space.slice(a, dim, low, min(low + size, total)) for low in range(0, total, size)]


@rule(aten.unbind.int)
def _unbind(space: Space, target: Any, a: Value, dim: int = 0) -> list[Value]:
    total = space.length(a.dims[dim])
    if not isinstance(total, int):
        raise refuse(UNSUPPORTED_OP, "a dimension of dynamic size is unbound")
    return [select(space, None, a, dim, i) for i in range(total)]


@rule(aten.cat.default)
def _cat(space: Space, target: Any, values: Sequence[Value], dim: int = 0) -> Value:
    full = [v for v in values if all(space.length(d) != 0 for d in v.dims)] or values[:1]
    return full[0] if len(full) == 1 else space.cat(full, dim)


@rule(aten.stack.default)
def _stack(space: Space, target: Any, values: Sequence[Value], dim: int = 0) -> Value:
    return _cat(space, target, [space.unsqueeze(v, dim) for v in values], dim)


@rule(aten.constant_pad_nd.default)
def _pad(space: Space, target: Any, a: Value, sides: Sequence[int], number: Any = 0.0) -> Value:
    """Two numbers per dimension, the last dimension first; a negative one cuts off."""
    rank = len(a.dims)
    for i, (before, after) in enumerate(zip(sides[::2], sides[1::2], strict=True)):
        dim = rank - 1 - i
        size = space.length(a.dims[dim])
        if not isinstance(size, int) or not isinstance(before, int) or not isinstance(after, int):
            raise refuse(UNSUPPORTED_OP, "a dimension of dynamic size is padded")
        if before < 0 or after < 0:
            a = space.slice(a, dim, max(-before, 0), size - max(-after, 0))
        ends = [
            filled(space, [n if d == dim else 1 for d in range(rank)], number)
            for n in (before, after)
            if n > 0
        ]
        parts = [*ends[: before > 0], a, *ends[before > 0 :]]
        a = parts[0] if len(parts) == 1 else space.cat(parts, dim)
    return a


@rule(aten.flip.default)
def _flip(space: Space, target: Any, a: Value, dims: Sequence[int]) -> Value:
    for dim in dims:
        size = space.length(a.dims[dim])
        if not isinstance(size, int) or size > 16:
            raise refuse(UNSUPPORTED_OP, "a long dimension of the state is flipped")
        a = space.cat([space.slice(a, dim, i, i + 1) for i in reversed(range(size))], dim)
    return a


@rule(aten.roll.default)
def roll(space: Space, target: Any, a: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if len(dims) != len(shifts):
        raise refuse(UNSUPPORTED_OP, "the state is rolled as if it were flat")
    for shift, dim in zip(shifts, dims, strict=True):
        size = space.length(a.dims[dim])
        if not isinstance(size, int):
            raise refuse(UNSUPPORTED_OP, "a dimension of dynamic size is rolled")
        turn = size - shift % size
        if turn != size:
            a = space.cat([space.slice(a, dim, turn, size), space.slice(a, dim, 0, turn)], dim)
    return a


@rule(aten.linalg_cross.default)
def _cross(space: Space, target: Any, a: Value, b: Value, dim: int = -1) -> Value:
    one, two = ([roll(space, None, v, [-shift], [dim]) for shift in (1, 2)] for v in (a, b))
    return linear(space, "sub", product(space, one[0], two[1]), product(space, one[1], two[0]))
