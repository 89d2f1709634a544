"""An index of numbers and tensors beside slices, in two: the slice first, then the tensors.

``x[:, t, columns]`` is ``x[:, t][:, columns]``, which is how torch takes it: numbers and slices make a
view, in order, and the tensors then pick from it (unlike NumPy, where a number counts as a tensor).
Takes a private copy of a Dynamo graph and writes it so, which shows that the slice moves with the step
and what is picked does not.  Leaves alone what has no slice, and indices that are masks or single numbers.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.views import is_tensor, value_of


def part(graph: fx.Graph) -> None:
    """Edit ``graph``, which the caller made."""
    for node in list(graph.nodes):
        if node.target is operator.getitem and is_tensor(node) and is_tensor(node.args[0]):
            index = node.args[1]
            if isinstance(index, tuple) and _mixed(index):
                _part(graph, node, index)


def _mixed(index: tuple[Any, ...]) -> bool:
    picks = [i for i in index if _picks(i)]
    rest = [i for i in index if not _picks(i)]
    numbers = [type(i) is int for i in rest]
    return bool(picks) and all(map(_plain, rest)) and any(numbers) and not all(numbers)


def _plain(entry: Any) -> bool:
    bounds = (entry.start, entry.stop, entry.step) if isinstance(entry, slice) else (entry,)
    return all(type(b) is int or b is None or b is Ellipsis for b in bounds)


def _picks(entry: Any) -> bool:
    value = value_of(entry)
    if isinstance(value, torch.Tensor):
        return value.dtype in (torch.int64, torch.int32) and value.dim() > 0
    return isinstance(entry, list) and all(type(i) is int for i in entry)


def _part(graph: fx.Graph, node: fx.Node, index: tuple[Any, ...]) -> None:
    base = node.args[0]
    assert isinstance(base, fx.Node)
    sliced = tuple(slice(None) if _picks(i) else i for i in index)
    picked = tuple(i if _picks(i) or i is Ellipsis else slice(None) for i in index if type(i) is not int)
    with graph.inserting_before(node):
        view = graph.call_function(operator.getitem, (base, sliced))
    with torch.set_grad_enabled(value_of(node).requires_grad):
        seen = value_of(base)[sliced]
    view.meta = dict(node.meta) | {"example_value": seen}
    node.args = (view, picked)


__all__ = ["part"]
