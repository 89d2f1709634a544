"""Sign and range of the nodes of a step's ATen graph.

Takes nodes with ``meta["val"]`` (the state-free part of a normalised step, where gates
are computed) and what is known of its placeholders; leaves an ``Interval`` per node.  It
refuses nothing: an operator without a rule gives (-inf, inf), and so do whole numbers,
which may wrap around.  The statements are those of ``bounds``; of a complex value z the
interval [-m, m] says |z| <= m, hence the same of its real and imaginary part.

Which nodes dominate which is kept as in ``bounds``, by dimension instead of by name: only
reductions that keep their dimensions count, or whose dimension ``unsqueeze`` puts back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.fx as fx

from tenfuse.algebra.ranges.aten_rules import (
    COMPLEX,
    CONSTANTS,
    FUNCTIONS,
    RULES,
    ball,
    dims_of,
    packet_of,
    rank_of,
    root_of,
    tensor_of,
)
from tenfuse.algebra.ranges.interval import (
    ANY,
    BALL,
    TRANSFER,
    UNIT,
    Interval,
    hull,
    maximum,
    meet,
    minimum,
    square,
)

aten = torch.ops.aten
_SAME = {
    aten.alias, aten.clone, aten.contiguous, aten.detach, aten.expand, aten.broadcast_to, aten.permute,
    aten.transpose, aten.t, aten.mT, aten.view, aten._unsafe_view, aten.reshape, aten.squeeze, aten.unsqueeze,
    aten.slice, aten.select, aten.flip, aten.roll, aten.unbind, aten.split, aten.split_with_sizes, aten.chunk,
    aten.index_select, aten.gather, aten.embedding, aten.repeat, aten.lift_fresh_copy, aten.diagonal,
    aten.amax, aten.amin, aten.max, aten.min, aten.median, aten.mean, aten.unfold, aten.as_strided,
    aten.select_copy, aten.resolve_conj, aten.resolve_neg, aten._conj, aten._conj_physical,
    aten.conj_physical, aten.real, aten.imag, aten.view_as_real,
}  # fmt: skip
"""Every entry of the result is one of the first argument's, their mean, or a part of it."""

_SPLITS = {aten.unbind, aten.split, aten.split_with_sizes, aten.chunk}

_KEEPS = {
    aten.alias, aten.clone, aten.contiguous, aten.detach, aten.expand, aten.broadcast_to,
    aten.lift_fresh_copy, aten._to_copy, torch.ops.prims.convert_element_type,
}  # fmt: skip
"""Operators through which domination passes: the dimensions stay where they are."""

_STEADY = _KEEPS | {aten.sqrt, aten.clamp_min, aten.add, aten.maximum}
_PRODUCTS = {aten.mul, aten.div, aten.true_divide}
_REDUCES = {aten.sum, aten.amax, aten.linalg_vector_norm}


def bounds_aten(
    nodes: Iterable[fx.Node], known: Mapping[fx.Node, Interval] | None = None
) -> dict[fx.Node, Interval]:
    """The interval of every node, in graph order; ``known`` where something is given."""
    sweep = _Sweep(dict(known or {}))
    for node in nodes:
        sweep.visit(node)
    return sweep.found


def _picks(node: fx.Node) -> bool:
    """Whether the node takes one of several results."""
    return getattr(node.target, "__name__", "") == "getitem"


def _same(node: fx.Node) -> bool:
    packet = packet_of(node)
    return packet in _SAME or _picks(node) or getattr(packet, "_qualified_op_name", "") == "tenfuse::cut"


class _Sweep:
    def __init__(self, known: dict[fx.Node, Interval]) -> None:
        self.known = known
        self.found: dict[fx.Node, Interval] = {}
        self.below: dict[fx.Node, frozenset[fx.Node]] = {}
        """The nodes x with |x| <= this node, dimension by dimension."""
        self.lost: dict[fx.Node, int] = {}
        """A reduction that dropped this dimension, counted from the front."""

    def of(self, arg: Any) -> Interval:
        """The interval of an argument: a node, a number, or several nodes."""
        if isinstance(arg, fx.Node):
            return self.found.get(arg, ANY)
        if isinstance(arg, (bool, int, float)) and arg == arg:
            return Interval(float(arg), float(arg))
        if isinstance(arg, (list, tuple)) and arg:
            return hull(*(self.of(a) for a in arg))
        return ANY

    def visit(self, node: fx.Node) -> None:
        interval = self._interval(node) if node.op == "call_function" else ANY
        value = tensor_of(node)
        if value is not None and value.dtype is torch.bool:
            interval = meet(interval, UNIT)
        self.found[node] = meet(self.known[node], interval) if node in self.known else interval
        self.below[node] = self._below(node) | ({node} if self.found[node].low >= 0.0 else frozenset())

    def _interval(self, node: fx.Node) -> Interval:
        value, packet = tensor_of(node), packet_of(node)
        args = [a for a in node.args if isinstance(a, fx.Node)]
        if packet in CONSTANTS:
            return CONSTANTS[packet](self.of, node)
        if value is None or not node.args:
            return ANY
        if any(t.is_complex() for a in (node, *args) if (t := tensor_of(a)) is not None):
            return self._complex(node)
        if _same(node):
            return self._same(node)
        if not (value.is_floating_point() or value.dtype is torch.bool):
            return ANY
        if packet in RULES:
            return RULES[packet](self.of, node)
        if packet not in FUNCTIONS or node.kwargs:
            return ANY
        plain = TRANSFER[FUNCTIONS[packet]](*(self.of(a) for a in node.args))
        return self._product(node, plain) if packet in _PRODUCTS else plain

    def _product(self, node: fx.Node, plain: Interval) -> Interval:
        """mul and div, where more is known than the intervals of the two."""
        a, b = node.args
        if packet_of(node) is not aten.mul:
            within = self.dominated(a, b)
        elif a is b:
            return square(self.of(a))
        else:
            within = self._inverse(a, b) or self._inverse(b, a)
        return meet(plain, BALL) if within else plain

    def _inverse(self, x: Any, r: Any) -> bool:
        """Whether r is 1 / n or 1 / sqrt(n) with |x| <= n or x*x <= n."""
        if not isinstance(r, fx.Node) or r.op != "call_function" or not isinstance(r.args[0], fx.Node):
            return False
        large = r.args[0]
        if packet_of(r) is aten.reciprocal:
            return self.dominated(x, large)
        squares = [q for q in self.below.get(large, ()) if x in root_of(q)]
        return packet_of(r) is aten.rsqrt and any(self.dominated(q, large) for q in squares)

    def _same(self, node: fx.Node) -> Interval:
        """Beside values come indices, or what backward needs: those the interval does not bound."""
        if _picks(node):
            source, index = node.args
            whole = isinstance(source, fx.Node) and packet_of(source) in _SPLITS
            return self.of(source) if whole or index == 0 else ANY
        two = [a for a in node.args[:2] if isinstance(a, fx.Node)]
        if packet_of(node) in (aten.max, aten.min) and len(two) == 2:
            return (maximum if packet_of(node) is aten.max else minimum)(*(self.of(a) for a in two))
        if packet_of(node) is aten.embedding and len(node.args) > 2:
            return ANY
        return self.of(node.args[0])

    def _complex(self, node: fx.Node) -> Interval:
        packet = packet_of(node)
        if _same(node):
            return ball(self.of(node.args[0]).size)
        return COMPLEX[packet](self.of, node) if packet in COMPLEX and not node.kwargs else ANY

    # -- domination -------------------------------------------------------------------

    def _below(self, node: fx.Node) -> frozenset[fx.Node]:
        packet, none = packet_of(node), frozenset[fx.Node]()
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            return none
        first = node.args[0]
        if packet in _REDUCES:
            return self._reduced(node, first)
        if packet is aten.unsqueeze:
            return self.below[first] if self._back(node) else none
        if packet in _STEADY and first in self.lost and node.all_input_nodes == [first]:
            self.lost[node] = self.lost[first]
        if packet in _KEEPS:
            value = tensor_of(node)
            steady = value is not None and value.is_floating_point() and value.dim() == rank_of(first)
            return self.below[first] if steady else none
        if packet is aten.abs:
            return frozenset({first})
        if packet is aten.sqrt:
            return frozenset(x for q in self.below[first] for x in root_of(q))
        if packet in (aten.clamp_min, aten.clamp) and len(node.args) > 1 and not node.args[2:]:
            return self.below[first]
        if packet in (aten.add, aten.maximum) and not node.kwargs:
            return self._larger(packet, first, node.args[1])
        return none

    def _larger(self, packet: Any, first: fx.Node, other: Any) -> frozenset[fx.Node]:
        same = isinstance(other, fx.Node)
        if same and rank_of(first) != rank_of(other) and rank_of(first) and rank_of(other):
            return frozenset()
        above = self.below.get(other, frozenset()) if same else frozenset()
        if packet is aten.maximum:
            return self.below[first] | above
        found = self.below[first] if self.of(other).low >= 0.0 else frozenset()
        return found | (above if self.found[first].low >= 0.0 else frozenset())

    def _reduced(self, node: fx.Node, first: fx.Node) -> frozenset[fx.Node]:
        if packet_of(node) is aten.linalg_vector_norm:
            order: Any = node.args[1] if len(node.args) > 1 else 2
            dims, keep = dims_of(node, 2)
            found = self.below[first] | {first} if isinstance(order, (int, float)) else frozenset()
            found = found if order and order > 0 else frozenset()
        else:
            dims, keep = dims_of(node, 1)
            found = self.below[first]
        rank = rank_of(first)
        if not keep and dims and len(dims) == 1:
            self.lost[node] = dims[0] % rank
            return found
        return found if keep or not dims else frozenset()

    def _back(self, node: fx.Node) -> bool:
        """Whether ``unsqueeze`` puts back the dimension a reduction has dropped."""
        first, dim = node.args[0], node.args[1]
        rank = rank_of(first) + 1
        return isinstance(first, fx.Node) and isinstance(dim, int) and self.lost.get(first) == dim % rank

    def dominated(self, small: Any, large: Any) -> bool:
        """Whether |small| <= large, the dimensions of both being aligned."""
        if not isinstance(small, fx.Node) or not isinstance(large, fx.Node) or large in self.lost:
            return False
        return small in self.below[large] and rank_of(large) in (0, rank_of(small))
