"""Views and conversions that change nothing, or are named after another tensor.

Takes a private copy of a Dynamo graph; where ``x.to(y)``, ``x.type_as(y)``, ``x.view_as(y)``
and the like read nothing of ``y`` but its dtype, device or sizes, names those instead.  What
remains has one tensor operand, so it is seen as a view of that operand where it is one.
Leaves alone what has sizes or a device that only a run can tell.  ``same`` says of a view
whether it shows its operand entry by entry, as a conversion to the dtype it has already.
What compared a state with None while it was traced has been answered, and goes; so do sizes
that are known, of which ``x[:, T - 1 - t]`` is full where ``T`` was dynamic before the loop over it.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.views import geometry, is_tensor, key_of, static, value_of

_IDLE = {
    "to", "type", "float", "double", "half", "bfloat16", "contiguous", "view", "reshape", "expand",
}  # fmt: skip
"""Calls that may leave a tensor as it is; ``detach`` is none, it cuts the gradient."""

_COMPARISONS = {operator.eq, operator.ne, operator.is_, operator.is_not}

_SHAPED = {"view_as": "view", "reshape_as": "reshape", "expand_as": "expand"}


def settle(graph: fx.Graph) -> None:
    """Edit ``graph``, which the caller made."""
    _count(graph)
    for node in list(graph.nodes):
        if node.target in _COMPARISONS and not node.users and None in node.args and not is_tensor(node):
            graph.erase_node(node)
            continue
        if node.op == "call_method" and len(node.args) >= 2 and is_tensor(node.args[1]):
            _settle(node, value_of(node.args[1]))


def _count(graph: fx.Graph) -> None:
    """Sizes that Dynamo settled on, as a loop over them does, and what is computed from them, as numbers."""
    known: dict[fx.Node, int] = {}
    for node in graph.nodes:
        value = value_of(node)
        computed = getattr(node.target, "__module__", "") == "_operator" and node.all_input_nodes
        if isinstance(value, torch.SymInt) or (computed and all(n in known for n in node.all_input_nodes)):
            size = static(value)
            if size is not None:
                known[node] = size
    for node in {u for n in known for u in n.users if u not in known and u.op != "output"}:
        node.args = fx.map_arg(node.args, lambda n: known.get(n, n))
        node.kwargs = fx.map_arg(node.kwargs, lambda n: known.get(n, n))
    for node in reversed(known):
        if not node.users and node.op == "call_function":
            graph.erase_node(node)


def _settle(node: fx.Node, other: torch.Tensor) -> None:
    name, base = str(node.target), value_of(node.args[0])
    if name in ("to", "type_as"):
        if not isinstance(base, torch.Tensor) or base.device != other.device:
            return
        rest: tuple[Any, ...] = tuple(node.args[2:])
        node.target, node.args = "to", (node.args[0], other.dtype, *rest)
    elif name in _SHAPED:
        sizes = tuple(static(s) for s in other.shape)
        if None not in sizes:
            node.target, node.args = _SHAPED[name], (node.args[0], sizes)


def same(node: fx.Node, base: fx.Node) -> bool:
    """Whether ``node``, which shares the memory of ``base``, is ``base`` under another name."""
    a, b = value_of(node), value_of(base)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name not in _IDLE or not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return _laid_out(a) == _laid_out(b) and (a.is_conj(), a.is_neg()) == (b.is_conj(), b.is_neg())


def _laid_out(value: torch.Tensor) -> tuple[Any, ...]:
    strides = tuple(key_of(s) for s in value.stride())
    return (*geometry(value), strides, key_of(value.storage_offset()))


__all__ = ["same", "settle"]
