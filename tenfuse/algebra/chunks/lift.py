"""A step's nodes over all positions of a chunk.

Takes the nodes of one step; leaves the same values with the axes of the positions in front.
What reads a carry is kept as a ``Form``, a sum of products linear in the carries at that
position, until a node needs its value: sums of products of the state then reach the one
who knows the states of a chunk as such, and only what the step itself spells out entry by
entry is spelled out here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from tenfuse.algebra.chunks.response import Linear, added
from tenfuse.algebra.chunks.summed import Sums, Unchunkable
from tenfuse.algebra.recurrence import Affine
from tenfuse.step.program import (
    ORDERED,
    AxisName,
    Builder,
    Contract,
    Input,
    Node,
    Pointwise,
    Ref,
    node_axes,
)


@dataclasses.dataclass(frozen=True)
class Read:
    """``sum over bound of (product of factors) * carry``: the carry before or after the step.

    ``factors`` are over the chunk's positions; ``names`` name the carry's dimensions.  No gradient
    enters a carry that is ``cut``.
    """

    carry: int
    after: bool
    names: tuple[AxisName, ...]
    factors: tuple[Ref, ...] = ()
    bound: frozenset[AxisName] = frozenset()
    cut: bool = False

    def scaled(self, factor: Ref) -> Read:
        return dataclasses.replace(self, factors=(*self.factors, factor))


@dataclasses.dataclass(frozen=True)
class Form:
    """``sum of reads + offset``."""

    reads: tuple[Read, ...]
    offset: Ref | None = None


class Lift:
    """``read`` gives the value of a ``Read`` at every position, over positions and free axes.

    ``split`` gives the same as a sum linear in the states before the chunk; None where it is none.
    ``cuts`` says that states are known which no gradient enters.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        sums: Sums,
        rows: tuple[AxisName, ...],
        read: Callable[[Read], Ref],
        sizes: dict[AxisName, int],
        split: Callable[[Read], Linear | None],
        cuts: bool = False,
    ) -> None:
        self.nodes, self.sums, self.build, self.rows, self.read = nodes, sums, sums.build, rows, read
        self.split, self.cuts = split, cuts
        self.sizes = sizes
        self.axes: list[frozenset[AxisName]] = []
        for node in nodes:
            self.axes.append(node_axes(node, self.axes))
        self._forms: dict[Ref, Form] = {}
        self._values: dict[Ref, Ref] = {}
        self._fresh = 0

    def value(self, ref: Ref) -> Ref:
        if ref not in self._values:
            self._values[ref] = self.forced(self.form(ref))
        return self._values[ref]

    def affine(self, update: Affine) -> Form:
        """The form of a sum of terms; a term in an atom is its value times the factors."""
        reads: list[Read] = []
        offsets: list[Ref] = [] if update.offset is None else [self.value(update.offset)]
        for term in update.terms:
            factors = tuple(self.value(f) for f in term.factors)
            read = self._state(self.nodes[term.source])
            if read is not None:
                reads.append(self._bound(dataclasses.replace(read, factors=factors), term.contracted))
            else:
                offsets.append(self.sums.product([*factors, self.value(term.source)], term.contracted))
        return Form(tuple(reads), self.sums.add(offsets) if offsets else None)

    def forced(self, form: Form) -> Ref:
        parts = [self.read(r) for r in form.reads]
        return self.sums.add(parts if form.offset is None else [*parts, form.offset])

    def linear(self, ref: Ref) -> Linear:
        """The value of a node; all of it is local where it is not linear in earlier states."""
        form = self.form(ref)
        found = [self.split(r) for r in form.reads]
        parts = [p for p in found if p is not None]
        free = [] if form.offset is None else [form.offset, *(f for r in form.reads for f in r.factors)]
        if len(parts) < len(found) or any(self.sums.stateful(f) for f in free):
            return Linear(self.value(ref))
        return added(self.sums, parts if form.offset is None else [*parts, Linear(form.offset)])

    def form(self, ref: Ref) -> Form:
        if ref not in self._forms:
            self._forms[ref] = self._made(self.nodes[ref])
        return self._forms[ref]

    def _made(self, node: Node) -> Form:
        if (read := self._state(node)) is not None:
            return Form((read,))
        if isinstance(node, Input):
            return self._input(node)
        if isinstance(node, Contract):
            return self._contract(node)
        if isinstance(node, Pointwise):
            return self._pointwise(node)
        if isinstance(node, ORDERED):
            raise Unchunkable("the step itself is a chunk")
        return Form((), self.build.add(node))

    def _state(self, node: Node) -> Read | None:
        """A node that is a state, or one whose gradient is cut."""
        below = self.nodes[node.args[0]] if isinstance(node, Pointwise) and node.fn == "cut" else node
        if not isinstance(below, Input) or below.kind not in ("carry", "next"):
            return None
        if below is not node and not self.cuts:
            return None
        return Read(below.index, below.kind == "next", below.axes, cut=below is not node)

    def _input(self, node: Input) -> Form:
        if node.kind == "stream":
            return Form((), self.build.input("stream", node.index, (*self.rows, *node.axes)))
        if node.kind != "invariant":
            raise Unchunkable(f"the step reads a {node.kind}")
        return Form((), self.build.add(node))

    def _pointwise(self, node: Pointwise) -> Form:
        forms = [self.form(a) for a in node.args]
        if node.fn in ("add", "sub", "neg") and any(f.reads for f in forms):
            return self._merged(node.fn, forms)
        if node.fn == "mul" and sum(bool(f.reads) for f in forms) == 1:
            linear, i = (forms[0], 1) if forms[0].reads else (forms[1], 0)
            return self._scaled(linear, self.value(node.args[i]))
        if node.fn == "div" and forms[0].reads and not forms[1].reads:
            return self._scaled(
                forms[0], self.build.call("div", self.build.const(1.0), self.value(node.args[1]))
            )
        return Form((), self.build.call(node.fn, *(self.value(a) for a in node.args)))

    def _merged(self, fn: str, forms: Sequence[Form]) -> Form:
        minus = self.build.const(-1.0)
        last = forms[-1]
        if fn != "add":
            last = self._scaled(last, minus)
        parts = [*forms[:-1], last]
        offsets = [f.offset for f in parts if f.offset is not None]
        return Form(tuple(r for f in parts for r in f.reads), self.sums.add(offsets) if offsets else None)

    def _scaled(self, form: Form, factor: Ref) -> Form:
        offset = None if form.offset is None else self.sums.product([form.offset, factor])
        return Form(tuple(r.scaled(factor) for r in form.reads), offset)

    def _contract(self, node: Contract) -> Form:
        form = self.form(node.arg)
        if node.op != "sum" or not form.reads:
            if node.op != "sum":
                return Form((), self.build.contract(self.value(node.arg), *node.axes, op=node.op))
            return Form((), self.sums.product(self._outer(node.arg), node.axes))
        reads = tuple(self._bound(r, node.axes) for r in form.reads)
        offset = None if form.offset is None else self.sums.product([form.offset], node.axes)
        return Form(reads, offset)

    def _outer(self, ref: Ref) -> list[Ref]:
        """The factors of a product that has more axes than each of them."""
        leaves = self._leaves(ref)
        if all(self.axes[f] < self.axes[ref] for f in leaves):
            return [self.value(f) for f in leaves]
        return [self.value(ref)]

    def _leaves(self, ref: Ref) -> list[Ref]:
        node = self.nodes[ref]
        if isinstance(node, Pointwise) and node.fn == "mul":
            return [f for a in node.args for f in self._leaves(a)]
        return [ref]

    def _bound(self, read: Read, axes: Iterable[AxisName]) -> Read:
        """The read summed over ``axes``, under names that nothing outside the sum can mean."""
        names = {a: self.fresh(a) for a in sorted(axes)}
        return dataclasses.replace(
            read,
            names=tuple(names.get(a, a) for a in read.names),
            factors=tuple(self.build.rename(f, names) for f in read.factors),
            bound=read.bound | frozenset(names.values()),
        )

    def fresh(self, axis: AxisName, size: int = 0) -> AxisName:
        """Another name for an axis like ``axis``, or for one of the given size."""
        if not size and axis in self.sums.dynamic:
            raise Unchunkable("a dimension of dynamic size is summed over")
        base, name = axis.split("~")[0], ""
        while not name or name in self.sizes:
            self._fresh += 1
            name = f"{base}~{self._fresh}"
        self.sizes[name] = size or self.sizes[axis]
        return name


def aligned_to(
    build: Builder, read: Read, axes: tuple[AxisName, ...], fresh: Callable[[AxisName], AxisName]
) -> tuple[Read, Mapping[AxisName, AxisName]]:
    """``read`` with the carry named ``axes``, and how to name the axes of its value again.

    Other axes of the factors that happen to have one of those names move away.
    """
    if len(set(read.names)) < len(axes):
        raise Unchunkable("the diagonal of a carry is read")
    forward = dict(zip(read.names, axes, strict=True))
    own = frozenset[AxisName]().union(*(build.axes[f] for f in read.factors), read.bound)
    for axis in sorted(own & (set(axes) - set(forward))):
        forward[axis] = fresh(axis)
    moved = Read(
        read.carry,
        read.after,
        axes,
        tuple(build.rename(f, forward) for f in read.factors),
        frozenset(forward.get(a, a) for a in read.bound),
    )
    return moved, {new: old for old, new in forward.items() if old not in read.bound}


__all__ = ["Form", "Lift", "Read", "Unchunkable", "aligned_to"]
