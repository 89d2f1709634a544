"""Turn ``stack`` and ``cat`` of single steps into views of the stacked outputs.

Takes the graph that ``splice`` edited, in which every value read after a loop is a select
of a stacked output; leaves runs of consecutive selects as slices.  Results keep the
layout, and the ownership, of the ``stack`` or ``cat`` they replace.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.record import Record

Picks = dict[fx.Node, tuple[fx.Node, int]]


def _runs(nodes: Sequence[fx.Node], picks: Picks) -> Iterator[list[fx.Node]]:
    """Maximal runs of evenly spaced steps of one output, and single nodes."""
    i = 0
    while i < len(nodes):
        j, step = i + 1, 0
        while (
            j < len(nodes)
            and nodes[i] in picks
            and nodes[j] in picks
            and picks[nodes[j]][0] is picks[nodes[i]][0]
        ):
            gap = picks[nodes[j]][1] - picks[nodes[j - 1]][1]
            if gap == 0 or (step and gap != step):
                break
            step = gap
            j += 1
        yield list(nodes[i:j])
        i = j


def _block(graph: fx.Graph, run: list[fx.Node], picks: Picks, steps: int) -> fx.Node:
    """The part of a stacked output that a run of steps shows, in their order."""
    ys, first = picks[run[0]]
    last = picks[run[-1]][1]
    step = picks[run[1]][1] - first
    lo, hi = min(first, last), max(first, last)
    block = ys
    if (lo, hi, abs(step)) != (0, steps - 1, 1):
        block = graph.call_function(operator.getitem, (ys, slice(lo, hi + 1, abs(step))))
    return block if step > 0 else graph.call_function(torch.flip, (block, (0,)))


def _dimension(node: fx.Node) -> int | None:
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(dim, int):
        return None
    if dim < 0:
        value = node.meta.get("example_value")
        return dim % value.dim() if isinstance(value, torch.Tensor) else None
    return dim


def _join(rec: Record, node: fx.Node) -> None:
    graph, dim = rec.graph, _dimension(node)
    runs = list(_runs(node.args[0], rec.picks))  # type: ignore[arg-type]
    if dim is None or all(len(r) < 2 for r in runs):
        return
    stacking = node.target is torch.stack
    parts: list[Any] = []
    with graph.inserting_before(node):
        for run in runs:
            if len(run) == 1:
                parts.append(graph.call_function(torch.unsqueeze, (run[0], dim)) if stacking else run[0])
                continue
            block = _block(graph, run, rec.picks, rec.steps.get(rec.picks[run[0]][0], -1))
            if dim:
                block = graph.call_function(torch.movedim, (block, 0, dim))
            parts.append(block if stacking else graph.call_function(torch.flatten, (block, dim, dim + 1)))
    node.kwargs = {}
    if len(parts) > 1:
        node.target, node.args = torch.cat, (parts, dim)
    elif rec.root.get(node) is not None:
        node.target, node.args = torch.clone, (parts[0],)
        node.kwargs = {"memory_format": torch.contiguous_format}
    else:
        node.op, node.target, node.args = "call_method", "contiguous", (parts[0],)


def join_slices(rec: Record) -> None:
    """Edit ``rec.graph``; remove the selects that nothing reads any more."""
    for node in list(rec.graph.nodes):
        if (
            node.op == "call_function"
            and node.target in (torch.stack, torch.cat)
            and "out" not in node.kwargs
        ):
            parts = node.args[0] if node.args else None
            if isinstance(parts, (list, tuple)) and all(isinstance(p, fx.Node) for p in parts):
                _join(rec, node)
    for pick in list(rec.picks):
        if not pick.users:
            rec.graph.erase_node(pick)
            del rec.picks[pick]
