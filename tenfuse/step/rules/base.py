"""The table of rules, and the arithmetic that rules are made of: real, complex and broadcast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tenfuse.reasons import UNSUPPORTED_OP, refuse
from tenfuse.step.tensors import Refs, Space, Value

aten, prims = torch.ops.aten, torch.ops.prims
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def rule(*ops: Any, table: dict[Any, Rule] = RULES) -> Callable[[Rule], Rule]:
    """Enter a function into ``table`` as the rule of these operators."""

    def register(fn: Rule) -> Rule:
        table.update(dict.fromkeys(ops, fn))
        return fn

    return register


def overloads(*packets: Any) -> list[Any]:
    return [getattr(p, name) for p in packets for name in p.overloads() if "out" not in name]


def lift(space: Space, x: Any) -> Value:
    """A value, or a number as one."""
    if isinstance(x, Value):
        return x
    if isinstance(x, (bool, int, float, complex)):
        return space.number(float(x) if not isinstance(x, complex) else x)
    raise refuse(UNSUPPORTED_OP, "a symbolic size enters the arithmetic of the state")


def real_only(name: str) -> Any:
    return refuse(UNSUPPORTED_OP, f"{name} of a complex state")


def each(space: Space, fn: str, *args: Any) -> Value:
    """A real pointwise function of the table."""

    def call(*refs: Refs) -> Refs:
        if any(len(r) != 1 for r in refs):
            raise real_only(fn)
        return (space.build.call(fn, *(r[0] for r in refs)),)

    return space.pointwise(call, *(lift(space, a) for a in args))


def linear(space: Space, fn: str, *args: Any) -> Value:
    """A function applied to real and imaginary parts alike (a missing part is zero)."""

    def call(*refs: Refs) -> Refs:
        parts = max(len(r) for r in refs)
        zero = space.build.const(0.0)
        full = [r if len(r) == parts else (r[0], zero) for r in refs]
        return tuple(space.build.call(fn, *(r[i] for r in full)) for i in range(parts))

    return space.pointwise(call, *(lift(space, a) for a in args))


def product(space: Space, a: Any, b: Any) -> Value:
    call = space.build.call

    def times(x: Refs, y: Refs) -> Refs:
        if len(x) == len(y) == 1:
            return (call("mul", x[0], y[0]),)
        if len(x) == 1 or len(y) == 1:
            one, two = (x, y) if len(x) == 1 else (y, x)
            return (call("mul", one[0], two[0]), call("mul", one[0], two[1]))
        real = call("sub", call("mul", x[0], y[0]), call("mul", x[1], y[1]))
        return (real, call("add", call("mul", x[0], y[1]), call("mul", x[1], y[0])))

    return space.pointwise(times, lift(space, a), lift(space, b))


def ratio(space: Space, a: Any, b: Any) -> Value:
    call = space.build.call

    def over(x: Refs, y: Refs) -> Refs:
        if len(y) == 1:
            return tuple(call("div", p, y[0]) for p in x)
        x = x if len(x) == 2 else (x[0], space.build.const(0.0))
        square = call("add", call("mul", y[0], y[0]), call("mul", y[1], y[1]))
        real = call("add", call("mul", x[0], y[0]), call("mul", x[1], y[1]))
        imag = call("sub", call("mul", x[1], y[0]), call("mul", x[0], y[1]))
        return (call("div", real, square), call("div", imag, square))

    return space.pointwise(over, lift(space, a), lift(space, b))


def through(space: Space, fn: str, a: Value) -> Value:
    return space.pointwise(lambda x: tuple(space.build.call(fn, r) for r in x), a)
