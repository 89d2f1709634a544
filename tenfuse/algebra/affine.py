"""The normal form of a step's values: sums of terms linear in a source, plus an offset.

Takes a ``StepProgram``, which carries count as state and a ring; leaves a ``Sum`` for any
node.  State-free nodes are copied.  In the ring of numbers a nonlinear function of the
state becomes an *atom*, a source of its own whose arguments are rebuilt from their normal
forms; in the other rings a value without normal form raises ``Stuck``.

``cut`` is the identity whose derivative is zero: it is moved to the factors, the source
and the offset of every term, so a term may be linear in ``cut(carry)``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tenfuse.algebra.rings import SUM_PRODUCT, Ring
from tenfuse.algebra.terms import Algebra, Part, Stuck, Sum
from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.program import (
    Builder,
    Const,
    Contract,
    Input,
    Node,
    Pointwise,
    Ref,
    StepProgram,
    arguments,
    with_arguments,
)


class Affine:
    """Evaluates nodes of ``program`` into ``build``.

    ``carries`` are the state; every other input is state-free.  ``given`` names nodes that
    are inputs of this evaluation: a node that is the next value of another stage's carry.
    Those of ``given`` that are ``moving`` count as state too.
    """

    def __init__(
        self,
        program: StepProgram,
        build: Builder,
        carries: Collection[int],
        given: Mapping[Ref, Input] | None = None,
        moving: Collection[Ref] = (),
        ring: Ring = SUM_PRODUCT,
    ) -> None:
        self.program, self.build, self.ring = program, build, ring
        self.carries, self.given, self.moving = frozenset(carries), dict(given or {}), frozenset(moving)
        self.algebra = Algebra(build, program.sizes, program.dynamic, ring)
        self.values: dict[Ref, Sum | None] = {}
        """None for a node that has no normal form in this ring."""
        self.axes = program.axes_of()
        self.reads: dict[Ref, Sum] = {}
        """What atoms read: their arguments that depend on the state, by their node."""

    def value(self, root: Ref) -> Sum:
        """The normal form of one node of the program."""
        self.evaluate(root)
        found = self.values[root]
        if found is None:
            raise Stuck
        return found

    def evaluate(self, root: Ref) -> None:
        """Find the normal forms of what ``root`` needs, in order."""
        for ref in self._cone(root):
            if ref not in self.values:
                self.values[ref] = self._evaluated(ref)

    def _cone(self, root: Ref) -> list[Ref]:
        """The nodes that ``root`` needs, in order."""
        found, pending = set(), [root]
        while pending:
            ref = pending.pop()
            if ref in found:
                continue
            found.add(ref)
            if ref not in self.values and ref not in self.given:
                pending += arguments(self.program.nodes[ref])
        return sorted(found)

    def _evaluated(self, ref: Ref) -> Sum | None:
        node = self.program.nodes[ref]
        if ref in self.given:
            made = self.build.add(self.given[ref])
            return Sum((Part(made),)) if ref in self.moving else Sum((), made)
        if isinstance(node, Input):
            state = node.kind == "carry" and node.index in self.carries
            made = self.build.add(node)
            return Sum((Part(made),)) if state else Sum((), made)
        if isinstance(node, Const):
            return Sum((), self.build.add(node))
        return self._computed(ref, node)

    def _computed(self, ref: Ref, node: Node) -> Sum | None:
        args = [a for r in arguments(node) if (a := self.values[r]) is not None]
        if len(args) < len(arguments(node)):
            return None
        if all(a.free for a in args):
            return Sum((), self._again(node, [self._ref(a) for a in args]))
        try:
            found = self._linear(node, args)
        except Stuck:
            found = None
        return self._atom(node, args) if found is None and self.ring is SUM_PRODUCT else found

    def _ref(self, value: Sum) -> Ref:
        return self.algebra.node(value)

    def _again(self, node: Node, args: list[Ref]) -> Ref:
        if isinstance(node, Pointwise):
            return self.build.call(node.fn, *args)
        return self.build.add(with_arguments(node, args))

    def _atom(self, node: Node, args: list[Sum]) -> Sum:
        refs = []
        for arg in args:
            ref = self._ref(arg)
            refs.append(ref)
            if not arg.free:
                self.reads[ref] = arg
        return Sum((Part(self._again(node, refs)),))

    def _linear(self, node: Node, args: list[Sum]) -> Sum | None:
        """The node as a sum of terms, or None if it is not linear in the state."""
        if isinstance(node, Contract):
            return self._contracted(node, args[0])
        if not isinstance(node, Pointwise):
            return None
        algebra, fn = self.algebra, node.fn
        if fn == "cut":
            return algebra.cut(args[0])
        if fn == "where" and self.ring.name == "or-and" and not all(map(self._boolean, node.args[1:])):
            return None
        if fn == "where":
            return algebra.select(self._ref(args[0]), args[1], args[2]) if args[0].free else None
        if fn == self.ring.plus:
            return algebra.plus(args[0], args[1])
        if fn == self.ring.times:
            return self._applied(args[0], args[1])
        if self.ring is SUM_PRODUCT:
            return self._numbers(fn, args)
        if self.ring.times == "add" and fn == "sub" and args[1].free:
            return algebra.times(args[0], self.build.call("neg", self._ref(args[1])))
        return None

    def _numbers(self, fn: str, args: list[Sum]) -> Sum | None:
        """What only the ring of numbers has: subtraction, negation, division."""
        if fn == "neg":
            return self.algebra.scaled(args[0], -1.0)
        if fn == "sub":
            return self.algebra.plus(args[0], args[1], -1.0)
        if fn == "div" and args[1].free:
            return self._divided(args[0], self._ref(args[1]))
        return None

    def _divided(self, value: Sum, by: Ref) -> Sum:
        node = self.build.nodes[by]
        if isinstance(node, Const) and node.value != 0:
            inverse = self.build.const(1.0 / node.value)
        else:
            inverse = self.build.call("div", self.build.const(1.0), by)
        parts = self.algebra.times(Sum(value.parts), inverse).parts
        offset = None if value.offset is None else self.build.call("div", value.offset, by)
        return Sum(parts, offset)

    def _applied(self, a: Sum, b: Sum) -> Sum | None:
        if not a.free and not b.free:
            return None
        value, factor = (b, a) if a.free else (a, b)
        return self.algebra.times(value, self._ref(factor))

    def _contracted(self, node: Contract, value: Sum) -> Sum | None:
        if node.op != self.ring.reduce:
            return None
        if self.ring.name == "or-and" and not self._boolean(node.arg):
            return None
        return self.algebra.contract(value, node.axes)

    def _boolean(self, ref: Ref) -> bool:
        """Whether a node is 0 or 1: of an input, a float like any other, nobody knows."""
        node = self.program.nodes[ref]
        if isinstance(node, Const):
            return node.value in (0.0, 1.0)
        return isinstance(node, Pointwise) and FUNCTIONS[node.fn].boolean


__all__ = ["Affine", "Part", "Stuck", "Sum"]
