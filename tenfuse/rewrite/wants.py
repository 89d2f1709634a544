"""Which values of a step want a gradient.

Takes a ``Loop`` and its ``Aten`` step; leaves a mark per node: whether it lies on a path from
something that wants one, around the loop as often as it takes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.loop import Loop
from tenfuse.rewrite.evaluate import example
from tenfuse.step.normalize import Aten

aten = torch.ops.aten


def requires_grad(loop: Loop, step: Aten) -> dict[fx.Node, bool]:
    """The marks of all nodes of ``step``; a carry has one when anything feeding it does."""
    leaves: dict[fx.Node, bool] = {}
    inits = [c.init for c in loop.carries if c.init is not None]
    for node, source in zip(step.carries, inits, strict=True):
        leaves[node] = _wants(source)
    for node, stream in zip(step.streams, loop.streams, strict=True):
        leaves[node] = _wants(stream.source)
    for holder, source in zip(step.invariants, loop.invariants, strict=True):
        if holder is not None:
            leaves[holder] = _wants(source)
    while True:
        marks = _marks(step, leaves)
        fed = [n for i, n in zip(step.live, step.carries, strict=True) if marks[step.nexts[i]]]
        if all(leaves[n] for n in fed):
            return marks
        leaves |= dict.fromkeys(fed, True)


def _marks(step: Aten, leaves: dict[fx.Node, bool]) -> dict[fx.Node, bool]:
    found: dict[fx.Node, bool] = {}
    for node in step.graph.nodes:
        value = node.meta.get("val")
        smooth = not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex()
        if node.op == "placeholder":
            found[node] = leaves.get(node, False) and smooth
        elif node.target in (torch.ops.tenfuse.cut.default, aten.detach.default):
            found[node] = False
        else:
            found[node] = smooth and any(found[a] for a in node.all_input_nodes)
    return found


def _wants(source: Any) -> bool:
    if isinstance(source, fx.Node):
        value = example(source)
        return isinstance(value, torch.Tensor) and value.requires_grad
    return isinstance(source, tuple) and any(_wants(s) for s in source if isinstance(s, fx.Node))


__all__ = ["requires_grad"]
