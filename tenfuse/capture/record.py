"""What ``functionalize`` leaves beside the SSA graph: how to get back to the user's graph.

Holds plain data, written once by ``functionalize`` and read by ``rewrite``.  The SSA
graph is for analysis; the graph that will run is ``graph``, a copy of the original with
its in-place operations, in which each node of the SSA graph has an ``origin``.  A value of
the SSA graph may be a *version* of a tensor that is written again later, so it also has a
moment after which its origin no longer holds it (``dies``).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.loop import ViewOp
from tenfuse.capture.scatter import scattered

KEY = "tenfuse_record"
GENERIC = "tenfuse_generic"
"""Marks, in a node's meta, a scan operator that torch would have inlined."""


@dataclasses.dataclass(frozen=True)
class Views:
    """A chain of view operations, hidden from FX so that it stays one constant.

    It prints as a string: FX writes code for every graph it is given, also for the SSA
    graphs here, which are only ever interpreted.
    """

    ops: tuple[ViewOp, ...]

    def __repr__(self) -> str:
        return repr(" then ".join(getattr(op.target, "__name__", "view") for op in self.ops))


@dataclasses.dataclass
class Record:
    graph: fx.Graph
    order: dict[fx.Node, float] = dataclasses.field(default_factory=dict)
    """Position of every node of ``graph`` when it was copied."""
    origin: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    """SSA node -> node of ``graph`` that it stands for."""
    holder: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    """SSA node -> node of ``graph`` that holds its value, where that is not its origin."""
    born: dict[fx.Node, float] = dataclasses.field(default_factory=dict)
    """SSA node -> position of the node of ``graph`` at which its holder starts to hold it."""
    fresh: set[fx.Node] = dataclasses.field(default_factory=set)
    """SSA nodes whose value appears when the node at ``born`` runs, not before it."""
    dies: dict[fx.Node, float] = dataclasses.field(default_factory=dict)
    """SSA node -> position of the write after which its origin holds something else."""
    reads: dict[fx.Node, dict[fx.Node, fx.Node]] = dataclasses.field(default_factory=dict)
    """Node of ``graph`` -> the SSA value of each of its arguments as it reads them."""
    root: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    """Node of ``graph`` touching a written tensor -> the node that made that tensor."""
    versions: dict[fx.Node, list[tuple[float, fx.Node]]] = dataclasses.field(default_factory=dict)
    """Root -> (position, SSA value of the whole tensor) after each write, in order."""
    opaque: dict[fx.Node, str] = dataclasses.field(default_factory=dict)
    """SSA node that writes in place in a way that has no functional form -> why, if not by an alias."""
    spliced: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    """SSA node -> node of ``graph`` that holds its value now that its loop is gone."""
    slices: dict[fx.Node, tuple[fx.Node, int]] = dataclasses.field(default_factory=dict)
    """SSA node -> (stacked output in ``graph``, memory index) for the same nodes."""
    picks: dict[fx.Node, tuple[fx.Node, int]] = dataclasses.field(default_factory=dict)
    """Node of ``graph`` that selects one step -> (stacked output, memory index)."""
    steps: dict[fx.Node, int] = dataclasses.field(default_factory=dict)
    """Stacked output in ``graph`` -> its number of entries."""
    writers: set[fx.Node] = dataclasses.field(default_factory=set)
    """Nodes of ``graph`` that write any tensor in place."""
    inplace: set[fx.Node] = dataclasses.field(default_factory=set)
    """Nodes of ``graph`` that write their first argument in place and return it."""
    dead: set[fx.Node] = dataclasses.field(default_factory=set)
    """Nodes of ``graph`` that nothing reads in the end."""
    idle: set[fx.Node] = dataclasses.field(default_factory=set)
    """Nodes of ``graph`` that write back what stands there already."""
    views: set[fx.Node] = dataclasses.field(default_factory=set)
    """Nodes of ``graph`` that only show memory of their first argument."""
    copies: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    """Clone made by ``rewrite`` -> the SSA value it preserves."""
    moved: dict[fx.Node, fx.Node] = dataclasses.field(default_factory=dict)
    """Root that went with its loop -> the node of ``graph`` that took its place."""


def record(gm: fx.GraphModule) -> Record:
    """The record of a graph made by ``functionalize``."""
    return gm.meta[KEY]


def written(buffer: torch.Tensor, value: Any, views: Views) -> torch.Tensor:
    """``buffer`` with the entries that ``views`` selects replaced by ``value``."""
    return scattered(buffer, views.ops, value)


def put(buffer: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    """``buffer`` with ``buffer[index] = value`` done, for any index."""
    result = buffer.clone()
    result[index] = value
    return result


def plant(gm: fx.GraphModule, before: fx.Node, target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
    """Add a pure call in front of ``before``, in the SSA graph and in the one that will run."""
    rec = record(gm)
    at = rec.origin[before]
    with rec.graph.inserting_before(at):
        held = fx.node.map_arg(args, lambda n: rec.holder.get(n, rec.origin[n]))
        run = rec.graph.call_function(target, held)
    with gm.graph.inserting_before(before):
        made = gm.graph.call_function(target, args)
    run.meta["example_value"] = made.meta["example_value"] = value
    rec.order[run] = rec.order[at] - 0.5
    rec.reads[run] = {rec.holder.get(n, rec.origin[n]): n for n in made.all_input_nodes}
    rec.origin[made] = run
    rec.born[made] = rec.order[run]
    rec.fresh.add(made)
    return made
