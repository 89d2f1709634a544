"""A step with fewer operations per entry, before it is scheduled.

Takes a ``StepProgram``; leaves one that computes the same sums in another order:

* ``sum a + sum b`` over the same axes becomes ``sum (a + b)``,
* in a contracted product, factors over few axes are multiplied first (``(g k) . S`` in
  place of ``k . (g S)``),
* a factor without the summed axes is multiplied to the sum where it would be to every entry,
* ``sum_k q (S + k u)`` becomes ``sum_k q S + u (sum_k q k)`` where ``u`` lacks the axis
  and the bracket is not computed in that sweep anyway.

Nothing is divided and no product of sums is formed that the step does not form itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from tenfuse.step.program import (
    ORDERED,
    AxisName,
    Builder,
    Contract,
    Input,
    Node,
    Pointwise,
    Ref,
    StepProgram,
    arguments,
    prune,
)

Term = tuple[bool, tuple[Ref, ...]]
"""Whether it is subtracted, and the factors of a product."""
_MOST = 8
"""Terms past which a contraction is left as it is."""


def simplify(program: StepProgram) -> StepProgram:
    """``program`` with sums merged, products reordered and separable sums split.

    Raises ``ValueError`` on nodes that have no C++: positions, scans and solves of chunks.
    """
    foreign = sorted({type(n).__name__ for n in program.nodes if isinstance(n, ORDERED)})
    if foreign:
        raise ValueError(f"no C++ is generated for {', '.join(foreign)}")
    return _Split(_merged(program)).run()


class _Nodes(Builder):
    """A builder that knows the axes of what it builds."""

    def __init__(self) -> None:
        super().__init__()
        self.axes: list[frozenset[AxisName]] = []

    def add(self, node: Node) -> Ref:
        ref = super().add(node)
        if ref == len(self.axes):
            below = [self.axes[a] for a in arguments(node)]
            own = frozenset(node.axes) if isinstance(node, Input) else frozenset().union(*below)
            self.axes.append(own - node.axes if isinstance(node, Contract) else own)
        return ref


def _moved(node: Node, place: list[Ref]) -> Node:
    if isinstance(node, Pointwise):
        return Pointwise(node.fn, tuple(place[a] for a in node.args))
    return dataclasses.replace(node, arg=place[node.arg]) if isinstance(node, Contract) else node


def _rebuilt(program: StepProgram, build: Builder, place: list[Ref]) -> StepProgram:
    return prune(
        dataclasses.replace(
            program,
            nodes=tuple(build.nodes),
            carries=tuple(dataclasses.replace(c, next=place[c.next]) for c in program.carries),
            outs=tuple(dataclasses.replace(o, ref=place[o.ref]) for o in program.outs),
        )
    )


def _merged(program: StepProgram) -> StepProgram:
    """Sums of contractions over the same axes as one contraction."""
    uses = [0] * len(program.nodes)
    for r in [a for n in program.nodes for a in arguments(n)] + list(program.roots()):
        uses[r] += 1
    build, place = _Nodes(), list[Ref]()

    def single(ref: Ref) -> Contract | None:
        node = build.nodes[place[ref]]
        return node if isinstance(node, Contract) and node.op == "sum" and uses[ref] == 1 else None

    for node in program.nodes:
        if isinstance(node, Pointwise) and node.fn in ("add", "sub"):
            left, right = (single(a) for a in node.args)
            if left and right and left.axes == right.axes and build.axes[left.arg] == build.axes[right.arg]:
                place.append(build.add(Contract(left.axes, build.call(node.fn, left.arg, right.arg))))
                continue
        place.append(build.add(_moved(node, place)))
    return _rebuilt(program, build, place)


class _Split:
    """Rewrites the argument of every sum."""

    def __init__(self, program: StepProgram) -> None:
        self.program, self.build = program, _Nodes()
        self.place: list[Ref] = []
        self.anyway = self._anyway()
        self.old: dict[Ref, Ref] = {}
        """New node -> the old node it stands for."""

    def _anyway(self) -> list[set[int]]:
        """For every node, the stages of the carry updates and outputs that contain it entry by entry."""
        stage: list[int] = []
        for node in self.program.nodes:
            below = max((stage[a] for a in arguments(node)), default=0)
            stage.append(below + isinstance(node, Contract))
        self.stage = stage
        found: list[set[int]] = [set() for _ in self.program.nodes]
        for root in self.program.roots():
            found[root].add(stage[root])
        for i in range(len(self.program.nodes) - 1, -1, -1):
            node = self.program.nodes[i]
            if isinstance(node, Pointwise):
                for a in node.args:
                    found[a] |= found[i]
        return found

    def run(self) -> StepProgram:
        for i, node in enumerate(self.program.nodes):
            new = None
            if isinstance(node, Contract) and node.op == "sum":
                new = self._contract(node.axes, self.place[node.arg], self.stage[node.arg])
            self.place.append(self.build.add(_moved(node, self.place)) if new is None else new)
            self.old.setdefault(self.place[-1], i)
        return _rebuilt(self.program, self.build, self.place)

    def _volume(self, refs: Iterable[Ref]) -> int:
        axes = frozenset().union(*(self.build.axes[r] for r in refs))
        return math.prod(self.program.sizes[a] for a in axes)

    # -- products -----------------------------------------------------------------------

    def _terms(self, ref: Ref, minus: bool = False) -> list[Term]:
        """A sum of products, as written."""
        node = self.build.nodes[ref]
        if isinstance(node, Pointwise) and node.fn in ("add", "sub"):
            return self._terms(node.args[0], minus) + self._terms(node.args[1], minus ^ (node.fn == "sub"))
        if isinstance(node, Pointwise) and node.fn == "neg":
            return self._terms(node.args[0], not minus)
        return [self._factors(ref, minus)]

    def _factors(self, ref: Ref, minus: bool = False, top: bool = True) -> Term:
        """A product; one of two values over all its axes stays whole, it may be shared."""
        node = self.build.nodes[ref]
        if isinstance(node, Pointwise) and node.fn == "neg":
            return self._factors(node.args[0], not minus, top)
        if isinstance(node, Pointwise) and node.fn == "mul":
            small = any(self.build.axes[a] != self.build.axes[ref] for a in node.args)
            if top or small:
                left, right = (self._factors(a, False, False) for a in node.args)
                return minus ^ left[0] ^ right[0], left[1] + right[1]
        return minus, (ref,)

    def _product(self, factors: Iterable[Ref]) -> Ref:
        ordered = sorted(factors, key=lambda r: (self._volume([r]), r))
        found = ordered[0]
        for f in ordered[1:]:
            found = self.build.call("mul", found, f)
        return found

    # -- sums ---------------------------------------------------------------------------

    def _inner(self, axes: frozenset[AxisName], factors: tuple[Ref, ...]) -> tuple[Ref, ...]:
        return tuple(f for f in factors if self.build.axes[f] & axes)

    def _separates(self, axes: frozenset[AxisName], factors: tuple[Ref, ...]) -> bool:
        """Whether taking factors without the contracted axes out leaves a smaller sum."""
        inner = self._inner(axes, factors)
        return bool(inner) and self._covers(axes, inner) and self._volume(inner) < self._volume(factors)

    def _in_the_way(self, axes: frozenset[AxisName], factors: tuple[Ref, ...]) -> bool:
        """Whether factors without the contracted axes, left in, are multiplied at every entry, or
        to no fewer than the sums have."""
        inner = self._inner(axes, factors)
        outer = [f for f in factors if f not in inner]
        if not outer or not inner or not self._covers(axes, inner):
            return False
        if all(self._volume([*outer, f]) == self._volume(factors) for f in inner):
            return True
        # Numbers wait for the sum rather than the sum for a vector of products.
        least = min(self._volume([f]) for f in inner)
        sums = frozenset().union(*(self.build.axes[f] for f in factors)) - axes
        return self._volume(outer) * 16 <= least and math.prod(self.program.sizes[a] for a in sums) <= least

    def _covers(self, axes: frozenset[AxisName], factors: tuple[Ref, ...]) -> bool:
        return axes <= frozenset().union(*(self.build.axes[f] for f in factors))

    def _expanded(self, axes: frozenset[AxisName], term: Term, stage: int) -> list[Term]:
        """The term, with a bracket multiplied out where a part of it then separates."""
        minus, factors = term
        for i, f in enumerate(factors):
            node = self.build.nodes[f]
            if not isinstance(node, Pointwise) or node.fn not in ("add", "sub"):
                continue
            if f not in self.old or stage in self.anyway[self.old[f]]:
                continue
            branches = []
            for sign, part in self._terms(f):
                branches.append((minus ^ sign, factors[:i] + part + factors[i + 1 :]))
            now = self._volume(self._inner(axes, factors))
            fine = all(self._covers(axes, self._inner(axes, b[1])) for b in branches)
            if fine and any(self._volume(self._inner(axes, b[1])) < now for b in branches):
                return [t for b in branches for t in self._expanded(axes, b, stage)]
        return [term]

    def _contract(self, axes: frozenset[AxisName], arg: Ref, stage: int) -> Ref | None:
        """The sum of ``arg`` over ``axes``; None to leave it as it is."""
        terms = self._terms(arg)
        if len(terms) > _MOST or not all(self._covers(axes, f) for _, f in terms):
            return None
        terms = [t for term in terms for t in self._expanded(axes, term, stage)]
        if len(terms) > _MOST:
            return None
        apart = [t for t in terms if self._separates(axes, t[1])]
        whole = [t for t in terms if t not in apart]
        if len(whole) == 1 and self._in_the_way(axes, whole[0][1]):
            apart, whole = terms, []
        if whole and any(self._volume(f) != self._volume(whole[0][1]) for _, f in whole):
            return None
        parts: list[tuple[bool, Ref]] = []
        if whole:
            minus, total = self._sum([(m, self._product(f)) for m, f in whole])
            parts.append((minus, self.build.add(Contract(axes, total))))
        for minus, factors in apart:
            inner = self._inner(axes, factors)
            outer = [f for f in factors if f not in inner]
            smaller = self.build.add(Contract(axes, self._product(inner)))
            parts.append((minus, self._product([*outer, smaller])))
        minus, total = self._sum(parts)
        return self.build.call("neg", total) if minus else total

    def _sum(self, parts: list[tuple[bool, Ref]]) -> tuple[bool, Ref]:
        """``(whether to subtract, sum)`` of signed parts, starting from one that is added if any."""
        ordered = sorted(parts, key=lambda p: p[0])
        negative, found = ordered[0]
        for minus, part in ordered[1:]:
            found = self.build.call("sub" if minus != negative else "add", found, part)
        return negative, found
