"""What ATen operators do to intervals, one rule per operator.

Takes a call and a way to look up its arguments' intervals; leaves an ``Interval``.
``FUNCTIONS`` names the function of the IR that an operator is; ``RULES`` holds the
others on real tensors, ``COMPLEX`` the moduli of complex results, ``CONSTANTS`` the
operators that make a tensor from a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx

from tenfuse.algebra.ranges.interval import (
    ANY,
    INF,
    POSITIVE,
    TRANSFER,
    UNIT,
    Interval,
    add,
    hull,
    maximum,
    minimum,
    modulus,
    mul,
    neg,
    reciprocal,
    scale,
    square,
    sub,
)

aten = torch.ops.aten
Of = Callable[[Any], Interval]
"""The interval of an argument: a node, a number or a list of nodes."""
Rule = Callable[[Of, fx.Node], Interval]
ZERO = Interval(0.0, 0.0)
_SILU, _GELU = -0.2785, -0.1701
"""Lower bounds of x*sigmoid(x) (-0.27846...) and of gelu, exact or by tanh (-0.17004...)."""


def packet_of(node: fx.Node) -> Any:
    return getattr(node.target, "overloadpacket", node.target)


def tensor_of(node: Any) -> torch.Tensor | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, torch.Tensor) else None


def rank_of(node: Any) -> int:
    value = tensor_of(node)
    return value.dim() if value is not None else 0


def dims_of(node: fx.Node, place: int) -> tuple[list[int], bool]:
    """The dimensions a reduction goes over (none: all of them), and whether it keeps them."""
    dims = node.args[place] if len(node.args) > place else node.kwargs.get("dim")
    keep = node.args[place + 1] if len(node.args) > place + 1 else node.kwargs.get("keepdim", False)
    if isinstance(dims, int):
        dims = [dims]
    return [d for d in dims if isinstance(d, int)] if isinstance(dims, Sequence) else [], bool(keep)


def root_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """The node whose square ``node`` is."""
    args, packet = node.args, packet_of(node)
    if node.op != "call_function":
        return ()
    twice = packet is aten.mul and len(args) == 2 and args[0] is args[1]
    power = packet is aten.pow and len(args) == 2 and args[1] == 2
    found = args[0] if twice or power or packet is aten.square else None
    return (found,) if isinstance(found, fx.Node) else ()


def ball(size: float) -> Interval:
    return Interval(-size, size)


def argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _length(tensor: torch.Tensor | None, dims: Sequence[int]) -> int | None:
    """How many entries lie along ``dims`` (none: in all); None where a size is symbolic."""
    if tensor is None:
        return None
    count = 1
    for d in dims or range(tensor.dim()):
        if not isinstance(tensor.shape[d], int):
            return None
        count *= tensor.shape[d]
    return count


def _clamp(of: Of, node: fx.Node) -> Interval:
    low, high = argument(node, 1, "min", None), argument(node, 2, "max", None)
    found = of(node.args[0])
    found = found if low is None else maximum(found, of(low))
    return found if high is None else minimum(found, of(high))


def _sum(of: Of, node: fx.Node) -> Interval:
    return scale(of(node.args[0]), _length(tensor_of(node.args[0]), dims_of(node, 1)[0]))


def _cumsum(of: Of, node: fx.Node) -> Interval:
    one = of(node.args[0])
    count = _length(tensor_of(node.args[0]), [argument(node, 1, "dim", 0)] if rank_of(node) else [])
    return hull(one, scale(one, count))


def _matmul(of: Of, a: Any, b: Any) -> Interval:
    left = tensor_of(a)
    count = left.shape[-1] if left is not None and left.dim() and isinstance(left.shape[-1], int) else None
    return scale(mul(of(a), of(b)), count)


def _addmm(of: Of, node: fx.Node) -> Interval:
    if node.kwargs:
        return ANY
    return add(of(node.args[0]), _matmul(of, node.args[1], node.args[2]))


def _norm(of: Of, node: fx.Node) -> Interval:
    order = argument(node, 1, "ord", 2)
    count = _length(tensor_of(node.args[0]), dims_of(node, 2)[0])
    if order != 2 or count is None:
        return POSITIVE
    return TRANSFER["sqrt"](scale(square(of(node.args[0])), count))


def _softplus(of: Of, node: fx.Node) -> Interval:
    beta = argument(node, 1, "beta", 1)
    if not isinstance(beta, (int, float)) or beta <= 0:
        return ANY
    inside = TRANSFER["softplus"](mul(of(node.args[0]), of(beta)))
    return mul(inside, of(1.0 / beta))


def _log_sigmoid(of: Of, node: fx.Node) -> Interval:
    return neg(TRANSFER["softplus"](neg(of(node.args[0]))))


def _scaled_linear(least: float) -> Rule:
    """x times a number between 0 and 1: at least ``least``, at most x or 0."""
    return lambda of, node: Interval(
        0.0 if of(node.args[0]).low >= 0.0 else least, max(of(node.args[0]).high, 0.0)
    )


def _elu(of: Of, node: fx.Node) -> Interval:
    found, alpha = of(node.args[0]), argument(node, 1, "alpha", 1.0)
    if len(node.args) > 2 or not isinstance(alpha, (int, float)) or alpha < 0:
        return ANY
    return Interval(-float(alpha) if found.low < 0 else 0.0, max(found.high, 0.0))


def _leaky(of: Of, node: fx.Node) -> Interval:
    found, slope = of(node.args[0]), argument(node, 1, "negative_slope", 0.01)
    return hull(found, mul(found, of(slope)))


def _hardsigmoid(of: Of, node: fx.Node) -> Interval:
    found = add(mul(of(node.args[0]), Interval(1 / 6, 1 / 6)), Interval(0.5, 0.5))
    return minimum(maximum(found, ZERO), Interval(1.0, 1.0))


def _lerp(of: Of, node: fx.Node) -> Interval:
    a, b, weight = (of(x) for x in node.args[:3])
    return hull(a, b) if weight.low >= 0.0 and weight.high <= 1.0 else add(a, mul(weight, sub(b, a)))


def _addcmul(of: Of, node: fx.Node) -> Interval:
    a, b, c = (of(x) for x in node.args[:3])
    return add(a, mul(of(node.kwargs.get("value", 1)), mul(b, c)))


def _scaled_add(sign: int) -> Rule:
    """add, sub with ``alpha``."""
    return lambda of, node: add(
        of(node.args[0]), mul(of(sign * argument(node, 2, "alpha", 1)), of(node.args[1]))
    )


def _rsub(of: Of, node: fx.Node) -> Interval:
    return sub(of(node.args[1]), mul(of(argument(node, 2, "alpha", 1)), of(node.args[0])))


def _pad(of: Of, node: fx.Node) -> Interval:
    return hull(of(node.args[0]), of(argument(node, 2, "value", 0.0)))


def _product(of: Of, node: fx.Node) -> Interval:
    found = of(node.args[0])
    if found.size > 1.0:
        return POSITIVE if found.low >= 0.0 else ANY
    return UNIT if found.low >= 0.0 else ball(1.0)


def _cast(of: Of, node: fx.Node) -> Interval:
    """A change of dtype between floats; from bool it is 0 or 1."""
    source = tensor_of(node.args[0])
    return of(node.args[0]) if source is not None and not source.is_complex() else ANY


RULES: dict[Any, Rule] = {
    aten.add: _scaled_add(1),
    aten.sub: _scaled_add(-1),
    aten.rsub: _rsub,
    aten.reciprocal: lambda of, node: reciprocal(of(node.args[0])),
    aten.square: lambda of, node: square(of(node.args[0])),
    aten.clamp: _clamp,
    aten.hardtanh: lambda of, node: minimum(
        maximum(of(node.args[0]), of(argument(node, 1, "min_val", -1.0))),
        of(argument(node, 2, "max_val", 1.0)),
    ),
    aten.hardsigmoid: _hardsigmoid,
    aten.silu: _scaled_linear(_SILU),
    aten.gelu: _scaled_linear(_GELU),
    aten.elu: _elu,
    aten.leaky_relu: _leaky,
    aten.softplus: _softplus,
    aten.log_sigmoid_forward: _log_sigmoid,
    aten._softmax: lambda of, node: UNIT,
    aten._log_softmax: lambda of, node: Interval(-INF, 0.0),
    aten.sum: _sum,
    aten.cumsum: _cumsum,
    aten.prod: _product,
    aten.cumprod: _product,
    aten.var: lambda of, node: POSITIVE,
    aten.mm: lambda of, node: _matmul(of, *node.args[:2]),
    aten.bmm: lambda of, node: _matmul(of, *node.args[:2]),
    aten.mv: lambda of, node: _matmul(of, *node.args[:2]),
    aten.dot: lambda of, node: _matmul(of, *node.args[:2]),
    aten.addmm: _addmm,
    aten.baddbmm: _addmm,
    aten.linalg_vector_norm: _norm,
    aten.lerp: _lerp,
    aten.addcmul: _addcmul,
    aten.masked_fill: lambda of, node: hull(of(node.args[0]), of(node.args[2])),
    aten.cat: lambda of, node: of(node.args[0]),
    aten.stack: lambda of, node: of(node.args[0]),
    aten.tril: lambda of, node: hull(of(node.args[0]), ZERO),
    aten.triu: lambda of, node: hull(of(node.args[0]), ZERO),
    aten.diag_embed: lambda of, node: hull(of(node.args[0]), ZERO),
    aten.constant_pad_nd: _pad,
    aten.slice_scatter: lambda of, node: hull(of(node.args[0]), of(node.args[1])),
    aten.select_scatter: lambda of, node: hull(of(node.args[0]), of(node.args[1])),
    aten.copy: lambda of, node: of(node.args[1]),
    aten._to_copy: _cast,
    torch.ops.prims.convert_element_type: _cast,
}

FUNCTIONS: dict[Any, str] = {
    aten.mul: "mul", aten.div: "div", aten.true_divide: "div", aten.neg: "neg", aten.pow: "pow",
    aten.abs: "abs", aten.maximum: "maximum", aten.minimum: "minimum", aten.clamp_min: "clamp_min",
    aten.clamp_max: "clamp_max", aten.logaddexp: "logaddexp", aten.where: "where", aten.exp: "exp",
    aten.exp2: "exp2", aten.expm1: "expm1", aten.sigmoid: "sigmoid", aten.tanh: "tanh", aten.erf: "erf",
    aten.atan: "atan", aten.atan2: "atan2", aten.sin: "sin", aten.cos: "cos", aten.log: "log",
    aten.log2: "log2", aten.log1p: "log1p", aten.sqrt: "sqrt", aten.rsqrt: "rsqrt", aten.relu: "relu",
    aten.sign: "sign", aten.sgn: "sign", aten.floor: "floor", aten.ceil: "ceil", aten.trunc: "trunc",
    aten.round: "round",
}  # fmt: skip

COMPLEX: dict[Any, Callable[[Of, fx.Node], Interval]] = {
    aten.mul: lambda of, node: ball(mul(*(modulus(of(a)) for a in node.args[:2])).high),
    aten.add: lambda of, node: ball(sum(of(a).size for a in node.args[:2])),
    aten.sub: lambda of, node: ball(sum(of(a).size for a in node.args[:2])),
    aten.neg: lambda of, node: ball(of(node.args[0]).size),
    aten.polar: lambda of, node: ball(of(node.args[0]).size),
    aten.complex: lambda of, node: ball(math.hypot(*(of(a).size for a in node.args[:2]))),
    aten.view_as_complex: lambda of, node: ball(math.sqrt(2.0) * of(node.args[0]).size),
    aten.abs: lambda of, node: Interval(0.0, of(node.args[0]).size),
    aten.angle: lambda of, node: ball(math.pi),
}
"""Operators with a complex argument or result, by the moduli of their arguments."""


def _number(place: int) -> Rule:
    return lambda of, node: of(argument(node, place, "fill_value", None))


CONSTANTS: dict[Any, Rule] = {
    aten.full: _number(1),
    aten.full_like: _number(1),
    aten.new_full: _number(2),
    aten.scalar_tensor: _number(0),
    aten.eye: lambda of, node: UNIT,
    aten.one_hot: lambda of, node: UNIT,
    **{op: (lambda of, node: ZERO) for op in (aten.zeros, aten.zeros_like, aten.new_zeros)},
    **{op: (lambda of, node: Interval(1.0, 1.0)) for op in (aten.ones, aten.ones_like, aten.new_ones)},
}
