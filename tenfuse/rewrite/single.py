"""Products of every step's rows with one matrix, as a single product.

Takes a traced graph; leaves it with ``bmm`` of a stack of matrices and a matrix repeated for each of
them as ``mm`` of all their rows.  The gradient of the matrix is then one product as well, where
that of ``bmm`` is a matrix per step, all of them summed up afterwards.  Any other ``bmm`` stays.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

aten = torch.ops.aten
_SAME = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def single_products(graph: fx.Graph) -> None:
    """Rewrite ``graph`` in place."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.bmm.default:
            continue
        rows, repeated = node.args
        matrix = _repeated(repeated)
        shape = _open(node.meta["val"].shape)
        if matrix is None or shape is None:
            continue
        with graph.inserting_before(node):
            flat = _call(graph, aten.reshape.default, rows, [-1, matrix.meta["val"].shape[0]])
            product = _call(graph, aten.mm.default, flat, matrix)
            node.replace_all_uses_with(_call(graph, aten.reshape.default, product, shape))
    graph.eliminate_dead_code()


def _repeated(node: Any) -> fx.Node | None:
    """The matrix that every entry of a stack is, if it is one matrix."""
    stack = node
    while node.target in _SAME and node.args[0].meta["val"].shape == stack.meta["val"].shape:
        node = node.args[0]
    if node.target is not aten.expand.default:
        return None
    matrix = node.args[0]
    value, whole = matrix.meta["val"], stack.meta["val"].shape
    return matrix if value.dim() == 2 and value.shape == whole[1:] else None


def _open(shape: torch.Size) -> list[int] | None:
    """``shape`` with the one size that only a call knows left open; None if there are more."""
    known = [n if isinstance(n, int) else -1 for n in shape]
    return known if known.count(-1) <= 1 and 0 not in known else None


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in args))
    return node


__all__ = ["single_products"]
