"""Tiny sizes for the axes of a program, and unknowns for its inputs.

Takes programs that share axes; leaves a size per axis, the same for axes that must agree
in size, and arrays of new symbols.  An axis that is summed over, or that takes part in a
renaming, gets 3 entries, the others 2; all get 2 where that would be too much to check.
``least_sizes`` are for proofs over several steps, where every entry costs more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tenfuse.algebra.proof.evaluate import Array, array
from tenfuse.algebra.proof.symbols import Field
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.step.program import (
    AxisName,
    CarrySpec,
    Contract,
    Input,
    Node,
    Pointwise,
    Ref,
    Rename,
    Scan,
    Solve,
    StepProgram,
    arguments,
    node_axes,
)

MIXING, PARALLEL = 3, 2
_ENTRIES = 3_000
"""So many entries, over all nodes, are checked at the larger sizes."""


class _Classes:
    """Axes that must have the same size (union-find)."""

    def __init__(self, axes: Iterable[AxisName]) -> None:
        self.parent = {a: a for a in axes}

    def find(self, axis: AxisName) -> AxisName:
        self.parent.setdefault(axis, axis)
        while self.parent[axis] != axis:
            axis = self.parent[axis]
        return axis

    def join(self, left: Iterable[AxisName], right: Iterable[AxisName]) -> None:
        for a, b in zip(left, right, strict=True):
            self.parent[self.find(a)] = self.find(b)


def classes_for(
    graphs: Sequence[Sequence[Node]], carries: Sequence[CarrySpec], axes: Iterable[AxisName]
) -> dict[AxisName, AxisName]:
    """For each of ``axes``, which ``graphs`` and ``carries`` are over, one that has its size."""
    names = sorted(axes)
    classes = _Classes(names)
    first: dict[tuple[str, int], tuple[AxisName, ...]] = {}
    for i, carry in enumerate(carries):
        classes.join(carry.axes, carry.next_axes)
        first["carry", i] = carry.axes
    for node in (n for graph in graphs for n in graph):
        if isinstance(node, Input):
            kind = "carry" if node.kind in ("next", "state") else node.kind
            classes.join(node.axes, first.setdefault((kind, node.index), node.axes))
        elif isinstance(node, Rename):
            classes.join(*zip(*node.names, strict=True))
        elif isinstance(node, (Scan, Solve)):
            classes.join(node.rows, node.cols)
    return {a: classes.find(a) for a in names}


def sizes_for(
    graphs: Sequence[Sequence[Node]],
    carries: Sequence[CarrySpec],
    axes: Mapping[AxisName, int],
    summed: Iterable[AxisName] = (),
) -> dict[AxisName, int]:
    """A tiny size for each of ``axes``, which has their own sizes: those up to 3 are kept."""
    classes, mixing = classes_for(graphs, carries, axes), set(summed)
    mixing |= {a for graph in graphs for n in graph if isinstance(n, Contract) for a in n.axes}
    mixed = {classes[a] for a in mixing}
    own = {classes[a]: n for a, n in axes.items() if n <= MIXING}
    large = {a: own.get(c, MIXING if c in mixed else PARALLEL) for a, c in classes.items()}
    return large if _entries(graphs, large) <= _ENTRIES else dict.fromkeys(classes, PARALLEL)


def least_sizes(program: StepProgram, recurrence: Recurrence) -> dict[AxisName, int]:
    """Two entries along every axis, one along those that every stream and state has and nothing sums.

    Along such an axis the loop is one loop per entry, and so is all that is derived from it by
    names of axes; with streams that all have it, its gradients are too.  Streams of truth values
    have no gradient.
    """
    graphs, axes = [program.nodes, recurrence.nodes], {**program.sizes, **recurrence.sizes}
    classes = classes_for(graphs, program.carries, axes)
    members: dict[AxisName, int] = {}
    for a in axes:
        members[classes[a]] = members.get(classes[a], 0) + 1
    summed = {a for graph in graphs for n in graph if isinstance(n, Contract) for a in n.axes}
    summed |= {a for s in recurrence.stages for u in s.updates for t in u.terms for a in t.contracted}
    over = [
        n.axes for graph in graphs for i, n in enumerate(graph)
        if isinstance(n, Input) and n.kind != "invariant" and not _truth(graph, i)
    ]  # fmt: skip
    batch = {a for a in axes if members[classes[a]] == 1 and all(a in some for some in over)} - summed
    return {a: 1 if a in batch else PARALLEL for a in axes}


def _truth(graph: Sequence[Node], ref: Ref) -> bool:
    """Whether an input is read as truth values only."""
    read = [(n, i) for n in graph for i, a in enumerate(arguments(n)) if a == ref]
    return bool(read) and all(isinstance(n, Pointwise) and n.fn == "where" and i == 0 for n, i in read)


def _entries(graphs: Sequence[Sequence[Node]], sizes: Mapping[AxisName, int]) -> int:
    total = 0
    for graph in graphs:
        axes: list[frozenset[AxisName]] = []
        for node in graph:
            axes.append(node_axes(node, axes))
            total += math.prod(sizes[a] for a in axes[-1])
    return total


def unknowns(
    field: Field,
    graphs: Sequence[Sequence[Node]],
    sizes: Mapping[AxisName, int],
    known: Iterable[tuple[str, int]] = (),
) -> dict[tuple[str, int], Array]:
    """An array of new symbols for each input that the graphs read, but for ``known``."""
    found: dict[tuple[str, int], Array] = {}
    skip = set(known)
    for node in (n for graph in graphs for n in graph if isinstance(n, Input)):
        key = (node.kind, node.index)
        if key not in found and key not in skip and node.kind != "next":
            found[key] = array([sizes[a] for a in node.axes], lambda _: field.symbol())
    return found


__all__ = ["MIXING", "PARALLEL", "classes_for", "least_sizes", "sizes_for", "unknowns"]
