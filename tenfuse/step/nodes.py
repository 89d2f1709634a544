"""The nodes of a ``StepProgram``: values over named axes.

Takes nothing from other stages.  A value has a set of axes, never a shape: there are no
reshapes, transposes or broadcasts here, only

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
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
    """A float, or an int where the value is an integer (``whole.py``)."""


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


def mixed(node: Node) -> set[AxisName]:
    """The axes along which a node's entries are not independent of each other."""
    if isinstance(node, (Position, Shift)):
        return {node.axis}
    if isinstance(node, Rename):
        return {a for pair in node.names for a in pair}
    if isinstance(node, (Scan, Solve)):
        return {*node.rows, *node.cols, *((node.axis,) if isinstance(node, Scan) else ())}
    return set()
