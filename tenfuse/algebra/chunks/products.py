"""Which stages of a recurrence run as products of what they read and write, and which together.

Takes a step and its normal form; leaves ``Group``s of stages in their order.  States that are
written by products of vectors and read by sums need not be spelled out in a chunk: what is
read of what was written is a product of matrices over the chunk's positions.

That holds for an update that sums over its state, and for one that decays in place where all
that is read of the state is summed over some of its axes, all that is written are products of
factors with fewer axes, and the gate does not join axes summed over to axes kept.  A later
stage that takes an earlier one's states in place (weights that take a momentum, an average of
weights) is then one recurrence with it: its gates are a triangular matrix over the carries.
Source: section 3.2 of Behrouz et al. 2024, "Titans: Learning to Memorize at Test Time", for
momentum as a second linear recurrence; the joint form is derived here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence

from tenfuse.algebra.chunks.writes import separated
from tenfuse.algebra.recurrence import BLOCK, Affine, Recurrence, Stage, Term
from tenfuse.step.program import (
    AxisName,
    Contract,
    Input,
    Pointwise,
    Ref,
    StepProgram,
    arguments,
    node_axes,
)

INPLACE = ("elementwise", "block")


@dataclasses.dataclass(frozen=True)
class Group:
    """Stages that run as one; ``products`` says that their states are not spelled out."""

    stages: tuple[Stage, ...]
    products: bool


class Products:
    def __init__(self, program: StepProgram, recurrence: Recurrence) -> None:
        self.program, self.recurrence, self.nodes = program, recurrence, recurrence.nodes
        self.axes: list[frozenset[AxisName]] = []
        for node in self.nodes:
            self.axes.append(node_axes(node, self.axes))

    def groups(self) -> tuple[Group, ...]:
        """The longest runs of stages that are one recurrence, and the others by themselves."""
        stages, found = self.recurrence.stages, list[Group]()
        while stages:
            run = next((n for n in range(len(stages), 1, -1) if self._one(stages[:n])), 1)
            found.append(Group(stages[:run], run > 1 or self.by_rank(stages[:1])))
            stages = stages[run:]
        return tuple(found)

    def by_rank(self, stages: Sequence[Stage]) -> bool:
        """Whether products of what is read and written cost less than the states themselves.

        Beside another state that is read and written so, a state that keeps no axis (a
        normaliser) goes with it, so that both have the same positions.
        """
        forms = {s.form for s in stages}
        if any(s.semiring != "sum-product" for s in stages) or not forms <= {*INPLACE, "low-rank"}:
            return False
        if forms == {"low-rank"} and len(stages) == 1:
            return True
        own, summed = self._names(stages), self._summed(stages)
        if any(self.program.carries[j].next_axes != own for s in stages for j in s.carries) or not summed:
            return False
        writes = [w for s in stages for u in s.updates for w in self._writes(u, stages)]
        if not writes:
            return False
        common = frozenset.intersection(*(self.axes[f] for w in writes for f in w))
        kept = set(own) - summed - common
        apart = all(len(w) > 1 for w in writes)
        beside = not kept and any(s.form == "low-rank" for s in self.recurrence.stages)
        gate = {a for t in self._gates(stages) for f in t.factors for a in self.axes[f]}
        return (apart or beside) and not (gate & summed and gate & kept)

    def gated(self, stage: Stage) -> bool:
        """Whether a gate of the stage differs along an axis that something sums over."""
        mixing = set(self.program.sizes) | set(self.recurrence.sizes)
        mixing -= self.program.parallel_axes()
        for j, update in zip(stage.carries, stage.updates, strict=True):
            names = self.program.carries[j].next_axes
            for term in update.terms:
                source = self.nodes[term.source]
                in_place = isinstance(source, Input) and source.axes == names
                if in_place and any(self.axes[f] & mixing & set(names) for f in term.factors):
                    return True
        return False

    def _gates(self, stages: Sequence[Stage]) -> list[Term]:
        return [t for s in stages for u in s.updates for t in u.terms if not t.contracted]

    # -- together -----------------------------------------------------------------------

    def _one(self, stages: tuple[Stage, ...]) -> bool:
        """Whether each of ``stages`` takes states of those before it in place, and all are products."""
        carries = [j for s in stages for j in s.carries]
        if len(carries) > BLOCK or any(self.gated(s) for s in stages):
            return False
        if any(
            self._reached(f) & {*carries}
            for s in stages
            for u in s.updates
            for t in u.terms
            for f in t.factors
        ):
            return False
        for k in range(1, len(stages)):
            crossing = [f for u in stages[k].updates for f in self._crossing(u, stages)]
            if not crossing or None in crossing:
                return False
        return self.by_rank(stages)

    def _crossing(self, update: Affine, stages: Sequence[Stage]) -> Iterator[Ref | None]:
        """The states of ``stages`` that an update adds: None for one that it does not take in place."""
        if update.offset is None:
            return
        carries = {j for s in stages for j in s.carries}
        for summand in separated(self.nodes, self.axes, update.offset, carries):
            reading = [f for f in summand.factors if self._reached(f) & carries]
            if reading:
                source = self.nodes[reading[0]]
                in_place = isinstance(source, Input) and source.axes == self._names(stages)
                alone = len(reading) == 1 and not summand.bound
                yield reading[0] if alone and in_place else None

    def _names(self, stages: Sequence[Stage]) -> tuple[AxisName, ...]:
        return self.program.carries[stages[0].carries[0]].next_axes

    def _writes(self, update: Affine, stages: Sequence[Stage]) -> list[tuple[Ref, ...]]:
        """The products that an update adds, without states of ``stages`` themselves."""
        if update.offset is None:
            return []
        carries = {j for s in stages for j in s.carries}
        found = separated(self.nodes, self.axes, update.offset, carries)
        return [w.factors for w in found if not any(self._reached(f) & carries for f in w.factors)]

    def _reached(self, ref: Ref) -> set[int]:
        """The carries that a node depends on."""
        return {
            n.index
            for n in (self.nodes[i] for i in self._below([ref]))
            if isinstance(n, Input) and n.kind in ("carry", "next")
        }

    def _below(self, roots: Collection[Ref]) -> set[Ref]:
        found = set(roots)
        for i in reversed(range(len(self.nodes))):
            if i in found:
                found |= set(arguments(self.nodes[i]))
        return found

    # -- what is read -------------------------------------------------------------------

    def _summed(self, stages: Sequence[Stage]) -> set[AxisName]:
        """The axes that every read of the stages' carries sums over; none where one is read otherwise.

        What their own updates take of each other in place is no read.
        """
        inside = {id(s) for s in stages}
        outer = [u for s in self.recurrence.stages if id(s) not in inside for u in s.updates]
        outer += self.recurrence.outs
        terms = [t for u in outer for t in u.terms]
        inner = [t for s in stages for u in s.updates for t in u.terms]
        roots = {f for t in (*terms, *inner) for f in t.factors} | {t.source for t in terms}
        roots |= {u.offset for u in outer if u.offset is not None}
        live = self._below(roots)
        carries = {j for s in stages for j in s.carries}
        found: list[set[AxisName]] = []
        for ref, node in enumerate(self.nodes):
            if isinstance(node, Input) and node.kind in ("carry", "next") and node.index in carries:
                sums = [t.contracted for t in terms if t.source == ref] + self._sums_over(ref, live)
                sums += [frozenset()] if any(u.offset == ref for u in outer) else []
                own = self.program.carries[node.index].next_axes
                pairs = tuple(zip(own, node.axes, strict=True))
                found += [{mine for mine, name in pairs if name in axes} for axes in sums]
        return set[AxisName].intersection(*found) if found else set()

    def _sums_over(self, ref: Ref, live: Collection[Ref]) -> list[frozenset[AxisName]]:
        """The axes that each node above ``ref`` sums its products over."""
        found: list[frozenset[AxisName]] = []
        for i, node in enumerate(self.nodes):
            if i not in live or ref not in arguments(node):
                continue
            if isinstance(node, Contract) and node.op == "sum":
                found.append(node.axes)
            elif isinstance(node, Pointwise) and node.fn == "mul":
                found += self._sums_over(i, live) or [frozenset()]
            else:
                found.append(frozenset())
        return found


__all__ = ["Group", "Products"]
