"""Every form through the whole path to Triton kernels, forward and backward, against fp64."""

import pytest
import torch

pytest.importorskip("triton.language")

import tenfuse.testing
from tenfuse.plan.tiles.kernel import padded
from tenfuse.runtime.tiles import interpreting
from tests.tiles.loops import FORMS, widened

pytestmark = [
    pytest.mark.skipif(not interpreting(), reason="TRITON_INTERPRET=1 runs kernels without a GPU"),
    pytest.mark.filterwarnings("ignore"),
]
C = 8
TILES = {"strict": True, "inner": "eager", "target": "triton", "chunk": C}
LENGTHS = (1, C - 1, C, C + 1, 2 * C + 3)
KINDS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
COMPLEX = ("rotation",)
"""Loops that torch itself has in single precision only."""


def fused(result, form, steps):
    """The one loop, on tiles, in the algorithm that its form and its length have."""
    if steps < 2 and not result.loops:
        return
    (loop,) = result.loops
    assert loop.status == "fused", f"{loop.code} {loop.reason}"
    assert loop.form == form.form
    assert {language for _, language, _ in loop.kernels} == {"triton"}
    assert loop.algorithm == (form.algorithm if padded(steps) >= C else "sequential")


def run(form, steps, kind="f32", **given):
    inputs = form.make(steps, KINDS[kind], **given)
    return tenfuse.testing.assert_equivalent(form.loop, *inputs, options=TILES)


HALF = ("ema", "delta", "path", "rnn")


def cases():
    """One length of each by default; the rest slow."""
    for form in FORMS:
        for kind in KINDS:
            for steps in LENGTHS:
                if kind != "f32" and form.name in COMPLEX:
                    continue
                quick = steps == {"f32": 2 * C + 3, "bf16": C + 1}.get(kind)
                quick = quick or (kind == "f16" and steps == C + 1 and form.name in HALF)
                marks = () if quick else pytest.mark.slow
                yield pytest.param(form, kind, steps, marks=marks, id=f"{form.name}-{kind}-{steps}")


@pytest.mark.parametrize("form, kind, steps", cases())
def test_right_and_fused(form, kind, steps):
    fused(run(form, steps, kind), form, steps)


@pytest.mark.parametrize("steps", LENGTHS[:-1])
def test_a_scan_of_every_length(steps):
    fused(run(FORMS[0], steps), FORMS[0], steps)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.name)
def test_matrices_on_tensor_cores(form):
    """Sizes at which sums of products are tl.dot, in the operands' own precision."""
    wide = widened(form, 32)
    for kind in ("f32", "bf16", "f16"):
        if kind != "f32" and form.name in COMPLEX:
            continue
        inputs = wide.make(37, KINDS[kind], gates="plain")
        result = tenfuse.testing.assert_equivalent(wide.loop, *inputs, options={**TILES, "chunk": 16})
        (loop,) = result.loops
        assert loop.status == "fused", f"{loop.code} {loop.reason}"
        if loop.form == "low-rank":
            assert any("tl.dot" in text for _, _, text in loop.kernels)


QUICK = ("ema", "attention", "rnn")
CHECKED = [pytest.param(f, marks=() if f.name in QUICK else pytest.mark.slow, id=f.name) for f in FORMS]


@pytest.mark.parametrize("form", CHECKED)
def test_gradcheck(form):
    """The derivative is that of the function, in double precision."""
    inputs = [x.requires_grad_() for x in form.make(C + 1, torch.float64)]
    model = torch.compile(form.loop, backend="tenfuse", options=TILES)
    assert torch.autograd.gradcheck(model, inputs, fast_mode=True, nondet_tol=0.0)
