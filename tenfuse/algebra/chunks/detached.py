"""States whose gradient is cut within the step: what a chunk takes of them.

Takes a ``Recurrence`` with terms in ``cut`` of the carry they update; leaves two.  ``values`` has
the same values and no such term: a cut state is a state.  In ``apart`` these terms are part of
the offsets, with the cut states given.  A chunk runs the first over ``Constants``, inputs that no
gradient enters, and the second on what it finds there: for ``h_t = A_t h_{t-1} + D_t cut(h_{t-1})
+ b_t`` it scans ``(A_t + D_t, b_t)`` for the values g_t, and then ``(A_t, D_t cut(g_{t-1}) + b_t)``,
whose derivative is that of the loop.  Without A, nothing is scanned the second time.

Refuses with ``Unchunkable`` a cut state in another semiring than that of numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tenfuse.algebra.chunks.summed import Unchunkable
from tenfuse.algebra.recurrence import Affine, Recurrence, Stage, Term
from tenfuse.step.program import AxisName, Builder, Input, Node, Pointwise, Ref


class Constants(Builder):
    """Adds to the nodes of another builder; no gradient enters the inputs that it makes."""

    def __init__(self, build: Builder) -> None:
        self.nodes, self.axes, self._index = build.nodes, build.axes, build._index

    def add(self, node: Node) -> Ref:
        ref = super().add(node)
        return super().add(Pointwise("cut", (ref,))) if isinstance(node, Input) else ref

    def rename(self, arg: Ref, names: Mapping[AxisName, AxisName]) -> Ref:
        """``arg`` under other names: an input stays what it is, cut or not."""
        node = self.nodes[arg]
        if isinstance(node, Input):
            return super().add(Input(node.kind, node.index, tuple(names.get(a, a) for a in node.axes)))
        if isinstance(node, Pointwise) and node.fn == "cut":
            return self.call("cut", self.rename(node.args[0], names))
        return super().rename(arg, names)


def detached(recurrence: Recurrence) -> bool:
    """Whether an update is linear in ``cut`` of a state of its own stage."""
    return any(_cut(recurrence, t) for s in recurrence.stages for u in s.updates for t in u.terms)


def values(recurrence: Recurrence) -> Recurrence:
    """The same values, cut states taken as states."""

    def plain(term: Term) -> Term:
        below = _below(recurrence, term)
        return term if below is None else dataclasses.replace(term, source=below)

    return _changed(recurrence, lambda _, u: Affine(tuple(map(plain, u.terms)), u.offset))


def apart(recurrence: Recurrence) -> Recurrence:
    """The recurrence that is left where cut states are given."""
    build = Builder()
    if [build.add(node) for node in recurrence.nodes] != list(range(len(recurrence.nodes))):
        raise ValueError("the nodes of a recurrence are not all different")

    def update(stage: Stage, value: Affine) -> Affine:
        fixed = [t for t in value.terms if _cut(recurrence, t)]
        if fixed and stage.semiring != "sum-product":
            raise Unchunkable("a gradient is cut in another semiring than sum and product")
        offset = value.offset
        for term in fixed:
            given = _spelled(build, term)
            offset = given if offset is None else build.call("add", offset, given)
        return Affine(tuple(t for t in value.terms if t not in fixed), offset)

    found = _changed(recurrence, update)
    return dataclasses.replace(found, nodes=tuple(build.nodes))


def _spelled(build: Builder, term: Term) -> Ref:
    """``u (w . S)``: what is not summed over stands outside of the sum."""
    inner = [f for f in term.factors if build.axes[f] & term.contracted]
    outer = [f for f in term.factors if f not in inner]
    found = term.source
    for f in inner:
        found = build.call("mul", f, found)
    found = build.contract(found, *term.contracted)
    for f in outer:
        found = build.call("mul", f, found)
    return found


def _cut(recurrence: Recurrence, term: Term) -> bool:
    return _below(recurrence, term) is not None


def _below(recurrence: Recurrence, term: Term) -> Ref | None:
    """The carry that a term reads through ``cut``."""
    node = recurrence.nodes[term.source]
    if not isinstance(node, Pointwise) or node.fn != "cut":
        return None
    below = recurrence.nodes[node.args[0]]
    return node.args[0] if isinstance(below, Input) and below.kind == "carry" else None


def _changed(recurrence: Recurrence, update: Callable[[Stage, Affine], Affine]) -> Recurrence:
    stages = tuple(
        dataclasses.replace(s, updates=tuple(update(s, u) for u in s.updates)) for s in recurrence.stages
    )
    return dataclasses.replace(recurrence, stages=stages)


__all__ = ["Constants", "apart", "detached", "values"]
