"""What a low-rank update writes: its gate, the reads that it writes back, and what it adds.

Takes the update of one carry in normal form; leaves ``LowRank``: for
``S <- a S + sum_i u_i (w_i . S) + sum_j (product of factors)_j`` the nodes of a, of every
u_i and w_i, and of every product.  Terms that read the carry with the same w are one.
Refuses a coefficient that joins a contracted axis to the axis it produces (that is dense),
an axis of the carry read in another's place, and updates of several coupled carries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from tenfuse.algebra.lift import Lift, Read, Unchunkable, aligned_to
from tenfuse.algebra.recurrence import Stage
from tenfuse.algebra.response import Linear, apart
from tenfuse.step.program import AxisName, CarrySpec, Const, Contract, Node, Pointwise, Ref


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


@dataclasses.dataclass(frozen=True)
class Erase:
    """``u * sum over contracted of w * S``, both also over ``rank``, which is summed over;
    u and w are products."""

    u: tuple[Ref, ...]
    w: tuple[Ref, ...]
    contracted: frozenset[AxisName]
    rank: frozenset[AxisName] = frozenset()


@dataclasses.dataclass(frozen=True)
class LowRank:
    carry: int
    axes: tuple[AxisName, ...]
    """The carry's dimensions; its update's names."""
    gate: Ref | None
    """None is one."""
    erases: tuple[Erase, ...]
    writes: tuple[Write, ...]
    inflows: tuple[Inflow, ...] = ()


def lowrank(stage: Stage, carries: Sequence[CarrySpec], lift: Lift) -> LowRank:
    """The parts of a stage's only update, as nodes of ``lift``'s builder."""
    if len(stage.carries) != 1 or stage.semiring != "sum-product":
        raise Unchunkable("several carries are coupled, or in another semiring")
    j = stage.carries[0]
    axes = carries[j].next_axes
    update = stage.updates[0]
    form = lift.affine(dataclasses.replace(update, offset=None))
    if form.offset is not None:
        raise Unchunkable("the update reads a nonlinear function of the state")
    gates: list[Ref] = []
    erases: list[Erase] = []
    for read in form.reads:
        if (read.carry, read.after) != (j, False):
            raise Unchunkable("the update reads another carry")
        if _in_place(read, axes):
            gates.append(lift.sums.product(read.factors, read.bound))
        else:
            erases.append(_erase(read, axes, lift))
    gate = lift.sums.add(gates)
    same = lift.build.nodes[gate] == Const(1.0)
    offset = update.offset
    together = tuple(_together(erases, lift))
    mixed = together[0].contracted if together else frozenset[AxisName]()
    writes, inflows = ([], []) if offset is None else _writes(offset, lift, mixed)
    return LowRank(j, axes, None if same else gate, together, tuple(writes), tuple(inflows))


def _in_place(read: Read, axes: tuple[AxisName, ...]) -> bool:
    return read.names == axes and not read.bound & set(axes)


def _erase(read: Read, axes: tuple[AxisName, ...], lift: Lift) -> Erase:
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
    return Erase(tuple(outer), tuple(sorted(w.factors)), frozenset(produced), read.bound - summed)


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
    found: dict[tuple[tuple[Ref, ...], frozenset[AxisName]], list[tuple[Ref, ...]]] = {}
    for e in erases:
        found.setdefault((e.w, e.rank), []).append(e.u)
    contracted = erases[0].contracted if erases else frozenset()
    return [Erase(_sum(us, lift), w, contracted, rank) for (w, rank), us in found.items()]


def _sum(products: Sequence[tuple[Ref, ...]], lift: Lift) -> tuple[Ref, ...]:
    if len(products) == 1:
        return products[0]
    return (lift.sums.add(lift.sums.product(p) for p in products),)


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


def _writes(offset: Ref, lift: Lift, mixed: frozenset[AxisName]) -> tuple[list[Write], list[Inflow]]:
    """What the offset writes; ``mixed`` are the axes that the update sums the state over."""
    writes: list[Write] = []
    inflows: list[Inflow] = []
    for summand in separated(lift.nodes, lift.axes, offset):
        names: Mapping[AxisName, AxisName] = {a: lift.fresh(a) for a in sorted(summand.bound)}
        factors, linear = _linear(summand, lift)
        whole = [lift.build.const(summand.sign), *(lift.build.rename(f, names) for f in factors)]
        bound = frozenset(names.values())
        if linear.local is not None:
            writes.append(Write((*whole, lift.build.rename(linear.local, names)), bound))
        for one in linear.responses:
            r = apart(lift.sums, lift.fresh, one, {*mixed, *summand.bound})
            kept = r.bound
            inflows.append(Inflow((*whole, lift.build.rename(r.coefficient, names)), bound, r.start, kept))
    return writes, inflows


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


__all__ = ["Erase", "LowRank", "Write", "lowrank", "separated"]
