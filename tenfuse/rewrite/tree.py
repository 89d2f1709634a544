"""Put torch's tree back where an ``associative_scan`` stays unfused.

Takes a graph on its way to the inner compiler; leaves it, or a copy in which each
``associative_scan`` operator that inner compilers cannot run (any on the CPU, and those that
``capture.door`` made elsewhere) is a call of torch's own ``generic_associative_scan``: what
the graph would have held without tenfuse.  The inner compiler traces through that call.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch._higher_order_ops.associative_scan import generic_associative_scan

from tenfuse.capture.record import GENERIC

ASSOCIATIVE = torch.ops.higher_order.associative_scan


def as_tree(body: Any, xs: list[torch.Tensor], inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    """``associative_scan`` by torch's tree of combinations, ``body`` batched over entries."""
    batched = torch.vmap(body, in_dims=(*[0] * (2 * len(xs)), *[None] * len(inputs)))
    return list(generic_associative_scan(batched, list(xs), additional_inputs=tuple(inputs)))


def restore(gm: fx.GraphModule) -> fx.GraphModule:
    """``gm`` with every scan in a form the inner compiler can run; ``gm`` itself is not changed."""
    nested = {n: m for n, m in gm.named_children() if isinstance(m, fx.GraphModule)}
    changed = {name: made for name, inner in nested.items() if (made := restore(inner)) is not inner}
    if not changed and not any(_stranded(n) for n in gm.graph.nodes):
        return gm
    copy = fx.GraphModule(gm, _copied(gm.graph))
    copy.meta = dict(gm.meta)
    for name, inner in changed.items():
        setattr(copy, name, inner)
    return copy


def _stranded(node: fx.Node) -> bool:
    """Whether ``node`` is a scan without a lowering of its own."""
    if node.target is not ASSOCIATIVE:
        return False
    values = [x.meta["example_value"] for x in node.args[1]]  # type: ignore[union-attr]
    return bool(node.meta.get(GENERIC)) or any(v.device.type == "cpu" for v in values)


def _copied(graph: fx.Graph) -> fx.Graph:
    made = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        env[node] = made.node_copy(node, lambda n: env[n])
        if _stranded(node):
            env[node].target = as_tree
    return made
