"""Two products with matrices in one step: the second reads the sums of the first where they lie."""

import re
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from gradients import derived
from harness import forward

import tenfuse
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram


def two_products(n=8, d=32, hidden=64):
    """h <- x + relu(h W) U."""
    b, own = Builder(), ("n", "d")
    h, x = b.input("carry", 0, own), b.input("stream", 0, own)
    w, u = b.input("invariant", 0, ("d", "h")), b.input("invariant", 1, ("h", "e"))
    middle = b.call("relu", b.contract(b.call("mul", h, w), "d"))
    new = b.call("add", b.rename(x, {"d": "e"}), b.contract(b.call("mul", middle, u), "h"))
    sizes = {"n": n, "d": d, "h": hidden, "e": d}
    return StepProgram(tuple(b.nodes), sizes, (CarrySpec(own, new, ("n", "e")),), (OutSpec(new, ("n", "e")),))


def test_values_and_gradients():
    program = two_products(n=3, d=5, hidden=7)
    (_, outs, _), want, _ = forward(program, 5, "f64", "f64")
    assert float((outs[0] - want[1][0]).abs().max()) <= 1e-9 * float(want[1][0].abs().max())
    for name, mine, theirs in derived(program, 5, 2, "f64"):
        assert float((mine - theirs).abs().max()) <= 1e-9 * max(1.0, float(theirs.abs().max())), name


def test_nothing_is_read_entry_by_entry():
    def model(x, w, u):
        h, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = x[:, t] + torch.relu(h @ w) @ u
            outs.append(h)
        return torch.stack(outs, 1)

    compiled = torch.compile(model, backend="tenfuse", options={"strict": True, "inner": "eager"})
    x, w, u = torch.randn(64, 6, 128), torch.randn(128, 256) / 20, torch.randn(256, 128) / 20
    torch.testing.assert_close(compiled(x, w, u), model(x, w, u), rtol=1e-4, atol=1e-4)
    (text,) = (text for _, _, text in tenfuse.reports()[-1].loops[0].kernels)
    assert not re.search(r"= lds\(", text)
