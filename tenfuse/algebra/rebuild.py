"""A step program from a recurrence: the normal form run as it stands.

Takes a ``Recurrence`` and the program it was made from (for the names of carries and
outputs); leaves a ``StepProgram`` of the same values up to rounding.  The next values of
earlier stages, inputs of a recurrence, become the nodes that compute them.
"""

from __future__ import annotations

import dataclasses

from tenfuse.algebra.names import original, rename
from tenfuse.algebra.recurrence import Affine, Recurrence
from tenfuse.algebra.rings import RINGS, scaled
from tenfuse.algebra.terms import Algebra, Part, Sum
from tenfuse.step.program import (
    Builder,
    Contract,
    Input,
    Ref,
    StepProgram,
    arguments,
    prune,
    validate,
    with_arguments,
)


def rebuild(recurrence: Recurrence, program: StepProgram) -> StepProgram:
    """The step that ``recurrence`` states, with the carries and outputs of ``program``."""
    made = _Rebuilder(recurrence, program)
    for stage in recurrence.stages:
        for i, update in zip(stage.carries, stage.updates, strict=True):
            made.computed[i] = made.node(update, stage.semiring, stage.scale)
        made.finish(stage.carries)
    outs = [made.node(o, "sum-product") for o in recurrence.outs]
    names = {a for axes in made.build.axes for a in axes}
    names |= {a for n in made.build.nodes if isinstance(n, Contract) for a in n.axes}
    sizes = {a: recurrence.sizes[original(a, recurrence.sizes)] for a in sorted(names | set(program.sizes))}
    whole = StepProgram(
        tuple(made.build.nodes),
        sizes,
        tuple(dataclasses.replace(c, next=made.nexts[i]) for i, c in enumerate(program.carries)),
        tuple(dataclasses.replace(o, ref=ref) for o, ref in zip(program.outs, outs, strict=True)),
        frozenset(a for a in sizes if original(a, recurrence.sizes) in recurrence.dynamic),
    )
    whole = prune(whole)
    validate(whole)
    return whole


class _Rebuilder:
    """Copies nodes, with the next values of finished carries in place of the inputs."""

    def __init__(self, recurrence: Recurrence, program: StepProgram) -> None:
        self.recurrence, self.program, self.build = recurrence, program, Builder()
        self.copies: dict[Ref, Ref] = {}
        self.computed: dict[int, Ref] = {}
        self.nexts: dict[int, Ref] = {}

    def finish(self, carries: tuple[int, ...]) -> None:
        self.nexts.update({i: self.computed[i] for i in carries})

    def node(self, value: Affine, semiring: str, scale: float = 1.0) -> Ref:
        """``sum of terms + offset`` as a node, where sources and sum are ``scale`` times those."""
        algebra = Algebra(self.build, self.recurrence.sizes, self.recurrence.dynamic, RINGS[semiring])
        parts = tuple(
            Part(
                scaled(self.build, self.copy(t.source), 1 / scale),
                tuple(self.copy(f) for f in t.factors),
                t.contracted,
            )
            for t in value.terms
        )
        total = algebra.node(Sum(parts, None if value.offset is None else self.copy(value.offset)))
        return scaled(self.build, total, scale)

    def copy(self, ref: Ref) -> Ref:
        if ref not in self.copies:
            self.copies[ref] = self._copied(ref)
        return self.copies[ref]

    def _copied(self, ref: Ref) -> Ref:
        node = self.recurrence.nodes[ref]
        if isinstance(node, Input) and node.kind == "next":
            own = self.program.carries[node.index].next_axes
            names = {a: b for a, b in zip(own, node.axes, strict=True) if a != b}
            return rename(self.build, self.nexts[node.index], names)
        return self.build.add(with_arguments(node, [self.copy(a) for a in arguments(node)]))
