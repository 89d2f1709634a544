"""The graph of one step, from the operands of the first run.

Takes, for every position of a run, where its operands and moving numbers come from
(``Ref``); leaves a module that computes the next carries and the outputs of a step, and
says which inputs it reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture import families
from tenfuse.capture.loop import ViewOp
from tenfuse.capture.record import Views
from tenfuse.capture.views import value_of


@dataclasses.dataclass(frozen=True)
class Ref:
    """A value inside the body: a "carry", "stream", "invariant" or "node" by number."""

    kind: str
    index: int


@dataclasses.dataclass
class Draft:
    """A stream before the loop's direction is known."""

    source: Any
    ops: tuple[ViewOp, ...]
    direction: int
    value: Any


def rebuild(arg: Any, nodes: Iterator[Any], numbers: Iterator[Any]) -> Any:
    """``arg`` with its nodes and numbers replaced in the order ``take_apart`` lists them."""
    kind = type(arg)
    if isinstance(arg, fx.Node):
        return next(nodes)
    if kind is int or kind is float or kind is complex:
        return next(numbers)
    if isinstance(arg, (tuple, list)):
        parts = [rebuild(a, nodes, numbers) for a in arg]
        return tuple(parts) if isinstance(arg, tuple) else parts
    if isinstance(arg, slice):
        return slice(*(rebuild(a, nodes, numbers) for a in (arg.start, arg.stop, arg.step)))
    if isinstance(arg, dict):
        return {k: rebuild(arg[k], nodes, numbers) for k in sorted(arg)}
    if isinstance(arg, Views):
        return Views(tuple(rebuild(op, nodes, numbers) for op in arg.ops))
    if isinstance(arg, ViewOp):
        args = rebuild(arg.args, nodes, numbers)
        return ViewOp(arg.target, args, tuple(sorted(rebuild(dict(arg.kwargs), nodes, numbers).items())))
    return arg


@dataclasses.dataclass(frozen=True)
class Body:
    """What a step computes, position by position of the first run."""

    nodes: Sequence[fx.Node]
    carries: Sequence[tuple[int, fx.Node | None, Ref | None]]
    """(position of the value or -1, init, next value if it is another carry)"""
    streams: Sequence[Draft]
    invariants: Sequence[fx.Node]
    value: Mapping[int, Ref]
    calls: Mapping[int, tuple[list[Any], list[Any]]]
    """Operands and numbers of the positions that the step computes."""

    def graph(self, ys: list[int]) -> tuple[fx.GraphModule, set[tuple[str, int]]]:
        """The module, and which inputs and nodes are live; ``ys`` are positions."""
        graph = fx.Graph()
        next_refs = [before or self.value[position] for position, _, before in self.carries]
        out_refs = [self.value[j] for j in ys]
        live = self._live([*next_refs, *out_refs])
        made: dict[Ref, fx.Node] = {}
        for i, (position, _, _) in enumerate(self.carries):
            made[Ref("carry", i)] = _placeholder(graph, f"carry{i}", value_of(self.nodes[position]))
        for i, draft in enumerate(self.streams):
            if ("stream", i) in live:
                made[Ref("stream", i)] = _placeholder(graph, f"x{i}", draft.value)
        for i, node in enumerate(self.invariants):
            if ("invariant", i) in live:
                made[Ref("invariant", i)] = _placeholder(graph, f"w{i}", value_of(node))
        for j in range(len(self.nodes)):
            if ("constant", j) in live:
                made[Ref("constant", j)] = self._constant(graph, j)
            elif ("node", j) in live:
                made[Ref("node", j)] = self._call(graph, j, made)
        graph.output((tuple(made[r] for r in next_refs), tuple(made[r] for r in out_refs)))
        return fx.GraphModule(torch.nn.Module(), graph), live

    def _live(self, roots: list[Ref]) -> set[tuple[str, int]]:
        live: set[tuple[str, int]] = set()
        stack = [*roots, *(Ref("node", j) for j in self.calls if self._effect(self.nodes[j]))]
        while stack:
            ref = stack.pop()
            if (ref.kind, ref.index) in live:
                continue
            live.add((ref.kind, ref.index))
            if ref.kind == "node":
                operands, numbers = self.calls[ref.index]
                stack += [o for o in (*operands, *numbers) if isinstance(o, Ref)]
        return live

    @staticmethod
    def _effect(node: fx.Node) -> bool:
        return value_of(node) is None

    def _call(self, graph: fx.Graph, j: int, made: dict[Ref, fx.Node]) -> fx.Node:
        node = self.nodes[j]
        operands, numbers = self.calls[j]
        filled = (
            iter([made[o] for o in operands]),
            iter([made[n] if isinstance(n, Ref) else n for n in numbers]),
        )
        args = rebuild(node.args, *filled)
        kwargs = rebuild(dict(node.kwargs), *filled)
        new = graph.create_node(node.op, node.target, args, kwargs)
        new.meta = dict(node.meta)
        return new

    def _constant(self, graph: fx.Graph, j: int) -> fx.Node:
        node = self.nodes[j]
        seen = families.apply(value_of(node), node.args[2].ops)  # type: ignore[union-attr]
        new = graph.call_function(
            torch.full, (tuple(seen.shape), node.args[1]), {"dtype": seen.dtype, "device": seen.device}
        )
        new.meta = dict(node.meta) | {"example_value": seen}
        return new


def _placeholder(graph: fx.Graph, name: str, value: Any) -> fx.Node:
    node = graph.placeholder(name)
    node.meta["example_value"] = value
    return node
