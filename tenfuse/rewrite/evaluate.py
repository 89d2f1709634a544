"""Run nodes of a step's graph: one step's, or all steps' at once by ``torch.vmap``.

Takes the graph and tensors for some of its nodes; leaves tensors for others.  Refuses
(NOT_BATCHABLE) what ``vmap`` cannot batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.loop import Stream
from tenfuse.reasons import NOT_BATCHABLE, refuse
from tenfuse.step.normalize import fake_mode

aten = torch.ops.aten


def example(x: Any) -> Any:
    """A node's example value; symbolic sizes inside arguments too."""
    return fx.map_arg(x, lambda n: n.meta.get("example_value", n.meta.get("val")))


def stacked_example(stream: Stream, slice_: torch.Tensor) -> torch.Tensor:
    """The stream with time first, as a fake tensor."""
    source = stream.source
    with fake_mode([slice_]):
        if isinstance(source, fx.Node):
            value = example(source).detach()
        elif isinstance(source[0], fx.Node):
            value = torch.stack([example(n).detach() for n in source])
        else:
            value = torch.empty(len(source), dtype=slice_.dtype, device=slice_.device)
        for view in stream.views:
            value = view.target(value, *example(view.args), **dict(example(view.kwargs)))
    return value


class Runner:
    """Evaluates nodes of the step's graph, with whatever tensors it is given."""

    def __init__(self, graph: fx.Graph) -> None:
        self.order = [n for n in graph.nodes if n.op == "call_function"]

    def run(self, nodes: Iterable[fx.Node], env: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        chosen = set(nodes)
        env = dict(env)
        for node in self.order:
            if node in chosen and node not in env:
                args, kwargs = fx.map_arg(
                    (node.args, node.kwargs), lambda n: env[n] if n in env else n.meta["val"]
                )
                env[node] = _outside(node.target)(*args, **kwargs)
        return env


def _outside(target: Any) -> Callable[..., Any]:
    """The operator as it is called on batched tensors, which need not be contiguous."""
    if target in (aten.view.default, aten._unsafe_view.default):
        return aten.reshape.default
    if target is torch.ops.tenfuse.cut.default:
        return torch.Tensor.detach
    if target is aten.sym_size.int:
        return torch.Tensor.size  # the operator has no rule for batches
    return _select_scatter if target is aten.select_scatter.default else target  # type: ignore[no-any-return]


def _select_scatter(base: torch.Tensor, value: torch.Tensor, dim: int, index: int) -> torch.Tensor:
    """Batched, torch's own operator passes twice the gradient to ``value`` (2.11 and 2.13)."""
    at = index % base.shape[dim]
    found: torch.Tensor = torch.slice_scatter(base, value.unsqueeze(dim), dim, at, at + 1)
    return found


def batched(one: Callable[..., tuple[torch.Tensor, ...]], stacked: Iterable[torch.Tensor]) -> Any:
    """``one`` for every step at once; refuses what ``vmap`` cannot batch."""
    try:
        return torch.vmap(one)(*stacked)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise refuse(NOT_BATCHABLE, f"batching the body over time failed: {said}") from error


__all__ = ["Runner", "batched", "example", "stacked_example"]
