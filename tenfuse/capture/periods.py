"""Repetition: stretches of a graph in which the same kinds of node recur.

Takes the nodes of an SSA graph in order; leaves ``Sequence`` (each node as a class number,
its operands as numbers) and ``Stretch``es, maximal ranges in which the class at ``i``
equals the class at ``i + period`` at least twice over.  Says nothing about operands.
Every pass over the nodes is a vector operation, so the cost is near-linear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.fx as fx

from tenfuse.capture.loop import ViewOp
from tenfuse.capture.record import Views
from tenfuse.capture.views import basic_index, key_of, pure, value_of

_LEAVES = {"placeholder", "get_attr", "output"}


@dataclasses.dataclass(frozen=True)
class Shape:
    """One node, taken apart: its class, its operand nodes and its numbers, in order."""

    key: Any
    nodes: tuple[fx.Node, ...]
    numbers: tuple[int | float | complex, ...]


def _abstract(arg: Any, nodes: list[fx.Node], numbers: list[Any]) -> Any:
    """``arg`` without its nodes and numbers, which are appended to the lists."""
    if isinstance(arg, fx.Node):
        nodes.append(arg)
        return "N"
    kind = type(arg)
    if kind is int or kind is float or kind is complex:
        numbers.append(arg)
        return kind
    if isinstance(arg, (tuple, list)):
        return (tuple if isinstance(arg, tuple) else list, *(_abstract(a, nodes, numbers) for a in arg))
    if isinstance(arg, slice):
        return (slice, *(_abstract(a, nodes, numbers) for a in (arg.start, arg.stop, arg.step)))
    if isinstance(arg, dict):
        return (dict, *((k, _abstract(arg[k], nodes, numbers)) for k in sorted(arg)))
    if isinstance(arg, Views):
        return (Views, *(_abstract(op, nodes, numbers) for op in arg.ops))
    if isinstance(arg, ViewOp):
        return (
            ViewOp,
            id(arg.target),
            _abstract(arg.args, nodes, numbers),
            _abstract(dict(arg.kwargs), nodes, numbers),
        )
    if (
        isinstance(arg, (bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format))
        or arg is Ellipsis
    ):
        return arg
    return ("object", id(arg))


def _signature(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (tuple([key_of(s) for s in value.shape]), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_signature(v) for v in value)
    return type(value)


def take_apart(node: fx.Node) -> Shape:
    nodes: list[fx.Node] = []
    numbers: list[Any] = []
    key = _abstract(node.args, nodes, numbers)
    if node.kwargs:
        key = (key, _abstract(node.kwargs, nodes, numbers))
    target = node.target if isinstance(node.target, str) else id(node.target)
    return Shape((node.op, target, key, _signature(value_of(node))), tuple(nodes), tuple(numbers))


class Sequence:
    """The call nodes of a graph by position; other nodes have negative positions.

    A node that is alone in its class and depends on nothing computed (a state that the
    first step creates), or a slice that nothing reads, comes first, so that it does not
    interrupt the steps.
    """

    def __init__(self, graph: fx.Graph, order: list[fx.Node] | None = None) -> None:
        nodes = order or [n for n in graph.nodes if n.op not in _LEAVES]
        shapes = {n: take_apart(n) for n in nodes}
        classes: dict[Any, int] = {}
        numbers = {n: classes.setdefault(s.key, len(classes)) for n, s in shapes.items()}
        count = np.bincount(np.array(list(numbers.values()), dtype=np.int64), minlength=1)
        early: set[fx.Node] = set()
        for node in nodes:
            alone = count[numbers[node]] == 1 and pure(node)
            unread = not node.users and basic_index(node) is not None
            ready = all(a.op in _LEAVES or a in early for a in node.all_input_nodes)
            if order is None and (alone or unread) and ready:
                early.add(node)
        self.nodes = [n for n in nodes if n in early] + [n for n in nodes if n not in early]
        self.position = {n: i for i, n in enumerate(self.nodes)}
        outside = (n for n in graph.nodes if n.op in _LEAVES)
        self.position |= {n: -1 - i for i, n in enumerate(outside)}
        self.shapes = [shapes[n] for n in self.nodes]
        self.classes = np.array([numbers[n] for n in self.nodes], dtype=np.int64)
        self.last = len(self.nodes)


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Positions ``[start, stop)`` in which classes recur every ``period``."""

    period: int
    start: int
    stop: int

    @property
    def runs(self) -> int:
        return (self.stop - self.start) // self.period


def _windows(classes: np.ndarray) -> Iterable[np.ndarray]:
    """Class numbers of windows of 1, 2, 4, ... nodes, one number per window."""
    current = classes
    width = 1
    while len(current) and width <= max(1, len(classes) // 3):
        yield current
        if len(current) <= width:
            return
        pairs = current[:-width] * (int(current.max()) + 1) + current[width:]
        _, current = np.unique(pairs, return_inverse=True)
        width *= 2


def candidate_periods(classes: np.ndarray, limit: int = 400) -> list[int]:
    """Distances between consecutive equal windows, the most frequent first."""
    votes: dict[int, int] = {}
    for numbers in _windows(classes):
        order = np.argsort(numbers, kind="stable")
        same = numbers[order[1:]] == numbers[order[:-1]]
        gaps, counts = np.unique((order[1:] - order[:-1])[same], return_counts=True)
        for gap, count in zip(gaps.tolist(), counts.tolist(), strict=True):
            votes[gap] = max(votes.get(gap, 0), count)
    ranked = sorted(votes, key=lambda g: (-votes[g], g))
    return sorted(g for g in ranked[:limit] if g * 2 <= len(classes))


def stretches(classes: np.ndarray, least: int = 3) -> list[Stretch]:
    """Maximal stretches of at least ``least`` runs, none a multiple of a shorter one there."""
    found: list[Stretch] = []
    for period in candidate_periods(classes):
        equal = np.concatenate([[False], classes[period:] == classes[:-period], [False]])
        edges = np.flatnonzero(equal[1:] != equal[:-1])
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if stop - start >= (least - 1) * period and not any(
                period % f.period == 0 and f.start <= start and stop + period <= f.stop for f in found
            ):
                found.append(Stretch(period, start, stop + period))
    return found
