"""``StepProgram``: one step of a recurrence as a DAG over named axes.

Takes nothing from other stages; this is the IR that the adjoint, the algebra, the cost
model and every emitter are written against.  A value has a set of axes, never a shape:
there are no reshapes, transposes or broadcasts here, only

* ``Input``     a carry, a stream slice x_t, an invariant, and (in adjoints) a state,
* ``Const``     a number,
* ``Pointwise`` a function of ``functions.py`` applied entry by entry; its axes are the
                union of its arguments' axes,
* ``Contract``  the sum (or maximum, or minimum) over some axes of one argument.

A program whose step is a whole chunk of steps also has axes that are positions in the
chunk.  Along those, and only there, order matters; five more nodes say so:

* ``Position``  the number 0, 1, 2, ... of an entry along an axis,
* ``Rename``    the same value under other axis names,
* ``Shift``     the value at the previous or next position,
* ``Scan``      ``h_t = decay_t h_{t-1} + arg_t`` along an axis,
* ``Solve``     ``(I + lower)^-1 arg`` with ``lower`` strictly lower triangular.

It refuses nothing: ``validate`` raises ``ValueError`` on a malformed program, which is a
fault of the stage that built it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

AxisName = str
Ref = int
"""A node's index in ``StepProgram.nodes``; arguments always point backwards."""


@dataclasses.dataclass(frozen=True)
class Input:
    """A value entering the step.

    ``kind`` is "carry" (``index`` into ``StepProgram.carries``), "stream" (a per-step
    slice), "invariant" (the same at every step) or "state" (adjoint programs only: the
    carry ``index`` of the forward program at the start of this step, recomputed).
    """

    kind: str
    index: int
    axes: tuple[AxisName, ...]


@dataclasses.dataclass(frozen=True)
class Const:
    value: float


@dataclasses.dataclass(frozen=True)
class Pointwise:
    fn: str
    args: tuple[Ref, ...]


@dataclasses.dataclass(frozen=True)
class Contract:
    axes: frozenset[AxisName]
    arg: Ref
    op: str = "sum"
    """"sum", "max" or "min"; the latter two propagate NaN as ``torch.amax`` does."""


@dataclasses.dataclass(frozen=True)
class Position:
    axis: AxisName


@dataclasses.dataclass(frozen=True)
class Rename:
    """``names`` are pairs (old, new), all renamed at once; the others stay."""

    arg: Ref
    names: tuple[tuple[AxisName, AxisName], ...]


@dataclasses.dataclass(frozen=True)
class Shift:
    """At position t the value of ``arg`` at t-1 (``by`` 1) or t+1 (-1), ``fill`` at the end."""

    arg: Ref
    axis: AxisName
    by: int
    fill: float = 0.0


@dataclasses.dataclass(frozen=True)
class Scan:
    """``h_t = decay_t h_{t-1} + arg_t``, the first ``h_0 = arg_0`` without reading a decay.

    With ``rows`` and ``cols`` the decay is a matrix over them, and ``arg`` and the result
    are vectors over ``rows``; ``transpose`` multiplies by its transpose.  ``reverse`` runs
    from the last position to the first.  Other semirings replace + and x; they have no
    matrices.
    """

    axis: AxisName
    decay: Ref
    arg: Ref
    reverse: bool = False
    rows: tuple[AxisName, ...] = ()
    cols: tuple[AxisName, ...] = ()
    transpose: bool = False
    semiring: str = "sum-product"


@dataclasses.dataclass(frozen=True)
class Solve:
    """The z over ``rows`` with ``z + lower z = arg`` (``transpose``: ``z + lower^T z = arg``).

    ``lower`` is a matrix over ``rows`` and ``cols``, both in lexicographic order, and zero
    on and above its diagonal.  So the system always has one solution.
    """

    lower: Ref
    arg: Ref
    rows: tuple[AxisName, ...]
    cols: tuple[AxisName, ...]
    transpose: bool = False


Node = Input | Const | Pointwise | Contract | Position | Rename | Shift | Scan | Solve
SEMIRINGS = ("sum-product", "max-plus", "min-plus", "log-plus", "or-and")
"""Those of ``Scan``: what adds, then what multiplies."""
ORDERED = (Position, Rename, Shift, Scan, Solve)
"""The kinds that only programs over chunks contain."""


def arguments(node: Node) -> tuple[Ref, ...]:
    """The nodes that ``node`` reads, in order."""
    if isinstance(node, Pointwise):
        return node.args
    if isinstance(node, Scan):
        return node.decay, node.arg
    if isinstance(node, Solve):
        return node.lower, node.arg
    return (node.arg,) if isinstance(node, (Contract, Rename, Shift)) else ()


def with_arguments(node: Node, args: Sequence[Ref]) -> Node:
    """The same node reading ``args`` instead of its ``arguments``."""
    if isinstance(node, Pointwise):
        return Pointwise(node.fn, tuple(args))
    if isinstance(node, Scan):
        return dataclasses.replace(node, decay=args[0], arg=args[1])
    if isinstance(node, Solve):
        return dataclasses.replace(node, lower=args[0], arg=args[1])
    return dataclasses.replace(node, arg=args[0]) if isinstance(node, (Contract, Rename, Shift)) else node


def node_axes(node: Node, axes: Sequence[frozenset[AxisName]]) -> frozenset[AxisName]:
    """The axes of ``node``, given those of the nodes before it."""
    if isinstance(node, Input):
        return frozenset(node.axes)
    if isinstance(node, Contract):
        return axes[node.arg] - node.axes
    if isinstance(node, Rename):
        names = dict(node.names)
        return frozenset(names.get(a, a) for a in axes[node.arg])
    found = frozenset[AxisName]().union(*(axes[a] for a in arguments(node)))
    if isinstance(node, (Position, Shift)):
        return found | {node.axis}
    if isinstance(node, (Scan, Solve)):
        own = {node.axis} if isinstance(node, Scan) else set()
        return (found - set(node.cols)) | set(node.rows) | own
    return found


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
                mixing |= _ordered(node)
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


def _ordered(node: Node) -> set[AxisName]:
    """The axes along which a node's entries are not independent of each other."""
    if isinstance(node, (Position, Shift)):
        return {node.axis}
    if isinstance(node, Rename):
        return {a for pair in node.names for a in pair}
    if isinstance(node, (Scan, Solve)):
        return {*node.rows, *node.cols, *((node.axis,) if isinstance(node, Scan) else ())}
    return set()


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
