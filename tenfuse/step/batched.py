"""Compute nodes of a ``StepProgram`` in torch, quickly, for many steps at once.

Takes a program and its inputs as named tensors, which may have more axes, in front, than
the program knows (the chunks of a sequence, batched); leaves the named values of the nodes
asked for.  Everything is plain differentiable torch: sums of products become
``torch.einsum``, so that a matrix library computes them, and scans are done in a
logarithmic number of rounds (Hillis and Steele 1986, "Data parallel algorithms").

The meaning is that of ``interpret``; only the order of additions differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.interpret import REDUCTIONS
from tenfuse.step.ordered import RINGS, Named, aligned, expanded, ordered
from tenfuse.step.program import (
    AxisName,
    Const,
    Contract,
    Input,
    Node,
    Pointwise,
    Ref,
    Scan,
    StepProgram,
    arguments,
)


class Evaluator:
    """The values of a program's nodes, each computed when it is first asked for."""

    def __init__(
        self,
        program: StepProgram,
        inputs: Mapping[tuple[str, int], Named],
        sizes: Mapping[AxisName, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.program, self.inputs, self.dtype, self.device = program, inputs, dtype, device
        self.sizes = {**program.sizes, **sizes}
        self.known: dict[Ref, Named] = {}
        self.readers: dict[Ref, int] = {}
        for node in program.nodes:
            for arg in arguments(node):
                self.readers[arg] = self.readers.get(arg, 0) + 1

    def give(self, ref: Ref, value: Named) -> None:
        """Set the value of a node that is computed elsewhere."""
        self.known[ref] = value

    def value(self, ref: Ref) -> Named:
        if ref not in self.known:
            self.known[ref] = self._compute(self.program.nodes[ref])
        return self.known[ref]

    def tensor(self, ref: Ref, axes: Sequence[AxisName]) -> torch.Tensor:
        """The value with exactly the dimensions ``axes``."""
        return expanded(self.value(ref), axes, self.sizes)

    def _compute(self, node: Node) -> Named:
        if isinstance(node, Input):
            tensor, axes = self.inputs[node.kind, node.index]
            return tensor.to(self.dtype), (*axes[: len(axes) - len(node.axes)], *node.axes)
        if isinstance(node, Const):
            return torch.full((), node.value, dtype=self.dtype, device=self.device), ()
        if isinstance(node, Contract):
            return self._contract(node)
        if isinstance(node, Pointwise):
            values = [self.value(a) for a in node.args]
            axes = tuple(dict.fromkeys(a for _, own in values for a in own))
            return FUNCTIONS[node.fn].torch(*(aligned(v, axes) for v in values)), axes
        if isinstance(node, Scan):
            return self._scan(node)
        return ordered(node, [self.value(a) for a in arguments(node)], self.sizes, self.dtype, self.device)

    def _contract(self, node: Contract) -> Named:
        factors = self._factors(node.arg) if node.op == "sum" else []
        if len(factors) < 2:
            tensor, own = self.value(node.arg)
            dims = [own.index(a) for a in own if a in node.axes]
            return REDUCTIONS[node.op](tensor, dims), tuple(a for a in own if a not in node.axes)
        values = [self.value(f) for f in factors]
        axes = list(dict.fromkeys(a for _, own in values for a in own))
        kept = tuple(a for a in axes if a not in node.axes)
        return self._product(values, kept), kept

    def _factors(self, ref: Ref) -> list[Ref]:
        """The factors of a product that nothing else reads."""
        node = self.program.nodes[ref]
        if isinstance(node, Pointwise) and node.fn == "mul" and ref not in self.known:
            return [f for a in node.args for f in (self._factors(a) if self.readers[a] == 1 else [a])]
        return [ref]

    def _product(self, values: list[Named], kept: Sequence[AxisName]) -> torch.Tensor:
        """``einsum``, two factors at a time: the pair with the smallest product first."""
        values = list(values)
        while len(values) > 2:
            pairs = [(i, j) for j in range(len(values)) for i in range(j)]
            i, j = min(pairs, key=lambda p: self._entries({*values[p[0]][1], *values[p[1]][1]}))
            others = {a for n, (_, own) in enumerate(values) if n not in (i, j) for a in own}
            both = list(dict.fromkeys((*values[i][1], *values[j][1])))
            axes = tuple(a for a in both if a in others or a in kept)
            pair = self._pair(values[i], values[j], axes)
            values = [v for n, v in enumerate(values) if n not in (i, j)] + [(pair, axes)]
        return self._pair(values[0], values[1], kept)

    def _pair(self, left: Named, right: Named, kept: Sequence[AxisName]) -> torch.Tensor:
        if {*left[1], *right[1]} <= set(kept):
            return aligned(left, kept) * aligned(right, kept)
        letters = {a: n for n, a in enumerate(dict.fromkeys((*left[1], *right[1])))}
        return torch.einsum(
            left[0], [letters[a] for a in left[1]],
            right[0], [letters[a] for a in right[1]],
            [letters[a] for a in kept],
        )  # fmt: skip

    def _entries(self, axes: set[AxisName]) -> int:
        return math.prod(self.sizes[a] for a in axes)

    def _scan(self, node: Scan) -> Named:
        decay, arg = self.value(node.decay), self.value(node.arg)
        plus, times, one = RINGS[node.semiring]
        own = {*decay[1], *arg[1]} - {node.axis, *node.rows, *node.cols}
        axes = (node.axis, *sorted(own), *node.rows)
        values = expanded(arg, axes, self.sizes)
        shape = values.shape
        if node.rows:
            count = math.prod(self.sizes[a] for a in node.rows)
            lead = shape[: 1 + len(own)]
            values = values.reshape(*lead, count, 1)
            gates = expanded(decay, (node.axis, *sorted(own), *node.rows, *node.cols), self.sizes)
            gates = gates.reshape(*lead, count, count)
            gates = gates.mT if node.transpose else gates
            times, unit = torch.matmul, torch.eye(count, dtype=self.dtype, device=self.device)
        else:
            gates = expanded(decay, axes, self.sizes)
            unit = torch.full((), one, dtype=self.dtype, device=self.device)
        if node.reverse:
            values, gates = values.flip(0), gates.flip(0)
        gates = torch.cat([unit.expand_as(gates[:1]), gates[1:]])
        distance = 1
        while distance < values.shape[0]:
            values = torch.cat([
                values[:distance], plus(times(gates[distance:], values[:-distance]), values[distance:])
            ])  # fmt: skip
            gates = torch.cat([gates[:distance], times(gates[distance:], gates[:-distance])])
            distance *= 2
        return (values.flip(0) if node.reverse else values).reshape(shape), axes


__all__ = ["Evaluator"]
