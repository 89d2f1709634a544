"""Make a traced step functional: in-place ATen calls on tensors of the step's own.

Takes a traced ATen graph; leaves it with ``add_`` and the like replaced by ``add`` and
later readers renamed.  Some of torch's composites (``lstm_cell``) work in place on what
they made themselves.  Refuses (SIDE_EFFECT) when the tensor came from outside the step or
when another view of its memory is read afterwards.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from tenfuse.reasons import SIDE_EFFECT, refuse, where

aten = torch.ops.aten


def mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def purify(graph: fx.Graph) -> None:
    """Edit ``graph``, which the caller made, until nothing in it mutates."""
    order = {n: i for i, n in enumerate(graph.nodes)}
    memory = {n: _memory(n) for n in graph.nodes}
    for node in list(graph.nodes):
        if not mutates(node):
            continue
        written = node.args[0]
        functional = _functional(node.target)
        shares = [n for n in graph.nodes if memory[n] is not None and memory[n] == memory.get(written)]
        if (
            functional is None
            or not isinstance(written, fx.Node)
            or any(n.op == "placeholder" for n in shares)
        ):
            raise refuse(SIDE_EFFECT, f"the body mutates a tensor ({node.target})", where(node))
        stale = [n for n in shares if n not in (written, node) and order[n] < order[node]]
        if any(order[user] > order[node] for n in stale for user in n.users):
            raise refuse(
                SIDE_EFFECT,
                f"the body mutates a tensor that it also reads under another name ({node.target})",
                where(node),
            )
        with graph.inserting_before(node):
            if functional is aten.copy.default:
                pure = _copied(graph, written, node.args[1])
            else:
                pure = graph.call_function(functional, node.args, node.kwargs)
        pure.meta, order[pure], memory[pure] = dict(node.meta), order[node], ("own", order[node])
        node.replace_all_uses_with(pure)
        for user in [u for u in written.users if order[u] > order[node]]:
            user.replace_input_with(written, pure)
        graph.erase_node(node)


def _copied(graph: fx.Graph, written: fx.Node, source: Any) -> fx.Node:
    """What ``written.copy_(source)`` leaves: ``aten.copy`` has neither derivative nor batching rule."""
    want, seen = written.meta["val"], source.meta["val"]
    if seen.dtype != want.dtype:
        source = graph.call_function(aten._to_copy.default, (source,), {"dtype": want.dtype})
        source.meta["val"] = seen.to(want.dtype)
    lead = want.dim() - seen.dim()
    kept = [i >= lead and seen.shape[i - lead] == size for i, size in enumerate(want.shape)]
    if all(kept):
        return graph.call_function(aten.clone.default, (source,))
    sizes = [-1 if same else size for same, size in zip(kept, want.shape, strict=True)]
    return graph.call_function(aten.expand.default, (source, sizes))


def _memory(node: fx.Node) -> Any:
    """What tells the memory a node lies in; pieces of ``unsafe_split`` count as their own."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    if node.target is operator.getitem and getattr(node.args[0], "target", None) in (
        aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default, aten.unsafe_chunk.default,
    ):  # fmt: skip
        return ("own", node.name)
    return ("storage", value.untyped_storage()._cdata)


def _functional(op: Any) -> Any:
    """``aten.add_.Tensor`` -> ``aten.add.Tensor``, where there is one."""
    name = op._schema.name.split("::")[-1]
    packet = getattr(aten, name[:-1], None) if name.endswith("_") and op.namespace == "aten" else None
    return getattr(packet, op._overloadname, None) if packet is not None else None


__all__ = ["mutates", "purify"]
