"""Decays of a whole state, multiplied to one number in its place.

Takes a ``StepProgram``; leaves one that holds a carry S, where its update multiplies all of it
by the same number, as H and a number g with S = g H:

    S <- a S + k u^T          becomes          g <- a g,   H <- H + k (u / g)^T

so that a step has one product less for every entry of the state.  Sums over S are g times
those over H; ``simplify`` moves g to where it is multiplied least.

g stays within 1 and ``MOST``.  H is never larger than S, so that nothing overflows that S
would not, and entries below the smallest normal number times ``MOST`` alone lose digits.
Where a step takes g out of these bounds (many decays together, a decay of 0, growth, NaN), H is
multiplied: by a factor that is one in the other steps, in which the multiplication is left out
(``units``).  A carry is left as it is where that does not save products.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import TypeGuard

from tenfuse.emit.cpp.simplify import simplify
from tenfuse.step.program import (
    AxisName,
    Builder,
    CarrySpec,
    Const,
    Contract,
    Input,
    Node,
    Pointwise,
    Ref,
    StepProgram,
    arguments,
    compares,
    multiplied,
    prune,
    with_arguments,
)

MOST = 256.0
"""A power of two: dividing by it is exact."""
FEW = 2048
"""How many times fewer entries a decay must have than its state, or its own arithmetic costs more."""


@dataclasses.dataclass(frozen=True)
class Deferred:
    """``scales`` are the numbers' carries by those of the states that they belong to."""

    program: StepProgram
    scales: Mapping[int, int]


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A value as ``factor`` times ``held``; ``bounded`` where the factor is within 1 and ``MOST``."""

    factor: Ref
    held: Ref
    bounded: bool


def deferred(program: StepProgram) -> Deferred:
    """``program`` with every carry held with a number where that saves products."""
    found = Deferred(program, {})
    for i in range(len(program.carries)):
        found = _one(found, i) or found
    return found


def together(main: StepProgram, again: StepProgram | None) -> tuple[Deferred, Deferred | None]:
    """The same for a kernel's program and the one it recomputes, whose states the first reads."""
    if compares(main) or (again is not None and compares(again)):
        return Deferred(main, {}), Deferred(again, {}) if again is not None else None
    if again is None:
        return deferred(main), None
    states = deferred(again)
    if states.scales and (reading := _reading(main, states)):
        found = deferred(simplify(reading))
        if _products(found.program) + _products(states.program) < _products(main) + _products(again):
            return found, states
    return deferred(main), Deferred(again, {})


def units(program: StepProgram, refs: Iterable[Ref]) -> set[Ref]:
    """Among ``refs``, factors of a product that are one where a condition holds, and carries of such."""
    nodes = program.nodes

    def chosen(ref: Ref) -> bool:
        node = nodes[ref]
        if isinstance(node, Input) and node.kind == "carry":
            node = nodes[program.carries[node.index].next]
        return _is(node, "where") and nodes[arguments(node)[1]] == Const(1.0)

    return {a for r in refs if _is(nodes[r], "mul") for a in arguments(nodes[r]) if chosen(a)}


def _is(node: Node, *functions: str) -> TypeGuard[Pointwise]:
    return isinstance(node, Pointwise) and node.fn in functions


def _one(before: Deferred, index: int) -> Deferred | None:
    """Carry ``index`` held with a number; None where that is impossible or saves nothing."""
    program = before.program
    spine = _spine(program, index)
    decays = {c for r in spine for c in arguments(program.nodes[r]) if _is(program.nodes[r], "mul", "div")}
    decays -= spine
    if not decays or program.carries[index].next not in spine:
        return None
    after = simplify(_Holding(program, index, spine, decays).run())
    if _products(after) >= _products(program):
        return None
    return Deferred(after, {**before.scales, index: len(program.carries)})


def _spine(program: StepProgram, index: int) -> set[Ref]:
    """The values that are the carry times numbers, plus anything that is not."""
    spec, axes, found = program.carries[index], program.axes_of(), set[Ref]()
    names = {n.axes for n in program.nodes if isinstance(n, Input) and (n.kind, n.index) == ("carry", index)}
    if spec.axes != spec.next_axes or names != {spec.axes}:
        return found
    whole = frozenset(spec.axes)
    for r, node in enumerate(program.nodes):
        mine = [a for a in arguments(node) if a in found]
        if isinstance(node, Input):
            if (node.kind, node.index) == ("carry", index):
                found.add(r)
        elif not isinstance(node, Pointwise) or len(mine) != 1 or axes[r] != whole:
            continue
        elif node.fn in ("add", "sub", "neg"):
            found.add(r)
        elif node.fn == "mul" or (node.fn == "div" and node.args[0] in found):
            other = next(a for a in node.args if a != mine[0])
            if axes[other] <= whole and _volume(program, axes[other]) * FEW <= _volume(program, whole):
                found.add(r)
    return found


class _Holding:
    """Rebuilds a program with one carry as a number and what it multiplies."""

    def __init__(self, program: StepProgram, index: int, spine: set[Ref], decays: set[Ref]) -> None:
        self.program, self.index, self.spine = program, index, spine
        self.spec, axes = program.carries[index], program.axes_of()
        own = frozenset[AxisName]().union(*(axes[d] for d in decays))
        self.own = tuple(a for a in self.spec.axes if a in own)
        self.build, self.place = Builder(), list[Ref]()
        self.held: dict[Ref, Scaled] = {}
        sums = [
            n for n in program.nodes if isinstance(n, Contract) and axes[n.arg] == frozenset(self.spec.axes)
        ]
        self.summed = frozenset[AxisName]().union(*(n.axes for n in sums))

    def run(self) -> StepProgram:
        for r, node in enumerate(self.program.nodes):
            if r in self.spine:
                self.held[r] = self._follow(r)
                self.place.append(self.build.call("mul", self.held[r].held, self.held[r].factor))
            else:
                self.place.append(
                    self.build.add(with_arguments(node, [self.place[a] for a in arguments(node)]))
                )
        last = self._bounded(self.held[self.spec.next])
        carries = [dataclasses.replace(c, next=self.place[c.next]) for c in self.program.carries]
        carries[self.index] = dataclasses.replace(self.spec, next=last.held)
        carries.append(CarrySpec(self.own, last.factor, self.own))
        outs = tuple(dataclasses.replace(o, ref=self.place[o.ref]) for o in self.program.outs)
        nodes = tuple(self.build.nodes)
        return prune(dataclasses.replace(self.program, nodes=nodes, carries=tuple(carries), outs=outs))

    def _follow(self, ref: Ref) -> Scaled:
        node, call = self.program.nodes[ref], self.build.call
        if isinstance(node, Input):
            number = self.build.input("carry", len(self.program.carries), self.own)
            return Scaled(number, self.build.input("carry", self.index, self.spec.axes), True)
        assert isinstance(node, Pointwise)
        if node.fn == "neg":
            below = self.held[node.args[0]]
            return dataclasses.replace(below, held=call("neg", below.held))
        below = next(self.held[a] for a in node.args if a in self.spine)
        if node.fn in ("mul", "div"):
            other = next(self.place[a] for a in node.args if a not in self.spine)
            return Scaled(call(node.fn, below.factor, other), below.held, False)
        below = self._bounded(below)
        inverse = call("div", self.build.const(1.0), below.factor)
        args = (below.held if a in self.spine else self._scaled(self.place[a], inverse) for a in node.args)
        return dataclasses.replace(below, held=call(node.fn, *args))

    def _bounded(self, value: Scaled) -> Scaled:
        """The same value with a factor within its bounds."""
        if value.bounded:
            return value
        call, one, most = self.build.call, self.build.const(1.0), self.build.const(MOST)
        size = call("abs", value.factor)
        fine = call("logical_and", call("ge", size, one), call("le", size, most))
        start = call("where", call("lt", size, one), most, one)
        unit = call("where", fine, one, call("div", value.factor, start))
        return Scaled(call("where", fine, value.factor, start), call("mul", value.held, unit), True)

    def _scaled(self, ref: Ref, by: Ref) -> Ref:
        """``ref`` times ``by``, multiplied to a factor of few entries where there is one: to one that
        a sweep holds in registers rather than to one with an entry for each of its rows."""
        node, call, axes = self.build.nodes[ref], self.build.call, self.build.axes
        whole = axes[ref] == frozenset(self.spec.axes)
        if whole and _is(node, "add", "sub", "neg"):
            return call(node.fn, *(self._scaled(a, by) for a in node.args))
        if _is(node, "mul"):
            small = min(node.args, key=lambda a: (self._least(a), len(axes[a] & self.summed)))
            other = node.args[0] if small == node.args[1] else node.args[1]
            return call("mul", self._scaled(small, by), other)
        return call("mul", ref, by)

    def _least(self, ref: Ref) -> int:
        """Entries of the smallest factor of a product."""
        return min(_volume(self.program, self.build.axes[f]) for f in multiplied(self.build.nodes, ref))


def numbers(program: StepProgram, added: Collection[int]) -> list[Ref]:
    """What follows from the carries ``added`` and streams of so few entries, and is read by what
    has more: a step should not wait for it."""
    axes, few = program.axes_of(), {a for i in added for a in program.carries[i].axes}
    found, follows = set[Ref](), set[Ref]()
    for r, node in enumerate(program.nodes):
        below = arguments(node)
        if isinstance(node, Input):
            mine = node.kind == "carry" and node.index in added
            follows |= {r} if mine or (node.kind in ("stream", "invariant") and axes[r] <= few) else set()
            found |= {r} if mine else set()
        elif isinstance(node, (Const, Pointwise)) and follows.issuperset(below):
            follows.add(r)
            found |= {r} if found & set(below) else set()
    read = {a for r, n in enumerate(program.nodes) if r not in found for a in arguments(n)}
    return [
        r for r in sorted(found & (read | set(program.roots()))) if isinstance(program.nodes[r], Pointwise)
    ]


def _reading(adjoint: StepProgram, states: Deferred) -> StepProgram | None:
    """``adjoint`` reading states as ``states`` holds them; None where it renames their axes."""
    build, place, carries = Builder(), list[Ref](), states.program.carries
    for node in adjoint.nodes:
        if not isinstance(node, Input) or node.kind != "state" or node.index not in states.scales:
            place.append(build.add(with_arguments(node, [place[a] for a in arguments(node)])))
            continue
        if node.axes != carries[node.index].axes:
            return None
        number = states.scales[node.index]
        factor = build.input("state", number, carries[number].axes)
        place.append(build.call("mul", build.add(node), factor))
    moved = (dataclasses.replace(c, next=place[c.next]) for c in adjoint.carries)
    outs = tuple(dataclasses.replace(o, ref=place[o.ref]) for o in adjoint.outs)
    return dataclasses.replace(adjoint, nodes=tuple(build.nodes), carries=tuple(moved), outs=outs)


def _products(program: StepProgram) -> int:
    """Products in a step, those by ``units`` left out."""
    axes, nodes = program.axes_of(), program.nodes
    ones = units(program, range(len(nodes)))
    return sum(
        _volume(program, axes[r])
        for r, n in enumerate(nodes)
        if _is(n, "mul", "div") and not ones & set(arguments(n))
    )


def _volume(program: StepProgram, axes: frozenset[AxisName]) -> int:
    return math.prod(max(program.sizes[a], 1) for a in axes)


__all__ = ["Deferred", "deferred", "numbers", "together", "units"]
