"""Run the nodes of a step, or of a chunk of steps, on exact symbolic numbers.

Takes nodes, tiny sizes for their axes and a value per input; leaves an array of
polynomials per node.  It is the interpreter of ``step.interpret`` in other numbers; a
node kind it does not know is a ``TypeError``, never a guess.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tenfuse.algebra.proof.polynomials import ONE, ZERO, Poly
from tenfuse.algebra.proof.symbolic import SYMBOLIC
from tenfuse.algebra.proof.symbols import Field
from tenfuse.step.program import (
    AxisName,
    Const,
    Contract,
    Input,
    Node,
    Pointwise,
    Position,
    Rename,
    Scan,
    Shift,
    Solve,
    arguments,
)

Array = Any
"""A numpy array of ``Poly``; numpy's types do not say so."""
Named = tuple[Array, tuple[AxisName, ...]]

SEMIRINGS: dict[str, tuple[str, str]] = {
    "sum-product": ("add", "mul"),
    "max-plus": ("maximum", "add"),
    "min-plus": ("minimum", "add"),
    "log-plus": ("logaddexp", "add"),
    "or-and": ("logical_or", "logical_and"),
}
"""What adds and what multiplies, as functions of the IR."""
_STATE, _SHORT = ("carry", "next"), 3
REDUCTIONS = {"sum": "add", "max": "maximum", "min": "minimum"}


def array(shape: Sequence[int], make: Callable[[tuple[int, ...]], Poly]) -> Array:
    """An array of the shape, entry by entry."""
    found = np.empty(tuple(shape), dtype=object)
    for place in itertools.product(*(range(n) for n in shape)):
        found[place] = make(place)
    return found


def aligned(value: Named, axes: Sequence[AxisName]) -> Array:
    """``value`` with one dimension per name of ``axes``, of size 1 where it lacks it."""
    entries, own = value
    entries = entries.transpose([own.index(a) for a in axes if a in own])
    return entries.reshape([entries.shape[_place(own, axes, a)] if a in own else 1 for a in axes])


def _place(own: Sequence[AxisName], axes: Sequence[AxisName], axis: AxisName) -> int:
    return [a for a in axes if a in own].index(axis)


class Evaluator:
    """``sizes`` are the tiny ones; every entry of every node is one polynomial."""

    def __init__(self, field: Field, sizes: Mapping[AxisName, int]) -> None:
        self.field, self.sizes = field, sizes

    def run(self, nodes: Sequence[Node], inputs: Mapping[tuple[str, int], Array]) -> list[Named]:
        """Every node's value; ``inputs[kind, index]`` has the dimensions ``Input.axes``."""
        values: list[Named] = []
        stateful: set[int] = set()
        for i, node in enumerate(nodes):
            self.field.spend(1)
            found = self._node(node, [values[a] for a in arguments(node)], inputs)
            if isinstance(node, Input):
                stateful |= {i} if node.kind in _STATE else set()
            elif any(a in stateful for a in arguments(node)):
                stateful.add(i)
            else:
                found = self._named(found)
            values.append(found)
        return values

    def _named(self, value: Named) -> Named:
        """Long state-free entries by name: both sides of a claim have most of them in common."""
        entries, own = value
        if all(len(p.terms) <= _SHORT for p in entries.flat):
            return value
        return array(entries.shape, lambda place: self.field.named(entries[place], _SHORT)), own

    def expanded(self, value: Named, axes: Sequence[AxisName]) -> Array:
        """``value`` with exactly the dimensions ``axes``."""
        return np.broadcast_to(aligned(value, axes), [self.sizes[a] for a in axes])

    def call(self, name: str, *args: Named) -> Named:
        """A function of the IR, entry by entry."""
        axes = tuple(sorted({a for _, own in args for a in own}))
        operands = np.broadcast_arrays(*(aligned(a, axes) for a in args))
        fn = SYMBOLIC[name]
        return array(operands[0].shape, lambda p: fn(self.field, *(o[p] for o in operands))), axes

    def reduce(self, name: str, value: Named, axes: Iterable[AxisName]) -> Named:
        """Combine the entries along ``axes`` by a function of two arguments."""
        entries, own = value
        for axis in sorted(axes):
            place = own.index(axis)
            moved, rest = np.moveaxis(entries, place, 0), own[:place] + own[place + 1 :]
            parts = [(moved[i, ...], rest) for i in range(moved.shape[0])]
            total = parts[0]
            for part in parts[1:]:
                total = self.call(name, total, part)
            entries, own = total
        return entries, own

    def number(self, value: float) -> Named:
        return array((), lambda _: self.field.const(value)), ()

    def _node(self, node: Node, args: Sequence[Named], inputs: Mapping[tuple[str, int], Array]) -> Named:
        if isinstance(node, Input):
            return inputs[node.kind, node.index], node.axes
        if isinstance(node, Const):
            return self.number(node.value)
        if isinstance(node, Pointwise):
            return self.call(node.fn, *args)
        if isinstance(node, Contract):
            return self.reduce(REDUCTIONS[node.op], args[0], node.axes)
        return self._ordered(node, args)

    # -- nodes for which order along an axis matters ------------------------------------

    def _ordered(self, node: Node, args: Sequence[Named]) -> Named:
        if isinstance(node, Position):
            return array((self.sizes[node.axis],), lambda p: self.field.const(p[0])), (node.axis,)
        if isinstance(node, Rename):
            names = dict(node.names)
            return args[0][0], tuple(names.get(a, a) for a in args[0][1])
        if isinstance(node, Shift):
            return self._shift(node, args[0])
        if isinstance(node, Scan):
            return self._scan(node, *args)
        if isinstance(node, Solve):
            return self._solve(node, *args)
        raise TypeError(f"no symbolic meaning for {type(node).__name__}")

    def _shift(self, node: Shift, arg: Named) -> Named:
        axes = (node.axis, *(a for a in arg[1] if a != node.axis))
        entries, size, fill = self.expanded(arg, axes), self.sizes[node.axis], self.field.const(node.fill)

        def at(place: tuple[int, ...]) -> Poly:
            source = place[0] - node.by
            entry: tuple[int, ...] = (source, *place[1:])
            found: Poly = entries[entry] if 0 <= source < size else fill
            return found

        return array(entries.shape, at), axes

    def _scan(self, node: Scan, decay: Named, arg: Named) -> Named:
        plus, times = SEMIRINGS[node.semiring]
        names = dict(zip(node.rows, node.cols, strict=True))
        outer = tuple(sorted({*decay[1], *arg[1]} - {node.axis, *node.rows, *node.cols}))
        values = self.expanded(arg, (node.axis, *outer, *node.rows))
        gates = self.expanded(decay, (node.axis, *outer, *node.rows, *node.cols))
        own, across = (*outer, *node.rows), (*outer, *node.rows, *node.cols)
        if node.transpose:
            across = (*outer, *node.cols, *node.rows)
        order = range(self.sizes[node.axis])
        found: dict[int, Array] = {}
        for t in reversed(order) if node.reverse else order:
            row: Named = (values[t, ...], own)
            if found:
                before = tuple(names.get(a, a) for a in own)
                moved = self.call(
                    times, (gates[t, ...], across), (found[t + 1 if node.reverse else t - 1], before)
                )
                row = self.call(plus, self.reduce(plus, moved, node.cols), row)
            found[t] = self.expanded(row, own)
        return np.stack([found[t] for t in order]), (node.axis, *own)

    def _solve(self, node: Solve, lower: Named, arg: Named) -> Named:
        """By substitution, in the order of the rows (transposed: from the last)."""
        batch = tuple(sorted(set(lower[1]) - {*node.rows, *node.cols}))
        free = tuple(sorted(set(arg[1]) - {*batch, *node.rows}))
        count = math.prod(self.sizes[a] for a in node.rows)
        lead, tail = [self.sizes[a] for a in batch], [self.sizes[a] for a in free]
        matrix = self.expanded(lower, (*batch, *node.rows, *node.cols)).reshape(*lead, count, count)
        right = self.expanded(arg, (*batch, *node.rows, *free)).reshape(*lead, count, *tail)
        if node.transpose:
            matrix = np.swapaxes(matrix, -1, -2)
        matrix, right = np.moveaxis(matrix, (-2, -1), (0, 1)), np.moveaxis(right, len(lead), 0)
        rows: dict[int, Array] = {}
        for i in reversed(range(count)) if node.transpose else range(count):
            total: Named = (right[i, ...], (*batch, *free))
            for j, known in rows.items():
                part = self.call("mul", (matrix[i, j, ...], batch), (known, (*batch, *free)))
                total = self.call("sub", total, part)
            rows[i] = self.expanded(total, (*batch, *free))
        stacked = np.moveaxis(np.stack([rows[i] for i in range(count)]), 0, len(lead))
        shape = [*lead, *(self.sizes[a] for a in node.rows), *tail]
        return stacked.reshape(shape), (*batch, *node.rows, *free)


__all__ = ["ONE", "SEMIRINGS", "ZERO", "Array", "Evaluator", "Named", "aligned", "array"]
