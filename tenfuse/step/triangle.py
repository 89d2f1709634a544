"""Triangles of a state: everything outside them is replaced by zero.

Takes a traced ATen graph and its carries; leaves each ``tril`` or ``triu`` that depends on
a carry as a choice by a mask, which is the same at every step and so is made before the
loop.  State-free triangles, and those of dynamic size, stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.fx as fx

from tenfuse.step.choice import inlined

aten = torch.ops.aten

_TRIANGLES = {aten.tril.default: torch.tril, aten.triu.default: torch.triu}


def masked(graph: fx.Graph, carries: Collection[fx.Node]) -> None:
    """Edit ``graph``, which the caller made."""
    dependent = set(carries)
    for node in list(graph.nodes):
        if not any(a in dependent for a in node.all_input_nodes):
            continue
        dependent.add(node)
        sides = node.meta["val"].shape[-2:] if node.target in _TRIANGLES else ()
        if not sides or not all(isinstance(s, int) for s in sides):
            continue
        source, diagonal = node.args[0], node.args[1] if len(node.args) > 1 else 0
        made = inlined(node, [source], _chosen, _TRIANGLES[node.target], diagonal)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        dependent.add(made)


def _chosen(a: torch.Tensor, triangle: object, diagonal: int) -> torch.Tensor:
    inside = torch.ones(a.shape[-2:], dtype=torch.bool, device=a.device)
    return torch.where(triangle(inside, diagonal), a, 0.0)  # type: ignore[operator]


__all__ = ["masked"]
