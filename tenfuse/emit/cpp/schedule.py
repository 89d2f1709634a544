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
from tenfuse.emit.cpp.preamble import cost
from tenfuse.emit.cpp.spaces import Spaces
from tenfuse.emit.cpp.sweeps import Work, best_axis, closure, find, price, unit_of, works
from tenfuse.plan.kernel import Kernel
from tenfuse.step.program import AxisName, Const, Contract, Input, Pointwise, Ref, StepProgram, arguments

HEAVY = 3
"""Operations above which a value computed by an earlier nest is kept, not computed again."""


@dataclasses.dataclass(frozen=True)
class Store:
    """Write ``ref`` over the local axes ``axes`` to ``target``.

    ``target`` is ("carry", i), ("out", i), ("sum", i) for accumulating outputs,
    ("scratch", ref) or ("copy", i).
    """

    ref: Ref
    axes: frozenset[AxisName]
    target: tuple[str, int]


@dataclasses.dataclass
class Nest:
    order: list[AxisName]
    x: AxisName | None
    unroll: dict[AxisName, int]
    reductions: list[Ref]
    stores: list[Store]
    kept: set[Ref] = dataclasses.field(default_factory=set)
    """Nodes read from scratch instead of computed here."""
    memory: set[Ref] = dataclasses.field(default_factory=set)
    """Contractions summed in scratch because a loop of theirs lies outside a kept one."""


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
        self.axes = [spaces.local(a) for a in program.axes_of()]
        self.sizes = {a: x.trips for a, x in spaces.axes.items()}
        self.stage = self._stages()
        self.turn = self._turns()
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

    def _stages(self) -> list[int]:
        """How many contractions lie below each node."""
        found: list[int] = []
        for node in self.program.nodes:
            below = max((found[a] for a in arguments(node)), default=0)
            found.append(below + 1 if isinstance(node, Contract) else below)
        return found

    def _turns(self) -> dict[Ref, int]:
        """At which stage each contraction is taken: its own, or a later one that sweeps the
        same axes anyway, if everything its own stage would sweep them for can wait."""
        live = self._live()
        turn = {
            i: self.stage[n.arg]
            for i, n in enumerate(self.program.nodes)
            if isinstance(n, Contract) and i in live
        }
        groups: dict[tuple[int, frozenset[AxisName]], list[Ref]] = {}
        for r, s in turn.items():
            groups.setdefault((s, self._space(r)), []).append(r)
        needs = self._needs(live)
        for (s, space), refs in sorted(groups.items(), key=lambda g: -g[0][0]):
            latest = min((turn[c] - 1 for r in refs for c in needs[r]), default=max(turn.values()))
            hosts = [t for (t, other), _ in groups.items() if other == space and s < t <= latest]
            if hosts and space:
                turn.update({r: min(hosts) for r in refs})
        return turn

    def _space(self, ref: Ref) -> frozenset[AxisName]:
        node = self.program.nodes[ref]
        assert isinstance(node, Contract)
        return self.axes[node.arg]

    def _needs(self, live: set[Ref]) -> dict[Ref, set[Ref]]:
        """For each contraction, those whose argument it is part of."""
        found: dict[Ref, set[Ref]] = {}
        below: list[set[Ref]] = []
        for i, node in enumerate(self.program.nodes):
            mine = set().union(*(below[a] for a in arguments(node)))
            if isinstance(node, Contract) and i in live:
                found[i] = set()
                for r in mine:
                    found[r].add(i)
                mine = {i}
            below.append(mine)
        return found

    # -- building -------------------------------------------------------------------

    def run(self) -> list[Nest]:
        nodes = self.program.nodes
        live = self._live()
        for stage in range(max(self.stage, default=0) + 1):
            groups: dict[tuple[AxisName, ...], list[Ref]] = {}
            for i, node in enumerate(nodes):
                if isinstance(node, Contract) and i in live and self.turn[i] == stage:
                    groups.setdefault(tuple(sorted(self.axes[node.arg])), []).append(i)
            for space, refs in groups.items():
                self.nests.append(self._nest(frozenset(space), refs, [self.contract_works[r] for r in refs]))
        for store, work in self._roots():
            self._place(store, work)
        i = 0
        while i < len(self.nests):
            back = self._resolve(i)
            i = i + 1 if back is None else back
        return self.nests

    def _live(self) -> set[Ref]:
        live = set(self.program.roots())
        for i in range(len(self.program.nodes) - 1, -1, -1):
            if i in live:
                live |= set(arguments(self.program.nodes[i]))
        return live

    def _roots(self) -> list[tuple[Store, Work]]:
        found = []
        for i, carry in enumerate(self.program.carries):
            found.append(Store(carry.next, self.spaces.local(carry.next_axes), ("carry", i)))
        for i, out in enumerate(self.program.outs):
            kind = "sum" if out.accumulate else "out"
            found.append(Store(out.ref, self.spaces.local(out.axes), (kind, i)))
        pairs = list(zip(found, self.root_works, strict=True))
        return sorted(pairs, key=lambda p: self.stage[p[0].ref])

    def _nest(self, space: frozenset[AxisName], refs: list[Ref], hints: list[Work]) -> Nest:
        """A nest over ``space`` finalising ``refs``: vector axis, loop order, unrolling."""
        local = frozenset(self.sizes)
        local = frozenset(a for a in local if self.spaces.axes[a].kind != "task")
        x = self._vector_axis(space, hints, local)
        kept_by_all = set(space)
        for r in refs:
            kept_by_all &= self.axes[r]
        outer = sorted(kept_by_all - {x}, key=self._rank)
        rest = sorted(space - kept_by_all - {x}, key=self._rank)
        middle = [x] if x else []
        x_first = x is not None and any(x in self.axes[r] and self.axes[r] != space for r in refs)
        whole = x is not None and self._fits(x)
        order = (
            [*middle, *outer, *rest] if whole else outer + middle + rest if x_first else outer + rest + middle
        )
        if x is not None and not whole and refs and x in kept_by_all and self.spaces.row in outer:
            # A block of the constant stays in the first-level cache while all rows pass over it.
            outer.remove(self.spaces.row)
            order = [*outer, x, self.spaces.row, *rest]
        nest = Nest(order, x, {}, refs, [])
        self._unroll(nest, refs)
        nest.memory = {r for r in refs if not self.in_registers(nest, r)}
        return nest

    def _fits(self, x: AxisName) -> bool:
        """Whether all entries along the vector axis fit in one register tile: values over
        that axis alone then stay in registers, and its loop can stand anywhere."""
        extent = self.spaces.axes[x].extent
        return isinstance(extent, int) and extent <= 4 * self.lanes

    def _rank(self, axis: AxisName) -> tuple[int, int]:
        return (0 if axis == self.spaces.row else 1, self.spaces.axes[axis].id)

    def _vector_axis(
        self, space: frozenset[AxisName], hints: list[Work], local: frozenset[AxisName]
    ) -> AxisName | None:
        if not space:
            return None
        options: dict[AxisName | None, float] = {}
        for x in [None, *sorted(space)]:
            options[x] = sum(price(w, local, x, self.sizes, self.lanes) for w in hints)
        return min(options, key=lambda a: (options[a], a is None, str(a)))

    def _unroll(self, nest: Nest, refs: list[Ref]) -> None:
        x = nest.x
        if x is None:
            return
        budget = 16 if self.isa.registers >= 32 else 8
        extent = self.spaces.axes[x].extent
        vectors = -(-extent // self.lanes) if isinstance(extent, int) else 64
        keeping = [r for r in refs if x in self.axes[r]]
        rows = [a for a in nest.order if a != x and all(a in self.axes[r] for r in refs)]
        row = rows[-1] if rows and refs and self._shares(nest, refs, rows[-1]) else None
        count = max(1, len(refs))
        most = 2 if not refs else max(1, min(4, budget // count))
        if row is not None and self.spaces.axes[row].capacity != 1:
            most = max(1, min(most, budget // (4 * count)))
        if (keeping and len(keeping) < len(refs) and vectors <= 8) or self._fits(x):
            most = vectors
        width = _parts(vectors, most)
        if width > 1:
            nest.unroll[x] = width
        count *= width
        if row is not None and count * 2 <= budget:
            most = min(budget // count, 8)
            trips = self.spaces.axes[row]
            most = min(most, trips.capacity) if isinstance(trips.capacity, int) else most
            most = _parts(trips.extent, most) if isinstance(trips.extent, int) else most
            if most > 1:
                nest.unroll[row] = most
                count *= most
        inner = nest.order[-1]
        across = [r for r in refs if x not in self.axes[r] and inner in self.axes[r]]
        if across and inner != x and inner not in nest.unroll and self.trivial(nest, x):
            # Rows taken together share one tree of additions across lanes.
            most = max(1, min(8 // width, self.lanes // len(across)))
            size = self.spaces.axes[inner].extent
            nest.unroll[inner] = _parts(size, most) if isinstance(size, int) else most
        if refs and inner != x and all(inner not in self.axes[r] for r in refs) and count * 2 <= budget // 2:
            size = self.spaces.axes[inner].extent
            if isinstance(size, int) and size % 2 == 0:
                nest.unroll[inner] = 2

    def _shares(self, nest: Nest, refs: list[Ref], row: AxisName) -> bool:
        """Whether unrolling ``row`` saves loads or overlaps horizontal sums."""
        if any(nest.x not in self.axes[r] for r in refs):
            return True
        for r in refs:
            node = self.program.nodes[r]
            assert isinstance(node, Contract)
            leaves, _ = closure(self.program, node.arg)
            if any(nest.x in self.axes[leaf] and row not in self.axes[leaf] for leaf in leaves):
                return True
        return False

    # -- questions about a nest -------------------------------------------------------

    def trivial(self, nest: Nest, axis: AxisName) -> bool:
        """Whether the loop over ``axis`` runs exactly once."""
        extent = self.spaces.axes[axis].extent
        if not isinstance(extent, int):
            return False
        return extent <= nest.unroll.get(axis, 1) * (self.lanes if axis == nest.x else 1)

    def level(self, nest: Nest, axes: frozenset[AxisName]) -> int:
        """How many loops must be open before a value over ``axes`` can be computed."""
        return max((nest.order.index(a) + 1 for a in axes), default=0)

    def in_registers(self, nest: Nest, ref: Ref) -> bool:
        """Whether no loop over a contracted axis lies outside one over a kept axis."""
        kept = self.axes[ref]
        outer = nest.order[: self.level(nest, kept)]
        return all(a in kept or self.trivial(nest, a) for a in outer)

    def scope_is(self, nest: Nest, level: int, axes: frozenset[AxisName]) -> bool:
        return all(a in axes or self.trivial(nest, a) for a in nest.order[:level])

    def _store_level(self, nest: Nest, store: Store) -> int | None:
        if not store.axes <= set(nest.order):
            return None
        level = self.level(nest, store.axes)
        return level if self.scope_is(nest, level, store.axes) else None

    def _available(self, i: int, ref: Ref, level: int, memo: dict[Ref, bool]) -> bool:
        """Whether nest ``i`` can compute ``ref`` at ``level`` from what is known by then."""
        if ref in memo:
            return memo[ref]
        nest, node = self.nests[i], self.program.nodes[ref]
        if isinstance(node, Contract):
            if ref in nest.reductions:
                fine = ref not in nest.memory and self.level(nest, self.axes[ref]) == level
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
            level = self._store_level(nest, store)
            if level is None or not self._vector_fits(nest, store, work):
                continue
            if self._available(i, store.ref, level, {}):
                nest.stores.append(store)
                return
        nest = self._nest(store.axes, [], [work])
        nest.stores.append(store)
        self.nests.append(nest)

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
            todo.append((node.arg, self.level(nest, self.axes[node.arg])))
        todo += [(s.ref, self.level(nest, s.axes)) for s in nest.stores]
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
        again = self._redundancy(nest, axes)
        if again <= 1 or again * (ops + loads) <= ops + loads + 1 + again:
            return None
        nest.kept.add(ref)
        for j in range(i):
            level = self._store_level(self.nests[j], Store(ref, axes, ("scratch", ref)))
            if level is not None and self._available(j, ref, level, {}) and not self._costly(j, axes):
                self._keep(j, ref)
                return j
        new = self._nest(axes, [], [self._scratch_work(ref)])
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
        level = self._store_level(nest, Store(ref, self.axes[ref], ("scratch", ref)))
        return level is not None and ref in self.computed(nest) and self._available(j, ref, level, {})

    def _depends_here(self, nest: Nest, ref: Ref) -> bool:
        """Whether ``ref`` needs a contraction that this nest itself finalises."""
        if ref in nest.kept:
            return False
        if ref in nest.reductions:
            return True
        node = self.program.nodes[ref]
        return isinstance(node, Pointwise) and any(self._depends_here(nest, a) for a in node.args)

    def _redundancy(self, nest: Nest, axes: frozenset[AxisName]) -> float:
        """How often the nest would compute each vector of a value over ``axes``."""
        level = self.level(nest, axes)
        again = 1.0
        for a in nest.order[:level]:
            if a not in axes and not self.trivial(nest, a):
                block = nest.unroll.get(a, 1) * (self.lanes if a == nest.x else 1)
                again *= max(1.0, self.spaces.axes[a].trips / block)
        if axes and nest.x is not None and nest.x not in axes:
            again *= min(self.lanes, max(self.sizes[a] for a in axes))
        return again

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


def _parts(count: int, most: int) -> int:
    """How many of ``count`` to take at once: a divisor of it if one is near ``most``."""
    if count <= most:
        return max(1, count)
    for part in range(most, most // 2, -1):
        if count % part == 0:
            return part
    return most


def reads_carry(program: StepProgram, refs: set[Ref], index: int) -> list[tuple[AxisName, ...]]:
    """The names under which ``refs`` read a carry."""
    inputs = (program.nodes[r] for r in sorted(refs))
    return [n.axes for n in inputs if isinstance(n, Input) and n.kind == "carry" and n.index == index]


__all__ = ["Const", "Nest", "Scheduler", "Store", "cost", "reads_carry"]
