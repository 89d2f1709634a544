"""Every function of the IR as a kernel on tiles computes it, against torch in fp64."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from test_functions import ROUNDED, inputs, judge, judge_rounding

from tenfuse.plan.kernel import Operand
from tenfuse.plan.tiles.kernel import TileKernel
from tenfuse.plan.tiles.tiling import tiling
from tenfuse.runtime.launch import DTYPES
from tenfuse.runtime.tiles import TileLauncher
from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.program import Builder, OutSpec, StepProgram
from tenfuse.step.whole import NAMES
from tests.emit.tiles.tileharness import interpreted

pytestmark = interpreted
ULPS = {
    "logaddexp": 4, "tanh": 3, "log1p": 4, "expm1": 4, "sigmoid": 4, "exp2": 3, "log2": 4,
    "atan": 4, "atan2": 5, "softplus": 4, "rsqrt": 3,
}  # fmt: skip
"""In units of eps relative to the result."""
POWERS = 600
"""Of ``pow`` in double precision: the exponent multiplies the rounding of the logarithm."""


def apply(fn, args, compute, numbers=None):
    """One step of a kernel that is nothing but ``fn``; ``numbers`` are arguments written into it."""
    b, numbers = Builder(), numbers or {}
    given = [b.input("stream", i, ("d",)) for i in range(len(args))]
    y = b.call(fn, *(b.const(numbers[i]) if i in numbers else x for i, x in enumerate(given)))
    n = args[0].numel()
    program = StepProgram(tuple(b.nodes), {"d": n}, (), (OutSpec(y, ("d",)),))
    out = torch.full((1, n), float("nan"), dtype=DTYPES[compute])
    operands = [Operand("stream", i, compute, ("d",), "d") for i in range(len(args))]
    operands.append(Operand("out", 0, compute, ("d",), "d"))
    kernel = TileKernel(program, tuple(operands), tiling(program, operands), compute)
    TileLauncher(kernel)([*(a[None].contiguous() for a in args), out], 1)
    return out[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compute", ["f32", "f64"])
@pytest.mark.parametrize("fn", [f for f in FUNCTIONS if f not in (*ROUNDED, *NAMES)])
def test_function(fn, compute):
    args = inputs(fn, FUNCTIONS[fn].arity, DTYPES[compute])
    limit = POWERS if (fn, compute) == ("pow", "f64") else ULPS.get(fn, 2.5)
    judge(fn, compute, args, apply(fn, args, compute), limit)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compute", ["f32", "f64"])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("fn", [f for f, known in FUNCTIONS.items() if known.arity == 2 and f not in NAMES])
def test_of_a_number(fn, side, compute):
    """One of two arguments is a number in the text."""
    args = list(inputs(fn, 2, DTYPES[compute]))
    args[side] = torch.full_like(args[side], 0.375)
    limit = POWERS if (fn, compute) == ("pow", "f64") else ULPS.get(fn, 2.5)
    judge(fn, compute, args, apply(fn, args, compute, {side: 0.375}), limit)


@pytest.mark.parametrize("name,dtype", [("round_bf16", torch.bfloat16), ("round_f16", torch.float16)])
def test_rounding(name, dtype):
    judge_rounding(name, dtype, apply, 14)


ODD = (
    "sqrt",
    "neg",
    "relu",
    "trunc",
    "round",
    "floor",
    "ceil",
    "tanh",
    "expm1",
    "log1p",
    "sin",
    "atan",
    "erf",
)


@pytest.mark.parametrize("fn", ODD)
def test_zeros_keep_their_sign(fn):
    zeros = torch.tensor([0.0, -0.0])
    want = FUNCTIONS[fn].torch(zeros)
    assert torch.equal(torch.signbit(apply(fn, [zeros], "f32")), torch.signbit(want)), fn


@pytest.mark.parametrize("fn", ["exp", "expm1", "log1p", "tanh", "sigmoid", "softplus", "atan", "sin"])
def test_near_zero(fn):
    """Where a formula could cancel: relative accuracy down to the smallest normal numbers."""
    values = torch.cat([s * torch.logspace(-38, -0.1, 200, dtype=torch.float64) for s in (1.0, -1.0)]).float()
    got, want = apply(fn, [values], "f32").double(), FUNCTIONS[fn].torch(values.double())
    error = (got - want).abs() / (want.abs().clamp_min(2.0**-126) * 2.0**-23)
    assert error.max() <= ULPS.get(fn, 2.5), (float(error.max()), float(values[error.argmax()]))
