"""By which number a state must be divided to be linear in (logaddexp, +).

Takes a ``StepProgram`` and the carries of one stage; leaves a number, 1 for most.  The semirings
``a + b = s log(exp(a/s) + exp(b/s))`` are one another by the change of variable ``h = s g``; negative
ones are soft minima, and s towards 0 gives (max, +) and (min, +) (Litvinov 2005, "The Maslov
dequantization").  In a step s is one over the factor that the state has where its exponential is taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from fractions import Fraction

from tenfuse.algebra.proof.polynomials import constant
from tenfuse.step.program import Const, Contract, Input, Node, Pointwise, StepProgram, arguments

_THROUGH = ("add", "sub", "where", "cut", "maximum", "minimum")


def scale(program: StepProgram, carries: Collection[int]) -> Fraction:
    """The scale of the first exponential or logaddexp of a multiple of ``carries``; 1 if there is none."""
    found: dict[int, Fraction] = {}
    for ref, node in enumerate(program.nodes):
        if isinstance(node, Input) and node.kind == "carry" and node.index in carries:
            found[ref] = Fraction(1)
        held = [r for r in arguments(node) if r in found]
        if not held:
            continue
        if isinstance(node, Pointwise) and node.fn in ("exp", "logaddexp"):
            return 1 / found[held[0]]
        if isinstance(node, Contract) and node.op in ("max", "min"):
            found[ref] = found[held[0]]
        elif isinstance(node, Pointwise) and node.fn in _THROUGH:
            found[ref] = found[held[0]] * (-1 if node.fn == "sub" and held[0] != node.args[0] else 1)
        elif (by := factor(program, node)) is not None:
            found[ref] = found[held[0]] * by[1]
    return Fraction(1)


def factor(program: StepProgram, node: Node) -> tuple[int, Fraction] | None:
    """The argument of a node that is a number times it, and the number."""
    if not isinstance(node, Pointwise):
        return None
    if node.fn == "neg":
        return node.args[0], Fraction(-1)
    if node.fn not in ("mul", "div"):
        return None
    for ref, other in (node.args, node.args[::-1])[: 2 if node.fn == "mul" else 1]:
        by = program.nodes[other]
        if isinstance(by, Const) and by.value != 0 and math.isfinite(by.value):
            number = Fraction(constant(by.value))
            return ref, number if node.fn == "mul" else 1 / number
    return None


__all__ = ["factor", "scale"]
