"""Steps that do nothing: what a chunk does behind the end of a sequence.

Takes a ``Recurrence`` and the number of a new stream; leaves the recurrence whose update
is the old one where that stream is true, and the identity where it is false: gates become
one, and whatever is added the semiring's zero.  So a chunk may reach behind the last step,
whatever the values that it finds there, as long as they are finite.
"""

from __future__ import annotations

import dataclasses

from tenfuse.algebra.recurrence import Affine, Recurrence, Stage, Term
from tenfuse.step.ordered import RINGS
from tenfuse.step.program import (
    AxisName,
    Builder,
    Contract,
    Input,
    Pointwise,
    Ref,
    StepProgram,
    with_arguments,
)

_ZERO = {"sum-product": 0.0, "max-plus": float("-inf"), "min-plus": float("inf"), "log-plus": float("-inf"),
         "or-and": 0.0}  # fmt: skip


def ragged(program: StepProgram, recurrence: Recurrence, stream: int) -> Recurrence:
    """``recurrence`` of a step that happens only where ``stream`` is not zero."""
    return _Ragged(program, recurrence, stream).run()


class _Ragged:
    def __init__(self, program: StepProgram, recurrence: Recurrence, stream: int) -> None:
        self.program, self.recurrence = program, recurrence
        self.build = Builder()
        if [self.build.add(node) for node in recurrence.nodes] != list(range(len(recurrence.nodes))):
            raise ValueError("the nodes of a recurrence are not all different")
        self.valid = self.build.input("stream", stream, ())

    def run(self) -> Recurrence:
        stages = tuple(self._stage(s) for s in self.recurrence.stages)
        return dataclasses.replace(self.recurrence, stages=stages, nodes=tuple(self.build.nodes))

    def _stage(self, stage: Stage) -> Stage:
        zero, one = _ZERO[stage.semiring], RINGS[stage.semiring][2]
        updates = tuple(
            self._update(update, self.program.carries[j].next_axes, j, zero, one)
            for j, update in zip(stage.carries, stage.updates, strict=True)
        )
        return dataclasses.replace(stage, updates=updates)

    def _update(
        self, update: Affine, names: tuple[AxisName, ...], carry: int, zero: float, one: float
    ) -> Affine:
        own, terms = Input("carry", carry, names), []
        kept = False
        for term in update.terms:
            node = self.recurrence.nodes[term.source]
            if node == own and not term.contracted and not kept:
                factors = tuple(self._where(f, one) for f in term.factors)
                kept = True
            else:
                factors = tuple(self._where(f, zero) for f in term.factors)
                factors = factors or (self._where(self.build.const(one), zero),)
            terms.append(dataclasses.replace(term, factors=factors))
        if not kept:
            here = self.build.call("where", self.valid, self.build.const(zero), self.build.const(one))
            terms.append(Term(self.build.add(own), (here,)))
        offset = update.offset
        if offset is not None:
            offset = self._masked(offset) if zero == 0.0 else self._where(offset, zero)
        return Affine(tuple(terms), offset)

    def _where(self, ref: Ref, other: float) -> Ref:
        return self.build.call("where", self.valid, ref, self.build.const(other))

    def _masked(self, ref: Ref) -> Ref:
        """Zero where nothing happens; a product stays a product of the same factors."""
        node = self.build.nodes[ref]
        if isinstance(node, Pointwise) and node.fn in ("mul", "add", "sub", "neg"):
            return self.build.call(node.fn, *(self._masked(a) for a in node.args))
        if isinstance(node, Contract) and node.op == "sum":
            return self.build.add(with_arguments(node, [self._masked(node.arg)]))
        return self._where(ref, 0.0)


__all__ = ["ragged"]
