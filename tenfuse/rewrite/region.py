"""Where the unrolled steps of a loop stand in the user's graph.

Takes the record of a graph and one of its ``Loop``s; leaves the ``Region`` of its steps.  Edits the
graph: what nothing reads goes, and nodes among the steps that belong to none go before or behind them.
"""

from __future__ import annotations

import dataclasses

import torch.fx as fx

from tenfuse.capture.loop import Loop
from tenfuse.capture.record import Record


@dataclasses.dataclass(frozen=True)
class Region:
    """The nodes of the steps, which stand at the places from ``lo`` to ``hi`` of the user's order."""

    lo: float
    hi: float
    nodes: list[fx.Node]
    behind: dict[fx.Node, list[fx.Node]]
    """Nodes that went behind the loop because they read it, with their values."""


def region_of(rec: Record, loop: Loop) -> Region:
    """Clears the region of ``loop`` of everything that is no step."""
    places = [rec.order[rec.origin[n]] for n in loop.nodes if n in rec.origin]
    lo, hi = min(places), max(places)
    _drop_dead(rec, lo)
    nodes = [n for n in rec.graph.nodes if lo <= rec.order.get(n, -1) <= hi]
    strays = _strays(rec, loop, nodes)
    behind = _part(rec, loop, nodes, strays, lo, hi)
    return Region(lo, hi, [n for n in nodes if n not in strays], behind)


def _drop_dead(rec: Record, lo: float) -> None:
    """What nothing reads must not ask the loop for its results."""
    for node in reversed(list(rec.graph.nodes)):
        if node in rec.dead and not node.users and rec.order[node] > lo:
            rec.graph.erase_node(node)


def _strays(rec: Record, loop: Loop, nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Nodes among the steps that belong to none, with their values."""
    among, inside = set(nodes), set(loop.nodes)
    ours = {rec.origin[n] for n in loop.nodes if n in rec.origin}
    found: dict[fx.Node, list[fx.Node]] = {}
    for value, origin in rec.origin.items():
        if origin in among and origin not in ours and value not in inside:
            found.setdefault(origin, []).append(value)
    return found


def _part(
    rec: Record, loop: Loop, nodes: list[fx.Node], strays: dict[fx.Node, list[fx.Node]], lo: float, hi: float
) -> dict[fx.Node, list[fx.Node]]:
    """Put strays that read the loop behind it and return them; the others, which it may read, before it."""
    reading = set(loop.nodes)
    behind: dict[fx.Node, list[fx.Node]] = {}
    for node in [n for n in nodes if n in strays]:
        if any(a in reading for v in strays[node] for a in v.all_input_nodes):
            reading |= set(strays[node])
            behind[node] = strays[node]
        else:
            nodes[0].prepend(node)
            rec.order[node] = lo - 0.5
    last = nodes[-1]
    for node in behind:
        last.append(node)
        last = node
        rec.order[node] = hi + 0.5
    return behind


__all__ = ["Region", "region_of"]
