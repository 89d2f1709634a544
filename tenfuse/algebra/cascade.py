"""Which carries depend on which: the stages of a step, in the order they can be computed.

Takes a ``StepProgram``; leaves its ``Cascade``: groups of carries that depend on each other
both ways, so that a stage reads only itself and earlier ones, and which nodes are the next
value of an earlier stage's carry.
"""

from __future__ import annotations

import dataclasses

from tenfuse.step.program import Input, Ref, StepProgram, arguments


@dataclasses.dataclass(frozen=True)
class Cascade:
    """``stages`` in order; ``before(k)`` is what stage ``k`` may take as given."""

    program: StepProgram
    stages: tuple[tuple[int, ...], ...]
    nexts: dict[Ref, int]
    """Nodes that are the next value of a carry and depend on some carry: node -> carry."""

    def given(self, carries: frozenset[int]) -> dict[Ref, Input]:
        """The next values of ``carries`` as inputs."""
        return {
            ref: Input("next", i, self.program.carries[i].next_axes)
            for ref, i in self.nexts.items()
            if i in carries
        }

    def earlier(self, stage: int) -> frozenset[int]:
        return frozenset(i for carries in self.stages[:stage] for i in carries)


def cascade(program: StepProgram) -> Cascade:
    """Strongly connected components of the carries, in topological order."""
    import networkx as nx

    reads = reached(program)
    nexts = _nexts(program, reads)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(program.carries)))
    for i, carry in enumerate(program.carries):
        graph.add_edges_from((j, i) for j in reads[carry.next])
    whole = nx.condensation(graph)
    _prefer_next(program, nexts, whole)
    first = {c: min(whole.nodes[c]["members"]) for c in whole}
    order = nx.lexicographical_topological_sort(whole, key=lambda c: first[c])
    return Cascade(program, tuple(tuple(sorted(whole.nodes[c]["members"])) for c in order), nexts)


def reached(program: StepProgram) -> list[frozenset[int]]:
    """The carries that each node depends on."""
    found: list[frozenset[int]] = []
    for node in program.nodes:
        if isinstance(node, Input):
            found.append(frozenset({node.index}) if node.kind == "carry" else frozenset())
        else:
            found.append(frozenset().union(*(found[a] for a in arguments(node))))
    return found


def _nexts(program: StepProgram, reads: list[frozenset[int]]) -> dict[Ref, int]:
    axes = program.axes_of()
    found: dict[Ref, int] = {}
    for i, carry in enumerate(program.carries):
        computed = not isinstance(program.nodes[carry.next], Input) and reads[carry.next]
        if computed and axes[carry.next] == frozenset(carry.next_axes):
            found.setdefault(carry.next, i)
    return found


def _prefer_next(program: StepProgram, nexts: dict[Ref, int], whole: object) -> None:
    """Where the order is free, a carry whose next value another one computes with comes first."""
    import networkx as nx

    graph: nx.DiGraph = whole
    place = graph.graph["mapping"]
    for i, carry in enumerate(program.carries):
        for ref in sorted(_below(program, carry.next)):
            one, other = place[nexts[ref]] if ref in nexts else None, place[i]
            if one is not None and one != other and not nx.has_path(graph, other, one):
                graph.add_edge(one, other)


def _below(program: StepProgram, root: Ref) -> set[Ref]:
    found, pending = set(), [root]
    while pending:
        ref = pending.pop()
        if ref not in found:
            found.add(ref)
            pending += arguments(program.nodes[ref])
    return found


__all__ = ["Cascade", "cascade", "reached"]
