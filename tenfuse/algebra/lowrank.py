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
from collections.abc import Mapping, Sequence

from tenfuse.algebra.lift import Lift, Read, Unchunkable, aligned_to
from tenfuse.algebra.recurrence import Stage
from tenfuse.algebra.response import Linear, Response, apart
from tenfuse.step.program import AxisName, CarrySpec, Contract, Node, Pointwise, Ref


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


def lowrank(stage: Stage, carries: Sequence[CarrySpec], lift: Lift) -> LowRank:
    """The parts of a stage's updates, as nodes of ``lift``'s builder."""
    if stage.semiring != "sum-product":
        raise Unchunkable("the update is in another semiring")
    specs = [carries[j] for j in stage.carries]
    axes = specs[0].next_axes
    if any([lift.sizes[a] for a in s.next_axes] != [lift.sizes[a] for a in axes] for s in specs):
        raise Unchunkable("coupled carries have different axes")
    names = [dict(zip(s.next_axes, axes, strict=True)) for s in specs]
    gates, erases = [], list[Erase]()
    for i in range(len(specs)):
        reads = _reads(stage, i, names[i], lift)
        gates.append(tuple(_gate([r for r in reads if r.carry == j], axes, lift) for j in stage.carries))
        erases += [_erase(r, stage, i, axes, lift) for r in reads if not _in_place(r, axes)]
    together = tuple(_together(erases, lift))
    mixed = together[0].contracted if together else frozenset[AxisName]()
    adds = [_adds(stage.updates[i].offset, names[i], lift, mixed) for i in range(len(specs))]
    writes, inflows = zip(*adds, strict=True)
    own = tuple(s.next_axes for s in specs)
    return LowRank(stage.carries, axes, own, tuple(gates), together, writes, inflows)


def _reads(stage: Stage, i: int, names: Mapping[AxisName, AxisName], lift: Lift) -> list[Read]:
    """What the update of the stage's carry ``i`` reads, over the common names."""
    form = lift.affine(dataclasses.replace(stage.updates[i], offset=None))
    if form.offset is not None:
        raise Unchunkable("the update reads a nonlinear function of the state")
    if any(r.carry not in stage.carries or r.after for r in form.reads):
        raise Unchunkable("the update reads another carry")
    return [
        dataclasses.replace(
            r,
            names=tuple(a if a in r.bound else names.get(a, a) for a in r.names),
            factors=tuple(lift.build.rename(f, names) for f in r.factors),
        )
        for r in form.reads
    ]


def _gate(reads: Sequence[Read], axes: tuple[AxisName, ...], lift: Lift) -> Ref | None:
    """What an update takes of one carry in place."""
    own = [lift.sums.product(r.factors, r.bound) for r in reads if _in_place(r, axes)]
    return lift.sums.add(own) if own else None


def _in_place(read: Read, axes: tuple[AxisName, ...]) -> bool:
    return read.names == axes and not read.bound & set(axes)


def _erase(read: Read, stage: Stage, i: int, axes: tuple[AxisName, ...], lift: Lift) -> Erase:
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
    u = tuple(tuple(outer) if k == i else None for k in range(len(stage.carries)))
    mine = tuple(tuple(sorted(w.factors)) if j == read.carry else None for j in stage.carries)
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


def separated(nodes: Sequence[Node], axes: Sequence[frozenset[AxisName]], offset: Ref) -> list[Summand]:
    """The offset's summands, each a product of factors with fewer axes; one where none is."""
    found = [_factored(nodes, axes, ref, sign) for ref, sign in _summands(nodes, offset, 1.0)]
    return found if any(len(s.factors) > 1 for s in found) else [Summand(1.0, (offset,))]


def _summands(nodes: Sequence[Node], ref: Ref, sign: float) -> list[tuple[Ref, float]]:
    node = nodes[ref]
    if isinstance(node, Pointwise) and node.fn in ("add", "sub"):
        left, right = node.args
        other = sign if node.fn == "add" else -sign
        return [*_summands(nodes, left, sign), *_summands(nodes, right, other)]
    if isinstance(node, Pointwise) and node.fn == "neg":
        return _summands(nodes, node.args[0], -sign)
    return [(ref, sign)]


def _factored(nodes: Sequence[Node], axes: Sequence[frozenset[AxisName]], ref: Ref, sign: float) -> Summand:
    node, inner, bound = nodes[ref], ref, frozenset[AxisName]()
    if isinstance(node, Contract) and node.op == "sum":
        inner, bound = node.arg, node.axes
    factors = _multiplied(nodes, inner)
    if any(axes[f] - bound >= axes[ref] for f in factors):
        return Summand(sign, (ref,))
    return Summand(sign, tuple(factors), bound)


def _multiplied(nodes: Sequence[Node], ref: Ref) -> list[Ref]:
    node = nodes[ref]
    if isinstance(node, Pointwise) and node.fn == "mul":
        return [f for a in node.args for f in _multiplied(nodes, a)]
    return [ref]


def _adds(
    offset: Ref | None, names: Mapping[AxisName, AxisName], lift: Lift, mixed: frozenset[AxisName]
) -> tuple[tuple[Write, ...], tuple[Inflow, ...]]:
    """What an offset writes, over the common names; ``mixed`` are the axes that the updates sum the
    states over."""
    writes: list[Write] = []
    inflows: list[Inflow] = []
    for summand in [] if offset is None else separated(lift.nodes, lift.axes, offset):
        sums = {a: lift.fresh(a) for a in sorted(summand.bound)}
        bound = frozenset(sums.values())
        factors, linear = _linear(summand, lift)
        whole = [lift.build.const(summand.sign), *(lift.build.rename(f, {**names, **sums}) for f in factors)]
        if linear.local is not None:
            writes.append(Write((*whole, lift.build.rename(linear.local, {**names, **sums})), bound))
        for one in linear.responses:
            r = apart(lift.sums, lift.fresh, _renamed(one, names, lift), {*mixed, *summand.bound})
            inflows.append(Inflow((*whole, lift.build.rename(r.coefficient, sums)), bound, r.start, r.bound))
    return tuple(writes), tuple(inflows)


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


__all__ = ["Erase", "Inflow", "LowRank", "Product", "Write", "lowrank", "separated"]
