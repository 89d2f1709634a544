"""Rules of integers: arithmetic, comparisons, casts and choices, exact in 64 bits.

Takes the values of an operator's arguments, some of them integers, and its result's dtype;
leaves the value.  Narrower integers wrap after every operation, as torch's do.  Numbers and truth
values meet integers as torch promotes them: truth values become integers, integers become numbers
where the result is one.  Operators that only rearrange have their usual rules.  Refuses division
and remainders by what may be zero, which torch answers with an error, and what has no rule here.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from tenfuse.reasons import UNSUPPORTED_OP, refuse
from tenfuse.step.program import Const
from tenfuse.step.rules import base, shape
from tenfuse.step.rules.base import RULES, Rule, each, overloads
from tenfuse.step.tensors import Space, Value
from tenfuse.step.whole import is_whole

aten, prims = torch.ops.aten, torch.ops.prims

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_WRAPS = {torch.int32: "wrap32", torch.int16: "wrap16", torch.int8: "wrap8", torch.uint8: "wrapu8"}
WHOLE: dict[Any, Rule] = {}
"""Rules for results that are integers."""
rule = functools.partial(base.rule, table=WHOLE)

_SAME = {
    f for name in (
        "unsqueeze", "squeeze", "permute", "transpose", "t", "mT", "expand", "broadcast_to", "slice",
        "select", "split", "split_with_sizes", "unbind", "flip", "roll", "alias", "clone", "detach",
        "lift_fresh_copy", "contiguous", "slice_scatter", "select_scatter", "cat", "stack", "copy",
    ) if hasattr(aten, name) for f in overloads(getattr(aten, name))
} & set(RULES)  # fmt: skip
"""Operators whose rule never looks at the numbers."""

_COMPARE = {f: name for name in ("lt", "le", "gt", "ge", "eq", "ne") for f in overloads(getattr(aten, name))}
_CONDITION = {f: 0 for f in overloads(aten.where)} | {f: 1 for f in overloads(aten.masked_fill)}
"""Which argument of a choice is the condition."""


def integral(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def holds(space: Space, value: Any) -> bool:
    """Whether a value, or one of a list, is of integers."""
    if isinstance(value, (list, tuple)):
        return any(holds(space, v) for v in value)
    return isinstance(value, Value) and any(
        is_whole(space.build.nodes, r) for refs in value.pieces.values() for r in refs
    )


def constant(space: Space, value: int) -> Value:
    return Value((), {frozenset(): (space.build.add(Const(int(value))),)})


def wrapped(space: Space, a: Value, dtype: torch.dtype) -> Value:
    return each(space, _WRAPS[dtype], a) if dtype in _WRAPS else a


def cast(space: Space, a: Value, old: torch.dtype, new: torch.dtype) -> Value:
    """A change of dtype from or to integers, towards zero; what does not fit is undefined in torch too."""
    if new is torch.bool:
        return each(space, "ine", a, constant(space, 0))
    if integral(new):
        made = a if holds(space, a) else each(space, "truncated", a)
        return made if old is torch.bool else wrapped(space, made, new)
    rounds = {torch.bfloat16: "round_bf16", torch.float16: "round_f16", torch.float32: "round_f32"}
    made = each(space, "number", a)
    return each(space, rounds[new], made) if new in rounds else made


def applied(
    space: Space, target: Any, values: Any, dtypes: Any, kwargs: Any, dtype: torch.dtype | None
) -> Any:
    """The value of an operator with integers among its arguments, or as its result; None where
    there is no rule.  ``dtypes`` are those of the arguments, ``dtype`` that of the result."""
    if target in _SAME and dtype is not None and integral(dtype):
        given = [_entire(space, target, v, d) for v, d in zip(values, dtypes, strict=True)]
        return RULES[target](space, target, *given, **kwargs)
    if target in _SAME and dtype is None:
        return RULES[target](space, target, *values, **kwargs)
    if dtype is not None and integral(dtype):
        if target not in WHOLE:
            return None
        skipped = _CONDITION.get(target, -1)
        given = [
            _truth(space, v) if i == skipped else _entire(space, target, v, d)
            for i, (v, d) in enumerate(zip(values, dtypes, strict=True))
        ]
        return wrapped(space, WHOLE[target](space, target, *given, **kwargs), dtype)
    if target in _COMPARE and all(_exact(v, d) for v, d in zip(values, dtypes, strict=True)):
        given = [_entire(space, target, v, d) for v, d in zip(values, dtypes, strict=True)]
        return each(space, f"i{_COMPARE[target]}", *map(lambda v: _lifted(space, v), given))
    if target not in RULES:
        return None
    if target not in _COMPARE and dtype is torch.bool:
        return RULES[target](space, target, *(_truth(space, v) for v in values), **kwargs)
    wide = dtype if dtype is not None and dtype.is_floating_point else _widest(dtypes)
    given = [cast(space, v, torch.int64, wide) if holds(space, v) else v for v in values]
    return RULES[target](space, target, *given, **kwargs)


def _widest(dtypes: Any) -> torch.dtype:
    """The type in which integers meet numbers: that of the numbers among the arguments."""
    floats = [d for d in dtypes if isinstance(d, torch.dtype) and d.is_floating_point]
    return floats[0] if floats else torch.get_default_dtype()


def _exact(value: Any, dtype: Any) -> bool:
    if isinstance(value, Value):
        return isinstance(dtype, torch.dtype) and not dtype.is_floating_point and not dtype.is_complex
    return isinstance(value, int)


def _truth(space: Space, value: Any) -> Any:
    return each(space, "ine", value, constant(space, 0)) if holds(space, value) else value


def _entire(space: Space, target: Any, value: Any, dtype: Any) -> Any:
    """An argument as integers, if it is a value."""
    if isinstance(value, (list, tuple)) and any(isinstance(v, Value) for v in value):
        return [_entire(space, target, v, d) for v, d in zip(value, dtype, strict=True)]
    if not isinstance(value, Value) or holds(space, value):
        return value
    if dtype is not torch.bool:
        raise refuse(UNSUPPORTED_OP, f"{target} makes integers of {dtype}")
    return each(space, "truncated", value)


def _lifted(space: Space, value: Any) -> Value:
    """A value of integers, or a number as one."""
    if isinstance(value, Value):
        return value
    if isinstance(value, (bool, int)) or (isinstance(value, float) and value == int(value)):
        return constant(space, int(value))
    raise refuse(UNSUPPORTED_OP, "what is no integer enters the arithmetic of integers")


def _each(space: Space, fn: str, *args: Any) -> Value:
    return each(space, fn, *(_lifted(space, a) for a in args))


@rule(*overloads(aten.add, aten.sub))
def _add(space: Space, target: Any, a: Any, b: Any, *rest: Any, alpha: Any = 1) -> Value:
    alpha = rest[0] if rest else alpha
    b = b if alpha == 1 else _each(space, "imul", b, alpha)
    return _each(space, "iadd" if "add" in str(target) else "isub", a, b)


@rule(*overloads(aten.rsub))
def _rsub(space: Space, target: Any, a: Any, b: Any, alpha: Any = 1) -> Value:
    return _each(space, "isub", b, a if alpha == 1 else _each(space, "imul", a, alpha))


def _simple(fn: str, *packets: Any) -> None:
    @rule(*overloads(*packets))
    def _(space: Space, target: Any, *args: Any) -> Value:
        return _each(space, fn, *args)


_simple("imul", aten.mul)
_simple("ineg", aten.neg)
_simple("iabs", aten.abs)
_simple("iand", aten.bitwise_and, aten.__and__)
_simple("ior", aten.bitwise_or, aten.__or__)
_simple("ixor", aten.bitwise_xor, aten.__xor__)
_simple("inot", aten.bitwise_not)
_simple("ileft", aten.bitwise_left_shift, aten.__lshift__)
_simple("iright", aten.bitwise_right_shift, aten.__rshift__)
_simple("imax", aten.maximum, aten.clamp_min)
_simple("imin", aten.minimum, aten.clamp_max)


@rule(aten.max.other, aten.min.other)
def _extreme(space: Space, target: Any, a: Any, b: Any) -> Value:
    return _each(space, "imax" if "max" in str(target) else "imin", a, b)


@rule(*overloads(aten.clamp))
def _clamp(space: Space, target: Any, a: Value, low: Any = None, high: Any = None, **kwargs: Any) -> Value:
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    a = a if low is None else _each(space, "imax", a, low)
    return a if high is None else _each(space, "imin", a, high)


def _divided(space: Space, fn: str, a: Any, b: Any) -> Value:
    by = _lifted(space, b)
    nodes = [space.build.nodes[r] for refs in by.pieces.values() for r in refs]
    if not all(isinstance(n, Const) and n.value != 0 for n in nodes):
        raise refuse(UNSUPPORTED_OP, "an integer of the state is divided by what may be zero")
    return _each(space, fn, a, by)


@rule(*overloads(aten.remainder))
def _remainder(space: Space, target: Any, a: Any, b: Any) -> Value:
    return _divided(space, "imod", a, b)


@rule(*overloads(aten.fmod))
def _fmod(space: Space, target: Any, a: Any, b: Any) -> Value:
    return _divided(space, "irest", a, b)


@rule(*overloads(aten.floor_divide))
def _floor_divide(space: Space, target: Any, a: Any, b: Any) -> Value:
    return _divided(space, "ifloordiv", a, b)


@rule(aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div(space: Space, target: Any, a: Any, b: Any, rounding_mode: Any = None) -> Value:
    return _divided(space, "ifloordiv" if rounding_mode == "floor" else "idiv", a, b)


@rule(*overloads(aten.where))
def _where(space: Space, target: Any, condition: Value, a: Any, b: Any) -> Value:
    return each(space, "ichoose", condition, _lifted(space, a), _lifted(space, b))


@rule(*overloads(aten.masked_fill))
def _masked_fill(space: Space, target: Any, a: Value, mask: Value, fill: Any) -> Value:
    return _where(space, target, mask, fill, a)


@rule(aten.sum.dim_IntList, aten.sum.default, aten.amax.default, aten.amin.default, aten.max.default,
      aten.min.default)  # fmt: skip
def _reduced(space: Space, target: Any, a: Value, dims: Any = None, keepdim: bool = False, **_: Any) -> Value:
    op = next(name for name in ("sum", "max", "min") if name in str(target))
    return space.reduce(a, dims if dims else range(len(a.dims)), keepdim, op)


def _filled(space: Space, dims: Any, number: Any) -> Value:
    return shape.expand(space, None, _lifted(space, number), list(dims))


@rule(aten.full_like.default)
def _full_like(space: Space, target: Any, a: Value, number: Any, **kwargs: Any) -> Value:
    return _filled(space, space.shape(a), number)


@rule(aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default)
def _like(space: Space, target: Any, a: Value, **kwargs: Any) -> Value:
    return _filled(space, space.shape(a), int("ones" in str(target)))


@rule(aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default)
def _new(space: Space, target: Any, a: Value, dims: Any, **kwargs: Any) -> Value:
    return _filled(space, dims, int("ones" in str(target)))


@rule(aten.full.default, aten.new_full.default)
def _full(space: Space, target: Any, *args: Any, **kwargs: Any) -> Value:
    return _filled(space, args[-2], args[-1])


@rule(aten.zeros.default, aten.ones.default)
def _zeros(space: Space, target: Any, dims: Any, **kwargs: Any) -> Value:
    return _filled(space, dims, int("ones" in str(target)))


@rule(aten.scalar_tensor.default)
def _scalar(space: Space, target: Any, number: Any, **kwargs: Any) -> Value:
    return _lifted(space, number)


__all__ = ["INTEGERS", "applied", "cast", "holds", "integral"]
