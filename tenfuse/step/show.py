"""Print a ``StepProgram`` as one readable formula.

Takes a program; leaves text.  Carries are h, g, ...; streams x_1, x_2, ... (those with no
axes are scalars per step); invariants A, B, ...; outputs y_1, ....
"""

from __future__ import annotations

import string

from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.program import Const, Contract, Input, Pointwise, StepProgram, arguments

_LONGEST = 160
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}


def _name(node: Input) -> str:
    letters = {"carry": "hgfsruvpm", "stream": "", "invariant": string.ascii_uppercase, "state": "hgfsruvpm"}[
        node.kind
    ]
    if node.index < len(letters):
        return letters[node.index]
    return f"{ {'stream': 'x', 'invariant': 'A'}.get(node.kind, 'h') }_{node.index + 1}".replace(" ", "")


class _Axes:
    """Short names for axes, in order of appearance."""

    def __init__(self) -> None:
        self.names: dict[str, str] = {}

    def __call__(self, axes: frozenset[str]) -> str:
        for axis in sorted(axes):
            self.names.setdefault(
                axis, "ijklmnopq"[len(self.names)] if len(self.names) < 9 else f"i{len(self.names)}"
            )
        return "".join(sorted(self.names[a] for a in axes))


def formula(program: StepProgram) -> str:
    """``h <- a*h + x_1; y_1 = ...``: every carry's update, one after the other."""
    axes = _Axes()
    lines = []
    for i, carry in enumerate(program.carries):
        text = _expression(program, carry.next, axes)
        name = _name(Input("carry", i, ()))
        lines.append(f"{name} <- {text}" if len(text) <= _LONGEST else f"{name} <- f_{i + 1}(...)")
    return "; ".join(lines)


def _expression(program: StepProgram, root: int, axes: _Axes) -> str:
    done: dict[int, tuple[str, int]] = {}

    def closed(ref: int, above: int) -> str:
        text, level = done[ref]
        return f"({text})" if level < above else text

    for i in range(root + 1):
        node = program.nodes[i]
        if isinstance(node, Input):
            done[i] = (_name(node), 9)
        elif isinstance(node, Const):
            done[i] = (f"{node.value:g}", 9)
        elif isinstance(node, Contract):
            word = {"sum": "sum", "max": "max", "min": "min"}[node.op]
            done[i] = (f"{word}_{axes(node.axes)}({done[node.arg][0]})", 9)
        elif isinstance(node, Pointwise):
            done[i] = _call(node, closed, done)
        else:
            inner = ", ".join(done[a][0] for a in arguments(node))
            done[i] = (f"{type(node).__name__.lower()}({inner})", 9)
        if len(done[i][0]) > 4 * _LONGEST:
            done[i] = ("...", 9)
    return done[root][0]


def _call(node: Pointwise, closed: object, done: dict[int, tuple[str, int]]) -> tuple[str, int]:
    assert callable(closed)
    symbol = FUNCTIONS[node.fn].symbol
    level = _PRECEDENCE.get(symbol, 0)
    if len(node.args) == 2 and level:
        left, right = closed(node.args[0], level), closed(node.args[1], level + (symbol in "-/"))
        return f"{left} {symbol} {right}" if level == 1 else f"{left}{symbol}{right}", level
    if node.fn == "neg":
        return f"-{closed(node.args[0], 2)}", 2
    return f"{node.fn}({', '.join(done[a][0] for a in node.args)})", 9
