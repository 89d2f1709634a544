"""Slices that move from step to step, and the entries they show.

Takes the items of one view at every step (``views``); leaves a ``Family``: operations that
show all of them at once, one entry per step, where they move by a constant amount.  A
``Box`` says which entries of a tensor a view shows, as far as that is known, so that
writes of different steps can be held apart.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from typing import Any

import numpy as np
import torch
import torch.fx as fx

from tenfuse.capture.loop import ViewOp
from tenfuse.capture.views import (
    All,
    At,
    Items,
    New,
    Range,
    argument,
    basic_index,
    index_of,
    is_tensor,
    static,
    subscript,
    value_of,
)


@dataclasses.dataclass(frozen=True)
class Family:
    """``ops`` turn the base into ``[steps, ...]`` in the order ascending along the base.

    ``direction`` is +1 when run order is that order and -1 when it is the opposite.
    """

    ops: tuple[ViewOp, ...]
    direction: int


def _affine(numbers: list[int]) -> int | None:
    """The constant difference of consecutive numbers, or None."""
    step = numbers[1] - numbers[0]
    return step if all(b - a == step for a, b in itertools.pairwise(numbers)) else None


def family(runs: list[Items]) -> Family | None:
    """One stream from the items of every run; None unless one index moves affinely."""
    first = runs[0]
    if len(runs) < 2 or any(len(r) != len(first) for r in runs):
        return None
    moving = [d for d in range(len(first)) if any(r[d] != first[d] for r in runs[1:])]
    if len(moving) != 1:
        return None
    dim = moving[0]
    column = [r[dim] for r in runs]
    if all(isinstance(c, At) for c in column):
        starts = [c.index for c in column if isinstance(c, At)]
        window = None
    elif all(isinstance(c, Range) for c in column):
        ranges = [c for c in column if isinstance(c, Range)]
        if len({(c.count, c.step) for c in ranges}) != 1:
            return None
        starts, window = [c.start for c in ranges], ranges[0]
    else:
        return None
    step = _affine(starts)
    if not step or (window is not None and (window.step != 1 or window.count < 1)):
        return None
    return Family(_moving_ops(first, dim, min(starts), abs(step), len(runs), window), 1 if step > 0 else -1)


def _moving_ops(
    items: Items, dim: int, start: int, step: int, runs: int, window: Range | None
) -> tuple[ViewOp, ...]:
    """Cut the range that all runs cover, give time its own dimension, bring it to the front."""
    place = sum(not isinstance(i, At) for i in items[:dim])
    count = 1 if window is None else window.count
    if window is None or count == 1:
        cut = (*items[:dim], Range(start, runs, step), *items[dim + 1 :])
        ops = [ViewOp(operator.getitem, (index_of(cut),))]
        if window is not None:
            ops.append(ViewOp(torch.unsqueeze, (place + 1,)))
    elif count == step:
        cut = (*items[:dim], Range(start, runs * count, 1), *items[dim + 1 :])
        ops = [ViewOp(operator.getitem, (index_of(cut),)), ViewOp(torch.unflatten, (place, (runs, count)))]
    else:
        cut = (*items[:dim], Range(start, step * (runs - 1) + count, 1), *items[dim + 1 :])
        rank = sum(not isinstance(i, At) for i in cut)
        ops = [
            ViewOp(operator.getitem, (index_of(cut),)),
            ViewOp(torch.Tensor.unfold, (place, count, step)),
            ViewOp(torch.movedim, (rank, place + 1)),
        ]
    if place:
        ops.append(ViewOp(torch.movedim, (place, 0)))
    return tuple(ops)


def rolled(value: torch.Tensor, dim: int, shifts: tuple[int, ...]) -> torch.Tensor:
    """``torch.roll(value, s, dim)`` for every ``s`` of ``shifts``, stacked."""
    size = value.shape[dim]
    place = torch.arange(size, device=value.device)
    index = (place - torch.tensor(shifts, device=value.device)[:, None]) % size
    taken = value.index_select(dim, index.flatten()).unflatten(dim, index.shape)
    return taken.movedim(dim, 0)


def roll_of(node: fx.Node) -> tuple[int, int] | None:
    """``(shift, dim >= 0)`` of a ``torch.roll`` along one dimension."""
    if node.target not in ("roll", torch.roll) or not is_tensor(node):
        return None
    shift, dim = argument(node, 1, "shifts"), argument(node, 2, "dims")
    shift = shift[0] if isinstance(shift, (tuple, list)) and len(shift) == 1 else shift
    dim = dim[0] if isinstance(dim, (tuple, list)) and len(dim) == 1 else dim
    if static(shift) is None or static(dim) is None:
        return None
    return shift, dim % value_of(node).dim()


FLIP = ViewOp(torch.flip, ((0,),))


# which entries a view shows ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Box:
    """Which entries of a root tensor a view shows.

    ``hull`` bounds them per root dimension as (start, stop), None where unbounded;
    ``cells`` is their exact description, None when only the hull is known.
    """

    hull: tuple[tuple[int, int] | None, ...]
    cells: tuple[Any, ...] | None


def whole(root: torch.Tensor) -> Box:
    return Box((None,) * root.dim(), tuple(("dim", d, 0, 1) for d in range(root.dim())))


def sliced(box: Box, items: Items) -> Box:
    """The box of a basic slice of a view; a cell is one dimension of that view.

    Cells are ("dim", root dimension, start, step) or ("new",); fixed root dimensions are
    remembered in the hull, which is exact for them.
    """
    if box.cells is None:
        return Box(box.hull, None)
    hull = list(box.hull)
    cells = [c for c in box.cells if c[0] == "dim" or c[0] == "new"]
    out: list[Any] = []
    position = 0
    for item in items:
        if isinstance(item, New):
            out.append(("new",))
            continue
        cell = cells[position]
        position += 1
        if isinstance(item, All):
            out.append(cell)
        elif cell[0] == "new":
            if isinstance(item, Range):
                out.append(cell)
        else:
            _, dim, start, step = cell
            if isinstance(item, At):
                at = start + item.index * step
                hull[dim] = (at, at + 1)
            elif isinstance(item, Range):
                lo = start + item.start * step
                hull[dim] = (lo, lo + max(item.count - 1, 0) * item.step * step + 1)
                out.append(("dim", dim, lo, item.step * step))
    return Box(tuple(hull), tuple(out))


def apply(value: torch.Tensor, ops: tuple[ViewOp, ...]) -> torch.Tensor:
    """``ops`` run on a fake tensor."""
    with torch.no_grad():
        for op in ops:
            value = op.target(value, *op.args, **dict(op.kwargs))
    return value


def items_of(op: ViewOp, base: torch.Tensor) -> Items | None:
    """A view operation on ``base`` as items, or None."""
    scratch = fx.Graph()
    source = scratch.placeholder("base")
    source.meta["example_value"] = base
    target = (
        "select"
        if op.target is torch.Tensor.select
        else "narrow"
        if op.target is torch.Tensor.narrow
        else op.target
    )
    node = fx.Node(scratch, "probe", "call_function", operator.getitem, (), {})
    node.target = target
    node._args = (source, *op.args)  # type: ignore[attr-defined]
    node._kwargs = dict(op.kwargs)  # type: ignore[attr-defined]
    node.meta["example_value"] = base
    found = basic_index(node)
    return None if found is None else found[1]


def box_of_ops(base: torch.Tensor, ops: tuple[ViewOp, ...]) -> Box:
    """The entries of ``base`` that a chain of views shows."""
    box = whole(base)
    for op in ops:
        items = items_of(op, base)
        box = Box(box.hull, None) if items is None else sliced(box, items)
        if op is not ops[-1]:
            base = apply(base, (op,))
    return box


def family_of_ops(base: torch.Tensor, runs: list[tuple[ViewOp, ...]]) -> Family | None:
    """One stream from the chain of views of every run; exactly one link of it may move."""
    first = runs[0]
    if any(len(r) != len(first) for r in runs):
        return None
    moving = [i for i in range(len(first)) if any(r[i] != first[i] for r in runs[1:])]
    if len(moving) != 1:
        return None
    link = moving[0]
    before = first[:link]
    inner = apply(base, before)
    items = [items_of(r[link], inner) for r in runs]
    found = [i for i in items if i is not None]
    moved = family(found) if len(found) == len(runs) else None
    if moved is None:
        return None
    after: tuple[ViewOp, ...] = ()
    value = apply(inner, (first[link],))
    for op in first[link + 1 :]:
        fixed = items_of(op, value)
        if fixed is None:
            return None
        after += subscript((All(), *fixed))
        value = apply(value, (op,))
    return Family((*before, *moved.ops, *after), moved.direction)


def apart(moved: Family, base: torch.Tensor) -> bool:
    """Whether the slices of a family show disjoint entries of ``base``."""
    seen = apply(base, moved.ops)
    sizes, strides = list(seen.shape), list(seen.stride())
    if (
        len(sizes) == 0
        or static(strides[0]) == 0
        or any(op.target is torch.Tensor.unfold for op in moved.ops)
    ):
        return False
    return not any(static(s) == 0 and static(n) != 1 for n, s in zip(sizes, strides, strict=True))


def overlaps_after(earlier: list[Box], later: list[Box]) -> bool:
    """Whether ``later[r']`` shows an entry of ``earlier[r]`` for some ``r' > r``."""
    far = 2**62

    def bounds(boxes: list[Box]) -> np.ndarray:
        return np.array([[(-far, far) if s is None else s for s in b.hull] for b in boxes], dtype=np.int64)

    a, b = bounds(earlier), bounds(later)
    for r in range(len(a) - 1):
        rest = b[r + 1 :]
        if ((rest[:, :, 0] < a[r, :, 1]) & (rest[:, :, 1] > a[r, :, 0])).all(axis=1).any():
            return True
    return False
