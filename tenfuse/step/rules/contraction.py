"""Rules of operators that sum or compare along dimensions: reductions, norms, matrix products."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from tenfuse.reasons import UNSUPPORTED_OP, refuse
from tenfuse.step.rules.arithmetic import absolute, exponential
from tenfuse.step.rules.base import each, linear, product, ratio, real_only, rule, through
from tenfuse.step.rules.complex import conjugate, real
from tenfuse.step.tensors import Space, Value

aten, prims = torch.ops.aten, torch.ops.prims


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


@rule(aten.std.correction, aten.std.dim, aten.std.default)
def _std(space: Space, target: Any, *args: Any, **kwargs: Any) -> Value:
    """Its derivative is zero where nothing varies, as that of a norm of zero."""
    return through(space, "root", _var(space, target, *args, **kwargs))


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
        square = product(space, a, conjugate(space, None, a)) if a.is_complex else product(space, a, a)
        return through(space, "root", space.reduce(real(space, None, square), over, keepdim))
    if order in (1, math.inf):
        return space.reduce(absolute(space, None, a), over, keepdim, "sum" if order == 1 else "max")
    raise refuse(UNSUPPORTED_OP, f"the norm of order {order}")


@rule(aten.logsumexp.default)
def _logsumexp(space: Space, target: Any, a: Value, dims: Any, keepdim: bool = False) -> Value:
    top = _finite_top(space, a, dims)
    total = space.reduce(exponential(space, None, linear(space, "sub", a, top)), dims, keepdim)
    top = top if keepdim else space.squeeze(top, dims)
    return linear(space, "add", each(space, "log", total), top)


def _finite_top(space: Space, a: Value, dims: Any) -> Value:
    """The maximum, as a constant of differentiation; 0 where it is infinite."""
    top = through(space, "cut", space.reduce(a, dims, True, "max"))
    return each(space, "where", each(space, "eq", absolute(space, None, top), math.inf), 0.0, top)


@rule(aten._softmax.default)
def _softmax(space: Space, target: Any, a: Value, dim: int, half_to_float: bool = False) -> Value:
    top = through(space, "cut", space.reduce(a, [dim], True, "max"))
    up = exponential(space, None, linear(space, "sub", a, top))
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
        raise real_only("dot")
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
