"""Every function of the IR as the generated code computes it, against torch in fp64."""

import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from harness import DTYPES

from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.runtime.launch import Launcher
from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.program import Builder, OutSpec, StepProgram
from tenfuse.step.whole import NAMES

INF, NAN = float("inf"), float("nan")
ROUNDED = ("round_bf16", "round_f16", "round_f32")
SPECIAL = [0.0, -0.0,
           1.0, -1.0, INF, -INF, NAN, 1e-30, -1e-30, 1e-40, 88.0, 89.5, -87.0, -95.0, -104.0, 127.9,
           128.1, 0.5, -0.5, 2.5, 3.5, 1e30, -1e30, 65504.0, 65519.0, 65520.0, 3.4e38]  # fmt: skip
ULPS = {"pow": 4, "logaddexp": 4, "tanh": 3, "log1p": 4, "expm1": 4, "sigmoid": 4, "exp2": 3, "log2": 4}


def apply(fn, args, compute, scalar=False):
    """One step of a kernel that is nothing but ``fn``; by vectors, or number by number."""
    b = Builder()
    axes = ("b",) if scalar else ("d",)
    y = b.call(fn, *(b.input("stream", i, axes) for i in range(len(args))))
    n = args[0].numel()
    program = StepProgram(
        tuple(b.nodes), {axes[0]: n}, (), (OutSpec(y, axes),), frozenset({"b"} if scalar else ())
    )
    unit = None if scalar else "d"
    out = torch.empty(1, n, dtype=DTYPES[compute])
    operands = [Operand("stream", i, compute, axes, unit) for i in range(len(args))] + [
        Operand("out", 0, compute, axes, unit)
    ]
    Launcher(Kernel(program, tuple(operands), compute))(
        [*(a[None].contiguous() for a in args), out], 1, {"b": n}
    )
    return out[0]


def inputs(fn, arity, dtype):
    gen = torch.Generator().manual_seed(3)
    special = torch.tensor(SPECIAL, dtype=torch.float64)
    wide = torch.cat(
        [special] + [torch.randn(257, generator=gen, dtype=torch.float64) * s for s in (1e-3, 0.3, 3.0, 40.0)]
    )
    if arity == 1:
        return [wide.to(dtype)]
    other = wide[torch.randperm(len(wide), generator=gen)]
    pairs = [
        torch.cat([wide, special.repeat_interleave(len(SPECIAL))]),
        torch.cat([other, special.repeat(len(SPECIAL))]),
    ]
    if fn == "pow":
        pairs[0] = torch.where(torch.rand(len(pairs[0]), generator=gen) < 0.5, pairs[0].abs(), pairs[0])
    if arity == 3:
        pairs = [(pairs[0] > 0).double(), *pairs]
    return [p.to(dtype) for p in pairs]


def judge(fn, compute, args, got, limit):
    """``got`` is as near to fp64 as ``limit`` units in the last place, and as odd as torch where that is."""
    dtype = DTYPES[compute]
    native = FUNCTIONS[fn].torch(*args)
    want = FUNCTIONS[fn].torch(*(a.double() for a in args))
    rounded = want.to(dtype)
    finite = torch.isfinite(rounded) & torch.isfinite(native)
    odd = ~finite & ~(torch.isfinite(rounded) ^ torch.isfinite(native))
    assert torch.equal(torch.isnan(got[odd]), torch.isnan(native[odd])), fn
    sure = odd & ~torch.isnan(native)
    assert torch.equal(got[sure], native[sure]), fn
    eps = torch.finfo(dtype).eps
    size = want.abs().clamp_min(torch.finfo(dtype).tiny)
    if fn in ("sin", "cos"):
        size = size.clamp_min(0.1)
    if fn == "logaddexp":  # the larger argument and the correction may cancel
        size = torch.maximum(size, torch.maximum(*(a.double() for a in args)).abs().nan_to_num(posinf=0.0))
    error = ((got.double() - want).abs() / (size * eps))[finite]
    worst = error.nan_to_num(float("inf")).argmax()
    assert error[worst] <= limit, (float(error[worst]), [a[finite][worst] for a in args])


def judge_rounding(name, dtype, apply, every):
    """One of ``every`` bit patterns, halfway cases and subnormal numbers."""
    step = 65537 * 7 * every
    bits = torch.arange(-(2**31), 2**31, step, dtype=torch.int64).to(torch.int32).view(torch.float32)
    halfway = (torch.arange(0, 2**16, every, dtype=torch.int32) * 65536 + 32768).view(torch.float32)
    tiny = torch.arange(0, 4096, every).float() * 2.0**-26
    for values in (bits, halfway, tiny, -tiny):
        got, want = apply(name, [values], "f32"), values.to(dtype).float()
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("compute", ["f32", "f64"])
@pytest.mark.parametrize("fn", [f for f in FUNCTIONS if f not in (*ROUNDED, *NAMES)])
def test_function(fn, compute):
    args = inputs(fn, FUNCTIONS[fn].arity, DTYPES[compute])
    judge(fn, compute, args, apply(fn, args, compute), ULPS.get(fn, 2.5))


@pytest.mark.parametrize("name,dtype", [("round_bf16", torch.bfloat16), ("round_f16", torch.float16)])
def test_rounding(name, dtype):
    judge_rounding(name, dtype, apply, 1)


@pytest.mark.parametrize("fn", ["exp", "log", "tanh", "sigmoid", "sin", "sqrt", "maximum", "where", "lt"])
def test_numbers_and_vectors_agree(fn):
    args = inputs(fn, FUNCTIONS[fn].arity, torch.float32)
    torch.testing.assert_close(
        apply(fn, args, "f32"), apply(fn, args, "f32", scalar=True), rtol=0, atol=0, equal_nan=True
    )


def test_constants():
    b = Builder()
    x = b.input("stream", 0, ("d",))
    outs = [
        OutSpec(b.call("add", x, b.const(c)), ("d",)) for c in (math.pi, -2.5, INF, -INF, NAN, 1e-45, -0.0)
    ]
    program = StepProgram(tuple(b.nodes), {"d": 5}, (), tuple(outs))
    value = torch.full((1, 5), 1.0)
    results = [torch.empty(1, 5) for _ in outs]
    operands = [Operand("stream", 0, "f32", ("d",), "d")] + [
        Operand("out", i, "f32", ("d",), "d") for i in range(len(outs))
    ]
    Launcher(Kernel(program, tuple(operands)))([value, *results], 1)
    for got, c in zip(results, (math.pi, -2.5, INF, -INF, NAN, 1e-45, -0.0), strict=True):
        torch.testing.assert_close(got, value + c, rtol=0, atol=0, equal_nan=True)
