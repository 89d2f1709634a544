"""Functions of the state at values where they are hard: on a card they are not the interpreter's.

The state is whatever number comes in, so that the functions are computed in the kernel.  Infinities
and NaN come out where torch has them.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from gpuharness import DEVICE, DRY

from tenfuse.report.registry import recording

FUNCTIONS = {
    "exp": torch.exp, "exp2": torch.exp2, "expm1": torch.expm1, "log": torch.log, "log2": torch.log2,
    "log1p": torch.log1p, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "sin": torch.sin, "cos": torch.cos,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softplus": F.softplus, "relu": torch.relu,
    "silu": F.silu, "gelu": F.gelu, "erf": torch.erf, "atan": torch.atan, "abs": torch.abs,
    "sign": torch.sign, "floor": torch.floor, "ceil": torch.ceil, "trunc": torch.trunc,
    "round": torch.round, "reciprocal": torch.reciprocal, "clamp": lambda h: h.clamp(-1.0, 2.0),
    "power": lambda h: h**3, "root": lambda h: h.abs() ** 0.3, "largest": lambda h: torch.maximum(h, -h),
    "joined": lambda h: torch.logaddexp(h, 0.5 * h), "nonzero": lambda h: torch.where(h > 0, h, 1.0),
}  # fmt: skip
SIZES = [
    0.0,
    1e-30,
    1e-6,
    1e-3,
    0.1,
    0.24,
    0.26,
    0.5,
    1.0,
    1.5,
    2.5,
    8.0,
    20.0,
    80.0,
    1e3,
    1e5,
    1e30,
    math.inf,
]
FINE = 1e-5
"""Of a value, or of one: an exponential of 80 loses seven bits in single precision."""


def states(run, x, come):
    """``run`` of a state that is the newest number that came."""
    h, found = torch.ones_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.where(come[:, t], x[:, t], h)
        found.append(run(h))
    return torch.stack(found, 1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name):
    run = FUNCTIONS[name]
    values = torch.tensor([s * v for v in SIZES for s in (1.0, -1.0)] + [math.nan], device=DEVICE)
    x = torch.stack([values.roll(n) for n in range(9)], 1)
    come = torch.ones_like(x, dtype=torch.bool)
    come[:, 4] = False
    options = {"strict": True, "inner": "eager", "chunk": 1, **({"target": "triton"} if DRY else {})}
    torch._dynamo.reset()
    with recording() as reports:
        found = torch.compile(states, backend="tenfuse", options=options)(run, x, come)
    assert [loop.status for report in reports for loop in report.loops] == ["fused"]
    want = states(run, x.double(), come).float()
    for test in (torch.isnan, torch.isposinf, torch.isneginf):
        wrong = test(found) != test(want)
        assert not wrong.any(), x[wrong].unique().tolist()
    known = want.isfinite()
    off = (found - want)[known].abs() / want[known].abs().clamp_min(1.0)
    assert off.max() <= FINE, (off.max().item(), x[known][off.argmax()].item())
    small = known & (states(lambda h: h.abs(), x, come) < 1e-4) & (want.abs() > 1e-35)
    assert torch.allclose(found[small], want[small], rtol=1e-4, atol=0.0), "of a small number"
