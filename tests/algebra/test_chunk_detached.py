"""States whose gradient is cut within the step: chunks with the loop's values and its gradients."""

import dataclasses

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks import detached
from tenfuse.algebra.chunks.chunk import Unchunkable, chunk
from tenfuse.algebra.proof.certify_adjoint import certify_adjoint
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tenfuse.step.program import Pointwise, Scan
from tests.algebra.loops import program_of
from tests.algebra.test_certify_chunk import _differentiated
from tests.algebra.test_chunk import agrees
from tests.algebra.test_chunk_adjoint import agrees as adjoint_agrees
from tests.step.steps import sizes


def every(h, x, ga):
    h = ga * h.detach() + x
    return (h,), (h,)


def partly(h, x, ga, c):
    """One way into the next state takes the gradient, the other does not."""
    h = ga * h + c * h.detach() + x
    return (h,), (h,)


def unrolled(h, x, y, ga):
    """Two steps between two cuts: truncated backpropagation through time."""
    g = ga * h.detach() + x
    h = ga * g + y
    return (h,), (g, h)


def turned(a, b, x, c, s, r):
    a, b = a.detach(), b.detach()
    a, b = c * a - s * b + x, s * a + c * b
    return (a @ r, b @ r), (a,)


def crossed(p, q, x, ga, b):
    """Cut between the two states only."""
    p, q = ga * p - b * q.detach() + x, b * p.detach() + ga * q
    return (p, q), (p, q)


def mixed(z, x, m):
    z = (m @ z.detach()[..., None])[..., 0] + 0.5 * z + x
    return (z,), (2 * z,)


def erased(s, q, k, v, gb, g):
    """The delta rule whose answer is not differentiated."""
    s = g[..., None, None] * s
    s = s + (gb[..., None] * k)[..., None] * (v - torch.einsum("bhkv,bhk->bhv", s.detach(), k))[..., None, :]
    return (s,), (torch.einsum("bhk,bhkv->bhv", q, s),)


def forgotten(s, q, k, v, gk):
    """A gate per key on a state that is cut at every step, read before and after."""
    o = torch.einsum("bhk,bhkv->bhv", q, s)
    s = gk[..., None] * s.detach()
    s = s + k[..., None] * (v - torch.einsum("bhkv,bhk->bhv", s, k))[..., None, :]
    return (s,), (torch.einsum("bhk,bhkv->bhv", q, s) + o,)


def cascade(h, g, x, ga):
    h = ga * h.detach() + x
    g = ga * g + h
    return (h, g), (g,)


_X, _S, _K, _V, _H = (2, 3), (2, 2, 3, 4), (2, 2, 3), (2, 2, 4), (2, 2)
CUT = {
    "every": (every, sizes(_X), sizes(_X, _X), []),
    "partly": (partly, sizes(_X), sizes(_X, _X, _X), []),
    "unrolled": (unrolled, sizes(_X), sizes(_X, _X, _X), []),
    "turned": (turned, sizes((2, 4), (2, 4)), sizes((2, 4)), sizes((4,), (4,), (4, 4))),
    "crossed": (crossed, sizes(_X, _X), sizes(_X, _X, _X), []),
    "mixed": (mixed, sizes((2, 4)), sizes((2, 4)), sizes((4, 4))),
    "erased": (erased, sizes(_S), sizes(_K, _K, _V, _H, _H), []),
    "forgotten": (forgotten, sizes(_S), sizes(_K, _K, _V, _K), []),
    "cascade": (cascade, sizes(_X, _X), sizes(_X, _X), []),
}


@pytest.mark.parametrize("name", CUT)
def test_states_and_gradients_are_those_of_the_loop(name):
    program, gates = program_of(name, CUT)
    recurrence = analyse(program)
    agrees(program, recurrence, gates, "zero", (4,), 2)
    adjoint_agrees(program, recurrence, gates, "zero", ((4, 3), (4, 11)))


@pytest.mark.parametrize("name", CUT)
def test_where_a_gradient_is_cut_is_proved(name):
    program, _ = program_of(name, CUT)
    recurrence = analyse(program)
    for found in (certify_chunk(program, recurrence), certify_adjoint(program, recurrence, _differentiated)):
        assert found.proved, found.note


@pytest.mark.parametrize("name", CUT)
def test_the_same_chunk_without_its_cuts_is_not_proved(name):
    """Values alone are no proof: a gradient would flow that the loop does not have."""
    program, _ = program_of(name, CUT)

    def whole(p, r, length, block):
        return chunk(p, detached.values(r), length, block)

    assert not certify_chunk(program, analyse(program), make=whole).proved
    assert not certify_adjoint(program, analyse(program), _differentiated, make=whole).proved


@pytest.mark.parametrize("name", ["every", "unrolled", "turned"])
def test_a_state_that_is_always_cut_is_scanned_once(name):
    """The second time nothing of the state is left: no scan reads a state."""
    program, _ = program_of(name, CUT)
    nodes = chunk(program, analyse(program), 4).program.nodes
    plain = dataclasses.replace(
        program, nodes=tuple(Pointwise("neg", n.args) if n == _cut(n) else n for n in program.nodes)
    )
    scans = [n for n in nodes if isinstance(n, Scan)]
    others = [n for n in chunk(plain, analyse(plain), 4).program.nodes if isinstance(n, Scan)]
    assert len(scans) == len(others)


def _cut(node):
    return Pointwise("cut", node.args) if isinstance(node, Pointwise) else None


def test_a_cut_state_under_a_maximum_has_no_chunk_program():
    def peak(m, x, ga):
        m = torch.maximum(m.detach() + ga, x)
        return (m,), (m,)

    program, _ = program_of("peak", {"peak": (peak, sizes(_X), sizes(_X, _X), [])})
    with pytest.raises(Unchunkable, match="a gradient is cut in another semiring"):
        chunk(program, analyse(program), 4)
