"""Matrices of other semirings in chunks: best paths, sums over paths, what can be reached."""

import dataclasses

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import Unchunkable, chunk
from tenfuse.algebra.chunks.paths import factors
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tests.algebra.loops import program_of
from tests.algebra.mutants import node_mutants
from tests.algebra.test_certify_chunk import _means_the_same
from tests.algebra.test_chunk import agrees
from tests.algebra.test_chunk_adjoint import agrees as adjoint_agrees
from tests.algebra.test_chunk_cascade import in_sequence
from tests.step.steps import sizes


def viterbi(m, x, r):
    m = (m[:, :, None] + r).amax(1) + x
    return (m,), (m,)


def shortest(m, x, w):
    """New paths may begin at every step; the state is read before the step, too."""
    n = torch.minimum((m[:, None, :] + w).amin(-1), x)
    return (n,), (n - m,)


def stay(m, x, r, g):
    """Or stay, at another price."""
    m = torch.maximum((m[:, :, None] + r).amax(1), m + g) + x
    return (m,), (2 * m,)


def crf(m, x, r):
    m = torch.logsumexp(m[:, :, None] + r[None], 1) + x
    return (m,), (torch.logsumexp(m, -1),)


def hmm(m, x, r):
    """Transitions that change from step to step."""
    m = torch.logsumexp(m[:, :, None] + r, 1) + x
    return (m,), (m,)


def grid(m, r, q):
    """A matrix state, whose other axis the step keeps."""
    m = torch.logsumexp(m[:, :, None, :] + r[:, :, :, None], 1)
    return (m,), ((m * q[:, :, None]).sum(1),)


_X, _R = (2, 3), (2, 3, 3)
PATHS = {
    "viterbi": (viterbi, sizes(_X), sizes(_X), sizes((3, 3))),
    "shortest": (shortest, sizes(_X), sizes(_X, _R), []),
    "stay": (stay, sizes(_X), sizes(_X, _X), sizes((3, 3))),
    "crf": (crf, sizes(_X), sizes(_X), sizes((3, 3))),
    "hmm": (hmm, sizes(_X), sizes(_X, _R), []),
    "grid": (grid, sizes((2, 3, 4)), sizes(_R, _X), []),
}
PATHS["stay"] = (lambda m, x, g, r: stay(m, x, r, g), *PATHS["stay"][1:])
SMOOTH = ("crf", "hmm", "grid")


@pytest.mark.parametrize("name", PATHS)
def test_states_and_gradients_are_those_of_the_loop(name):
    """The lengths are primes, powers and neither; entries are told apart, so nothing is tied."""
    program, _ = program_of(name, PATHS)
    recurrence = analyse(program)
    assert recurrence.form == "semiring"
    agrees(program, recurrence, frozenset(), "ordinary", chunks=(3, 4, 6))
    adjoint_agrees(program, recurrence, frozenset(), "ordinary", ((4, 11), (6, 13)))


@pytest.mark.parametrize("name", PATHS)
def test_one_product_takes_the_state_over_a_chunk(name):
    program, _ = program_of(name, PATHS)
    made = chunk(program, analyse(program), 8)
    assert len(made.rows) == 3 and made.length == 8
    assert not in_sequence(made.program)


def test_the_axes_of_a_chunk_are_the_prime_factors_of_its_length():
    assert [factors(n) for n in (1, 2, 12, 13, 16)] == [[1], [2], [2, 2, 3], [13], [2, 2, 2, 2]]


@pytest.mark.parametrize("name", ["crf", pytest.param("viterbi", marks=pytest.mark.slow)])
def test_no_mutant_is_proved(name):
    program, _ = program_of(name, PATHS)
    normal, tried = analyse(program), 0
    good = chunk(program, normal, 3, 3).program
    for i, node in list(node_mutants(good.nodes))[::4]:

        def wrong(p, r, length, block, i=i, node=node):
            found = chunk(p, r, length, block)
            if length != 3:
                return found
            nodes = (*found.program.nodes[:i], node, *found.program.nodes[i + 1 :])
            return dataclasses.replace(found, program=dataclasses.replace(found.program, nodes=nodes))

        if not _means_the_same(good, node, i):
            found = certify_chunk(program, normal, make=wrong)
            assert not found.proved, (i, node)
            tried += 1
    assert tried > 4


def test_beside_a_recurrence_over_numbers_there_is_no_chunk_program():
    def both(m, h, x, r):
        m = (m[:, :, None] + r).amax(1) + x
        return (m, 0.5 * h + m), (h,)

    loops = {"both": (both, sizes(_X, _X), sizes(_X), sizes((3, 3)))}
    program, _ = program_of("both", loops)
    with pytest.raises(Unchunkable, match="a matrix in another semiring"):
        chunk(program, analyse(program), 4)


def test_truth_values():
    """What can be reached from where: everything that is not zero is true."""
    from tenfuse.algebra.recurrence import Affine, Stage, Term
    from tenfuse.step.program import Builder
    from tests.algebra.chunks import Draft

    b = Builder()
    edges = b.call("gt", b.input("stream", 0, ("i", "j")), b.const(0.1))
    new = b.call("gt", b.input("stream", 1, ("i",)), b.const(0.3))
    term = Term(b.input("carry", 0, ("j",)), (edges,), frozenset({"j"}))
    stage = Stage((0,), (Affine((term,), new),), "semiring", "or-and")
    read = Term(b.input("next", 0, ("i",)))
    draft = Draft(b, dict(i=4, j=4), ((("i",), ("i",)),), (stage,), ((Affine((read,)), ("i",)),))
    reached = _spelled(draft)
    agrees(reached, draft.recurrence(), frozenset(), "ordinary", chunks=(3, 4))


def _spelled(draft):
    """The step in ordinary nodes."""
    from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram

    b = Builder()
    zero = b.const(0.0)
    edges = b.call("gt", b.input("stream", 0, ("i", "j")), b.const(0.1))
    new = b.call("gt", b.input("stream", 1, ("i",)), b.const(0.3))
    known = b.call("ne", b.input("carry", 0, ("j",)), zero)
    found = b.call("logical_or", b.contract(b.call("logical_and", edges, known), "j", op="max"), new)
    carry = CarrySpec(("i",), found, ("i",))
    return StepProgram(tuple(b.nodes), draft.sizes, (carry,), (OutSpec(found, ("i",)),))


def test_infinite_prices_forbid_paths():
    """A transition that is never taken: minus infinity, in every chunk."""
    from tenfuse.step import interpret
    from tests.algebra.chunks import run

    for name in ("viterbi", "crf"):
        program, _ = program_of(name, PATHS)
        torch.manual_seed(0)
        r = torch.randn(3, 3, dtype=torch.float64)
        r[0, 1] = r[2, 1] = r[1, 0] = -torch.inf
        start = torch.tensor([[0.0, -torch.inf, -torch.inf]] * 2, dtype=torch.float64)
        inputs = [start], {0: torch.randn(11, 2, 3, dtype=torch.float64)}, {0: r}
        want = interpret.scan(program, *inputs, 11)
        got = run(program, analyse(program), 4, *inputs, 11, torch.float64)
        for g, w in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
            torch.testing.assert_close(g, w)
