"""A step with fewer contractions, before it is scheduled.

Takes a ``StepProgram``; leaves one that computes the same.  ``sum a + sum b`` over the
same axes becomes ``sum (a + b)`` where nothing else reads the two sums: one sum across
vector lanes instead of two.
"""

from __future__ import annotations

import dataclasses

from tenfuse.step.program import Builder, Contract, Node, Pointwise, Ref, StepProgram, arguments, prune


def simplify(program: StepProgram) -> StepProgram:
    """``program`` with sums merged."""
    axes = program.axes_of()
    uses = [0] * len(program.nodes)
    for node in program.nodes:
        for a in arguments(node):
            uses[a] += 1
    for r in program.roots():
        uses[r] += 1
    build = Builder()
    place: list[Ref] = []

    def single(ref: Ref) -> Contract | None:
        node = build.nodes[place[ref]]
        return node if isinstance(node, Contract) and node.op == "sum" and uses[ref] == 1 else None

    for node in program.nodes:
        if isinstance(node, Pointwise) and node.fn in ("add", "sub"):
            left, right = (single(a) for a in node.args)
            if left and right and left.axes == right.axes and axes[node.args[0]] == axes[node.args[1]]:
                inner = build.call(node.fn, left.arg, right.arg)
                if _axes(build, inner) == _axes(build, left.arg) == _axes(build, right.arg):
                    place.append(build.add(Contract(left.axes, inner)))
                    continue
        place.append(build.add(_moved(node, place)))
    return prune(dataclasses.replace(
        program,
        nodes=tuple(build.nodes),
        carries=tuple(dataclasses.replace(c, next=place[c.next]) for c in program.carries),
        outs=tuple(dataclasses.replace(o, ref=place[o.ref]) for o in program.outs),
    ))


def _moved(node: Node, place: list[Ref]) -> Node:
    if isinstance(node, Pointwise):
        return Pointwise(node.fn, tuple(place[a] for a in node.args))
    return dataclasses.replace(node, arg=place[node.arg]) if isinstance(node, Contract) else node


def _axes(build: Builder, ref: Ref) -> frozenset[str]:
    """The axes of a node being built."""
    found: set[str] = set()
    todo, seen = [ref], set()
    while todo:
        r = todo.pop()
        if r in seen:
            continue
        seen.add(r)
        node = build.nodes[r]
        if isinstance(node, Pointwise):
            todo += node.args
        elif isinstance(node, Contract):
            found |= _axes(build, node.arg) - node.axes
        else:
            found |= set(getattr(node, "axes", ()))
    return frozenset(found)
