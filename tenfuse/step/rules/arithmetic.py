"""Rules of pointwise operators: arithmetic, comparisons, choices, activations."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from tenfuse.step.rules.base import RULES, each, lift, linear, overloads, product, ratio, rule
from tenfuse.step.tensors import Refs, Space, Value

aten, prims = torch.ops.aten, torch.ops.prims


@rule(*overloads(aten.add, aten.sub), prims.add.default, prims.sub.default)
def _add(space: Space, target: Any, a: Any, b: Any, *rest: Any, alpha: Any = 1) -> Value:
    alpha = rest[0] if rest else alpha
    b = b if alpha == 1 else product(space, b, alpha)
    return linear(space, "add" if "add" in str(target) else "sub", a, b)


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(space: Space, target: Any, a: Any, b: Any, alpha: Any = 1) -> Value:
    return linear(space, "sub", b, a if alpha == 1 else product(space, a, alpha))


@rule(*overloads(aten.mul), prims.mul.default)
def _mul(space: Space, target: Any, a: Any, b: Any) -> Value:
    return product(space, a, b)


@rule(aten.div.Tensor, aten.div.Scalar, aten.true_divide.Tensor, prims.div.default)
def _div(space: Space, target: Any, a: Any, b: Any) -> Value:
    return ratio(space, a, b)


@rule(aten.reciprocal.default)
def _reciprocal(space: Space, target: Any, a: Any) -> Value:
    return ratio(space, 1.0, a)


@rule(aten.neg.default, prims.neg.default)
def _neg(space: Space, target: Any, a: Value) -> Value:
    return linear(space, "neg", a)


@rule(aten.square.default)
def _square(space: Space, target: Any, a: Value) -> Value:
    return product(space, a, a)


@rule(*overloads(aten.pow), prims.pow.default)
def _pow(space: Space, target: Any, a: Any, b: Any) -> Value:
    if isinstance(b, (int, float)) and not isinstance(b, bool):
        if b == 0.5:
            return each(space, "sqrt", a)
        if b == int(b) and 0 < abs(b) <= 8:
            power = functools.reduce(lambda x, y: product(space, x, y), [a] * abs(int(b)))
            return power if b > 0 else ratio(space, 1.0, power)
    return each(space, "pow", a, b)


@rule(aten.abs.default, prims.abs.default)
def absolute(space: Space, target: Any, a: Value) -> Value:
    call = space.build.call

    def size(x: Refs) -> Refs:
        if len(x) == 1:
            return (call("abs", x[0]),)
        return (call("root", call("add", call("mul", x[0], x[0]), call("mul", x[1], x[1]))),)

    return space.pointwise(size, a)


@rule(aten.exp.default, prims.exp.default)
def exponential(space: Space, target: Any, a: Value) -> Value:
    call = space.build.call

    def exponential(x: Refs) -> Refs:
        size = call("exp", x[0])
        if len(x) == 1:
            return (size,)
        return (call("mul", size, call("cos", x[1])), call("mul", size, call("sin", x[1])))

    return space.pointwise(exponential, a)


def _simple(fn: str, *ops: Any) -> None:
    @rule(*ops)
    def _(space: Space, target: Any, *args: Any) -> Value:
        return each(space, fn, *args)


for _fn in (
    "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "erf",
    "atan", "sign", "floor", "ceil", "trunc", "relu",
):  # fmt: skip
    _simple(_fn, getattr(aten, _fn).default, *([getattr(prims, _fn).default] if hasattr(prims, _fn) else []))
_simple("round", aten.round.default)
_simple("sign", aten.sgn.default)
_simple("atan2", aten.atan2.default)
_simple("maximum", aten.maximum.default, aten.max.other, aten.fmax.default)
_simple("minimum", aten.minimum.default, aten.min.other, aten.fmin.default)
RULES.pop(aten.fmax.default)
RULES.pop(aten.fmin.default)
_simple("logaddexp", aten.logaddexp.default)
_simple("isnan", aten.isnan.default)
for _fn in ("lt", "le", "gt", "ge", "eq", "ne"):
    _simple(_fn, *overloads(getattr(aten, _fn)), getattr(prims, _fn).default)
_simple("logical_and", aten.logical_and.default, *overloads(aten.bitwise_and))
_simple("logical_or", aten.logical_or.default, *overloads(aten.bitwise_or))
_simple("logical_not", aten.logical_not.default, aten.bitwise_not.default)


@rule(aten.logical_xor.default, *overloads(aten.bitwise_xor), prims.bitwise_xor.default)
def _xor(space: Space, target: Any, a: Any, b: Any) -> Value:
    return each(space, "ne", each(space, "ne", a, 0.0), each(space, "ne", b, 0.0))


@rule(aten.log10.default)
def _log10(space: Space, target: Any, a: Value) -> Value:
    return product(space, each(space, "log", a), 1.0 / math.log(10.0))


@rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar, prims.where.default)
def where(space: Space, target: Any, condition: Value, a: Any, b: Any) -> Value:
    a, b = lift(space, a), lift(space, b)
    if not (a.is_complex or b.is_complex):
        return each(space, "where", condition, a, b)
    call, zero = space.build.call, space.build.const(0.0)

    def choose(c: Refs, x: Refs, y: Refs) -> Refs:
        x, y = ((*r, zero)[:2] for r in (x, y))
        return tuple(call("where", c[0], p, q) for p, q in zip(x, y, strict=True))

    return space.pointwise(choose, condition, a, b)


@rule(*overloads(aten.masked_fill))
def _masked_fill(space: Space, target: Any, a: Value, mask: Value, fill: Any) -> Value:
    return where(space, target, mask, fill, a)


@rule(*overloads(aten.clamp))
def _clamp(space: Space, target: Any, a: Value, low: Any = None, high: Any = None, **kwargs: Any) -> Value:
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    a = a if low is None else each(space, "clamp_min", a, low)
    return a if high is None else each(space, "clamp_max", a, high)


@rule(*overloads(aten.clamp_min))
def _clamp_min(space: Space, target: Any, a: Value, low: Any) -> Value:
    return each(space, "clamp_min", a, low)


@rule(*overloads(aten.clamp_max))
def _clamp_max(space: Space, target: Any, a: Value, high: Any) -> Value:
    return each(space, "clamp_max", a, high)


@rule(aten.hardtanh.default, aten.relu6.default)
def _hardtanh(space: Space, target: Any, a: Value, low: Any = None, high: Any = None) -> Value:
    """Clamping whose derivative is zero on the bounds too, other than that of ``clamp``."""
    first, last = (0.0, 6.0) if "relu6" in str(target) else (-1.0, 1.0)
    low, high = first if low is None else low, last if high is None else high
    outside = each(space, "logical_or", each(space, "le", a, low), each(space, "ge", a, high))
    bounded = each(space, "clamp_max", each(space, "clamp_min", a, low), high)
    return each(space, "where", outside, each(space, "cut", bounded), a)


@rule(*overloads(aten.remainder), prims.remainder.default)
def _remainder(space: Space, target: Any, a: Any, b: Any) -> Value:
    return _rest(space, "floor", a, b)


@rule(*overloads(aten.fmod), prims.fmod.default)
def _fmod(space: Space, target: Any, a: Any, b: Any) -> Value:
    return _rest(space, "trunc", a, b)


def _rest(space: Space, whole: str, a: Any, b: Any) -> Value:
    """What division leaves; its derivative is that of the difference, the quotient being constant."""
    quotient = each(space, whole, each(space, "div", a, b))
    return linear(space, "sub", a, product(space, quotient, b))


@rule(aten.sinc.default)
def _sinc(space: Space, target: Any, a: Value) -> Value:
    """The quotient is not asked for at zero, where its derivative would not be a number."""
    zero = each(space, "eq", a, 0.0)
    angle = each(space, "where", zero, 1.0, product(space, a, math.pi))
    return each(space, "where", zero, 1.0, ratio(space, each(space, "sin", angle), angle))


@rule(aten.silu.default)
def _silu(space: Space, target: Any, a: Value) -> Value:
    return product(space, a, each(space, "sigmoid", a))


@rule(aten.softplus.default)
def _softplus(space: Space, target: Any, a: Value, beta: float = 1, threshold: float = 20) -> Value:
    scaled = a if beta == 1 else product(space, a, beta)
    soft = each(space, "softplus", scaled)
    soft = soft if beta == 1 else ratio(space, soft, beta)
    return each(space, "where", each(space, "gt", scaled, threshold), a, soft)


@rule(aten.log_sigmoid_forward.default)
def _log_sigmoid(space: Space, target: Any, a: Value) -> tuple[Value, None]:
    return linear(space, "neg", each(space, "softplus", linear(space, "neg", a))), None


@rule(aten.addcmul.default)
def _addcmul(space: Space, target: Any, a: Value, b: Value, c: Value, value: Any = 1) -> Value:
    term = product(space, b, c)
    return linear(space, "add", a, term if value == 1 else product(space, term, value))


@rule(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(space: Space, target: Any, a: Value, b: Value, weight: Any) -> Value:
    return linear(space, "add", a, product(space, weight, linear(space, "sub", b, a)))
