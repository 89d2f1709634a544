"""Intervals of real numbers, and what every function of the IR does to them.

Takes and leaves ``Interval`` values: closed, with ends that may be infinite, because a
float may round onto the end that the real number only approaches (``exp(-softplus(x))``
reaches 0).  A bound is that of real arithmetic: a computed value may exceed it by its
rounding, overflow included.  Outside every statement are NaN (so 0 * inf counts as 0: its product is NaN)
and quotients by zero, whose sign is that of the zero.

Source: interval arithmetic (Moore, "Interval Analysis", 1966); a monotone function maps
ends to ends.  ``TRANSFER`` has a rule for each entry of ``FUNCTIONS``.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable

from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.whole import NAMES

INF = math.inf
_SLACK = 1e-12
"""Ends are themselves rounded: 0.7 + 0.2 + 0.1 is still called at most 1."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """All numbers from ``low`` to ``high``, both included."""

    low: float = -INF
    high: float = INF

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval from {self.low} to {self.high}")

    @property
    def size(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    @property
    def known(self) -> bool:
        return self != ANY

    def contains(self, value: float, slack: float = 0.0) -> bool:
        room = slack * max(1.0, abs(value) if math.isfinite(value) else 1.0)
        return self.low - room <= value <= self.high + room

    def words(self) -> tuple[str, ...]:
        """What can be said of it, the strongest first: "in [0, 1]", "non-negative", ..."""
        found = []
        if self.low >= -_SLACK and self.high <= 1 + _SLACK:
            found.append("in [0, 1]")
        if self.low >= -_SLACK:
            found.append("non-negative")
        if self.high <= _SLACK:
            found.append("non-positive")
        if self.size <= 1 + _SLACK:
            found.append("at most 1 in absolute value")
        return tuple(found)


ANY = Interval()
UNIT = Interval(0.0, 1.0)
BALL = Interval(-1.0, 1.0)
POSITIVE = Interval(0.0, INF)


def hull(*parts: Interval) -> Interval:
    """The smallest interval that contains all of them."""
    return Interval(min(p.low for p in parts), max(p.high for p in parts))


def meet(a: Interval, b: Interval) -> Interval:
    """Their intersection; ``a`` where rounded ends leave none."""
    low, high = max(a.low, b.low), min(a.high, b.high)
    return Interval(low, high) if low <= high else a


def _between(values: list[float]) -> Interval:
    return ANY if any(math.isnan(v) for v in values) else Interval(min(values), max(values))


def add(a: Interval, b: Interval) -> Interval:
    low, high = a.low + b.low, a.high + b.high
    return Interval(-INF if math.isnan(low) else low, INF if math.isnan(high) else high)


def neg(a: Interval) -> Interval:
    return Interval(-a.high, -a.low)


def sub(a: Interval, b: Interval) -> Interval:
    return add(a, neg(b))


def mul(a: Interval, b: Interval) -> Interval:
    return _between([x * y if x and y else 0.0 for x in (a.low, a.high) for y in (b.low, b.high)])


def square(a: Interval) -> Interval:
    low = 0.0 if a.contains(0.0) else min(abs(a.low), abs(a.high))
    return Interval(_power(low, 2.0), _power(a.size, 2.0))


def reciprocal(a: Interval) -> Interval:
    if a.low < 0.0 < a.high or a.low == a.high == 0.0:
        return ANY
    if a.low == 0.0:
        return Interval(1.0 / a.high, INF)
    if a.high == 0.0:
        return Interval(-INF, 1.0 / a.low)
    return Interval(1.0 / a.high, 1.0 / a.low)


def div(a: Interval, b: Interval) -> Interval:
    over = reciprocal(b)
    if over.low == over.high and math.isinf(over.low):
        return ANY  # one over it overflows, while a quotient of two such numbers need not
    return mul(a, over)


def scale(a: Interval, count: int | None) -> Interval:
    """The sum of ``count`` numbers in ``a``; None is a number not known yet, perhaps 0."""
    if count is None:
        return hull(Interval(0.0, 0.0), mul(a, POSITIVE))
    return mul(a, Interval(float(count), float(count)))


def modulus(a: Interval) -> Interval:
    return Interval(0.0 if a.contains(0.0) else min(abs(a.low), abs(a.high)), a.size)


def _power(x: float, y: float) -> float:
    try:
        return float(x**y)
    except OverflowError:
        return -INF if x < 0.0 and y % 2 == 1 else INF


def power(a: Interval, b: Interval) -> Interval:
    """``a ** b``: by its ends where the base has one sign or the exponent is a whole number."""
    whole = b.low == b.high and b.low == math.floor(b.low) if math.isfinite(b.low) else False
    if whole and b.low < 0:
        return reciprocal(power(a, neg(b)))
    if whole and b.low % 2 == 0:
        return square(a) if b.low == 2 else Interval(_power(modulus(a).low, b.low), _power(a.size, b.low))
    if whole:
        return Interval(_power(a.low, b.low), _power(a.high, b.low))
    if a.low < 0.0:
        return ANY
    if a.high <= 1.0 and b.low >= 0.0:
        return UNIT
    if math.isfinite(a.high) and b.low == b.high and b.low >= 0.0:
        return Interval(_power(a.low, b.low), _power(a.high, b.low))
    return POSITIVE


def monotone(fn: Callable[[float], float], least: float = -INF, most: float = INF) -> Callable[..., Interval]:
    """The rule of a function that never falls; it is evaluated at the ends."""

    def end(x: float, overflow: float) -> float:
        try:
            return min(max(float(fn(x)), least), most)
        except OverflowError:
            return overflow

    return lambda a: Interval(end(a.low, sys.float_info.max), end(a.high, INF))


def _domain(fn: Callable[[float], float], edge: float) -> Callable[..., Interval]:
    """A rising function that is minus infinity at ``edge`` and NaN below it."""

    def rule(a: Interval) -> Interval:
        if a.high < edge:
            return ANY
        low = -INF if a.low <= edge else fn(a.low)
        return Interval(low, -INF if a.high == edge else fn(a.high))

    return rule


def _tensor(name: str) -> Callable[[float], float]:
    """The function itself, in double precision: roundings and whole numbers."""

    def call(x: float) -> float:
        import torch

        return float(FUNCTIONS[name].torch(torch.tensor(x, dtype=torch.float64)))

    return call


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0


def _softplus(x: float) -> float:
    return x if x > 40.0 else math.log1p(math.exp(x))


def _sqrt(a: Interval) -> Interval:
    return Interval(math.sqrt(max(a.low, 0.0)), math.sqrt(a.high)) if a.high >= 0.0 else ANY


def _rsqrt(a: Interval) -> Interval:
    return reciprocal(_sqrt(a)) if a.high > 0.0 else ANY


def _logaddexp(a: Interval, b: Interval) -> Interval:
    def both(x: float, y: float) -> float:
        top = max(x, y)
        return top if math.isinf(top) else top + math.log1p(math.exp(min(x, y) - top))

    return Interval(both(a.low, b.low), both(a.high, b.high))


def maximum(a: Interval, b: Interval) -> Interval:
    return Interval(max(a.low, b.low), max(a.high, b.high))


def minimum(a: Interval, b: Interval) -> Interval:
    return Interval(min(a.low, b.low), min(a.high, b.high))


def where(condition: Interval, a: Interval, b: Interval) -> Interval:
    if condition == Interval(0.0, 0.0):
        return b
    return hull(a, b) if condition.contains(0.0) else a


def _truth(*args: Interval) -> Interval:
    return UNIT


def _same(a: Interval) -> Interval:
    return a


TRANSFER: dict[str, Callable[..., Interval]] = {
    "add": add, "sub": sub, "mul": mul, "div": div, "neg": neg, "pow": power, "abs": modulus,
    "maximum": maximum, "minimum": minimum, "clamp_min": maximum, "clamp_max": minimum,
    "logaddexp": _logaddexp, "where": where, "cut": _same, "sloped": lambda value, x, slope: value,
    "exp": monotone(math.exp, 0.0), "exp2": monotone(lambda x: 2.0**x, 0.0),
    "expm1": monotone(math.expm1, -1.0), "softplus": monotone(_softplus, 0.0),
    "sigmoid": monotone(_sigmoid, 0.0, 1.0), "tanh": monotone(math.tanh, -1.0, 1.0),
    "erf": monotone(math.erf, -1.0, 1.0), "atan": monotone(math.atan),
    "atan2": lambda a, b: Interval(-math.pi, math.pi),
    "sin": lambda a: BALL, "cos": lambda a: BALL,
    "log": _domain(math.log, 0.0), "log2": _domain(math.log2, 0.0), "log1p": _domain(math.log1p, -1.0),
    "sqrt": _sqrt, "root": _sqrt, "rsqrt": _rsqrt,
    "relu": monotone(lambda x: max(x, 0.0), 0.0),
    **{fn: monotone(_tensor(fn)) for fn in (
        "sign", "floor", "ceil", "trunc", "round", "round_bf16", "round_f16", "round_f32",
    )},
    **{name: (lambda *args: ANY) for name in NAMES},
    **{name: _truth for name, function in FUNCTIONS.items() if function.boolean},
}  # fmt: skip
"""The interval of every function of the IR, given those of its arguments."""
