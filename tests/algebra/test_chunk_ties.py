"""Maxima and minima in chunks: the values and gradients of the loop, ties and infinities included."""

import math

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import chunk
from tenfuse.algebra.proof.certify_adjoint import certify_adjoint
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tenfuse.step import interpret
from tenfuse.step.adjoint import adjoint
from tenfuse.step.program import Const, Pointwise
from tests.algebra.chunks import exact, gradients, run
from tests.algebra.loops import program_of
from tests.algebra.mutants import node_mutants
from tests.algebra.test_certify_chunk import _differentiated, _means_the_same
from tests.algebra.test_chunk_adjoint import wanted
from tests.step.steps import sizes


def largest(m, x):
    m = torch.maximum(m, x)
    return (m,), (m,)


def decayed(m, x, a):
    m = torch.maximum(x, m - a)
    return (m,), (m, 2 * m)


def least(m, x, a):
    """Read as it was before the step."""
    n = torch.minimum(m + a, x)
    return (n,), (m,)


def shared(m, x, a):
    """One gate for all entries."""
    m = torch.maximum(m + a[:, None], x)
    return (m,), (m * x,)


def twice(m, x, a, b):
    """Two ways to stay, one compared with what is new before the other."""
    m = torch.maximum(torch.maximum(m + a, x), m + b)
    return (m,), (m,)


def stabilised(s, m, v, a, b):
    """A linear recurrence whose gates are differences of maxima."""
    n = torch.maximum(m + a, b)
    s = torch.exp(m + a - n) * s + torch.exp(b - n) * v
    return (s, n), (s / (1.0 + n * n),)


_X, _V = (2, 3), (2,)
EXTREMES = {
    "largest": (largest, sizes(_X), sizes(_X), []),
    "decayed": (decayed, sizes(_X), sizes(_X, _X), []),
    "least": (least, sizes(_X), sizes(_X, _X), []),
    "shared": (shared, sizes(_X), sizes(_X, _V), []),
    "twice": (twice, sizes(_X), sizes(_X, _X, _X), []),
    "stabilised": (stabilised, sizes(_X, _X), sizes(_X, _X, _X), []),
}  # fmt: skip
LONG, SLOW = pytest.mark.slow, ("decayed", "shared", "stabilised")
PROVED = [name for name in EXTREMES if name != "twice"]


def whole(program, steps, seed, low=-2):
    """Inputs that are small whole numbers: most maxima are tied."""
    gen = torch.Generator().manual_seed(seed)

    def numbers(axes, *lead):
        shape = [*lead, *(program.sizes[a] for a in axes)]
        return torch.randint(low, 2, shape, generator=gen).double()

    inits = [numbers(c.axes) for c in program.carries]
    return inits, {i: numbers(axes, steps) for i, axes in program.inputs("stream").items()}, {}


def agrees(program, inputs, length, steps):
    recurrence = analyse(program)
    finals, ys = interpret.scan(program, *inputs, steps)
    got = run(program, recurrence, length, *inputs, steps, torch.float64)
    exact([*got[0], *got[1]], [*finals, *ys])
    seeds = [torch.randn_like(v) for v in finals], [torch.randn_like(v) for v in ys]
    want = wanted(program, inputs, steps, seeds, torch.float64)
    with torch.no_grad():
        exact(gradients(program, recurrence, length, inputs, steps, seeds, torch.float64), list(want))


@pytest.mark.parametrize("name", PROVED)
def test_ties_are_shared_as_the_steps_share_them(name):
    program, _ = program_of(name, EXTREMES)
    for seed in range(3):
        for length, steps in ((1, 5), (4, 3), (4, 11), (8, 16)):
            agrees(program, whole(program, steps, seed), length, steps)
            agrees(program, whole(program, steps, seed, 0), length, steps)


@pytest.mark.parametrize("name", PROVED)
def test_values_are_those_of_the_loop_to_the_last_digit_where_they_are_tied(name):
    """The next chunk compares the state again: nothing may be lost on the way."""
    program, _ = program_of(name, EXTREMES)
    if name != "stabilised":
        inits, xs, _ = whole(program, 24, 0, 0)
        inits, xs = [x / 3 for x in inits], {i: (x / 3 if i == 0 else 0 * x) for i, x in xs.items()}
        inputs = ([x.float().double() for x in inits], {i: x.float().double() for i, x in xs.items()}, {})
        got = run(program, analyse(program), 8, *inputs, 24, torch.float32)
        want = interpret.scan(program, *inputs, 24, dtype=torch.float32)
        for g, w in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
            assert torch.equal(g, w)


def test_a_state_that_starts_at_minus_infinity():
    for name in ("largest", "decayed"):
        program, _ = program_of(name, EXTREMES)
        inits, xs, fixed = whole(program, 11, 0)
        xs[0][:5, 0] = -math.inf
        agrees_but_for_infinities(program, ([torch.full_like(inits[0], -math.inf)], xs, fixed), 4, 11)


def agrees_but_for_infinities(program, inputs, length, steps):
    """Of what leaves at an infinite value, no gradient comes back in either."""
    recurrence = analyse(program)
    finals, ys = interpret.scan(program, *inputs, steps)
    got = run(program, recurrence, length, *inputs, steps, torch.float64)
    for g, w in zip((*got[0], *got[1]), (*finals, *ys), strict=True):
        assert torch.equal(g.isnan(), w.isnan())
        torch.testing.assert_close(g.nan_to_num(7.0), w.nan_to_num(7.0))
    seeds = tuple([torch.where(v.isfinite(), torch.randn_like(v), 0.0) for v in vs] for vs in (finals, ys))
    want = wanted(program, inputs, steps, seeds, torch.float64)
    with torch.no_grad():
        exact(gradients(program, recurrence, length, inputs, steps, seeds, torch.float64), list(want))


def test_a_nan_is_not_lost():
    for name in ("largest", "decayed", "least"):
        program, _ = program_of(name, EXTREMES)
        inits, xs, fixed = whole(program, 11, 0)
        xs[0][5, 0, 1] = math.nan
        finals, ys = run(program, analyse(program), 4, inits, xs, fixed, 11, torch.float64)
        assert finals[0][0, 1].isnan() and ys[0][6:, 0, 1].isnan().all()
        assert finals[0].isnan().sum() == 1 and not ys[0][:4].isnan().any()


def test_a_bound_is_no_maximum_at_a_tie():
    """``clamp`` keeps all of the gradient of an entry on its bound."""
    program, _ = program_of("largest", EXTREMES)
    nodes = tuple(
        Pointwise("clamp_min", n.args) if isinstance(n, Pointwise) and n.fn == "maximum" else n
        for n in program.nodes
    )
    clamped = type(program)(nodes, program.sizes, program.carries, program.outs)
    found = certify_adjoint(clamped, analyse(program), _differentiated)
    assert not found.proved and not found.unfinished


@pytest.mark.parametrize(("name", "every"), [("largest", 16), pytest.param("decayed", 3, marks=LONG)])
def test_no_mutant_is_proved(name, every):
    """Shares of a tie, and everything else: values or gradients are caught."""
    program, _ = program_of(name, EXTREMES)
    normal, tried = analyse(program), 0
    good = chunk(program, normal, 2, 1).program
    for i, node in list(_shares(good))[::every]:

        def wrong(p, r, length, block, i=i, node=node):
            found = chunk(p, r, length, block)
            if found.program.nodes != good.nodes:
                return found
            nodes = (*found.program.nodes[:i], node, *found.program.nodes[i + 1 :])
            return type(found)(
                type(good)(nodes, found.program.sizes, found.program.carries, found.program.outs),
                found.rows,
                length,
            )

        proved = certify_chunk(program, normal, make=wrong).proved
        proved = proved and certify_adjoint(program, normal, _differentiated, make=wrong).proved
        if proved:
            assert _means_the_same(good, node, i) and _same_gradients(program, normal, good, node, i)
        tried += not proved
    assert tried > 1


def _shares(program):
    yield from node_mutants(program.nodes)
    for i, node in enumerate(program.nodes):
        if isinstance(node, Const) and node.value == 0.5:
            yield i, Const(0.25)


def _same_gradients(program, normal, good, node, i):
    """Whether the changed chunk has the loop's gradients at ties."""
    other = type(good)((*good.nodes[:i], node, *good.nodes[i + 1 :]), good.sizes, good.carries, good.outs)
    backs = [adjoint(p, list(good.inputs("stream")), []).program for p in (good, other)]
    found = []
    for back in backs:
        gen = torch.Generator().manual_seed(3)
        inputs = {}
        for n in [n for b in backs for n in b.nodes if type(n).__name__ == "Input"]:
            shape = [back.sizes[a] for a in n.axes]
            if (n.kind, n.index) not in inputs:
                inputs[n.kind, n.index] = torch.randint(-1, 2, shape, generator=gen).double()
        found.append([x for part in interpret.step(back, inputs) for x in part])
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))
