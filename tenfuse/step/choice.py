"""Maximum and minimum with indices: the value as algebra on the state, the index apart.

Takes a traced ATen graph and the nodes that feed the state; leaves each ``max.dim`` or
``min.dim`` among them as functional ATen.  The value is the sum over the entries chosen,
of which there is one: at a tie the first, which alone gets the gradient.  The index reads
the state and feeds nothing back, so it is computed for all steps at once.  Leaves alone
(and so to a refusal by the reader) a dimension of dynamic size.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

Made = Callable[[fx.Node, Collection[fx.Node]], fx.Node | None]

_EXTREMES = {aten.max.dim: True, aten.min.dim: False}


def unfold(graph: fx.Graph, feeding: Collection[fx.Node]) -> None:
    """Edit ``graph``, which the caller made."""
    for node in [n for n in graph.nodes if n.target in _EXTREMES and n in feeding]:
        source, dim = node.args[0], node.args[1]
        keepdim = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
        value = source.meta["val"]
        if value.dim() == 0 or not isinstance(value.shape[dim], int) or not value.is_floating_point():
            continue
        largest = _EXTREMES[node.target]
        for user in list(node.users):
            if user.target is not operator.getitem:
                continue
            made = _value if user.args[1] == 0 else _index
            user.replace_all_uses_with(inlined(user, [source], made, dim, keepdim, largest))
            graph.erase_node(user)
        if not node.users:
            graph.erase_node(node)


def _value(a: torch.Tensor, dim: int, keepdim: bool, largest: bool) -> torch.Tensor:
    size = a.shape[dim]
    fixed = torch.ops.tenfuse.cut(a)
    top = torch.amax(fixed, dim, True) if largest else torch.amin(fixed, dim, True)
    shape = [1] * a.dim()
    shape[dim] = size
    place = torch.arange(size, dtype=torch.float32, device=a.device).view(shape)
    first = torch.amin(torch.where(fixed == top, place, float(size)), dim, True)
    chosen = torch.where(place == first, a, 0.0).sum(dim, True)
    found = torch.where(first < size, chosen, top)  # a NaN equals nothing, and is the result
    return found if keepdim else found.squeeze(dim)


def _index(a: torch.Tensor, dim: int, keepdim: bool, largest: bool) -> torch.Tensor:
    return torch.argmax(a, dim, keepdim) if largest else torch.argmin(a, dim, keepdim)


def replaced(graph: fx.Graph, feeding: Collection[fx.Node], carries: Collection[fx.Node], make: Made) -> None:
    """Put what ``make`` makes in the place of each node that depends on the state and feeds it.

    ``make`` is given the node and the nodes that depend on the state; it leaves a node alone by None.
    """
    dependent = set(carries)
    for node in list(graph.nodes):
        if not any(a in dependent for a in node.all_input_nodes):
            continue
        made = make(node, dependent) if node in feeding else None
        if made is not None:
            node.replace_all_uses_with(made)
            graph.erase_node(node)
        dependent.add(node if made is None else made)


def inlined(at: fx.Node, sources: Sequence[fx.Node], run: Any, *options: Any) -> fx.Node:
    """The nodes of ``run(*sources, *options)``, in front of ``at``."""
    values = [s.meta["val"] for s in sources]
    mode = values[0].fake_mode if isinstance(values[0], FakeTensor) else contextlib.nullcontext()
    with torch.no_grad(), mode:
        traced = make_fx(lambda *a: run(*a, *options), _allow_non_fake_inputs=True)(*values)
    env: dict[fx.Node, fx.Node] = {}
    given = iter(sources)
    with at.graph.inserting_before(at):
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(given)
            elif node.op == "output":
                return env[node.args[0]]
            else:
                env[node] = at.graph.node_copy(node, lambda n: env[n])
                env[node].meta = dict(at.meta) | {"val": node.meta["val"]}
    raise ValueError("the traced graph has no output")


__all__ = ["inlined", "replaced", "unfold"]
