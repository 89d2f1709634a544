"""``StepProgram``: one step of a recurrence as a DAG over named axes.

Takes nothing from other stages; this is the IR that the adjoint, the algebra, the cost
model and every emitter are written against: the nodes of ``nodes.py`` with the carries and
outputs of a step.

It refuses nothing: ``validate`` raises ``ValueError`` on a malformed program, which is a
fault of the stage that built it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from tenfuse.step.nodes import (
    ORDERED,
    SEMIRINGS,
    AxisName,
    Const,
    Contract,
    Input,
    Node,
    Pointwise,
    Position,
    Ref,
    Rename,
    Scan,
    Shift,
    Solve,
    arguments,
    mixed,
    node_axes,
    with_arguments,
)


@dataclasses.dataclass(frozen=True)
class CarrySpec:
    """A carry: ``axes`` name its dimensions on entry, ``next_axes`` those of ``next``.

    Position by position the two have the same size; they are the same name where the
    update keeps entries apart (a parallel axis) and differ where it mixes them.  ``next``
    may lack some of ``next_axes`` (it is then constant along them).
    """

    axes: tuple[AxisName, ...]
    next: Ref
    next_axes: tuple[AxisName, ...]


@dataclasses.dataclass(frozen=True)
class OutSpec:
    """A per-step result, stacked over time; ``axes`` are all the node's axes in order.

    With ``accumulate`` it is summed over the steps instead (gradients of invariants).
    """

    ref: Ref
    axes: tuple[AxisName, ...]
    accumulate: bool = False


@dataclasses.dataclass(frozen=True)
class StepProgram:
    nodes: tuple[Node, ...]
    sizes: dict[AxisName, int]
    """Every axis and its size; ``dynamic`` ones hold an example size."""
    carries: tuple[CarrySpec, ...]
    outs: tuple[OutSpec, ...]
    dynamic: frozenset[AxisName] = frozenset()
    """Axes whose size is only known when the kernel is launched."""

    def axes_of(self) -> tuple[frozenset[AxisName], ...]:
        """The axes of every node, in node order."""
        found: list[frozenset[AxisName]] = []
        for node in self.nodes:
            found.append(node_axes(node, found))
        return tuple(found)

    def inputs(self, kind: str) -> dict[int, tuple[AxisName, ...]]:
        """``index -> axes`` of the inputs of one kind that the program reads.

        One tensor may be read under several namings (S and its transpose); the names
        given are those of the first.  Sizes agree position by position.
        """
        found: dict[int, tuple[AxisName, ...]] = {}
        for node in self.nodes:
            if isinstance(node, Input) and node.kind == kind:
                found.setdefault(node.index, node.axes)
        return dict(sorted(found.items()))

    def roots(self) -> Iterator[Ref]:
        """The nodes whose values leave the step."""
        yield from (c.next for c in self.carries)
        yield from (o.ref for o in self.outs)

    def parallel_axes(self) -> frozenset[AxisName]:
        """Axes no entry mixes across: never contracted, and kept in place by every carry.

        A carry or state read under a second naming (S and its transpose) mixes the axes
        whose names differ.
        """
        mixing: set[AxisName] = set()
        named = {("carry", i): c.axes for i, c in enumerate(self.carries)}
        for node in self.nodes:
            if isinstance(node, Contract):
                mixing |= node.axes
            elif isinstance(node, ORDERED):
                mixing |= mixed(node)
            elif isinstance(node, Input) and node.kind in ("carry", "state"):
                first = named.setdefault((node.kind, node.index), node.axes)
                mixing |= {
                    a for pair in zip(first, node.axes, strict=True) if len(set(pair)) > 1 for a in pair
                }
        for carry in self.carries:
            for before, after in zip(carry.axes, carry.next_axes, strict=True):
                if before != after:
                    mixing |= {before, after}
        return frozenset(self.sizes) - mixing


def validate(program: StepProgram) -> None:
    """Raise ``ValueError`` naming the first malformed node, carry or output."""
    from tenfuse.step.functions import FUNCTIONS

    for i, node in enumerate(program.nodes):
        if any(a >= i or a < 0 for a in arguments(node)):
            raise ValueError(f"node {i} reads a node that does not stand before it: {node}")
        if isinstance(node, Pointwise) and (
            node.fn not in FUNCTIONS or FUNCTIONS[node.fn].arity != len(node.args)
        ):
            raise ValueError(f"node {i} calls {node.fn} with {len(node.args)} arguments")
    axes = program.axes_of()
    for i, node in enumerate(program.nodes):
        if isinstance(node, Contract) and not node.axes <= axes[node.arg]:
            raise ValueError(f"node {i} contracts axes its argument does not have: {node}")
        _validate_ordered(program, axes, i, node)
        if not axes[i] <= set(program.sizes):
            raise ValueError(f"node {i} has an axis without a size: {sorted(axes[i] - set(program.sizes))}")
    for carry in program.carries:
        if len(carry.axes) != len(carry.next_axes) or not axes[carry.next] <= set(carry.next_axes):
            raise ValueError(f"a carry's update has axes the carry lacks: {carry}")
        if any(
            program.sizes[a] != program.sizes[b] for a, b in zip(carry.axes, carry.next_axes, strict=True)
        ):
            raise ValueError(f"a carry changes its size: {carry}")
    for out in program.outs:
        if not axes[out.ref] <= set(out.axes) or len(set(out.axes)) != len(out.axes):
            raise ValueError(f"an output does not list its node's axes: {out}")


def _validate_ordered(program: StepProgram, axes: Sequence[frozenset[AxisName]], i: Ref, node: Node) -> None:
    if isinstance(node, Rename) and len(axes[i]) != len(axes[node.arg]):
        raise ValueError(f"node {i} gives two axes one name: {node}")
    if not isinstance(node, (Scan, Solve)):
        return
    if [program.sizes[a] for a in node.rows] != [program.sizes[a] for a in node.cols]:
        raise ValueError(f"node {i} has a matrix that is not square: {node}")
    if axes[node.arg] & set(node.cols):
        raise ValueError(f"node {i} has columns in its vectors: {node}")
    known = SEMIRINGS[:1] if node.rows else SEMIRINGS
    if isinstance(node, Scan) and node.semiring not in known:
        raise ValueError(f"node {i} scans in no known semiring: {node}")


class Builder:
    """Collects nodes with hash-consing: the same node is never stored twice."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.axes: list[frozenset[AxisName]] = []
        self._index: dict[tuple[Node, str], Ref] = {}

    def add(self, node: Node) -> Ref:
        key = (node, repr(node.value)) if isinstance(node, Const) else (node, "")
        if key not in self._index:
            self._index[key] = len(self.nodes)
            self.nodes.append(node)
            self.axes.append(node_axes(node, self.axes))
        return self._index[key]

    def input(self, kind: str, index: int, axes: tuple[AxisName, ...]) -> Ref:
        return self.add(Input(kind, index, axes))

    def const(self, value: float) -> Ref:
        return self.add(Const(float(value)))

    def call(self, fn: str, *args: Ref) -> Ref:
        for one, other in (args, args[::-1]) if fn == "mul" else ():
            if self.nodes[one] == Const(1.0):
                return other
        return self.add(Pointwise(fn, args))

    def contract(self, arg: Ref, *axes: AxisName, op: str = "sum") -> Ref:
        return self.add(Contract(frozenset(axes), arg, op)) if axes else arg

    def rename(self, arg: Ref, names: Mapping[AxisName, AxisName]) -> Ref:
        """``arg`` under other names; an input simply enters under them."""
        node = self.nodes[arg]
        pairs = {a: b for a, b in names.items() if a in self.axes[arg] and a != b}
        if not pairs:
            return arg
        if isinstance(node, Input):
            return self.input(node.kind, node.index, tuple(pairs.get(a, a) for a in node.axes))
        if isinstance(node, Position):
            return self.add(Position(pairs[node.axis]))
        if isinstance(node, Rename):
            inner = {b: a for a, b in node.names}
            whole = dict(node.names) | {inner.get(a, a): b for a, b in pairs.items()}
            return self.rename(node.arg, whole)
        return self.add(Rename(arg, tuple(sorted(pairs.items()))))


def compares(program: StepProgram) -> bool:
    """Whether a computed value is asked to be equal to another, as the adjoint of a maximum asks
    which entries attain it.

    What is computed in two places must then be the same in both: a fused multiply-add in one of
    them would lose the gradient.
    """
    fixed = (Const, Position)
    return any(
        isinstance(n, Pointwise)
        and n.fn in ("eq", "ne")
        and not any(isinstance(program.nodes[a], fixed) for a in n.args)
        for n in program.nodes
    )


def prune(program: StepProgram) -> StepProgram:
    """The same program without nodes that nothing reads."""
    live = set(program.roots())
    for i in range(len(program.nodes) - 1, -1, -1):
        if i in live:
            live |= set(arguments(program.nodes[i]))
    place = {old: new for new, old in enumerate(sorted(live))}

    def moved(node: Node) -> Node:
        return with_arguments(node, [place[a] for a in arguments(node)])

    return dataclasses.replace(
        program,
        nodes=tuple(moved(program.nodes[i]) for i in sorted(live)),
        carries=tuple(dataclasses.replace(c, next=place[c.next]) for c in program.carries),
        outs=tuple(dataclasses.replace(o, ref=place[o.ref]) for o in program.outs),
    )


def trimmed(program: StepProgram) -> StepProgram:
    """The same program with the sizes of the axes that occur in it only."""
    names = {a for own in program.axes_of() for a in own}
    names |= {a for n in program.nodes if isinstance(n, (Scan, Solve)) for a in (*n.rows, *n.cols)}
    names |= {a for c in program.carries for a in (*c.axes, *c.next_axes)}
    names |= {a for o in program.outs for a in o.axes}
    sizes = {a: n for a, n in program.sizes.items() if a in names}
    return dataclasses.replace(program, sizes=sizes, dynamic=program.dynamic & names)


def only_summed(program: StepProgram) -> set[Ref]:
    """Products that are read by sums and by such products only."""
    readers: dict[Ref, list[Ref]] = {}
    for i, node in enumerate(program.nodes):
        for a in arguments(node):
            readers.setdefault(a, []).append(i)
    leaving, found = set(program.roots()), set[Ref]()
    for i in reversed(range(len(program.nodes))):
        node = program.nodes[i]
        product = isinstance(node, Pointwise) and node.fn == "mul" and i not in leaving
        if product and readers.get(i) and all(r in found or _sums(program.nodes[r]) for r in readers[i]):
            found.add(i)
    return found


def factors(program: StepProgram, ref: Ref, summed: set[Ref]) -> list[Ref]:
    """What a value of ``summed``, those that are ``only_summed``, multiplies; else the value itself."""
    if ref not in summed:
        return [ref]
    return [f for a in arguments(program.nodes[ref]) for f in factors(program, a, summed)]


def multiplied(nodes: Sequence[Node], ref: Ref) -> list[Ref]:
    """The factors of a product of any depth; the value itself if it is none."""
    node = nodes[ref]
    if isinstance(node, Pointwise) and node.fn == "mul":
        return [f for a in node.args for f in multiplied(nodes, a)]
    return [ref]


def _sums(node: Node) -> bool:
    return isinstance(node, Contract) and node.op == "sum"


__all__ = [
    "ORDERED",
    "SEMIRINGS",
    "AxisName",
    "Builder",
    "CarrySpec",
    "Const",
    "Contract",
    "Input",
    "Node",
    "OutSpec",
    "Pointwise",
    "Position",
    "Ref",
    "Rename",
    "Scan",
    "Shift",
    "Solve",
    "StepProgram",
    "arguments",
    "compares",
    "factors",
    "multiplied",
    "node_axes",
    "only_summed",
    "prune",
    "trimmed",
    "validate",
    "with_arguments",
]
