"""Readable formulas: letters by role, the same for equal programs, and short."""

import re

import pytest

from reference import CASES
from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.formula import formula
from tests.algebra.cores import backward, steps_of

FORMULAS = {
    "elementwise/ema": "h <- a*h + b; y = h; per step b; fixed a",
    "elementwise/ema-lerp": "h <- (1 - a)*h + b*a; y = h; per step b; fixed a",
    "linear/gla": "S <- a*S + k v^T; y = q.S; per step a, k, q, v",
    "linear/retnet": "S <- a*S + k v^T; y = q.S; per step k, q, v; fixed a",
    "delta/deltanet-pointwise": "S <- S - k*b (k.S) + b*k v^T; y = q.S; per step b, k, q, v",
    "delta/gated": "S <- a*S - k*b*a (k.S) + b*k v^T; y = q.S; per step a, b, k, q, v",
    "delta/rwkv7": "S <- a*S + u (w.S) + k v^T; y = q.S; per step a, k, q, u, v, w",
    "delta/transposed": "S <- a*S - k (w.S) + k v^T; y = w.S'; per step a, k, v, w",
    "ten/v0": "h <- R.(a*h) - R.(a2*g) + b; g <- R.(a*g) + R.(a2*h); y = h; per step b; fixed R, a, a2",
    "ten/v4-plain": "h <- a*h - a2*g + b; g <- a*g + a2*h; y = q.h; per step b; fixed a, a2, q",
    "semiring/viterbi": "m <- max_j(m + R) + a; y = m; per step a; fixed R",
    "semiring/crf": "m <- logsumexp_j(m + R) + a; per step a; fixed R",
    "semiring/decayed-max": "m <- max(m - a, b); y = m; per step a, b",
    "filters/leaky": "h <- 0.5*h + b; y = h; per step b",
    "cells/rnn": "h <- tanh(R.h + b2 + b); y = h; per step b2; fixed R, b",
    "lam/lam-core": "h <- z/(|z| + 1e-08); ",
    "cells/mlstm": "m <- max(m + a, b); S <- a2*S + b2*k v^T; h <- a2*h + b2*b3; y = ",
}
CARRIED = [c for c in CASES if c.kind == "carry"]


@pytest.mark.parametrize("case", CARRIED, ids=lambda c: c.name)
def test_reference_models(case):
    model, inputs = case.make(5)
    for step in steps_of(model, *inputs):
        text = formula(analyse(step.program), step.program)
        assert text == formula(analyse(step.program), step.program)
        if case.name in FORMULAS:
            assert text.startswith(FORMULAS[case.name])
        back = backward(step.program)
        for line in (*text.split("; "), *formula(analyse(back), back).split("; ")):
            assert len(line) <= 170 or line.startswith(("per step", "fixed"))
            assert line.count("(") == line.count(")") and "--" not in line and "+ -" not in line
            assert not re.search(r"\(-[\d.]+\)\*", line), "the sign of a number stands before its product"
