"""Which tensors of a graph are written in place, and which nodes touch their memory.

Takes the nodes of a Dynamo graph; leaves a ``Survey``.  A tensor has a root only if every node that
touches its memory is a view of, or an in-place operation on, its first argument that has a
functional form; what else is written is left for later stages to refuse.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.views import call, is_tensor, storage_of, value_of
from tenfuse.capture.writes import (
    METADATA,
    OPERATORS,
    SETS,
    STATEFUL,
    frozen,
    inplace_flag,
    name_of,
    targets_written,
)


@dataclasses.dataclass(frozen=True)
class Survey:
    writes: dict[fx.Node, list[fx.Node]]
    """Node -> the tensors that it writes."""
    root: dict[fx.Node, fx.Node]
    """Node that touches a written tensor -> the node that made that tensor."""
    inplace: set[fx.Node]
    """Nodes that write their first argument and return it."""
    views: set[fx.Node]
    """Nodes that only show memory of their first argument."""


def survey(nodes: Sequence[fx.Node]) -> Survey:
    """What is written in the graph of these ``nodes``, in their order."""
    writes = {n: w for n in nodes if (w := targets_written(n))}
    inplace = {n for n, w in writes.items() if is_tensor(n) and n.args[:1] == (w[0],)}
    views = {
        n for n in nodes
        if n not in writes and (first := _first(n)) is not None and _storages(n) & _storages(first)
    }  # fmt: skip
    return Survey(writes, _roots(nodes, writes), inplace, views)


def _roots(nodes: Sequence[fx.Node], writes: dict[fx.Node, list[fx.Node]]) -> dict[fx.Node, fx.Node]:
    touched = {s for targets in writes.values() for s in _stores(targets)}
    opaque = {
        s for node, targets in writes.items() if not _functional(node, targets, writes)
        for s in _stores(targets)
    }  # fmt: skip
    made: dict[int, fx.Node] = {}
    root: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for store in _storages(node) & touched:
            known = store in made
            maker = made.setdefault(store, node)
            if not (_explained(node, store, writes) if known else is_tensor(node)):
                opaque.add(store)
            root[node] = maker
    bad = {made[s] for s in opaque if s in made}
    return {node: maker for node, maker in root.items() if maker not in bad}


def ordinary(node: fx.Node) -> Any:
    """The operation that an in-place one does, as a function or method that makes a new tensor; or None."""
    name = name_of(node)[:-1]
    if node.op == "call_method":
        return getattr(torch.Tensor, name, None)
    module = getattr(node.target, "__module__", "") or ""
    for home in (torch.nn.functional, torch) if "functional" in module else (torch, torch.nn.functional):
        if hasattr(home, name):
            return getattr(home, name)
    return None


def _first(node: fx.Node) -> fx.Node | None:
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) else None


def _stores(tensors: Sequence[fx.Node]) -> set[int]:
    return {s for t in tensors if (s := storage_of(value_of(t))) is not None}


def _storages(node: fx.Node) -> set[int]:
    value = value_of(node)
    parts = value if isinstance(value, (tuple, list)) else [value]
    return {s for p in parts if (s := storage_of(p)) is not None}


def _explained(node: fx.Node, store: int, writes: dict[fx.Node, list[fx.Node]]) -> bool:
    """``node`` is a view of, or an in-place operation on, its first argument."""
    first = _first(node)
    if first is None or store not in _storages(first) or len(_storages(node)) != 1:
        return False
    return writes[node] == [first] if node in writes else call(node) is not None


def _functional(node: fx.Node, targets: list[fx.Node], writes: dict[fx.Node, list[fx.Node]]) -> bool:
    """Whether there are ordinary operations for an in-place one."""
    if len(targets) != 1 or node.args[:1] != (targets[0],) or node.kwargs.get("out") is not None:
        return False
    if _untraceable(targets[0], writes):
        return False
    if node.target is operator.setitem:
        symbols: list[fx.Node] = []
        fx.node.map_arg(node.args[1], symbols.append)
        return all(is_tensor(s) for s in symbols)
    if node.target in OPERATORS:
        return True
    if node.op == "call_function" and inplace_flag(node):
        return node.kwargs.get("inplace") is True
    name = name_of(node)
    if name in METADATA or (node.target in STATEFUL and not frozen(node)):
        return False
    return name in SETS or callable(ordinary(node))


def _untraceable(node: fx.Node, writes: dict[fx.Node, list[fx.Node]]) -> bool:
    """Whether ``node`` is reached from its root through sizes that are graph values, or a detach."""
    store = storage_of(value_of(node))
    while store in _storages(node) and node.op != "placeholder":
        first = _first(node)
        if first is None or store not in _storages(first):
            return False
        if node not in writes and any(n is not first for n in node.all_input_nodes):
            return True
        if node not in writes and "detach" in name_of(node):
            return True
        node = first
    return False


__all__ = ["Survey", "ordinary", "survey"]
