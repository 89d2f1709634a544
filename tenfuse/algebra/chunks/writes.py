"""What a low-rank update writes: its gates, the reads that it writes back, and what it adds.

Takes the updates of a stage in normal form, of one carry or of a few that read each other;
leaves ``LowRank``: for ``S_i <- sum_j a_ij S_j + sum_r u_ri (sum_j w_rj . S_j) + sum (product of
factors)`` the nodes of every a, u and w, and of every product.  Terms that read the same
carry with the same w are one.
Refuses a coefficient that joins a contracted axis to the axis it produces (that is dense),
an axis of the carry read in another's place, and carries of different dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from tenfuse.algebra.chunks.lift import Lift, Read, Unchunkable, aligned_to
from tenfuse.algebra.chunks.response import Linear, Response, apart
from tenfuse.algebra.recurrence import Affine, Stage
from tenfuse.step.program import AxisName, CarrySpec, Contract, Input, Node, Pointwise, Ref, multiplied


@dataclasses.dataclass(frozen=True)
class Write:
    """``sum over bound of the product of factors``, all over the chunk's positions."""

    factors: tuple[Ref, ...]
    bound: frozenset[AxisName] = frozenset()


@dataclasses.dataclass(frozen=True)
class Inflow:
    """``sum over kept of start * sum over bound of the product of factors``: the part of a write
    that is linear in ``start``, a carry of an earlier stage as it enters the chunk."""

    factors: tuple[Ref, ...]
    bound: frozenset[AxisName]
    start: Ref
    kept: frozenset[AxisName]


Product = tuple[Ref, ...]
"""Factors; of none, one."""


@dataclasses.dataclass(frozen=True)
class Erase:
    """``u_i * sum over contracted of sum_j w_j * S_j`` for every carry i, both also over ``rank``,
    which is summed over; None is zero."""

    u: tuple[Product | None, ...]
    w: tuple[Product | None, ...]
    contracted: frozenset[AxisName]
    rank: frozenset[AxisName] = frozenset()


@dataclasses.dataclass(frozen=True)
class LowRank:
    """``gates``, ``writes`` and ``inflows`` carry by carry; a gate that is None is zero."""

    carries: tuple[int, ...]
    axes: tuple[AxisName, ...]
    """The dimensions of the carries; names of the first one's update."""
    names: tuple[tuple[AxisName, ...], ...]
    """What each carry's own update calls them."""
    gates: tuple[tuple[Ref | None, ...], ...]
    erases: tuple[Erase, ...]
    writes: tuple[tuple[Write, ...], ...]
    inflows: tuple[tuple[Inflow, ...], ...]


def lowrank(stages: Sequence[Stage], carries: Sequence[CarrySpec], lift: Lift) -> LowRank:
    """The parts of the updates of ``stages``, as nodes of ``lift``'s builder.

    A later stage takes states of an earlier one in place or not at all.
    """
    if any(s.semiring != "sum-product" for s in stages):
        raise Unchunkable("the update is in another semiring")
    specs = [carries[j] for s in stages for j in s.carries]
    axes = specs[0].next_axes
    if any([lift.sizes[a] for a in s.next_axes] != [lift.sizes[a] for a in axes] for s in specs):
        raise Unchunkable("coupled carries have different axes")
    return _Parts(stages, specs, lift).run()


class _Parts:
    """What has been found of the updates, in their order."""

    def __init__(self, stages: Sequence[Stage], specs: Sequence[CarrySpec], lift: Lift) -> None:
        self.stages, self.lift, self.build, self.sums = stages, lift, lift.build, lift.sums
        self.carries = tuple(j for s in stages for j in s.carries)
        self.axes, self.own = specs[0].next_axes, tuple(s.next_axes for s in specs)
        members = range(len(specs))
        self.gates: list[list[list[Ref]]] = [[[] for _ in members] for _ in members]
        self.erases: list[Erase] = []
        self.writes: list[list[Write]] = [[] for _ in members]
        self.inflows: list[list[Inflow]] = [[] for _ in members]

    def run(self) -> LowRank:
        updates = [(s, u) for s in self.stages for u in s.updates]
        for i, (stage, update) in enumerate(updates):
            self._reads(i, stage, update)
        mixed = self.erases[0].contracted if self.erases else frozenset[AxisName]()
        for i, (_, update) in enumerate(updates):
            self._adds(i, update.offset, mixed)
        return LowRank(
            self.carries, self.axes, self.own,
            tuple(tuple(self.sums.add(g) if g else None for g in line) for line in self.gates),
            tuple(_together(self.erases, self.lift)),
            tuple(map(tuple, self.writes)), tuple(map(tuple, self.inflows)),
        )  # fmt: skip

    def _names(self, i: int) -> dict[AxisName, AxisName]:
        """From the names of carry ``i``'s own update to the common ones."""
        return dict(zip(self.own[i], self.axes, strict=True))

    def _reads(self, i: int, stage: Stage, update: Affine) -> None:
        """What the update of carry ``i`` reads of its own stage."""
        form = self.lift.affine(dataclasses.replace(update, offset=None))
        if form.offset is not None:
            raise Unchunkable("the update reads a nonlinear function of the state")
        if any(r.carry not in stage.carries or r.after for r in form.reads):
            raise Unchunkable("the update reads another carry")
        names = self._names(i)
        for r in form.reads:
            read = dataclasses.replace(
                r,
                names=tuple(a if a in r.bound else names.get(a, a) for a in r.names),
                factors=tuple(self.build.rename(f, names) for f in r.factors),
            )
            if _in_place(read, self.axes):
                gate = self.sums.product(read.factors, read.bound)
                self.gates[i][self.carries.index(read.carry)].append(gate)
            else:
                self.erases.append(_erase(read, self.carries, i, self.axes, self.lift))

    def _adds(self, i: int, offset: Ref | None, mixed: frozenset[AxisName]) -> None:
        """What the update of carry ``i`` adds; ``mixed`` are the axes that updates sum the states over."""
        lift, names = self.lift, self._names(i)
        for summand in [] if offset is None else separated(lift.nodes, lift.axes, offset, self.carries):
            if (state := taken(lift.nodes, summand, self.carries)) is not None:
                self._takes(i, summand, state)
                continue
            sums = {a: lift.fresh(a) for a in sorted(summand.bound)}
            every, bound = {**names, **sums}, frozenset(sums.values())
            factors, linear = _linear(summand, lift)
            whole = [self.build.const(summand.sign), *(self.build.rename(f, every) for f in factors)]
            if linear.local is not None:
                self.writes[i].append(Write((*whole, self.build.rename(linear.local, every)), bound))
            for one in linear.responses:
                r = apart(lift.sums, lift.fresh, _renamed(one, names, lift), {*mixed, *summand.bound})
                coefficient = self.build.rename(r.coefficient, sums)
                self.inflows[i].append(Inflow((*whole, coefficient), bound, r.start, r.bound))

    def _takes(self, i: int, summand: Summand, state: Ref) -> None:
        """Carry ``i`` takes of another in place: of its state before the step, or of all that made the
        one after it."""
        source = self.lift.nodes[state]
        assert isinstance(source, Input)
        rest = [f for f in summand.factors if f != state]
        if source.axes != self.own[i] or summand.bound or len(rest) + 1 < len(summand.factors):
            raise Unchunkable("the update permutes dimensions of another carry, or multiplies it by itself")
        j, names = self.carries.index(source.index), self._names(i)
        factors = [self.build.rename(self.lift.value(f), names) for f in rest]
        scale = self.sums.product([self.build.const(summand.sign), *factors])
        if source.kind == "carry":
            self.gates[i][j].append(scale)
            return
        for own, gates in zip(self.gates[i], self.gates[j], strict=True):
            own += [self.sums.product([scale, g]) for g in gates]
        self.writes[i] += [dataclasses.replace(w, factors=(scale, *w.factors)) for w in self.writes[j]]
        self.inflows[i] += [dataclasses.replace(f, factors=(scale, *f.factors)) for f in self.inflows[j]]
        for e in list(self.erases):
            if (u := e.u[j]) is not None:
                only = tuple((scale, *u) if k == i else None for k in range(len(self.carries)))
                self.erases.append(dataclasses.replace(e, u=only))


def _in_place(read: Read, axes: tuple[AxisName, ...]) -> bool:
    return read.names == axes and not read.bound & set(axes)


def _erase(read: Read, carries: tuple[int, ...], i: int, axes: tuple[AxisName, ...], lift: Lift) -> Erase:
    places = list(zip(axes, read.names, strict=True))
    summed = {name for name in read.names if name in read.bound}
    if any(own != name for own, name in places if name not in summed) or len(set(read.names)) < len(axes):
        raise Unchunkable("the update permutes dimensions of its carry")
    produced = {own for own, name in places if name in summed}
    inner: list[Ref] = []
    outer: list[Ref] = []
    for factor in _split(read.factors, lift):
        own = lift.build.axes[factor]
        if own & summed and own & produced:
            raise Unchunkable("a coefficient joins the axis it sums over to the one it produces")
        (inner if own & summed else outer).append(factor)
    w, _ = aligned_to(lift.build, dataclasses.replace(read, factors=tuple(inner)), axes, lift.fresh)
    rank = read.bound - summed
    u = tuple(tuple(outer) if k == i else None for k in range(len(carries)))
    mine = tuple(tuple(sorted(w.factors)) if j == read.carry else None for j in carries)
    return Erase(u, mine, frozenset(produced), rank)


def _split(factors: Sequence[Ref], lift: Lift) -> list[Ref]:
    """Products among the factors taken apart."""
    found: list[Ref] = []
    for factor in factors:
        node = lift.build.nodes[factor]
        if isinstance(node, Pointwise) and node.fn == "mul":
            found += _split(node.args, lift)
        elif isinstance(node, Pointwise) and node.fn == "neg":
            found += [lift.build.const(-1.0), *_split(node.args, lift)]
        else:
            found.append(factor)
    return found


def _together(erases: Sequence[Erase], lift: Lift) -> list[Erase]:
    """Those with the same w: one, with the sum of their u."""
    if len({e.contracted for e in erases}) > 1:
        raise Unchunkable("the update reads its carry over different axes")
    found: dict[tuple[tuple[Product | None, ...], frozenset[AxisName]], list[Erase]] = {}
    for e in erases:
        found.setdefault((e.w, e.rank), []).append(e)
    sums = [tuple(_sum(us, lift) for us in zip(*(e.u for e in same), strict=True)) for same in found.values()]
    return [dataclasses.replace(same[0], u=u) for same, u in zip(found.values(), sums, strict=True)]


def _sum(products: Sequence[Product | None], lift: Lift) -> Product | None:
    real = [p for p in products if p is not None]
    if len(real) < 2:
        return real[0] if real else None
    return (lift.sums.add(lift.sums.product(p) for p in real),)


@dataclasses.dataclass(frozen=True)
class Summand:
    """``sign * sum over bound of the product of factors``, nodes of the step."""

    sign: float
    factors: tuple[Ref, ...]
    bound: frozenset[AxisName] = frozenset()


def separated(
    nodes: Sequence[Node], axes: Sequence[frozenset[AxisName]], offset: Ref, carries: Collection[int] = ()
) -> list[Summand]:
    """The offset's summands, each a product of factors with fewer axes; one where none is.

    A product with a factor that is the state of one of ``carries`` is taken apart in any case.
    """
    found = [_factored(nodes, axes, ref, sign, carries) for ref, sign in _summands(nodes, offset, 1.0)]
    apart = any(len(s.factors) > 1 or taken(nodes, s, carries) is not None for s in found)
    return found if apart else [Summand(1.0, (offset,))]


def taken(nodes: Sequence[Node], summand: Summand, carries: Collection[int]) -> Ref | None:
    """The factor that is the state of one of ``carries`` itself."""
    for f in summand.factors:
        node = nodes[f]
        if isinstance(node, Input) and node.kind in ("carry", "next") and node.index in carries:
            return f
    return None


def _summands(nodes: Sequence[Node], ref: Ref, sign: float) -> list[tuple[Ref, float]]:
    node = nodes[ref]
    if isinstance(node, Pointwise) and node.fn in ("add", "sub"):
        left, right = node.args
        other = sign if node.fn == "add" else -sign
        return [*_summands(nodes, left, sign), *_summands(nodes, right, other)]
    if isinstance(node, Pointwise) and node.fn == "neg":
        return _summands(nodes, node.args[0], -sign)
    return [(ref, sign)]


def _factored(
    nodes: Sequence[Node],
    axes: Sequence[frozenset[AxisName]],
    ref: Ref,
    sign: float,
    carries: Collection[int],
) -> Summand:
    node, inner, bound = nodes[ref], ref, frozenset[AxisName]()
    if isinstance(node, Contract) and node.op == "sum":
        inner, bound = node.arg, node.axes
    factors = multiplied(nodes, inner)
    if taken(nodes, whole := Summand(sign, tuple(factors), bound), carries) is not None:
        return whole
    if any(axes[f] - bound >= axes[ref] for f in factors):
        return Summand(sign, (ref,))
    return whole


def _renamed(response: Response, names: Mapping[AxisName, AxisName], lift: Lift) -> Response:
    coefficient, start = (lift.build.rename(r, names) for r in (response.coefficient, response.start))
    return Response(coefficient, start, frozenset(names.get(a, a) for a in response.bound))


def _linear(summand: Summand, lift: Lift) -> tuple[list[Ref], Linear]:
    """The factors of a product, one of them linear in earlier states: the last one that is."""
    parts = [(f, lift.linear(f)) for f in summand.factors]
    found = [f for f, linear in parts if linear.responses]
    chosen = found[0] if len(found) == 1 else summand.factors[-1]
    rest = [lift.value(f) for f in summand.factors if f != chosen]
    rest += [lift.value(chosen)] * (summand.factors.count(chosen) - 1)
    if len(found) != 1 or summand.factors.count(chosen) > 1 or any(lift.sums.stateful(f) for f in rest):
        return rest, Linear(lift.value(chosen))
    return rest, dict(parts)[chosen]


__all__ = ["Erase", "Inflow", "LowRank", "Product", "Write", "lowrank", "separated", "taken"]
