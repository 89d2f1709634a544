"""Integers in the IR: exact, in 64 bits, with the wraps of narrower types.

Takes and leaves nothing but tables: the functions of integers by name, their meaning in torch,
and which nodes of a program have integer values.  A node has no type of its own.  An integer
tensor is read by ``whole`` alone, an integer constant is a Python int, and every other integer
is the result of a function that makes integers, or a contraction of one.  No gradient leads
through an integer, and no form of the algebra knows these functions: a recurrence with an
integer in it is never taken for a linear one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tenfuse.step.nodes import Const, Contract, Input, Node, Pointwise, Ref
from tenfuse.step.program import StepProgram

Meaning = Callable[..., torch.Tensor]


def number(x: torch.Tensor) -> torch.Tensor:
    """The nearest double; the interpreter and the kernels then round to what they compute in."""
    return x.to(torch.float64)


def _wrap(dtype: torch.dtype) -> Meaning:
    return lambda x: x.to(dtype).to(torch.int64)


def _compare(name: str) -> Meaning:
    function: Meaning = getattr(torch, name)
    return lambda a, b: function(a, b).to(torch.float64)


def _left(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where((b < 0) | (b > 63), 0, a << b.clamp(0, 63))


ENTRY: dict[str, tuple[int, Meaning]] = {
    "whole": (1, lambda x: x.to(torch.int64)),
    "truncated": (1, lambda x: x.to(torch.int64)),
}
"""``whole`` is the identity that every integer tensor is read by; ``truncated`` makes an integer
of a number."""

ARITHMETIC: dict[str, tuple[int, Meaning]] = {
    "iadd": (2, torch.add),
    "isub": (2, torch.sub),
    "imul": (2, torch.mul),
    "ineg": (1, torch.neg),
    "iabs": (1, torch.abs),
    "idiv": (2, lambda a, b: torch.div(a, b, rounding_mode="trunc")),
    "ifloordiv": (2, torch.floor_divide),
    "imod": (2, torch.remainder),
    "irest": (2, torch.fmod),
    "iand": (2, torch.bitwise_and),
    "ior": (2, torch.bitwise_or),
    "ixor": (2, torch.bitwise_xor),
    "inot": (1, torch.bitwise_not),
    "ileft": (2, _left),
    "iright": (2, lambda a, b: a >> torch.where((b < 0) | (b > 63), 63, b)),
    "imax": (2, torch.maximum),
    "imin": (2, torch.minimum),
    "ichoose": (3, lambda c, a, b: torch.where(c != 0, a, b)),
    "wrap32": (1, _wrap(torch.int32)),
    "wrap16": (1, _wrap(torch.int16)),
    "wrap8": (1, _wrap(torch.int8)),
    "wrapu8": (1, _wrap(torch.uint8)),
}
"""``imod`` has the sign of the divisor, ``irest`` that of the dividend."""

COMPARISONS: dict[str, Meaning] = {
    f"i{name}": _compare(name) for name in ("lt", "le", "gt", "ge", "eq", "ne")
}
"""Of two integers; their results are truth values."""

NAMES = frozenset(ENTRY | ARITHMETIC | COMPARISONS) | {"number"}
"""Every function that takes or makes integers."""

_MAKES = frozenset(ENTRY | ARITHMETIC)


def is_whole(nodes: Sequence[Node], ref: Ref) -> bool:
    """Whether a node that is no input has an integer value."""
    node = nodes[ref]
    if isinstance(node, Contract):
        return is_whole(nodes, node.arg)
    if isinstance(node, Const):
        return isinstance(node.value, int)
    return isinstance(node, Pointwise) and node.fn in _MAKES


def whole_inputs(program: StepProgram) -> frozenset[tuple[str, int]]:
    """The inputs that are integers, carries that are written only among them."""
    found = {
        (arg.kind, arg.index)
        for node in program.nodes if isinstance(node, Pointwise) and node.fn == "whole"
        for arg in [program.nodes[node.args[0]]] if isinstance(arg, Input)
    }  # fmt: skip
    found |= {("carry", i) for i, c in enumerate(program.carries) if is_whole(program.nodes, c.next)}
    return frozenset(found)


def whole_nodes(program: StepProgram) -> frozenset[Ref]:
    """Every node whose value is an integer."""
    inputs = whole_inputs(program)
    return frozenset(
        i for i, n in enumerate(program.nodes)
        if ((n.kind, n.index) in inputs if isinstance(n, Input) else is_whole(program.nodes, i))
    )  # fmt: skip


__all__ = ["ARITHMETIC", "COMPARISONS", "ENTRY", "NAMES", "is_whole", "number", "whole_inputs", "whole_nodes"]
