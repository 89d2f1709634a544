"""Triangular systems by their inverse: one value that every solution is a product with.

Takes a step program; leaves it with every ``Solve`` whose matrix no carry reaches written as
(I + lower)^-1 times its right-hand side.  That inverse is what a pass in front can hand on:
it is as large as the matrix, however many right-hand sides there are and however large.  It
is what kernels on tiles multiply by in any case, so nothing of what is computed changes.
"""

from __future__ import annotations

import dataclasses

from tenfuse.algebra.parts import reached
from tenfuse.plan.remake import Made, copied, remade
from tenfuse.step.program import (
    AxisName,
    Builder,
    Const,
    Pointwise,
    Position,
    Ref,
    Solve,
    StepProgram,
    prune,
    trimmed,
    validate,
)


def inverted(program: StepProgram) -> StepProgram:
    """``program`` with products with inverses for solutions; itself where there are none."""
    bound = reached(program, ("carry",))
    chosen = {
        i: node for i, node in enumerate(program.nodes) if isinstance(node, Solve) and node.lower not in bound
    }
    if not chosen:
        return program
    sizes = dict(program.sizes)

    def make(build: Builder, i: Ref, place: Made) -> Ref:
        if i not in chosen:
            return copied(program, build, i, place)
        return _solution(build, chosen[i], place[chosen[i].lower], place[chosen[i].arg], sizes)

    made = trimmed(prune(dataclasses.replace(remade(program, make), sizes=sizes)))
    validate(made)
    return made


def is_inverse(program: StepProgram, ref: Ref) -> bool:
    """Whether a node solves a system for every column of the identity."""
    node = program.nodes[ref]
    if not isinstance(node, Solve):
        return False
    chosen = program.nodes[node.arg]
    if not isinstance(chosen, Pointwise) or chosen.fn != "where":
        return False
    if [program.nodes[a] for a in chosen.args[1:]] != [Const(1.0), Const(0.0)]:
        return False
    rows, same = {*node.rows}, _diagonal(program, chosen.args[0])
    columns = [b for pair in same for b in pair - rows]
    if any(len(pair) != 2 or len({program.sizes[a] for a in pair}) != 1 for pair in same):
        return False
    return len(same) == len(rows) == len({*columns}) and {a for p in same for a in p} == rows | {*columns}


def _diagonal(program: StepProgram, ref: Ref) -> list[frozenset[AxisName]]:
    """The axes that a condition asks to be at one position, in pairs; none if it asks for anything else."""
    node = program.nodes[ref]
    if not isinstance(node, Pointwise):
        return []
    if node.fn == "logical_and":
        parts = [_diagonal(program, a) for a in node.args]
        return [pair for part in parts for pair in part] if all(parts) else []
    places = [n.axis for n in (program.nodes[a] for a in node.args) if isinstance(n, Position)]
    return [frozenset(places)] if node.fn == "eq" and len(places) == 2 else []


def _solution(build: Builder, node: Solve, lower: Ref, arg: Ref, sizes: dict[AxisName, int]) -> Ref:
    """The inverse's rows, or columns if transposed, times ``arg``."""
    third = {a: f"{a}~e" for a in node.rows}
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
