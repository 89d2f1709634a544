"""The user's graph after its loops were replaced.

Takes the graph that ``splice`` edited; leaves it as a module, with stacks and concatenations of single
steps joined, and without what only removed steps read.
"""

from __future__ import annotations

import torch.fx as fx

from tenfuse.capture.record import Record, record
from tenfuse.rewrite.join import join_slices


def _drop_unread(gm: fx.GraphModule, rec: Record) -> None:
    """Slices and subgraphs that only removed steps read are gone with them."""
    for node in reversed(list(rec.graph.nodes)):
        unread = node.op == "get_attr" and isinstance(getattr(gm, str(node.target), None), fx.GraphModule)
        if not node.users and (node in rec.views or unread):
            rec.graph.erase_node(node)


def lower(gm: fx.GraphModule) -> fx.GraphModule:
    """The user's graph, in-place operations and all, with every spliced loop in it."""
    rec = record(gm)
    join_slices(rec)
    _drop_unread(gm, rec)
    rec.graph.lint()
    made = fx.GraphModule(gm, rec.graph)
    made.meta = {k: v for k, v in gm.meta.items() if not k.startswith("tenfuse_")}
    return made


__all__ = ["lower"]
