"""Sign and range of every node of a ``StepProgram``.

Takes a program and what is known of its inputs; leaves an ``Interval`` per node.  It
refuses nothing: what cannot be said is (-inf, inf).  NaN is outside every statement, and
a computed value may exceed a bound by its rounding (see ``interval``).  Bounds choose
algorithms; no result depends on them.

Beside intervals the sweep keeps which nodes dominate which: ``n >= |x|`` entry by entry,
``n`` being constant along axes that only ``x`` has.  A sum of non-negative entries
dominates each of them, a root of something that dominates ``x*x`` dominates ``x``, and
what is larger than a dominating node dominates too; so the entries of x / ||x||, of
x / max(||x||, eps), of x*x / (sum x*x + eps) and of e / sum e are at most 1, however they
are written.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenfuse.algebra.ranges.interval import (
    ANY,
    BALL,
    INF,
    POSITIVE,
    TRANSFER,
    UNIT,
    Interval,
    hull,
    meet,
    scale,
    square,
)
from tenfuse.step.program import (
    ORDERED,
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
    StepProgram,
)

_NONE: frozenset[Ref] = frozenset()
_GROWS = {"maximum", "clamp_min", "add"}


def bounds(
    program: StepProgram, inputs: Mapping[tuple[str, int], Interval] | None = None
) -> tuple[Interval, ...]:
    """The interval of every node; ``inputs[kind, index]`` where something is known."""
    sweep = _Sweep(program, inputs or {})
    for node in program.nodes:
        sweep.visit(node)
    return tuple(sweep.found)


class _Sweep:
    """Intervals, and what each node dominates, from the first node to the last."""

    def __init__(self, program: StepProgram, inputs: Mapping[tuple[str, int], Interval]) -> None:
        self.program, self.inputs = program, inputs
        self.found: list[Interval] = []
        self.below: list[frozenset[Ref]] = []
        """The nodes x with |x| <= this node."""
        self.inverse: list[frozenset[Ref]] = []
        """The nodes x with |x| * |this node| <= 1."""

    def visit(self, node: Node) -> None:
        i = len(self.found)
        self.inverse.append(self._inverse(node))
        self.found.append(self._interval(node))
        self.below.append(self._below(node) | ({i} if self.found[i].low >= 0.0 else _NONE))

    def _interval(self, node: Node) -> Interval:
        if isinstance(node, Input):
            return self.inputs.get((node.kind, node.index), ANY)
        if isinstance(node, Const):
            return Interval(node.value, node.value) if node.value == node.value else ANY
        if isinstance(node, Contract):
            return self._contract(node)
        if isinstance(node, ORDERED):
            return self._ordered(node)
        if not isinstance(node, Pointwise) or node.fn not in TRANSFER:
            return ANY
        plain = TRANSFER[node.fn](*(self.found[a] for a in node.args))
        if node.fn == "mul":
            return self._mul(node.args[0], node.args[1], plain)
        if node.fn == "div" and node.args[0] in self.below[node.args[1]]:
            return meet(plain, UNIT if self.found[node.args[0]].low >= 0.0 else BALL)
        return plain

    def _mul(self, a: Ref, b: Ref, plain: Interval) -> Interval:
        if a == b:
            return square(self.found[a])
        if a in self.inverse[b] or b in self.inverse[a]:
            return meet(plain, BALL)
        return plain

    def _contract(self, node: Contract) -> Interval:
        arg = self.found[node.arg]
        if node.op != "sum":
            return arg
        for axis in sorted(node.axes):
            arg = scale(arg, None if axis in self.program.dynamic else self.program.sizes[axis])
        return arg

    def _ordered(self, node: Node) -> Interval:
        """Along the positions of a chunk; of a scan only its sign is known."""
        if isinstance(node, Position):
            last = None if node.axis in self.program.dynamic else self.program.sizes[node.axis] - 1
            return Interval(0.0, INF if last is None else float(max(last, 0)))
        if isinstance(node, Rename):
            return self.found[node.arg]
        if isinstance(node, Shift):
            return hull(self.found[node.arg], Interval(node.fill, node.fill))
        if isinstance(node, Scan) and node.semiring == "sum-product" and not node.rows:
            decay, arg = self.found[node.decay], self.found[node.arg]
            return POSITIVE if decay.low >= 0.0 and arg.low >= 0.0 else ANY
        return ANY

    def _below(self, node: Node) -> frozenset[Ref]:
        """What the node dominates besides itself."""
        if isinstance(node, Contract):
            return self.below[node.arg] if node.op != "min" else _NONE
        if not isinstance(node, Pointwise):
            return _NONE
        args = node.args
        if node.fn == "abs":
            return frozenset({args[0]})
        if node.fn in ("sqrt", "root"):
            return frozenset(x for q in self.below[args[0]] for x in self._root(q))
        if node.fn in _GROWS:
            return self._larger(node)
        if node.fn == "where":
            return self.below[args[1]] & self.below[args[2]]
        return self.below[args[0]] if node.fn in ("cut", "relu") else _NONE

    def _larger(self, node: Pointwise) -> frozenset[Ref]:
        a, b = node.args
        if node.fn != "add":
            return self.below[a] | self.below[b]
        found = self.below[a] if self.found[b].low >= 0.0 else _NONE
        return found | (self.below[b] if self.found[a].low >= 0.0 else _NONE)

    def _root(self, ref: Ref) -> tuple[Ref, ...]:
        """The node whose square ``ref`` is."""
        node = self.program.nodes[ref]
        if not isinstance(node, Pointwise) or len(node.args) != 2:
            return ()
        other = self.program.nodes[node.args[1]]
        twice = node.fn == "mul" and node.args[0] == node.args[1]
        power = node.fn == "pow" and isinstance(other, Const) and other.value == 2.0
        return node.args[:1] if twice or power else ()

    def _inverse(self, node: Node) -> frozenset[Ref]:
        if not isinstance(node, Pointwise):
            return _NONE
        if node.fn == "rsqrt":
            return frozenset(x for q in self.below[node.args[0]] for x in self._root(q))
        if node.fn == "div" and self.found[node.args[0]].size <= 1.0:
            return self.below[node.args[1]]
        return _NONE


__all__ = ["bounds"]
