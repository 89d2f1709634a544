"""Writes made while gradients are off.

Takes the nodes of a Dynamo graph; leaves those that stand where no gradients are recorded,
of a graph that records them elsewhere.  Such a write replaces the numbers of a tensor and
leaves its history: what is read later still has the derivative of what stood there before.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.fx as fx

from tenfuse.capture.views import is_tensor, value_of


def quiet(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes that run with gradients off; none where gradients are off throughout."""
    on = anywhere = torch.is_grad_enabled()
    found: set[fx.Node] = set()
    for node in nodes:
        if node.target is torch._C._set_grad_enabled:
            on = bool(node.args[0])
            anywhere |= on
        elif not on:
            found.add(node)
    return found if anywhere else set()


def wants(node: object) -> bool:
    """Whether a gradient is asked of the tensor, at any time: torch marks it in place."""
    return is_tensor(node) and bool(value_of(node).requires_grad)
