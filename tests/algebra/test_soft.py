"""Soft minima and temperatures: log-sum-exps of a multiple of the state, and what only looks like them."""

import dataclasses
import math

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.formula import formula
from tenfuse.algebra.proof.certify import certify
from tenfuse.algebra.proof.certify_adjoint import certify_adjoint
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tenfuse.algebra.rebuild import rebuild
from tenfuse.step import interpret
from tests.algebra.chunks import draw, gradients, run
from tests.algebra.loops import program_of
from tests.algebra.test_certify_chunk import _differentiated
from tests.algebra.test_chunk import agrees
from tests.algebra.test_chunk_adjoint import agrees as adjoint_agrees
from tests.algebra.test_chunk_adjoint import wanted
from tests.step.steps import sizes

TAU = 0.3


def soft(a, b):
    return -torch.logaddexp(-a, -b)


def softmin(h, x, y):
    h = soft(h + x, y)
    return (h,), (h,)


def warm(h, x, y):
    h = TAU * torch.logaddexp((h + x) / TAU, y / TAU)
    return (h,), (h,)


def inverse(h, x, y):
    """The temperature as its inverse; the state is read before the step, too."""
    n = torch.logaddexp((h - x) * 5, y * 5) / 5
    return (n,), (n, 3 * h)


def warped(h, x, y):
    """One entry of soft dynamic time warping, from three neighbours."""
    h = -0.1 * torch.logsumexp(torch.stack([-h / 0.1, -y / 0.1, -x / 0.1]), 0) + x
    return (h,), (h,)


def bellman(h, x, r):
    """Value iteration with entropy."""
    h = TAU * torch.logsumexp((r + h[:, :, None]) / TAU, 1) + x
    return (h,), (h,)


def cheapest(h, x, r):
    h = x - torch.logsumexp(r - h[:, :, None], 1)
    return (h,), (2 * h,)


def coupled(a, b, x, y):
    a, b = soft(a, b + x), soft(a + y, b)
    return (a, b), (a - b,)


def chained(a, b, x, y):
    a = soft(a + x, y)
    b = soft(b, a)
    return (a, b), (b,)


def padded(h, x, y, m):
    h = torch.where(m > 0, soft(h + x, y), h)
    return (h,), (h,)


def begun_again(h, x, y, m):
    h = torch.where(m > 0, soft(h + x, y), y)
    return (h,), (h,)


def emptied(h, x, y, m):
    h = soft(torch.where(m > 0, h, math.inf) + x, y)
    return (h,), (h,)


def twice(h, x, y):
    """Of both signs."""
    h = soft(torch.logaddexp(h, x), y)
    return (h,), (h,)


def unlike(h, x, y):
    """Divided by another number than it is multiplied with."""
    h = TAU * torch.logaddexp((h + x) / 0.31, y / TAU)
    return (h,), (h,)


def alternating(h, x, y):
    h = torch.logaddexp(-(h + x), -y)
    return (h,), (h,)


def leaking(h, x, y):
    h = soft(0.9 * h + x, y)
    return (h,), (h,)


def two_signs(a, b, x):
    a, b = torch.logaddexp(a, b + x), soft(a, b)
    return (a, b), (a,)


def gated(h, x, y):
    """The temperature is a stream."""
    h = y * torch.logaddexp((h + x) / y, x)
    return (h,), (h,)


_X = (2, 3)
_ONE, _TWO, _THREE = sizes(_X), sizes(_X, _X), sizes(_X, _X, _X)
_R = sizes((3, 3))
SOFT = {
    "softmin": (softmin, _ONE, _TWO, []),
    "warm": (warm, _ONE, _TWO, []),
    "inverse": (inverse, _ONE, _TWO, []),
    "warped": (warped, _ONE, _TWO, []),
    "bellman": (bellman, _ONE, _ONE, _R),
    "cheapest": (cheapest, _ONE, _ONE, _R),
    "coupled": (coupled, _TWO, _TWO, []),
    "chained": (chained, _TWO, _TWO, []),
    "padded": (padded, _ONE, _THREE, []),
    "begun_again": (begun_again, _ONE, _THREE, []),
    "emptied": (emptied, _ONE, _THREE, []),
}
SCALES = {"warm": TAU, "inverse": 0.2, "warped": -0.1, "bellman": TAU}
COSTLY = {"bellman", "cheapest"}
UNLIKE = {
    "twice": (twice, _ONE, _TWO, []),
    "unlike": (unlike, _ONE, _TWO, []),
    "alternating": (alternating, _ONE, _TWO, []),
    "leaking": (leaking, _ONE, _TWO, []),
    "two_signs": (two_signs, _TWO, _ONE, []),
    "gated": (gated, _ONE, _TWO, []),
}


@pytest.mark.parametrize("name", SOFT)
def test_states_and_gradients_are_those_of_the_loop(name):
    program, _ = program_of(name, SOFT)
    recurrence = analyse(program)
    assert recurrence.form == "semiring"
    for stage in recurrence.stages:
        assert (stage.semiring, stage.scale) == ("log-plus", SCALES.get(name, -1.0))
    agrees(program, recurrence, frozenset(), "ordinary", chunks=(3, 4, 6))
    adjoint_agrees(program, recurrence, frozenset(), "ordinary", ((4, 11), (6, 13)))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in COSTLY else ()) for n in SOFT]
)
def test_certificates(name):
    program, _ = program_of(name, SOFT)
    recurrence = analyse(program)
    proofs = (
        certify(program, recurrence),
        certify_chunk(program, recurrence),
        certify_adjoint(program, recurrence, _differentiated),
    )
    for found in proofs:
        assert found.proved, found.note


@pytest.mark.parametrize("name", SOFT)
def test_the_normal_form_runs_as_it_stands(name):
    program, _ = program_of(name, SOFT)
    inputs = draw(program, 5)
    want = interpret.scan(program, *inputs, 5)
    got = interpret.scan(rebuild(analyse(program), program), *inputs, 5)
    for g, w in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("name", UNLIKE)
def test_what_is_no_multiple_of_a_semiring(name):
    program, _ = program_of(name, UNLIKE)
    found = analyse(program)
    assert found.form == "nonlinear"
    assert certify(program, found).proved


def test_another_scale_is_not_proved():
    program, _ = program_of("warm", SOFT)
    found = analyse(program)
    for wrong in (1.0, -TAU, 0.31):
        stages = (dataclasses.replace(found.stages[0], scale=wrong),)
        assert not certify(program, dataclasses.replace(found, stages=stages)).proved


def test_formulas():
    said = {n: formula(analyse(p), p) for n in ("softmin", "warm") for p in (program_of(n, SOFT)[0],)}
    assert said["softmin"].startswith("m <- -logsumexp(-m - a, b)")
    assert said["warm"].startswith("m <- 0.3*logsumexp(3.33333*m + 3.33333*a, b)")


@pytest.mark.parametrize("name", ["softmin", "coupled", "cheapest", "chained"])
def test_infinite_costs(name):
    """What cannot be reached has an infinite cost, for a while or from the start."""
    program, _ = program_of(name, SOFT)
    recurrence, far = analyse(program), torch.tensor(torch.inf, dtype=torch.float64)
    for seed in range(3):
        inits, xs, fixed = draw(program, 11, seed=seed)
        inits = [torch.where(torch.rand_like(x) < 0.4, far, x) for x in inits]
        xs[0] = torch.where(torch.rand_like(xs[0]) < 0.1, far, xs[0])
        inputs = inits, xs, fixed
        finals, ys = interpret.scan(program, *inputs, 11)
        got = run(program, recurrence, 4, *inputs, 11, torch.float64)
        for g, w in zip((*got[0], *got[1]), (*finals, *ys), strict=True):
            torch.testing.assert_close(g, w, equal_nan=True)
        seeds = tuple([torch.randn_like(v) * v.isfinite() for v in group] for group in (finals, ys))
        want = wanted(program, inputs, 11, seeds, torch.float64)
        with torch.no_grad():
            found = gradients(program, recurrence, 4, inputs, 11, seeds, torch.float64)
        for g, w in zip(found, want, strict=True):
            torch.testing.assert_close(g[w.isfinite()], w[w.isfinite()])
