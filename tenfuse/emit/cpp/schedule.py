"""One step as a short list of loop nests.

Takes a ``StepProgram``, its ``Spaces`` and where the unit dimension of every state lies;
leaves ``Nest``s in order of execution.  A nest sweeps one iteration space; every
contraction and pointwise value that can live in it does.  Values that cross nests are
stored in scratch when computing them again would cost more.
"""

from __future__ import annotations

import dataclasses
import math

from tenfuse.emit.cpp.isa import Isa
from tenfuse.emit.cpp.shape import Nest, Shapes, Store
from tenfuse.emit.cpp.spaces import Spaces
from tenfuse.emit.cpp.sweeps import Work, best_axis, closure, find, price, unit_of, works
from tenfuse.emit.cpp.turns import alive, stages, turns
from tenfuse.plan.kernel import Kernel
from tenfuse.step.program import AxisName, Contract, Input, Pointwise, Ref, StepProgram, arguments
from tenfuse.step.whole import whole_nodes

HEAVY = 3
"""Operations above which a value computed by an earlier nest is kept, not computed again."""


class Scheduler:
    """Builds the nests of one program."""

    def __init__(
        self,
        kernel: Kernel,
        program: StepProgram,
        spaces: Spaces,
        isa: Isa,
        last: dict[int, int],
        states: dict[int, int],
    ) -> None:
        self.kernel, self.program, self.spaces, self.isa = kernel, program, spaces, isa
        self.lanes = isa.lanes(kernel.compute)
        self.last, self.states = last, states
        self.shapes = Shapes(program, spaces, self.lanes, isa.registers)
        self.axes, self.sizes = self.shapes.axes, self.shapes.sizes
        self.whole = whole_nodes(program)
        self.stage, self.turn = stages(program), turns(program, self.axes)
        self.nests: list[Nest] = []
        self.contract_works = {
            r: w
            for r, w in zip(
                (i for i, n in enumerate(program.nodes) if isinstance(n, Contract)),
                works(kernel, program, last, states),
                strict=False,
            )
        }
        self.root_works = works(kernel, program, last, states)[len(self.contract_works) :]

    # -- building -------------------------------------------------------------------

    def run(self) -> list[Nest]:
        nodes = self.program.nodes
        live = alive(self.program)
        for stage in range(max(self.stage, default=0) + 1):
            groups: dict[tuple[AxisName, ...], list[Ref]] = {}
            for i, node in enumerate(nodes):
                if isinstance(node, Contract) and i in live and self.turn[i] == stage:
                    groups.setdefault(tuple(sorted(self.axes[node.arg])), []).append(i)
            for space, refs in groups.items():
                self.nests.append(self.shapes.nest(frozenset(space), refs, [self._work(r) for r in refs]))
        for store, work in self._roots():
            self._place(store, work)
        i = 0
        while i < len(self.nests):
            back = self._resolve(i)
            i = i + 1 if back is None else back
        return self.nests

    def _work(self, ref: Ref) -> Work:
        """The sweep of a contraction; sums that it reads lie along the vector axis of their nests."""
        work, node = self.contract_works[ref], self.program.nodes[ref]
        assert isinstance(node, Contract)
        leaves = sorted(closure(self.program, node.arg)[0])
        homes = {r: n.x for n in self.nests for r in n.reductions if n.x in self.axes[r]}
        loads = ((axes, homes.get(leaf, unit)) for leaf, (axes, unit) in zip(leaves, work.loads, strict=True))
        return dataclasses.replace(work, loads=tuple(loads))

    def _roots(self) -> list[tuple[Store, Work]]:
        found = []
        for i, carry in enumerate(self.program.carries):
            found.append(Store(carry.next, self.spaces.local(carry.next_axes), ("carry", i)))
        for i, out in enumerate(self.program.outs):
            kind = "sum" if out.accumulate else "out"
            found.append(Store(out.ref, self.spaces.local(out.axes), (kind, i)))
        pairs = list(zip(found, self.root_works, strict=True))
        return sorted(pairs, key=lambda p: self.stage[p[0].ref])

    def _available(self, i: int, ref: Ref, level: int, memo: dict[Ref, bool]) -> bool:
        """Whether nest ``i`` can compute ``ref`` at ``level`` from what is known by then."""
        if ref in memo:
            return memo[ref]
        nest, node = self.nests[i], self.program.nodes[ref]
        if isinstance(node, Contract):
            if ref in nest.reductions:
                fine = ref not in nest.memory and nest.level(self.axes[ref]) == level
            else:
                fine = any(ref in n.reductions for n in self.nests[:i])
        else:
            fine = all(self._available(i, a, level, memo) for a in arguments(node))
        memo[ref] = fine
        return fine

    # -- placing ----------------------------------------------------------------------

    def _place(self, store: Store, work: Work) -> None:
        """Into the first nest that has the scope and the values; else into a new one."""
        for i, nest in enumerate(self.nests):
            level = self.shapes.store_level(nest, store)
            if level is None or not self._vector_fits(nest, store, work) or self._full(nest, store):
                continue
            if self._available(i, store.ref, level, {}):
                nest.stores.append(store)
                return
        nest = self.shapes.nest(store.axes, [], [work])
        nest.stores.append(store)
        self.nests.append(nest)

    def _full(self, nest: Nest, store: Store) -> bool:
        """Whether the sums of a nest take the registers that computing the store from them would need."""
        tile = len(nest.reductions) * math.prod(nest.unroll.get(a, 1) for a in nest.order)
        return tile >= 8 and store.ref not in nest.reductions and self._depends_here(nest, store.ref)

    def _vector_fits(self, nest: Nest, store: Store, work: Work) -> bool:
        """Whether the nest's vector axis suits the store as well as its own choice would."""
        local = frozenset(a for a, v in self.spaces.axes.items() if v.kind != "task")
        if not store.axes:
            return True
        best = best_axis(dataclasses.replace(work, axes=store.axes), local, self.sizes, self.lanes)[0]
        here = price(dataclasses.replace(work, axes=store.axes), local, nest.x, self.sizes, self.lanes)
        volume = math.prod(self.sizes[a] for a in nest.order)
        return here <= 2 * best or here * 4 <= volume / self.lanes

    def _resolve(self, i: int) -> int | None:
        """Decide what nest ``i`` reads from scratch; the index to continue from if that
        changed an earlier nest."""
        nest = self.nests[i]
        todo: list[tuple[Ref, int]] = []
        for r in nest.reductions:
            node = self.program.nodes[r]
            assert isinstance(node, Contract)
            todo.append((node.arg, nest.level(self.axes[node.arg])))
        todo += [(s.ref, nest.level(s.axes)) for s in nest.stores]
        seen: set[Ref] = set()
        while todo:
            ref, _ = todo.pop()
            if ref in seen or ref in nest.kept:
                continue
            seen.add(ref)
            node = self.program.nodes[ref]
            if isinstance(node, Contract):
                if ref in nest.reductions:
                    continue
                home = next(j for j, n in enumerate(self.nests) if ref in n.reductions)
                assert home < i, "a contraction is read before it is computed"
                nest.kept.add(ref)
                self._keep(home, ref)
                continue
            if isinstance(node, Pointwise):
                back = self._materialise(i, ref)
                if back is not None:
                    return back
                if ref in nest.kept:
                    continue
            todo += [(a, 0) for a in arguments(node)]
        return None

    def _keep(self, home: int, ref: Ref) -> None:
        """Store ``ref`` to scratch in nest ``home``, once."""
        nest = self.nests[home]
        if ref not in nest.memory and not any(s.target == ("scratch", ref) for s in nest.stores):
            nest.stores.append(Store(ref, self.axes[ref], ("scratch", ref)))

    def _materialise(self, i: int, ref: Ref) -> int | None:
        """Put pointwise ``ref`` in scratch for nest ``i`` if that is cheaper."""
        nest, axes = self.nests[i], self.axes[ref]
        home = next((j for j in range(i) if self._holds(j, ref)), None)
        leaves, ops = closure(self.program, ref, frozenset(nest.kept))
        if self._depends_here(nest, ref) or any(s.target == ("scratch", ref) for s in nest.stores):
            return None
        if home is not None:
            if ops > HEAVY:
                nest.kept.add(ref)
                self._keep(home, ref)
            return None
        loads = sum(1 for leaf in leaves if self.axes[leaf])
        again = self.shapes.redundancy(nest, axes)
        if again <= 1 or again * (ops + loads) <= ops + loads + 1 + again:
            return None
        nest.kept.add(ref)
        for j in range(i):
            level = self.shapes.store_level(self.nests[j], Store(ref, axes, ("scratch", ref)))
            if level is not None and self._available(j, ref, level, {}) and not self._costly(j, axes):
                self._keep(j, ref)
                return j
        new = self.shapes.nest(axes, [], [self._scratch_work(ref)])
        new.stores.append(Store(ref, axes, ("scratch", ref)))
        self.nests.insert(i, new)
        return i

    def _costly(self, j: int, axes: frozenset[AxisName]) -> bool:
        """Whether nest ``j`` would compute a value over ``axes`` lane by lane."""
        return bool(axes) and self.nests[j].x not in axes

    def _scratch_work(self, ref: Ref) -> Work:
        leaves, ops = closure(self.program, ref)
        loads = tuple((self.axes[leaf], self._unit(leaf)) for leaf in sorted(leaves))
        return Work(self.axes[ref], loads, ops, frozenset(), tuple(sorted(self.axes[ref])), "*")

    def _unit(self, ref: Ref) -> AxisName | None:
        node = self.program.nodes[ref]
        if not isinstance(node, Input) or node.kind == "invariant":
            return "*"
        if node.kind in ("stream", "ahead"):
            operand = find(self.kernel, "stream", node.index)
            return unit_of(operand, node.axes) if operand else None
        where = (self.last if node.kind == "carry" else self.states).get(node.index, -1)
        return node.axes[where] if node.axes else None

    def _holds(self, j: int, ref: Ref) -> bool:
        """Whether nest ``j`` computes ``ref`` anyway, in a scope fit for storing it."""
        nest = self.nests[j]
        level = self.shapes.store_level(nest, Store(ref, self.axes[ref], ("scratch", ref)))
        return level is not None and ref in self.computed(nest) and self._available(j, ref, level, {})

    def _depends_here(self, nest: Nest, ref: Ref) -> bool:
        """Whether ``ref`` needs a contraction that this nest itself finalises."""
        seen, todo = set(nest.kept), [ref]
        while todo:
            ref = todo.pop()
            if ref in seen:
                continue
            if ref in nest.reductions:
                return True
            seen.add(ref)
            node = self.program.nodes[ref]
            if isinstance(node, Pointwise):
                todo += node.args
        return False

    def computed(self, nest: Nest) -> set[Ref]:
        """Every node whose value the nest holds at some point."""
        found: set[Ref] = set()
        todo = [self.program.nodes[r].arg for r in nest.reductions]  # type: ignore[union-attr]
        todo += [s.ref for s in nest.stores]
        while todo:
            ref = todo.pop()
            if ref in found:
                continue
            found.add(ref)
            node = self.program.nodes[ref]
            if ref not in nest.kept and isinstance(node, Pointwise):
                todo += node.args
        return found | set(nest.reductions)


def reads_carry(program: StepProgram, refs: set[Ref], index: int) -> list[tuple[AxisName, ...]]:
    """The names under which ``refs`` read a carry."""
    inputs = (program.nodes[r] for r in sorted(refs))
    return [n.axes for n in inputs if isinstance(n, Input) and n.kind == "carry" and n.index == index]


__all__ = ["Scheduler", "reads_carry"]
