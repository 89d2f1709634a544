"""States detached now and then (truncated back-propagation): a step like the others.

``if t % 64 == 0: h = h.detach()`` puts a node into some steps only, and ends a loop there.
Takes a private copy of a graph and the memory that its nodes write in place; makes each
such ``detach`` a ``detach_some`` with a number that says whether it cuts the gradient, and
adds calls that do not to the steps without.  Those are the identity, so it does not matter
for the meaning of the graph where they stand and who reads them: only whether the steps
become alike.  Leaves alone what every step detaches, and what few do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.loop import detach_some
from tenfuse.capture.views import is_tensor, storage_of, value_of

EXAMPLE = "example_value"
LONG = 64
"""As many steps between two cuts are a loop of their own: uncut, it may run in parallel over time."""


def align(graph: fx.Graph, overwritten: Collection[int | None]) -> None:
    """Edit ``graph``, which the caller made."""
    found = [n for n in graph.nodes if _detaches(n) and storage_of(value_of(n)) not in {None, *overwritten}]
    if len(found) < 2:
        return
    groups: dict[Any, list[fx.Node]] = {}
    for node in found:
        groups.setdefault((_trace(node), _kind(node.args[0])), []).append(node)
    order = {n: i for i, n in enumerate(graph.nodes)}
    alike: dict[Any, list[fx.Node]] = {}
    for node in order:
        alike.setdefault(_kind(node), []).append(node)
    last: dict[fx.Node, fx.Node] = {}
    sites: dict[_Site, list[fx.Node]] = {}
    for (trace, kind), nodes in groups.items():
        sources = {n.args[0] for n in nodes}
        rest = [n for n in alike[kind] if n not in sources]
        often = len(nodes) + len(rest) < LONG * len(nodes)
        read = [n for n in nodes if n.users]
        if rest and read and often and trace and kind[0] and 2 <= len(sources) == len(nodes):
            sites[_Site.of(read, order)] = rest
    for node in found:
        if any(_trace(node) == _trace(site.node) for site in sites):
            node.op, node.target, node.args = "call_function", detach_some, (node.args[0], 0)
    for site, rest in sites.items():
        site.fill(graph, rest, order, last)


def _trace(node: fx.Node) -> Any:
    return node.meta.get("stack_trace")


def _detaches(node: fx.Node) -> bool:
    by_name = node.op == "call_method" and node.target == "detach"
    plain = len(node.args) == 1 and not node.kwargs and is_tensor(node)
    return plain and (by_name or node.target is torch.detach)


def _kind(node: Any) -> Any:
    """What nodes of one line of a loop have in common; a state they start from has another."""
    return _trace(node), node.op, node.target, repr(fx.node.map_arg(node.args, lambda n: None))


def _reader(user: fx.Node) -> Any:
    return _trace(user), user.op, user.target


@dataclasses.dataclass(frozen=True)
class _Site:
    """One place in the steps where something is detached now and then."""

    node: fx.Node
    """One such ``detach``."""
    behind: int
    """How many nodes stand between a value and where it is detached, other such places aside."""
    direct: frozenset[Any]
    """Readers of the value itself, where it is detached."""
    reader: fx.Node
    """The first that reads what is detached."""
    operand: int
    """As which of its operands."""

    @staticmethod
    def of(nodes: list[fx.Node], order: dict[fx.Node, int]) -> _Site:
        node = nodes[-1]
        between = [n for n, i in order.items() if order[_source(node)] < i < order[node] and not _detaches(n)]
        through = {_reader(u) for n in nodes for u in n.users}
        direct = {_reader(u) for n in nodes for u in _source(n).users if u is not n}
        reader = min(node.users, key=lambda u: order[u])
        return _Site(node, len(between), frozenset(direct - through), reader, _operands(reader).index(node))

    def fill(
        self,
        graph: fx.Graph,
        rest: list[fx.Node],
        order: dict[fx.Node, int],
        last: dict[fx.Node, fx.Node],
    ) -> None:
        """Add a call that cuts nothing behind each of ``rest``; ``last`` is the last call behind a node."""
        steps = [n for n in order if n.target is not detach_some]
        place = {n: i for i, n in enumerate(steps)}
        pairs = [(v, steps[min(place[v] + self.behind, len(steps) - 1)]) for v in rest]
        for value, anchor in [*pairs, *self._first(order, steps, place)]:
            readers = [u for u in value.users if u in order and _reader(u) not in self.direct]
            if not readers or any(order[u] <= order[anchor] for u in readers):
                continue
            with graph.inserting_after(last.get(anchor, anchor)):
                made = graph.call_function(detach_some, (value, 1))
            made.meta = dict(self.node.meta) | {EXAMPLE: value_of(value)}
            last[anchor] = made
            for user in readers:
                user.replace_input_with(value, made)

    def _first(
        self, order: dict[fx.Node, int], steps: list[fx.Node], place: dict[fx.Node, int]
    ) -> list[tuple[fx.Node, fx.Node]]:
        """The state that the first step enters with, and the node behind which others are detached."""
        ahead = sum(order[self.node] < order[n] < order[self.reader] for n in steps)
        user = next((u for u in steps if _reader(u) == _reader(self.reader)), self.reader)
        value = _operands(user)[self.operand : self.operand + 1]
        if user is self.reader or not value or value[0].target is detach_some or not is_tensor(value[0]):
            return []
        at = place[user] - ahead - 1
        known = _kind(value[0]) == _kind(self.node.args[0])
        return [] if known or at < place[value[0]] else [(value[0], steps[at])]


def _operands(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


__all__ = ["align"]
