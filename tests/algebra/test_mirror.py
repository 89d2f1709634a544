"""Minima written as negated maxima, and the other way round; what only looks like them."""

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.formula import formula
from tenfuse.algebra.proof.certify import certify
from tenfuse.algebra.proof.certify_adjoint import certify_adjoint
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tests.algebra.loops import program_of
from tests.algebra.test_certify_chunk import _differentiated
from tests.algebra.test_chunk_ties import agrees, whole
from tests.step.steps import sizes


def least(m, x, y):
    m = -torch.maximum(-(m + x), -y)
    return (m,), (m,)


def largest(m, x, y):
    m = -torch.minimum(y, -m - x)
    return (m,), (m,)


def scaled(m, x, y):
    m = -1.0 * torch.maximum(y - m, x)
    return (m,), (m,)


def within(m, x, y):
    """The maximum is taken from a value instead of negated."""
    m = x - torch.maximum(y - m, x)
    return (m,), (m,)


def shortest(m, x, r):
    m = -(-(m[:, :, None] + r)).amax(1) + x
    return (m,), (m,)


_X = (2, 3)
MIRRORED = {
    "least": (least, sizes(_X), sizes(_X, _X), []),
    "largest": (largest, sizes(_X), sizes(_X, _X), []),
    "scaled": (scaled, sizes(_X), sizes(_X, _X), []),
    "within": (within, sizes(_X), sizes(_X, _X), []),
    "shortest": (shortest, sizes(_X), sizes(_X), sizes((3, 3))),
}
NEAR = {
    "flipped": lambda m, x, y: -torch.maximum(m + x, y),
    "one-sided": lambda m, x, y: torch.maximum(-m + x, -y),
    "doubled": lambda m, x, y: -torch.maximum(-2 * m + x, -y),
    "both": lambda m, x, y: -torch.maximum(-torch.maximum(m, x), y),
    "inside": lambda m, x, y: -torch.maximum(-(m + x), torch.maximum(m, y)),
    "gated": lambda m, x, y: -torch.maximum(-(m * x), -y),
}


@pytest.mark.parametrize("name", MIRRORED)
def test_a_negated_maximum_is_a_minimum(name):
    program, _ = program_of(name, MIRRORED)
    found = analyse(program)
    want = "max-plus" if name == "largest" else "min-plus"
    assert (found.form, [s.semiring for s in found.stages]) == ("semiring", [want])
    assert certify(program, found).proved and certify_chunk(program, found).proved


@pytest.mark.parametrize("name", [n for n in MIRRORED if n != "shortest"])
def test_ties_and_gradients_are_those_of_the_loop(name):
    program, _ = program_of(name, MIRRORED)
    assert certify_adjoint(program, analyse(program), _differentiated).proved
    for seed in range(2):
        agrees(program, whole(program, 11, seed), 4, 11)


def test_it_is_written_as_what_it_is():
    program, _ = program_of("least", MIRRORED)
    assert formula(analyse(program), program) == "m <- min(m + a, -b); y = m; per step a, b"


@pytest.mark.parametrize("name", NEAR)
def test_near_misses_are_nonlinear(name):
    def step(m, x, y):
        m = NEAR[name](m, x, y)
        return (m,), (m,)

    program, _ = program_of("near", {"near": (step, sizes(_X), sizes(_X, _X), [])})
    assert analyse(program).form == "nonlinear"
