"""Split the step: what is batched over time before and after, what stays in the kernel.

Takes an ``Aten`` step; leaves a ``Fission``: three sets of nodes and the values crossing
between them.

* *before*: does not depend on the state.  Batched over time by ``torch.vmap``.
* *core*: depends on the state and feeds it.  Always in the kernel.
* *after*: depends on the state, feeds nothing back.  In the kernel where that makes what
  the kernel writes smaller (a selective scan's output contraction), else batched.

Which after-values are written is a minimum cut: every value weighs what one step of it
weighs in memory.  A state-free value is taken into the kernel when it is a broadcast of
something smaller (an outer product k v^T, exp(dt * A)); it is then never materialised.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import networkx as nx
import torch
import torch.fx as fx

from tenfuse.reasons import UNSUPPORTED_OP, refuse, where
from tenfuse.step.axes import hint
from tenfuse.step.normalize import Aten
from tenfuse.step.rules import RULES

aten = torch.ops.aten

_BROADCASTS = {
    aten.unsqueeze.default, aten.expand.default, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.alias.default, aten.clone.default,
}  # fmt: skip
"""Operators that only rearrange: free inside the kernel."""

_MATMULS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.mv.default}

_VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
_FULL_SHAPE = {*_VIEWS, aten._to_copy.default, aten.sym_size.int}
"""Operators that the reader itself understands."""


class Prices(Protocol):
    """Which of two places is cheaper, by numbers of entries; the plan knows (``plan.placement``)."""

    def contracts(self, made: int, inner: int, state: int) -> bool:
        """Whether the kernel sums over the state, instead of writing it out for a matmul."""

    def takes(self, read: int, made: int, outer: bool) -> bool:
        """Whether the kernel makes a value itself from the smaller ones it is computed from."""


@dataclasses.dataclass(frozen=True)
class Fission:
    inside: tuple[fx.Node, ...]
    """Nodes computed in the kernel, state-free ones taken in included."""
    inputs: tuple[fx.Node, ...]
    """State-free values the kernel reads."""
    exports: tuple[fx.Node, ...]
    """State-dependent values the kernel writes at every step."""
    static: frozenset[fx.Node]
    """Nodes that depend on invariants alone: the same at every step."""
    dependent: frozenset[fx.Node]
    """Nodes that depend on the state."""
    once: frozenset[fx.Node]
    """Results of the last step alone, which follow from its streams and the final states, and all
    that they are computed from.  Computed at every step, a value that the loop drops could give a
    gradient that is not a number."""


def weight(node: fx.Node) -> int:
    """Entries of one step of a value; complex ones count twice."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return 0
    size = 2 if value.is_complex() else 1
    for s in value.shape:
        size *= hint(s)
    return size


def closure(roots: Any, graph: fx.Graph) -> frozenset[fx.Node]:
    """``roots`` and every node computed from them."""
    found = set(roots)
    for node in graph.nodes:
        if node.op != "output" and any(a in found for a in node.all_input_nodes):
            found.add(node)
    return frozenset(found)


def ancestors(roots: Any, graph: fx.Graph) -> frozenset[fx.Node]:
    """``roots`` and every node they are computed from."""
    found = set(roots)
    for node in reversed(list(graph.nodes)):
        if node in found:
            found.update(node.all_input_nodes)
    return frozenset(found)


def split(step: Aten, prices: Prices) -> Fission:
    """Decide what is computed where."""
    graph = step.graph
    dependent = closure(step.carries, graph)
    variable = closure((*step.streams, *step.carries), graph)
    static = frozenset(n for n in graph.nodes if n not in variable and n.op != "output")
    feeds = ancestors([step.nexts[i] for i in step.live], graph)
    core = {n for n in dependent & feeds if n.op != "placeholder"}
    core |= {
        u for n in core if not isinstance(n.meta.get("val"), torch.Tensor) for u in n.users if u in dependent
    }
    once = _once(step, static)
    results = [n for i, n in enumerate(step.nexts) if i not in step.live and n not in once] + list(step.ys)
    results = [n for n in results if n in dependent]
    wanted = ancestors(results, graph)
    after = [n for n in graph.nodes if n in dependent & wanted and n not in core and n.op == "call_function"]
    taken, exports = _cut(step, core, after, results, prices)
    inside = core | taken
    inputs, absorbed = _absorb(step, inside, dependent, static, prices)
    order = [n for n in graph.nodes if n in inside or n in absorbed]
    return Fission(tuple(order), tuple(inputs), tuple(exports), static, dependent, once)


def _once(step: Aten, static: frozenset[fx.Node]) -> frozenset[fx.Node]:
    """``Fission.once``."""
    ends = static | set(step.streams) | {step.nexts[i] for i in step.live}
    found: set[fx.Node] = set()
    for i, node in enumerate(step.nexts):
        below: set[fx.Node] = set()
        todo = [node] if i not in step.live and node not in ends and node not in step.ys else []
        while todo:
            n = todo.pop()
            if n not in below and n not in ends:
                below.add(n)
                todo += n.all_input_nodes
        if not below & set(step.carries):
            found |= below
    return frozenset(found)


def _is_outer(node: fx.Node) -> bool:
    """A matmul over a dimension of length one: a product of broadcasts, nothing is summed."""
    if node.target not in (aten.mm.default, aten.bmm.default):
        return False
    inner = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
    return isinstance(inner, int) and inner == 1


def _shows_outer(node: fx.Node) -> bool:
    """Whether a view, or what it is a view of, shows a product of broadcasts."""
    shown = node.args[0]
    assert isinstance(shown, fx.Node)
    return _is_outer(shown) or (shown.target in (*_VIEWS, *_BROADCASTS) and _shows_outer(shown))


def _pointwise(node: fx.Node) -> bool:
    """Whether the operands broadcast to the result: every size of it is one of theirs, the rest are 1."""
    made = node.meta["val"].shape
    shapes = [a.meta["val"].shape for a in node.all_input_nodes]
    if any(len(s) > len(made) for s in shapes):
        return False
    for back, size in enumerate(reversed(made), 1):
        given = [s[-back] for s in shapes if len(s) >= back]
        if any(g != size and g != 1 for g in given) or not any(g == size for g in given):
            return False
    return True


def _has_rule(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and not (
        value.is_floating_point() or value.is_complex() or value.dtype is torch.bool
    ):
        return False
    return node.target in RULES or node.target in _FULL_SHAPE or "getitem" in str(node.target)


def _belongs_inside(node: fx.Node, dependent: frozenset[fx.Node] | set[fx.Node], prices: Prices) -> bool:
    """Whether an after-node may be computed in the kernel at all."""
    if not _has_rule(node):
        return False
    if node.target in _MATMULS:
        operands = node.args[-2:]
        inner = operands[0].meta["val"].shape[-1]  # type: ignore[union-attr]
        state = min(weight(o) for o in operands if isinstance(o, fx.Node) and o in dependent)
        return prices.contracts(weight(node), hint(inner), state)
    return True


def _cut(
    step: Aten, core: set[fx.Node], after: list[fx.Node], results: list[fx.Node], prices: Prices
) -> tuple[set[fx.Node], list[fx.Node]]:
    """After-nodes taken into the kernel, and the values written: a minimum cut."""
    if not results:
        return set(), []
    dependent = core | set(after) | set(step.carries)
    flow = nx.DiGraph()
    place = {n: i for i, n in enumerate(step.graph.nodes)}
    for node in dependent:
        # An earlier value is a little dearer: at a tie the work moves into the kernel.
        if isinstance(node.meta.get("val"), torch.Tensor):
            flow.add_edge(
                (node, 0), (node, 1), capacity=weight(node) * 65536 + 65535 - min(place[node], 65535)
            )
        else:
            flow.add_edge((node, 0), (node, 1))
    for node in core | set(step.carries):
        flow.add_edge("kernel", (node, 0))
    for node in after:
        if not _belongs_inside(node, dependent, prices):
            if any(a in core and isinstance(a.meta.get("val"), torch.SymInt) for a in node.all_input_nodes):
                raise refuse(UNSUPPORTED_OP, f"{node.target} by a dynamic size of the state", where(node))
            flow.add_edge((node, 0), "memory")
        for arg in node.all_input_nodes:
            if arg in dependent:
                flow.add_edge((arg, 1), (node, 0))
                flow.add_edge((node, 0), (arg, 0))  # the kernel makes what it reads
    for node in results:
        flow.add_edge((node, 1), "memory")
    if "memory" not in flow or "kernel" not in flow:
        return set(), results
    _, (near, _far) = nx.minimum_cut(flow, "kernel", "memory")
    taken = {n for n in after if (n, 0) in near}
    exports = [n for n in step.graph.nodes if (n, 0) in near and (n, 1) not in near]
    return set(ancestors(exports, step.graph)) & taken, exports


def _absorb(
    step: Aten,
    inside: set[fx.Node],
    dependent: frozenset[fx.Node],
    static: frozenset[fx.Node],
    prices: Prices,
) -> tuple[list[fx.Node], set[fx.Node]]:
    """State-free values the kernel reads, and the state-free nodes it computes itself."""
    choice: dict[fx.Node, frozenset[fx.Node]] = {}

    def inputs_of(node: fx.Node) -> frozenset[fx.Node]:
        """What must be read to have ``node`` in the kernel."""
        if node not in choice:
            choice[node] = _inputs_of(node)
        return choice[node]

    def _inputs_of(node: fx.Node) -> frozenset[fx.Node]:
        mine = frozenset({node})
        if node.op != "call_function" or not _has_rule(node) or "getitem" in str(node.target):
            return mine
        args = node.all_input_nodes
        if not all(isinstance(a.meta.get("val"), torch.Tensor) for a in args):
            return mine
        below = frozenset().union(*(inputs_of(a) for a in args)) if args else frozenset()
        if node.target in _BROADCASTS or not args:
            return below
        outer = _is_outer(node)
        if node.target in _VIEWS and node not in static and _shows_outer(node) and args[0] not in below:
            return below
        if node in static or (node.target in _MATMULS and not outer) or node.target in _FULL_SHAPE:
            return mine
        if not all(b.meta["val"].is_floating_point() or b.meta["val"].is_complex() for b in below):
            return mine
        # What is the same at every step stays in the cache.
        read = sum(weight(b) for b in below if b not in static)
        smaller = prices.takes(read, weight(node), outer)
        return below if smaller and _pointwise(node) else mine

    found: set[fx.Node] = set()
    absorbed: set[fx.Node] = set()
    roots = [a for n in inside for a in n.all_input_nodes if a not in dependent]
    roots += [step.nexts[i] for i in step.live if step.nexts[i] not in dependent]
    pending = [r for r in roots if isinstance(r.meta.get("val"), torch.Tensor)]
    while pending:
        node = pending.pop()
        if node in found or node in absorbed:
            continue
        if inputs_of(node) == {node}:
            found.add(node)
        else:
            absorbed.add(node)
            pending += node.all_input_nodes
    return [n for n in step.graph.nodes if n in found], absorbed
