"""Slices of slices, as slices of the tensor itself.

Takes the SSA copy of a graph, whose values are never overwritten; leaves it with every basic
slice taken from what is no basic slice.  Steps that walk through a chunk of a tensor then read
the tensor, so that loops in a loop over chunks are one loop over time.  What an index does not
compose with, such as a dimension added and then indexed, stays as it is.
"""

from __future__ import annotations

import operator

import torch.fx as fx

from tenfuse.capture.views import All, At, Item, Items, New, Range, basic_index, index_of


def flatten(graph: fx.Graph) -> None:
    """Edit ``graph``, which must be in SSA form."""
    known: dict[fx.Node, tuple[fx.Node, Items]] = {}
    for node in graph.nodes:
        found = basic_index(node) if node.op in ("call_function", "call_method") else None
        if found is None:
            continue
        base, items = found
        joined = composed(known[base][1], items) if base in known else None
        known[node] = found if joined is None else (known[base][0], joined)
        if joined is not None:
            node.op, node.target = "call_function", operator.getitem
            node.args, node.kwargs = (known[base][0], index_of(joined)), {}


def composed(first: Items, then: Items) -> Items | None:
    """``x[first][then]`` as one index."""
    rest, found = list(then), list[Item]()
    for item in first:
        if isinstance(item, At):
            found.append(item)
            continue
        while rest and isinstance(rest[0], New):
            found.append(rest.pop(0))
        inner = rest.pop(0)
        if isinstance(item, New):
            if not isinstance(inner, All):
                return None
            found.append(item)
        else:
            found.append(_within(item, inner))
    return (*found, *rest)


def _within(item: All | Range, inner: Item) -> Item:
    """One dimension sliced twice."""
    if isinstance(item, All) or isinstance(inner, All):
        return inner if isinstance(item, All) else item
    if isinstance(inner, At):
        return At(item.start + inner.index * item.step)
    assert isinstance(inner, Range)
    return Range(item.start + inner.start * item.step, inner.count, item.step * inner.step)


__all__ = ["composed", "flatten"]
