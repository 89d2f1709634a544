"""The meaning of the nodes for which order along an axis matters, in torch.

Takes one such node and its arguments; leaves its value.  Written for clarity: a scan is a
loop over its positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from tenfuse.step.program import AxisName, Node, Position, Rename, Scan, Shift, Solve

Named = tuple[torch.Tensor, tuple[AxisName, ...]]


def _logaddexp(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """With a derivative at two infinities too: that of ``b``, to which nothing is added."""
    nothing = a == -math.inf
    return torch.where(nothing, b, torch.logaddexp(torch.where(nothing, 0.0, a), b))


RINGS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], float]] = {
    "sum-product": (torch.add, torch.mul, 1.0),
    "max-plus": (torch.maximum, torch.add, 0.0),
    "min-plus": (torch.minimum, torch.add, 0.0),
    "log-plus": (_logaddexp, torch.add, 0.0),
    "or-and": (torch.maximum, torch.minimum, 1.0),
}
"""What adds, what multiplies, and the one of it."""


def aligned(value: Named, axes: Sequence[AxisName]) -> torch.Tensor:
    """``value`` with one dimension per name of ``axes``, of size 1 where it lacks it."""
    tensor, own = value
    tensor = tensor.permute([own.index(a) for a in axes if a in own])
    for i, axis in enumerate(axes):
        if axis not in own:
            tensor = tensor.unsqueeze(i)
    return tensor


def expanded(value: Named, axes: Sequence[AxisName], sizes: Mapping[AxisName, int]) -> torch.Tensor:
    """``value`` with exactly the dimensions ``axes``."""
    return aligned(value, axes).expand([sizes[a] for a in axes])


def ordered(
    node: Node,
    args: Sequence[Named],
    sizes: Mapping[AxisName, int],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> Named:
    """The value of a ``Position``, ``Rename``, ``Shift``, ``Scan`` or ``Solve``."""
    if isinstance(node, Position):
        return torch.arange(sizes[node.axis], dtype=dtype, device=device), (node.axis,)
    if isinstance(node, Rename):
        names = dict(node.names)
        return args[0][0], tuple(names.get(a, a) for a in args[0][1])
    if isinstance(node, Shift):
        return _shift(node, args[0], sizes)
    if isinstance(node, Scan):
        return _scan(node, args[0], args[1], sizes)
    assert isinstance(node, Solve)
    return _solve(node, args[0], args[1], sizes)


def _shift(node: Shift, arg: Named, sizes: Mapping[AxisName, int]) -> Named:
    axes = (node.axis, *(a for a in arg[1] if a != node.axis))
    value = expanded(arg, axes, sizes)
    edge = torch.full_like(value[:1], node.fill)
    return torch.cat([edge, value[:-1]] if node.by == 1 else [value[1:], edge]), axes


def _scan(node: Scan, decay: Named, arg: Named, sizes: Mapping[AxisName, int]) -> Named:
    both = set(decay[1]) | set(arg[1])
    batch = sorted(both - {node.axis, *node.rows, *node.cols})
    axes = (node.axis, *batch, *node.rows)
    values = expanded(arg, axes, sizes)
    shape, count = values.shape, math.prod(sizes[a] for a in node.rows)
    if node.rows:
        values = values.reshape(*values.shape[: 1 + len(batch)], count)
        decays = expanded(decay, (node.axis, *batch, *node.rows, *node.cols), sizes)
        decays = decays.reshape(*decays.shape[: 1 + len(batch)], count, count)
        decays = decays.mT if node.transpose else decays
    else:
        decays = expanded(decay, axes, sizes)
    plus, times, _ = RINGS[node.semiring]
    rows: list[torch.Tensor] = []
    for t in reversed(range(sizes[node.axis])) if node.reverse else range(sizes[node.axis]):
        if not rows:
            rows.append(values[t])
        elif node.rows:
            rows.append(values[t] + (decays[t] @ rows[-1][..., None])[..., 0])
        else:
            rows.append(plus(times(decays[t], rows[-1]), values[t]))
    return torch.stack(rows[::-1] if node.reverse else rows).reshape(shape), axes


def _solve(node: Solve, lower: Named, arg: Named, sizes: Mapping[AxisName, int]) -> Named:
    batch = sorted(set(lower[1]) - {*node.rows, *node.cols})
    free = sorted(set(arg[1]) - {*batch, *node.rows})
    lead, count = [sizes[a] for a in batch], math.prod(sizes[a] for a in node.rows)
    matrix = expanded(lower, (*batch, *node.rows, *node.cols), sizes).reshape(*lead, count, count)
    right = expanded(arg, (*batch, *node.rows, *free), sizes)
    flat = right.reshape(*lead, count, math.prod(sizes[a] for a in free))
    matrix = matrix.mT if node.transpose else matrix
    found = torch.linalg.solve_triangular(matrix, flat, upper=node.transpose, unitriangular=True)
    return found.reshape(right.shape), (*batch, *node.rows, *free)


__all__ = ["RINGS", "Named", "aligned", "expanded", "ordered"]
