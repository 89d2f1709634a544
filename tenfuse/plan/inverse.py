"""Triangular systems by their inverse: one value that every solution is a product with.

Takes a step program; leaves it with every ``Solve`` whose matrix no carry reaches written as
(I + lower)^-1 times its right-hand side.  That inverse is what a pass in front can hand on:
it is as large as the matrix, however many right-hand sides there are and however large.  It
is what kernels on tiles multiply by in any case, so nothing of what is computed changes.
"""

from __future__ import annotations

import dataclasses

from tenfuse.algebra.parts import reached
from tenfuse.step.program import (
    AxisName,
    Builder,
    Position,
    Ref,
    Solve,
    StepProgram,
    arguments,
    prune,
    trimmed,
    validate,
    with_arguments,
)


def inverted(program: StepProgram) -> StepProgram:
    """``program`` with products with inverses for solutions; itself where there are none."""
    bound = reached(program, ("carry",))
    chosen = {
        i: node for i, node in enumerate(program.nodes) if isinstance(node, Solve) and node.lower not in bound
    }
    if not chosen:
        return program
    build, place, sizes = Builder(), dict[Ref, Ref](), dict(program.sizes)
    for i, node in enumerate(program.nodes):
        args = [place[a] for a in arguments(node)]
        if i in chosen:
            place[i] = _solution(build, chosen[i], args[0], args[1], sizes)
        else:
            place[i] = build.add(with_arguments(node, args))
    made = dataclasses.replace(
        program,
        nodes=tuple(build.nodes), sizes=sizes,
        carries=tuple(dataclasses.replace(c, next=place[c.next]) for c in program.carries),
        outs=tuple(dataclasses.replace(o, ref=place[o.ref]) for o in program.outs),
    )  # fmt: skip
    made = trimmed(prune(made))
    validate(made)
    return made


def is_inverse(program: StepProgram, ref: Ref) -> bool:
    """Whether a node is an inverse that ``inverted`` has made."""
    node = program.nodes[ref]
    if not isinstance(node, Solve):
        return False
    return {_third(a) for a in node.rows} <= program.axes_of()[node.arg]


def _third(axis: AxisName) -> AxisName:
    return f"{axis}~e"


def _solution(build: Builder, node: Solve, lower: Ref, arg: Ref, sizes: dict[AxisName, int]) -> Ref:
    """The inverse's rows, or columns if transposed, times ``arg``."""
    third = {a: _third(a) for a in node.rows}
    sizes |= {e: sizes[a] for a, e in third.items()}
    inverse = build.add(Solve(lower, _identity(build, third), node.rows, node.cols))
    columns = dict(zip(node.rows, node.cols, strict=True))
    names = {e: columns[a] for a, e in third.items()}
    if node.transpose:
        names = {e: a for a, e in third.items()} | columns
    factor = build.rename(inverse, names)
    return build.contract(build.call("mul", factor, build.rename(arg, columns)), *node.cols)


def _identity(build: Builder, third: dict[AxisName, AxisName]) -> Ref:
    same = [build.call("eq", build.add(Position(a)), build.add(Position(e))) for a, e in third.items()]
    whole = same[0]
    for one in same[1:]:
        whole = build.call("logical_and", whole, one)
    return build.call("where", whole, build.const(1.0), build.const(0.0))


__all__ = ["inverted", "is_inverse"]
