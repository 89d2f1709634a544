"""View operations: what a slice of a tensor is, in one canonical form.

Takes FX nodes with ``meta["example_value"]``; leaves *items*, one per dimension of the
base: ``All()``, ``At(i)`` or ``Range(start, count, step)``, plus ``New()`` where an index
adds a dimension.  Indexing, ``select``, ``narrow`` and the elements of ``unbind``,
``split`` and ``chunk`` all become items.  ``basic_index`` returns None for anything else.
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


@dataclasses.dataclass(frozen=True)
class All:
    """The whole dimension."""


@dataclasses.dataclass(frozen=True)
class New:
    """A new dimension of size 1."""


@dataclasses.dataclass(frozen=True)
class At:
    """One index; the dimension disappears."""

    index: int


@dataclasses.dataclass(frozen=True)
class Range:
    """``count`` indices from ``start`` in steps of ``step``."""

    start: int
    count: int
    step: int = 1


Item = All | New | At | Range
Items = tuple[Item, ...]


def value_of(node: Any) -> Any:
    return node.meta.get("example_value") if isinstance(node, fx.Node) else None


def is_tensor(node: Any) -> bool:
    return isinstance(value_of(node), torch.Tensor)


def storage_of(value: Any) -> int | None:
    """An identity of the memory behind a fake tensor, or None if it has none."""
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def static(size: Any) -> int | None:
    """``size`` as an int, or None when it is symbolic; never adds a guard.

    A size that Dynamo settled on while tracing, as a loop over it does, is known.
    """
    if isinstance(size, torch.SymInt):
        known: int | None = size.node.maybe_as_int()
        return known
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def key_of(size: Any) -> Any:
    """A hashable stand-in for a size that is equal exactly when the sizes are."""
    known = static(size)
    return ("sym", str(size)) if known is None else known


def key_of_shape(value: torch.Tensor) -> tuple[Any, ...]:
    return tuple([key_of(s) for s in value.shape])


def geometry(value: torch.Tensor) -> tuple[Any, ...]:
    """Sizes, dtype and device, comparable without guards."""
    return (key_of_shape(value), value.dtype, str(value.device))


def _item(index: Any, size: Any, out_size: Any) -> Item | None:
    """One int or slice applied to a dimension of ``size``; ``out_size`` is the result's."""
    n = static(size)
    if isinstance(index, bool):
        return None
    if isinstance(index, int):
        if index >= 0:
            return At(index)
        return None if n is None else At(index + n)
    if not isinstance(index, slice):
        return None
    if index == slice(None):
        return All()
    parts = (index.start, index.stop, index.step)
    if any(p is not None and static(p) is None for p in parts):
        return None
    if n is not None:
        start, stop, step = index.indices(n)
        count = len(range(start, stop, step))
        return All() if (start, count, step) == (0, n, 1) else Range(start, count, step)
    count_seen = static(out_size)
    start = index.start or 0
    if count_seen is None or start < 0 or (index.stop or 0) < 0:
        return None
    return Range(start, count_seen, index.step or 1)


def subscript_items(index: Any, base: torch.Tensor) -> Items | None:
    """``base[index]`` as items; None for anything but a basic index with known bounds."""
    return _getitem(index, base, None)


def shape_of(items: Items, base: torch.Tensor) -> tuple[Any, ...]:
    """The sizes that a slice shows, comparable without guards."""
    sizes: list[Any] = []
    dim = 0
    for item in items:
        if isinstance(item, New):
            sizes.append(1)
            continue
        if isinstance(item, Range):
            sizes.append(item.count)
        elif isinstance(item, All):
            sizes.append(key_of(base.shape[dim]))
        dim += 1
    return tuple(sizes)


def _getitem(index: Any, base: torch.Tensor, out: torch.Tensor | None) -> Items | None:
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(e, (list, torch.Tensor, bool)) for e in entries):
        return None
    if any(e is Ellipsis for e in entries):
        at = next(i for i, e in enumerate(entries) if e is Ellipsis)
        taken = sum(e is not None and e is not Ellipsis for e in entries)
        entries[at : at + 1] = [slice(None)] * (base.dim() - taken)
    taken = sum(e is not None for e in entries)
    if taken > base.dim() or any(e is Ellipsis for e in entries):
        return None
    entries += [slice(None)] * (base.dim() - taken)
    items: list[Item] = []
    dim, out_dim = 0, 0
    for entry in entries:
        if entry is None:
            items.append(New())
            out_dim += 1
            continue
        known = out is not None and isinstance(entry, slice) and out_dim < out.dim()
        out_size = out.shape[out_dim] if known and out is not None else None
        item = _item(entry, base.shape[dim], out_size)
        if item is None:
            return None
        items.append(item)
        dim += 1
        out_dim += isinstance(entry, slice)
    return tuple(items)


def _along(dim: Any, item: Item | None, base: torch.Tensor) -> Items | None:
    if item is None or static(dim) is None or not -base.dim() <= dim < base.dim():
        return None
    items: list[Item] = [All()] * base.dim()
    items[dim] = item
    return tuple(items)


_SELECT = {"select", torch.select, torch.ops.aten.select.int}
_NARROW = {"narrow", torch.narrow}
_UNBIND = {"unbind", torch.unbind}
_SPLIT = {
    "split",
    torch.split,
    torch.functional.split,
    "chunk",
    torch.chunk,
    "tensor_split",
    torch.tensor_split,
    "split_with_sizes",
    torch.split_with_sizes,
}


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _element(node: fx.Node, pieces: fx.Node, index: int) -> tuple[fx.Node, Items] | None:
    """``index``-th element of an unbind, split or chunk."""
    base = argument(pieces, 0, "input", pieces.kwargs.get("tensor"))
    seen = value_of(base)
    parts = value_of(pieces)
    if not isinstance(seen, torch.Tensor) or not isinstance(parts, (tuple, list)):
        return None
    if not -len(parts) <= index < len(parts):
        return None
    index %= len(parts)
    if pieces.target in _UNBIND:
        items = _along(argument(pieces, 1, "dim", 0), At(index), seen)
    elif pieces.target in _SPLIT:
        dim = argument(pieces, 2, "dim", 0)
        if static(dim) is None:
            return None
        sizes = [static(p.shape[dim]) for p in parts]
        if any(s is None for s in sizes):
            return None
        whole = [s for s in sizes if s is not None]
        items = _along(dim, Range(sum(whole[:index]), whole[index]), seen)
    else:
        return None
    return None if items is None else (base, items)


def basic_index(node: fx.Node) -> tuple[fx.Node, Items] | None:
    """``(base, items)`` when ``node`` is a basic slice of one tensor, else None."""
    out = value_of(node)
    if not isinstance(out, torch.Tensor) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    base = value_of(source)
    found: Items | None = None
    if node.target is operator.getitem:
        if isinstance(base, (tuple, list)):
            index = static(node.args[1])
            return None if index is None else _element(node, source, index)
        if isinstance(base, torch.Tensor):
            found = _getitem(node.args[1], base, out)
    elif not isinstance(base, torch.Tensor):
        return None
    elif node.target in _SELECT:
        dim, index = argument(node, 1, "dim"), argument(node, 2, "index")
        if static(dim) is not None and static(index) is not None and -base.dim() <= dim < base.dim():
            found = _along(dim, _item(index, base.shape[dim], 1), base)
    elif node.target in _NARROW:
        dim, start, length = (argument(node, i + 1, k) for i, k in enumerate(("dim", "start", "length")))
        if all(static(v) is not None for v in (dim, start, length)) and start >= 0:
            found = _along(dim, Range(start, length), base)
    return None if found is None else (source, found)


def index_of(items: Items) -> tuple[Any, ...]:
    """The subscript that means ``items`` (steps are positive)."""
    out: list[Any] = []
    for item in items:
        if isinstance(item, All):
            out.append(slice(None))
        elif isinstance(item, New):
            out.append(None)
        elif isinstance(item, At):
            out.append(item.index)
        else:
            stop = item.start + (item.count - 1) * item.step + 1 if item.count else item.start
            out.append(slice(item.start, stop, item.step))
    return tuple(out)


def subscript(items: Items) -> tuple[ViewOp, ...]:
    """``items`` as view operations; none when they select everything."""
    if all(isinstance(i, All) for i in items):
        return ()
    return (ViewOp(operator.getitem, (index_of(items),)),)


def call(node: fx.Node) -> ViewOp | None:
    """A view operation of one tensor as a ``ViewOp``; None when it has other operands."""
    rest = (node.args[1:], node.kwargs)
    target: Any = node.target
    if node.op == "call_method":
        target = getattr(torch.Tensor, str(node.target), None)
    symbols: list[fx.Node] = []
    fx.node.map_arg(rest, lambda n: symbols.append(n))
    if not callable(target) or any(is_tensor(s) for s in symbols):
        return None
    return ViewOp(target, tuple(node.args[1:]), tuple(sorted(node.kwargs.items())))


# a stream: the same slice at an index that moves with the step --------------------------


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


_CHANCE = (
    "rand",
    "dropout",
    "bernoulli",
    "normal",
    "multinomial",
    "poisson",
    "rrelu",
    "gumbel",
    "scaled_dot_product",
    "exponential_",
    "uniform",
)


def pure(node: fx.Node) -> bool:
    """A function of its operands and nothing else, as far as its name tells."""
    if not is_tensor(node) or node.kwargs.get("out") is not None:
        return False
    home = "torch" if node.op == "call_method" else getattr(node.target, "__module__", None) or ""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    if node.op not in ("call_method", "call_function") or any(c in name for c in _CHANCE):
        return False
    plain = home in (
        "torch",
        "_operator",
        "torch._C._nn",
        "torch.nn.functional",
        "torch.functional",
        "torch._C._linalg",
        "torch._C._special",
        "torch._C._fft",
        "math",
    )
    return plain or (home == "" and node.target in vars(torch).values())


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
