"""The pointwise functions of the IR in Triton.

Takes a function's name and the text of its arguments; leaves an expression.  Only what
every backend and the interpreter of Triton computes alike is used: no vendor's library.
``PREAMBLE`` is what the expressions and scans call.  Refuses functions that are not there
for a dtype by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tenfuse.reasons import NO_TILES, refuse

PREAMBLE = """
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def rounded_bits(x):
    # To the nearest of 16 bits, ties to even; a NaN stays one.
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(x == x, bits + 0x7FFF + ((bits >> 16) & 1), bits | 0x400000) >> 16


@triton.jit
def round_bf16(x):
    # Triton's interpreter cuts bits off where cards round.
    if INTERPRETED:
        y = (rounded_bits(x) << 16).to(tl.float32, bitcast=True)
    else:
        y = x.to(tl.bfloat16).to(tl.float32)
    return y


@triton.jit
def to_bf16(x):
    if INTERPRETED:
        y = rounded_bits(x).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(tl.bfloat16)
    return y


@triton.jit
def factor_bf16(x):
    # What tl.dot multiplies: the interpreter would multiply the bits of bfloat16.
    if INTERPRETED:
        y = round_bf16(x)
    else:
        y = x.to(tl.bfloat16)
    return y


@triton.jit
def expm1(x):
    # Kahan: the rounding of exp(x) cancels in the quotient (Higham 2002, section 1.14.1).
    u = tl.exp(x)
    inner = (u - 1.0) * (x / tl.log(tl.where((u == 1.0) | (u == 0.0), 2.0, u)))
    return tl.where(u == 1.0, x, tl.where((u - 1.0 == -1.0) | (u == float("inf")), u - 1.0, inner))


@triton.jit
def log1p(x):
    u = 1.0 + x
    return tl.where((u == 1.0) | (u == float("inf")), x, tl.log(u) * (x / tl.where(u == 1.0, 1.0, u - 1.0)))


@triton.jit
def tanh(x):
    a = tl.abs(x)
    m = expm1(-2.0 * a)
    y = -m / (m + 2.0)
    return tl.where(x < 0.0, -y, y)


@triton.jit
def tanh_single(x):
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    q = x * x
    p = q * (-1.0 / 3.0 + q * (2.0 / 15.0 + q * (-17.0 / 315.0 + q * (62.0 / 2835.0))))
    y = (1.0 - e) / (1.0 + e)
    return tl.where(a < 0.25, x * (1.0 + p), tl.where(x < 0.0, -y, y))


@triton.jit
def sigmoid(x):
    # With the exponential that does not overflow: small values are not rounded to zero.
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def logaddexp(a, b):
    high = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(a == b, a + 0.6931471805599453, high + log1p(tl.exp(-tl.abs(a - b))))


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def trunc(x):
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def round_even(x):
    low = tl.floor(x)
    odd = low - 2.0 * tl.floor(low * 0.5)
    up = (x - low > 0.5) | ((x - low == 0.5) & (odd == 1.0))
    return tl.where(up, low + 1.0, tl.where(x == x, low, x))


@triton.jit
def atan(x):
    # Two reductions to |y| <= tan(pi/16), then the series of atan.
    a = tl.abs(x)
    inverse = a > 1.0
    y = tl.where(inverse, 1.0 / a, a)
    y = y / (1.0 + tl.sqrt(1.0 + y * y))
    y = y / (1.0 + tl.sqrt(1.0 + y * y))
    q = y * y
    p = 0.0 * q + 1.0 / 23.0
    p = 1.0 / 21.0 - q * p
    p = 1.0 / 19.0 - q * p
    p = 1.0 / 17.0 - q * p
    p = 1.0 / 15.0 - q * p
    p = 1.0 / 13.0 - q * p
    p = 1.0 / 11.0 - q * p
    p = 1.0 / 9.0 - q * p
    p = 1.0 / 7.0 - q * p
    p = 1.0 / 5.0 - q * p
    p = 1.0 / 3.0 - q * p
    y = 4.0 * (y - y * q * p)
    y = tl.where(inverse, 1.5707963267948966 - y, y)
    return tl.where(x < 0.0, -y, tl.where(x == 0.0, x, y))


@triton.jit
def atan2(y, x):
    both = (tl.abs(y) == float("inf")) & (tl.abs(x) == float("inf"))
    origin = (y == 0.0) & (x == 0.0)
    ratio = tl.where(both | origin, tl.where(origin, 0.0, 1.0), tl.abs(y) / tl.where(origin, 1.0, tl.abs(x)))
    angle = atan(ratio)
    negative = (x < 0.0) | ((x == 0.0) & (1.0 / x < 0.0))
    angle = tl.where(negative, 3.141592653589793 - angle, angle)
    below = (y < 0.0) | ((y == 0.0) & (1.0 / y < 0.0))
    return tl.where((x != x) | (y != y), x + y, tl.where(below, angle * -1.0, angle))


@triton.jit
def power(x, y):
    whole = tl.floor(y) == y
    odd = whole & (y - 2.0 * tl.floor(y * 0.5) == 1.0)
    # In double precision: an error of the logarithm is multiplied by the exponent.
    size = tl.exp2(y.to(tl.float64) * tl.log2(tl.abs(x).to(tl.float64))).to(x.dtype)
    negative = (x < 0.0) | ((x == 0.0) & (1.0 / x < 0.0))
    none = (x < 0.0) & (x > float("-inf")) & ~whole
    signed = tl.where(negative & odd, size * -1.0, tl.where(none, float("nan"), size))
    one = (y == 0.0) | (x == 1.0) | ((x == -1.0) & (tl.abs(y) == float("inf")))
    return tl.where(one, 1.0, signed)


@triton.jit
def highest(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def lowest(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sum_product(a1, b1, a2, b2):
    return a1 * a2, a2 * b1 + b2


@triton.jit
def sum_product_0(a1, a2):
    return a1 * a2


@triton.jit
def sum_product_2(a1, b1, c1, a2, b2, c2):
    return a1 * a2, a2 * b1 + b2, a2 * c1 + c2


@triton.jit
def sum_product_3(a1, b1, c1, d1, a2, b2, c2, d2):
    return a1 * a2, a2 * b1 + b2, a2 * c1 + c2, a2 * d1 + d2


@triton.jit
def max_plus(a1, b1, a2, b2):
    return a1 + a2, highest(a2 + b1, b2)


@triton.jit
def min_plus(a1, b1, a2, b2):
    return a1 + a2, lowest(a2 + b1, b2)


@triton.jit
def log_plus(a1, b1, a2, b2):
    return a1 + a2, logaddexp(a2 + b1, b2)


@triton.jit
def or_and(a1, b1, a2, b2):
    return lowest(a1, a2), highest(lowest(a2, b1), b2)
"""

_CALLS = {
    "exp": "tl.exp", "exp2": "tl.exp2", "expm1": "expm1", "log": "tl.log", "log2": "tl.log2",
    "log1p": "log1p", "sqrt": "tl.sqrt_rn", "root": "tl.sqrt_rn", "sin": "tl.sin", "cos": "tl.cos",
    "tanh": "tanh_single", "erf": "tl.erf", "atan": "atan", "atan2": "atan2", "abs": "tl.abs",
    "maximum": "highest", "minimum": "lowest", "clamp_min": "highest", "clamp_max": "lowest",
    "logaddexp": "logaddexp", "softplus": "softplus", "sigmoid": "sigmoid", "floor": "tl.floor",
    "ceil": "tl.ceil", "trunc": "trunc", "round": "round_even", "pow": "power",
}  # fmt: skip
_DOUBLE = {"sqrt": "tl.sqrt", "root": "tl.sqrt", "tanh": "tanh"}
"""Other names in double precision."""
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
LOGIC = {"logical_and": "&", "logical_or": "|"}
TRUTHS = {*COMPARE, *LOGIC, "logical_not", "isnan"}
"""Functions whose value is a tile of truth values."""
TENSORS = {"pow", "atan2", "logaddexp"}
"""Functions whose text asks their arguments for a type and joins truths of each: none may be a number."""
_OTHER: dict[str, Callable[..., str]] = {
    # Not -x, which Triton reads as 0 - x: the sign of zero.
    "neg": lambda x: f"{x} * -1.0",
    "rsqrt": lambda x: f"1.0 / tl.sqrt({x})",
    "sign": lambda x: f"tl.where({x} > 0.0, 1.0, tl.where({x} < 0.0, -1.0, 0.0))",
    "relu": lambda x: f"tl.where({x} < 0.0, 0.0, {x})",
    "cut": lambda x: x,
    # A choice between the same: the value may lack an axis that the result has.
    "sloped": lambda value, x, slope: f"tl.where({x} == {x}, {value}, {value})",
    "isnan": lambda x: f"({x} != {x})",
}
_ROUND = {"round_f16": "tl.float16", "round_f32": "tl.float32"}


def numeric(fn: str, args: Sequence[str], compute: str) -> str:
    """``fn`` of numbers, or a comparison of them."""
    precise = compute == "f64"
    if fn in _INFIX:
        return f"{args[0]} {_INFIX[fn]} {args[1]}"
    if fn in COMPARE:
        return f"{args[0]} {COMPARE[fn]} {args[1]}"
    if fn in _CALLS:
        name = _DOUBLE.get(fn, _CALLS[fn]) if precise else _CALLS[fn]
        return f"{name}({', '.join(args)})"
    if fn == "round_bf16":
        return f"round_bf16({args[0]}.to(tl.float32)).to({DTYPES[compute]})"
    if fn in _ROUND:
        return f"{args[0]}.to({_ROUND[fn]}).to({DTYPES[compute]})"
    if fn in _OTHER:
        return _OTHER[fn](*args)
    raise refuse(NO_TILES, f"the function {fn}")


def stored(text: str, dtype: str, compute: str) -> str:
    """A value as memory of ``dtype`` takes it; what Triton converts by itself is left as it is."""
    if dtype != "bf16":
        return text
    return f"to_bf16({text})" if compute == "f32" else f"to_bf16({text}.to(tl.float32))"


DTYPES = {"f32": "tl.float32", "f64": "tl.float64"}

__all__ = ["COMPARE", "DTYPES", "LOGIC", "PREAMBLE", "TENSORS", "TRUTHS", "numeric", "stored"]
