"""View operations: what a slice of a tensor is, in one canonical form.

Takes FX nodes with ``meta["example_value"]``; leaves *items*, one per dimension of the
base: ``All()``, ``At(i)`` or ``Range(start, count, step)``, plus ``New()`` where an index
adds a dimension.  Indexing, ``select``, ``narrow`` and the elements of ``unbind``,
``split`` and ``chunk`` all become items.  ``basic_index`` returns None for anything else.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

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
