"""The pointwise functions of the IR: meaning in torch, and their derivative.

Takes and leaves nothing but the table ``FUNCTIONS``.  Truth values are 0.0 and 1.0.  Those of
``whole.py`` are of integers.  A
``vjp`` rule gives the cotangent of argument ``i`` from the cotangent ``g`` of the result,
as nodes of the same IR, or None where it is zero everywhere; the rules are torch's own
(ties of maximum and minimum share evenly, abs has derivative 0 at 0).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from tenfuse.step.program import Builder, Ref
from tenfuse.step.sloped import sloped
from tenfuse.step.whole import ARITHMETIC, COMPARISONS, ENTRY, number

Vjp = Callable[[Builder, Ref, tuple[Ref, ...], Ref, int], Ref | None]


@dataclasses.dataclass(frozen=True)
class Function:
    """``arity`` arguments; ``torch`` computes it on tensors; ``symbol`` prints it."""

    arity: int
    torch: Callable[..., torch.Tensor]
    vjp: Vjp
    symbol: str = ""
    boolean: bool = False
    whole: bool = False
    """Whether the result is an integer."""


def _zero(b: Builder, g: Ref, x: tuple[Ref, ...], y: Ref, i: int) -> Ref | None:
    return None


def _times(partial: Callable[[Builder, tuple[Ref, ...], Ref, int], Ref]) -> Vjp:
    """The rule of a function whose partial derivative is ``partial``."""
    return lambda b, g, x, y, i: b.call("mul", g, partial(b, x, y, i))


def _div(b: Builder, g: Ref, x: tuple[Ref, ...], y: Ref, i: int) -> Ref:
    quotient = b.call("div", g, x[1])
    return quotient if i == 0 else b.call("neg", b.call("mul", quotient, y))


def _pow(b: Builder, g: Ref, x: tuple[Ref, ...], y: Ref, i: int) -> Ref:
    zero = b.const(0.0)
    if i == 0:
        slope = b.call("mul", x[1], b.call("pow", x[0], b.call("sub", x[1], b.const(1.0))))
        return b.call("mul", g, b.call("where", b.call("eq", x[1], zero), zero, slope))
    slope = b.call("mul", y, b.call("log", x[0]))
    flat = b.call("logical_and", b.call("eq", x[0], zero), b.call("ge", x[1], zero))
    return b.call("mul", g, b.call("where", flat, zero, slope))


def _where(b: Builder, g: Ref, x: tuple[Ref, ...], y: Ref, i: int) -> Ref | None:
    zero = b.const(0.0)
    return None if i == 0 else b.call("where", x[0], *((g, zero) if i == 1 else (zero, g)))


def _extreme(loses: tuple[str, str]) -> Vjp:
    """Maximum and minimum: the argument that does not lose; half each at a tie.

    Against NaN nothing loses, and each argument gets the whole gradient, as in torch.
    """

    def vjp(b: Builder, g: Ref, x: tuple[Ref, ...], y: Ref, i: int) -> Ref:
        half = b.call("mul", g, b.const(0.5))
        lost = b.call(loses[i], x[0], x[1])
        return b.call("where", b.call("eq", x[0], x[1]), half, b.call("where", lost, b.const(0.0), g))

    return vjp


def _clamp(keeps: str, replaces: str) -> Vjp:
    """Clamping to a bound: an entry on the bound counts as inside, as in ``torch.clamp``."""

    def vjp(b: Builder, g: Ref, x: tuple[Ref, ...], y: Ref, i: int) -> Ref:
        mine = b.call(keeps if i == 0 else replaces, x[0], x[1])
        return b.call("where", mine, g, b.const(0.0))

    return vjp


def _root(b: Builder, g: Ref, x: tuple[Ref, ...], y: Ref, i: int) -> Ref:
    zero = b.const(0.0)
    slope = b.call("div", g, b.call("mul", y, b.const(2.0)))
    return b.call("where", b.call("eq", y, zero), zero, slope)


def _logaddexp(b: Builder, x: tuple[Ref, ...], y: Ref, i: int) -> Ref:
    return b.call("exp", b.call("sub", x[i], y))


def _atan2(b: Builder, x: tuple[Ref, ...], y: Ref, i: int) -> Ref:
    square = b.call("add", b.call("mul", x[0], x[0]), b.call("mul", x[1], x[1]))
    return b.call("div", x[1] if i == 0 else b.call("neg", x[0]), square)


def _square(b: Builder, x: Ref) -> Ref:
    return b.call("mul", x, x)


def _truth(compare: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A comparison whose result has the arguments' dtype, 0 or 1."""

    def call(*args: torch.Tensor) -> torch.Tensor:
        return compare(*args).to(torch.result_type(*args) if len(args) == 2 else args[0].dtype)

    return call


def _rounded(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: x.to(dtype).to(x.dtype)


def _sloped(value: torch.Tensor, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return sloped(*torch.broadcast_tensors(value, x, slope))


def _slope(b: Builder, g: Ref, x: tuple[Ref, ...], y: Ref, i: int) -> Ref | None:
    return (g, b.call("mul", g, x[2]), None)[i]


_identity: Vjp = lambda b, g, x, y, i: g  # noqa: E731

FUNCTIONS: dict[str, Function] = {
    "add": Function(2, torch.add, _identity, "+"),
    "sub": Function(2, torch.sub, lambda b, g, x, y, i: g if i == 0 else b.call("neg", g), "-"),
    "mul": Function(2, torch.mul, lambda b, g, x, y, i: b.call("mul", g, x[1 - i]), "*"),
    "div": Function(2, torch.div, _div, "/"),
    "neg": Function(1, torch.neg, lambda b, g, x, y, i: b.call("neg", g), "-"),
    "abs": Function(1, torch.abs, _times(lambda b, x, y, i: b.call("sign", x[0]))),
    "sign": Function(1, torch.sign, _zero),
    "exp": Function(1, torch.exp, _times(lambda b, x, y, i: y)),
    "exp2": Function(1, torch.exp2, _times(lambda b, x, y, i: b.call("mul", y, b.const(math.log(2.0))))),
    "expm1": Function(1, torch.expm1, _times(lambda b, x, y, i: b.call("add", y, b.const(1.0)))),
    "log": Function(1, torch.log, lambda b, g, x, y, i: b.call("div", g, x[0])),
    "log2": Function(
        1, torch.log2, lambda b, g, x, y, i: b.call("div", g, b.call("mul", x[0], b.const(math.log(2.0))))
    ),
    "log1p": Function(
        1, torch.log1p, lambda b, g, x, y, i: b.call("div", g, b.call("add", x[0], b.const(1.0)))
    ),
    "sqrt": Function(1, torch.sqrt, lambda b, g, x, y, i: b.call("div", g, b.call("mul", y, b.const(2.0)))),
    "rsqrt": Function(
        1,
        torch.rsqrt,
        _times(lambda b, x, y, i: b.call("mul", b.const(-0.5), b.call("mul", y, _square(b, y)))),
    ),
    "sin": Function(1, torch.sin, _times(lambda b, x, y, i: b.call("cos", x[0]))),
    "cos": Function(1, torch.cos, _times(lambda b, x, y, i: b.call("neg", b.call("sin", x[0])))),
    "tanh": Function(1, torch.tanh, _times(lambda b, x, y, i: b.call("sub", b.const(1.0), _square(b, y)))),
    "sigmoid": Function(
        1, torch.sigmoid, _times(lambda b, x, y, i: b.call("mul", y, b.call("sub", b.const(1.0), y)))
    ),
    "erf": Function(
        1,
        torch.erf,
        _times(
            lambda b, x, y, i: b.call(
                "mul", b.const(2.0 / math.sqrt(math.pi)), b.call("exp", b.call("neg", _square(b, x[0])))
            )
        ),
    ),
    "atan": Function(
        1, torch.atan, lambda b, g, x, y, i: b.call("div", g, b.call("add", b.const(1.0), _square(b, x[0])))
    ),
    "atan2": Function(2, torch.atan2, _times(_atan2)),
    "pow": Function(2, torch.pow, _pow),
    "maximum": Function(2, torch.maximum, _extreme(("lt", "gt"))),
    "minimum": Function(2, torch.minimum, _extreme(("gt", "lt"))),
    "logaddexp": Function(2, torch.logaddexp, _times(_logaddexp)),
    "clamp_min": Function(2, torch.maximum, _clamp("ge", "lt")),
    "clamp_max": Function(2, torch.minimum, _clamp("le", "gt")),
    "relu": Function(
        1, torch.relu, lambda b, g, x, y, i: b.call("where", b.call("gt", y, b.const(0.0)), g, b.const(0.0))
    ),
    "softplus": Function(
        1,
        lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        _times(lambda b, x, y, i: b.call("sigmoid", x[0])),
    ),
    "root": Function(1, torch.sqrt, _root),
    "where": Function(3, lambda c, a, b: torch.where(c != 0, a, b), _where),
    "lt": Function(2, _truth(torch.lt), _zero, "<", True),
    "le": Function(2, _truth(torch.le), _zero, "<=", True),
    "gt": Function(2, _truth(torch.gt), _zero, ">", True),
    "ge": Function(2, _truth(torch.ge), _zero, ">=", True),
    "eq": Function(2, _truth(torch.eq), _zero, "==", True),
    "ne": Function(2, _truth(torch.ne), _zero, "!=", True),
    "logical_and": Function(2, _truth(torch.logical_and), _zero, "and", True),
    "logical_or": Function(2, _truth(torch.logical_or), _zero, "or", True),
    "logical_not": Function(1, _truth(torch.logical_not), _zero, "not", True),
    "isnan": Function(1, _truth(torch.isnan), _zero, "", True),
    "floor": Function(1, torch.floor, _zero),
    "ceil": Function(1, torch.ceil, _zero),
    "trunc": Function(1, torch.trunc, _zero),
    "round": Function(1, torch.round, _zero),
    "round_bf16": Function(1, _rounded(torch.bfloat16), _identity),
    "round_f16": Function(1, _rounded(torch.float16), _identity),
    "round_f32": Function(1, _rounded(torch.float32), _identity),
    "cut": Function(1, torch.detach, _zero),
    "sloped": Function(3, _sloped, _slope),
    "number": Function(1, number, _zero),
    **{name: Function(n, call, _zero, whole=True) for name, (n, call) in (ENTRY | ARITHMETIC).items()},
    **{name: Function(2, call, _zero, boolean=True) for name, call in COMPARISONS.items()},
}
"""``cut`` is the identity whose derivative is zero (``Tensor.detach``); ``root`` is the
square root whose derivative at zero is zero, the subgradient that norms use; the clamps
are maximum and minimum against a bound, with the derivative of ``torch.clamp``;
``sloped(value, x, slope)`` is the value, whose derivative by x is given."""
