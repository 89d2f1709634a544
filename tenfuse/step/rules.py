"""What each ATen operator means over named axes.

Takes a ``Space`` and the values of an ATen node's arguments; leaves the node's value.
Operators without a rule are decomposed by torch's own tables (``reader`` does that) and
are refused (UNSUPPORTED_OP) when nothing smaller has a rule either.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tenfuse.reasons import UNSUPPORTED_OP, refuse
from tenfuse.step.tensors import Refs, Space, Value

aten, prims = torch.ops.aten, torch.ops.prims
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


def rule(*ops: Any) -> Callable[[Rule], Rule]:
    def register(fn: Rule) -> Rule:
        for op in ops:
            RULES[op] = fn
        return fn

    return register


def _overloads(*packets: Any) -> list[Any]:
    return [getattr(p, name) for p in packets for name in p.overloads() if "out" not in name]


def lift(space: Space, x: Any) -> Value:
    """A value, or a number as one."""
    if isinstance(x, Value):
        return x
    if isinstance(x, (bool, int, float, complex)):
        return space.number(float(x) if not isinstance(x, complex) else x)
    raise refuse(UNSUPPORTED_OP, "a symbolic size enters the arithmetic of the state")


def _real_only(name: str) -> Any:
    return refuse(UNSUPPORTED_OP, f"{name} of a complex state")


def each(space: Space, fn: str, *args: Any) -> Value:
    """A real pointwise function of the table."""

    def call(*refs: Refs) -> Refs:
        if any(len(r) != 1 for r in refs):
            raise _real_only(fn)
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


# -- arithmetic ---------------------------------------------------------------------


@rule(*_overloads(aten.add, aten.sub), prims.add.default, prims.sub.default)
def _add(space: Space, target: Any, a: Any, b: Any, *rest: Any, alpha: Any = 1) -> Value:
    alpha = rest[0] if rest else alpha
    b = b if alpha == 1 else product(space, b, alpha)
    return linear(space, "add" if "add" in str(target) else "sub", a, b)


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(space: Space, target: Any, a: Any, b: Any, alpha: Any = 1) -> Value:
    return linear(space, "sub", b, a if alpha == 1 else product(space, a, alpha))


@rule(*_overloads(aten.mul), prims.mul.default)
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


@rule(*_overloads(aten.pow), prims.pow.default)
def _pow(space: Space, target: Any, a: Any, b: Any) -> Value:
    if isinstance(b, (int, float)) and not isinstance(b, bool):
        if b == 0.5:
            return each(space, "sqrt", a)
        if b == int(b) and 0 < abs(b) <= 8:
            power = functools.reduce(lambda x, y: product(space, x, y), [a] * abs(int(b)))
            return power if b > 0 else ratio(space, 1.0, power)
    return each(space, "pow", a, b)


@rule(aten.abs.default, prims.abs.default)
def _abs(space: Space, target: Any, a: Value) -> Value:
    call = space.build.call

    def size(x: Refs) -> Refs:
        if len(x) == 1:
            return (call("abs", x[0]),)
        return (call("root", call("add", call("mul", x[0], x[0]), call("mul", x[1], x[1]))),)

    return space.pointwise(size, a)


@rule(aten.exp.default, prims.exp.default)
def _exp(space: Space, target: Any, a: Value) -> Value:
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
    _simple(_fn, *_overloads(getattr(aten, _fn)), getattr(prims, _fn).default)
_simple("logical_and", aten.logical_and.default, *_overloads(aten.bitwise_and))
_simple("logical_or", aten.logical_or.default, *_overloads(aten.bitwise_or))
_simple("logical_not", aten.logical_not.default, aten.bitwise_not.default)


@rule(aten.logical_xor.default, *_overloads(aten.bitwise_xor), prims.bitwise_xor.default)
def _xor(space: Space, target: Any, a: Any, b: Any) -> Value:
    return each(space, "ne", each(space, "ne", a, 0.0), each(space, "ne", b, 0.0))


@rule(aten.log10.default)
def _log10(space: Space, target: Any, a: Value) -> Value:
    return product(space, each(space, "log", a), 1.0 / math.log(10.0))


@rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar, prims.where.default)
def _where(space: Space, target: Any, condition: Value, a: Any, b: Any) -> Value:
    a, b = lift(space, a), lift(space, b)
    if not (a.is_complex or b.is_complex):
        return each(space, "where", condition, a, b)
    call, zero = space.build.call, space.build.const(0.0)

    def choose(c: Refs, x: Refs, y: Refs) -> Refs:
        x, y = ((*r, zero)[:2] for r in (x, y))
        return tuple(call("where", c[0], p, q) for p, q in zip(x, y, strict=True))

    return space.pointwise(choose, condition, a, b)


@rule(*_overloads(aten.masked_fill))
def _masked_fill(space: Space, target: Any, a: Value, mask: Value, fill: Any) -> Value:
    return _where(space, target, mask, fill, a)


@rule(*_overloads(aten.clamp))
def _clamp(space: Space, target: Any, a: Value, low: Any = None, high: Any = None, **kwargs: Any) -> Value:
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    a = a if low is None else each(space, "clamp_min", a, low)
    return a if high is None else each(space, "clamp_max", a, high)


@rule(*_overloads(aten.clamp_min))
def _clamp_min(space: Space, target: Any, a: Value, low: Any) -> Value:
    return each(space, "clamp_min", a, low)


@rule(*_overloads(aten.clamp_max))
def _clamp_max(space: Space, target: Any, a: Value, high: Any) -> Value:
    return each(space, "clamp_max", a, high)


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


# -- complex ------------------------------------------------------------------------


def _parts(space: Space, fn: Callable[[Refs], Refs], *args: Value) -> Value:
    return space.pointwise(fn, *args)


@rule(aten._conj.default, aten._conj_physical.default, aten.conj_physical.default)
def _conj(space: Space, target: Any, a: Value) -> Value:
    return _parts(space, lambda x: x if len(x) == 1 else (x[0], space.build.call("neg", x[1])), a)


@rule(aten.real.default)
def _real(space: Space, target: Any, a: Value) -> Value:
    return _parts(space, lambda x: x[:1], a)


@rule(aten.imag.default)
def _imag(space: Space, target: Any, a: Value) -> Value:
    return _parts(space, lambda x: x[1:], a)


@rule(aten.complex.default)
def _complex(space: Space, target: Any, a: Value, b: Value) -> Value:
    return space.pointwise(lambda x, y: (*x, *y), a, b)


@rule(aten.polar.default)
def _polar(space: Space, target: Any, size: Value, angle: Value) -> Value:
    call = space.build.call

    def polar(r: Refs, phi: Refs) -> Refs:
        return (call("mul", r[0], call("cos", phi[0])), call("mul", r[0], call("sin", phi[0])))

    return space.pointwise(polar, size, angle)


@rule(aten.angle.default)
def _angle(space: Space, target: Any, a: Value) -> Value:
    if not a.is_complex:
        raise refuse(UNSUPPORTED_OP, "the angle of a real state")
    return space.pointwise(lambda x: (space.build.call("atan2", x[1], x[0]),), a)


@rule(aten.view_as_real.default)
def _view_as_real(space: Space, target: Any, a: Value) -> Value:
    parts = [space.unsqueeze(_real(space, None, a), -1), space.unsqueeze(_imag(space, None, a), -1)]
    return space.cat(parts, -1)


@rule(aten.view_as_complex.default)
def _view_as_complex(space: Space, target: Any, a: Value) -> Value:
    real, imag = (_select(space, None, a, -1, i) for i in (0, 1))
    return _complex(space, None, real, imag)


# -- dtype and identity ---------------------------------------------------------------


def _through(space: Space, fn: str, a: Value) -> Value:
    return space.pointwise(lambda x: tuple(space.build.call(fn, r) for r in x), a)


@rule(torch.ops.tenfuse.cut.default, aten.detach.default)
def _cut(space: Space, target: Any, a: Value) -> Value:
    return _through(space, "cut", a)


@rule(aten.clone.default, aten.alias.default, aten.lift_fresh_copy.default, aten.contiguous.default,
      aten.resolve_conj.default, aten.resolve_neg.default)  # fmt: skip
def _same(space: Space, target: Any, a: Value, **kwargs: Any) -> Value:
    return a


@rule(aten.copy.default)
def _copy(space: Space, target: Any, a: Value, b: Value, non_blocking: bool = False) -> Value:
    return _expand(space, target, b, space.shape(a))


def cast(space: Space, a: Value, old: torch.dtype, new: torch.dtype) -> Value:
    """A change of dtype: rounds where precision is lost, else nothing."""
    if old == new:
        return a
    if new is torch.bool:
        return each(space, "ne", a, 0.0)
    if not (new.is_floating_point or new.is_complex):
        raise refuse(UNSUPPORTED_OP, f"the state is converted to {new}")
    if new.is_floating_point and a.is_complex:
        a = _real(space, None, a)
    coarse = {torch.bfloat16: "round_bf16", torch.float16: "round_f16"}.get(new)
    if coarse and old in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        return _through(space, coarse, a)
    if new in (torch.float32, torch.complex64) and old in (torch.float64, torch.complex128):
        return _through(space, "round_f32", a)
    return a


# -- constants ------------------------------------------------------------------------


def _filled(space: Space, shape: Sequence[Any], number: Any) -> Value:
    return _expand(space, None, lift(space, number), list(shape))


@rule(aten.full_like.default)
def _full_like(space: Space, target: Any, a: Value, number: Any, **kwargs: Any) -> Value:
    return _filled(space, space.shape(a), number)


@rule(aten.zeros_like.default, aten.new_zeros.default)
def _zeros_like(space: Space, target: Any, a: Value, shape: Any = None, **kwargs: Any) -> Value:
    return _filled(space, space.shape(a) if shape is None else shape, 0.0)


@rule(aten.ones_like.default, aten.new_ones.default)
def _ones_like(space: Space, target: Any, a: Value, shape: Any = None, **kwargs: Any) -> Value:
    return _filled(space, space.shape(a) if shape is None else shape, 1.0)


@rule(aten.full.default, aten.new_full.default)
def _full(space: Space, target: Any, *args: Any, **kwargs: Any) -> Value:
    return _filled(space, args[-2], args[-1])


@rule(aten.scalar_tensor.default)
def _scalar(space: Space, target: Any, number: Any, **kwargs: Any) -> Value:
    return lift(space, number)


@rule(aten.zeros.default)
def _zeros(space: Space, target: Any, shape: Any, **kwargs: Any) -> Value:
    return _filled(space, shape, 0.0)


@rule(aten.ones.default)
def _ones(space: Space, target: Any, shape: Any, **kwargs: Any) -> Value:
    return _filled(space, shape, 1.0)


# -- shape ------------------------------------------------------------------------------


@rule(aten.unsqueeze.default)
def _unsqueeze(space: Space, target: Any, a: Value, dim: int) -> Value:
    return space.unsqueeze(a, dim)


@rule(aten.squeeze.default)
def _squeeze_all(space: Space, target: Any, a: Value) -> Value:
    return space.squeeze(a, range(len(a.dims)))


@rule(aten.squeeze.dim, aten.squeeze.dims, prims.squeeze.default)
def _squeeze(space: Space, target: Any, a: Value, dims: Any) -> Value:
    return space.squeeze(a, [dims] if isinstance(dims, int) else dims)


@rule(aten.permute.default, prims.transpose.default)
def _permute(space: Space, target: Any, a: Value, order: Sequence[int]) -> Value:
    return space.permute(a, [o % len(a.dims) for o in order])


@rule(aten.transpose.int, aten.t.default, aten.mT.default)
def _transpose(space: Space, target: Any, a: Value, i: int = -1, j: int = -2) -> Value:
    order = list(range(len(a.dims)))
    if len(order) > 1:
        order[i], order[j] = order[j], order[i]
    return space.permute(a, order)


@rule(aten.expand.default, aten.broadcast_to.default)
def _expand(space: Space, target: Any, a: Value, shape: Sequence[Any], **kwargs: Any) -> Value:
    lead = len(shape) - len(a.dims)
    full = [
        space.length(a.dims[i - lead]) if isinstance(s, int) and s == -1 else s for i, s in enumerate(shape)
    ]
    return space.expand(a, full)


@rule(prims.broadcast_in_dim.default)
def _broadcast_in_dim(
    space: Space, target: Any, a: Value, shape: Sequence[Any], dims: Sequence[int]
) -> Value:
    placed = list(a.dims)
    full = [placed[dims.index(i)] if i in dims else () for i in range(len(shape))]
    return space.expand(Value(tuple(full), a.pieces), shape)


@rule(aten.slice.Tensor)
def _slice(
    space: Space, target: Any, a: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    size = space.length(a.dims[dim])
    if start in (None, 0) and (end is None or (isinstance(end, int) and end >= 2**62)) and step == 1:
        return a
    if step != 1 or not isinstance(size, int):
        raise refuse(UNSUPPORTED_OP, "a strided slice of the state")
    low = min(max((start or 0) + (size if (start or 0) < 0 else 0), 0), size)
    high = size if end is None else min(max(end + (size if end < 0 else 0), low), size)
    return space.slice(a, dim, low, high)


@rule(aten.slice_scatter.default)
def _slice_scatter(
    space: Space,
    target: Any,
    a: Value,
    b: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    size = space.length(a.dims[dim])
    if step != 1 or not isinstance(size, int):
        raise refuse(UNSUPPORTED_OP, "a strided slice of the state is written")
    low, high, _ = slice(start, end).indices(size)
    parts = [space.slice(a, dim, 0, low)] if low else []
    parts.append(b)
    parts += [space.slice(a, dim, high, size)] if high < size else []
    return parts[0] if len(parts) == 1 else space.cat(parts, dim)


@rule(aten.select_scatter.default)
def _select_scatter(space: Space, target: Any, a: Value, b: Value, dim: int, index: int) -> Value:
    size = space.length(a.dims[dim])
    if not isinstance(size, int):
        raise refuse(UNSUPPORTED_OP, "one entry of a dimension of dynamic size is written")
    index %= size
    return _slice_scatter(space, target, a, space.unsqueeze(b, dim % len(a.dims)), dim, index, index + 1)


@rule(aten.select.int)
def _select(space: Space, target: Any, a: Value, dim: int, index: int) -> Value:
    size = space.length(a.dims[dim])
    if isinstance(size, int) and size == 1:
        part = a
    elif not isinstance(size, int):
        raise refuse(UNSUPPORTED_OP, "one entry of a dimension of dynamic size is selected")
    else:
        part = space.slice(a, dim, index % size, index % size + 1)
    return space.squeeze(part, [dim])


@rule(aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)
def _split_with_sizes(space: Space, target: Any, a: Value, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [space.slice(a, dim, end - size, end) for end, size in zip(ends, sizes, strict=True)]


@rule(aten.split.Tensor, aten.unsafe_split.Tensor)
def _split(space: Space, target: Any, a: Value, size: int, dim: int = 0) -> list[Value]:
    total = space.length(a.dims[dim])
    if not isinstance(total, int):
        raise refuse(UNSUPPORTED_OP, "a dimension of dynamic size is split")
    return [space.slice(a, dim, low, min(low + size, total)) for low in range(0, total, size)]


@rule(aten.unbind.int)
def _unbind(space: Space, target: Any, a: Value, dim: int = 0) -> list[Value]:
    total = space.length(a.dims[dim])
    if not isinstance(total, int):
        raise refuse(UNSUPPORTED_OP, "a dimension of dynamic size is unbound")
    return [_select(space, None, a, dim, i) for i in range(total)]


@rule(aten.cat.default)
def _cat(space: Space, target: Any, values: Sequence[Value], dim: int = 0) -> Value:
    return values[0] if len(values) == 1 else space.cat(values, dim)


@rule(aten.stack.default)
def _stack(space: Space, target: Any, values: Sequence[Value], dim: int = 0) -> Value:
    return _cat(space, target, [space.unsqueeze(v, dim) for v in values], dim)


@rule(aten.constant_pad_nd.default)
def _pad(space: Space, target: Any, a: Value, sides: Sequence[int], number: Any = 0.0) -> Value:
    """Two numbers per dimension, the last dimension first; a negative one cuts off."""
    rank = len(a.dims)
    for i, (before, after) in enumerate(zip(sides[::2], sides[1::2], strict=True)):
        dim = rank - 1 - i
        size = space.length(a.dims[dim])
        if not isinstance(size, int) or not isinstance(before, int) or not isinstance(after, int):
            raise refuse(UNSUPPORTED_OP, "a dimension of dynamic size is padded")
        if before < 0 or after < 0:
            a = space.slice(a, dim, max(-before, 0), size - max(-after, 0))
        ends = [
            _filled(space, [n if d == dim else 1 for d in range(rank)], number)
            for n in (before, after)
            if n > 0
        ]
        parts = [*ends[: before > 0], a, *ends[before > 0 :]]
        a = parts[0] if len(parts) == 1 else space.cat(parts, dim)
    return a


@rule(aten.flip.default)
def _flip(space: Space, target: Any, a: Value, dims: Sequence[int]) -> Value:
    for dim in dims:
        size = space.length(a.dims[dim])
        if not isinstance(size, int) or size > 16:
            raise refuse(UNSUPPORTED_OP, "a long dimension of the state is flipped")
        a = space.cat([space.slice(a, dim, i, i + 1) for i in reversed(range(size))], dim)
    return a


@rule(aten.roll.default)
def _roll(space: Space, target: Any, a: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if len(dims) != len(shifts):
        raise refuse(UNSUPPORTED_OP, "the state is rolled as if it were flat")
    for shift, dim in zip(shifts, dims, strict=True):
        size = space.length(a.dims[dim])
        if not isinstance(size, int):
            raise refuse(UNSUPPORTED_OP, "a dimension of dynamic size is rolled")
        turn = size - shift % size
        if turn != size:
            a = space.cat([space.slice(a, dim, turn, size), space.slice(a, dim, 0, turn)], dim)
    return a


@rule(aten.linalg_cross.default)
def _cross(space: Space, target: Any, a: Value, b: Value, dim: int = -1) -> Value:
    one, two = ([_roll(space, None, v, [-shift], [dim]) for shift in (1, 2)] for v in (a, b))
    return linear(space, "sub", product(space, one[0], two[1]), product(space, one[1], two[0]))


# -- contractions -----------------------------------------------------------------------


@rule(aten.sum.dim_IntList, aten.sum.default, prims.sum.default)
def _sum(
    space: Space, target: Any, a: Value, dims: Any = None, keepdim: bool = False, **kwargs: Any
) -> Value:
    return space.reduce(a, dims if dims else range(len(a.dims)), keepdim)


@rule(aten.mean.dim, aten.mean.default)
def _mean(
    space: Space, target: Any, a: Value, dims: Any = None, keepdim: bool = False, **kwargs: Any
) -> Value:
    over = list(range(len(a.dims))) if not dims else list(dims)
    return ratio(space, space.reduce(a, over, keepdim), _count(space, a, over))


def _count(space: Space, a: Value, dims: Sequence[int]) -> int:
    sizes = [space.length(a.dims[d]) for d in dims]
    if not all(isinstance(s, int) for s in sizes):
        raise refuse(UNSUPPORTED_OP, "a mean over a dimension of dynamic size")
    return math.prod(sizes)  # type: ignore[arg-type]


@rule(aten.var.correction, aten.var.dim, aten.var.default)
def _var(
    space: Space,
    target: Any,
    a: Value,
    dims: Any = None,
    *rest: Any,
    correction: Any = 1,
    keepdim: bool = False,
) -> Value:
    if rest or isinstance(dims, bool):
        raise refuse(UNSUPPORTED_OP, "an old spelling of var")
    over = list(range(len(a.dims))) if not dims else list(dims)
    n = _count(space, a, over)
    centre = ratio(space, space.reduce(a, over, True), n)
    apart = linear(space, "sub", a, centre)
    return ratio(space, space.reduce(product(space, apart, apart), over, keepdim), max(n - correction, 0))


@rule(prims.var.default)
def _prims_var(space: Space, target: Any, a: Value, dims: Any, correction: float = 1.0) -> Value:
    return _var(space, target, a, dims, correction=correction)


@rule(aten.native_layer_norm.default)
def _layer_norm(
    space: Space, target: Any, a: Value, shape: Any, weight: Any, bias: Any, eps: float
) -> tuple[Any, ...]:
    over = list(range(len(a.dims) - len(shape), len(a.dims)))
    n = _count(space, a, over)
    centred = linear(space, "sub", a, ratio(space, space.reduce(a, over, True), n))
    spread = ratio(space, space.reduce(product(space, centred, centred), over, True), n)
    out = product(space, centred, each(space, "rsqrt", linear(space, "add", spread, eps)))
    out = out if weight is None else product(space, out, weight)
    return (out if bias is None else linear(space, "add", out, bias), None, None)


@rule(aten.amax.default, aten.amin.default, aten.max.default, aten.min.default)
def _extreme(space: Space, target: Any, a: Value, dims: Any = (), keepdim: bool = False) -> Value:
    op = "max" if "max" in str(target) else "min"
    return space.reduce(a, dims or range(len(a.dims)), keepdim, op)


@rule(aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims)
def _any_or_all(space: Space, target: Any, a: Value, dims: Any = None, keepdim: bool = False) -> Value:
    over = range(len(a.dims)) if dims is None else [dims] if isinstance(dims, int) else dims
    if not over or any(space.length(a.dims[d]) == 0 for d in over):
        raise refuse(UNSUPPORTED_OP, f"{target} over nothing")
    return space.reduce(each(space, "ne", a, 0.0), over, keepdim, "max" if "any" in str(target) else "min")


@rule(aten.linalg_vector_norm.default)
def _norm(
    space: Space, target: Any, a: Value, order: Any = 2, dims: Any = None, keepdim: bool = False, **kw: Any
) -> Value:
    over = range(len(a.dims)) if dims is None else dims
    if order == 2:
        square = product(space, a, _conj(space, None, a)) if a.is_complex else product(space, a, a)
        return _through(space, "root", space.reduce(_real(space, None, square), over, keepdim))
    if order in (1, math.inf):
        return space.reduce(_abs(space, None, a), over, keepdim, "sum" if order == 1 else "max")
    raise refuse(UNSUPPORTED_OP, f"the norm of order {order}")


@rule(aten.logsumexp.default)
def _logsumexp(space: Space, target: Any, a: Value, dims: Any, keepdim: bool = False) -> Value:
    top = _finite_top(space, a, dims)
    total = space.reduce(_exp(space, None, linear(space, "sub", a, top)), dims, keepdim)
    top = top if keepdim else space.squeeze(top, dims)
    return linear(space, "add", each(space, "log", total), top)


def _finite_top(space: Space, a: Value, dims: Any) -> Value:
    """The maximum, as a constant of differentiation; 0 where it is infinite."""
    top = _through(space, "cut", space.reduce(a, dims, True, "max"))
    return each(space, "where", each(space, "eq", _abs(space, None, top), math.inf), 0.0, top)


@rule(aten._softmax.default)
def _softmax(space: Space, target: Any, a: Value, dim: int, half_to_float: bool = False) -> Value:
    top = _through(space, "cut", space.reduce(a, [dim], True, "max"))
    up = _exp(space, None, linear(space, "sub", a, top))
    return ratio(space, up, space.reduce(up, [dim], True))


@rule(aten._log_softmax.default)
def _log_softmax(space: Space, target: Any, a: Value, dim: int, half_to_float: bool = False) -> Value:
    return linear(space, "sub", a, _logsumexp(space, target, a, [dim], True))


def _matmul(space: Space, a: Value, b: Value) -> Value:
    """(..., m, k) times (..., k, n) as a product over (..., m, k, n) summed over k."""
    both = product(space, space.unsqueeze(a, len(a.dims)), space.unsqueeze(b, len(b.dims) - 2))
    return space.reduce(both, [len(both.dims) - 2], False)


@rule(aten.mm.default, aten.bmm.default)
def _mm(space: Space, target: Any, a: Value, b: Value) -> Value:
    return _matmul(space, a, b)


@rule(aten.mv.default)
def _mv(space: Space, target: Any, a: Value, b: Value) -> Value:
    return space.squeeze(_matmul(space, a, space.unsqueeze(b, 1)), [1])


@rule(aten.dot.default, aten.vdot.default)
def _dot(space: Space, target: Any, a: Value, b: Value) -> Value:
    if a.is_complex or b.is_complex:
        raise _real_only("dot")
    return space.reduce(product(space, a, b), [0], False)


@rule(aten._trilinear.default)
def _trilinear(space: Space, target: Any, *args: Any) -> Value:
    """Three factors with new dimensions of one entry at given places, multiplied and summed."""
    factors = list(args[:3])
    for i, places in enumerate(args[3:6]):
        for dim in sorted(places):
            factors[i] = space.unsqueeze(factors[i], dim)
    return space.reduce(functools.reduce(lambda a, b: product(space, a, b), factors), args[6], False)


@rule(aten.addmm.default, aten.baddbmm.default)
def _addmm(space: Space, target: Any, c: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1) -> Value:
    out = _matmul(space, a, b)
    out = out if alpha == 1 else product(space, out, alpha)
    if beta == 0:
        return out
    return linear(space, "add", c if beta == 1 else product(space, c, beta), out)


@rule(aten.cumsum.default)
def _cumsum(space: Space, target: Any, a: Value, dim: int, dtype: Any = None) -> Value:
    size = space.length(a.dims[dim])
    if not isinstance(size, int) or size > 16:
        raise refuse(UNSUPPORTED_OP, "a running sum over a long dimension of the state")
    parts = [space.slice(a, dim, i, i + 1) for i in range(size)]
    sums = [functools.reduce(lambda x, y: linear(space, "add", x, y), parts[: i + 1]) for i in range(size)]
    return sums[0] if size == 1 else space.cat(sums, dim)
