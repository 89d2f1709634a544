"""Matrices of other semirings in chunks: best paths, sums over paths, what can be reached."""

import dataclasses

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import Unchunkable, chunk
from tenfuse.algebra.chunks.paths import factors
from tenfuse.algebra.proof.certify_adjoint import certify_adjoint
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tenfuse.step import interpret
from tests.algebra.chunks import draw, gradients, run
from tests.algebra.loops import program_of
from tests.algebra.mutants import node_mutants
from tests.algebra.random_steps import draw as random_step
from tests.algebra.test_certify_chunk import _differentiated, _means_the_same
from tests.algebra.test_chunk import agrees
from tests.algebra.test_chunk_adjoint import agrees as adjoint_agrees
from tests.algebra.test_chunk_adjoint import wanted
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


def gaps(m, n, o, x, a, b):
    """Alignment with affine gaps: three states per place."""
    m, n, o = (
        torch.maximum(torch.maximum(m, n), o) + x,
        torch.maximum(m - a, n - b),
        torch.maximum(m - a, o - b),
    )
    return (m, n, o), (m,)


def gaps_summed(m, n, o, x, a, b):
    """The same over all alignments; one gap does not follow the other."""
    m, n, o = (
        torch.logsumexp(torch.stack([m, n, o]), 0) + x,
        torch.logaddexp(m + a, n + b),
        torch.logaddexp(m + a, o + b),
    )
    return (m, n, o), (m,)


def either(m, n, x, a, b):
    """The shorter of two ways into one state; the other one waits."""
    m, n = torch.minimum(m + a, n + b), torch.minimum(m, x)
    return (m, n), (m - n,)


def two_states(m, n, x, y, a, b):
    """A hidden Markov model of two states, one variable for each."""
    m, n = torch.logaddexp(m, n + b) + x, torch.logaddexp(m + a, n) + y
    return (m, n), (m - torch.logaddexp(m, n),)


def one_way(m, n, x, y):
    """The first one is never left for the second: an entry of the matrix that is nothing."""
    m, n = n + x, torch.logaddexp(torch.logaddexp(m, n), y)
    return (m, n), (n,)


def two_mixed(m, n, x, r):
    """A matrix, and another carry that it takes in."""
    m, n = torch.maximum((m[:, :, None] + r).amax(1), n) + x, torch.maximum(m, n)
    return (m, n), (m,)


_X, _R = (2, 3), (2, 3, 3)
PATHS = {
    "viterbi": (viterbi, sizes(_X), sizes(_X), sizes((3, 3))),
    "shortest": (shortest, sizes(_X), sizes(_X, _R), []),
    "stay": (stay, sizes(_X), sizes(_X, _X), sizes((3, 3))),
    "crf": (crf, sizes(_X), sizes(_X), sizes((3, 3))),
    "hmm": (hmm, sizes(_X), sizes(_X, _R), []),
    "grid": (grid, sizes((2, 3, 4)), sizes(_R, _X), []),
    "gaps": (gaps, sizes(_X, _X, _X), sizes(_X, _X, _X), []),
    "gaps_summed": (gaps_summed, sizes(_X, _X, _X), sizes(_X), sizes((), ())),
    "either": (either, sizes(_X, _X), sizes(_X, _X, _X), []),
    "two_states": (two_states, sizes(_X, _X), sizes(_X, _X), sizes((3,), (3,))),
    "one_way": (one_way, sizes(_X, _X), sizes(_X, _X), []),
    "two_mixed": (two_mixed, sizes(_X, _X), sizes(_X), sizes((3, 3))),
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


@pytest.mark.parametrize("name", ["gaps_summed", "two_states", "one_way"])
@pytest.mark.parametrize("where", ["start", "gates"])
def test_coupled_carries_that_no_path_reaches(name, where):
    """Of what begins as nothing, or is nothing for some steps, the loop's derivative is found too."""
    program, _ = program_of(name, PATHS)
    recurrence, nothing = analyse(program), torch.tensor(-torch.inf, dtype=torch.float64)
    for seed in range(4):
        inits, xs, fixed = draw(program, 13, seed=seed)
        if where == "start":
            inits = [torch.where(torch.rand_like(x) < 0.5, nothing, x) for x in inits]
        else:
            xs = {i: torch.where(torch.rand_like(x) < 0.15, nothing, x) for i, x in xs.items()}
        inputs = inits, xs, fixed
        finals, ys = interpret.scan(program, *inputs, 13)
        got = run(program, recurrence, 4, *inputs, 13, torch.float64)
        for g, w in zip((*got[0], *got[1]), (*finals, *ys), strict=True):
            torch.testing.assert_close(g, w, equal_nan=True)
        seeds = tuple([torch.randn_like(v) * v.isfinite() for v in group] for group in (finals, ys))
        want = wanted(program, inputs, 13, seeds, torch.float64)
        with torch.no_grad():
            found = gradients(program, recurrence, 4, inputs, 13, seeds, torch.float64)
        for g, w in zip(found, want, strict=True):
            torch.testing.assert_close(g[w.isfinite()], w[w.isfinite()])
        assert any(w.isfinite().any() for w in want)


def test_carries_that_exchange_places_tie_later_than_a_proof_sees():
    """Each meets an input at every second step: of four steps the shares differ, of two they do not."""

    def exchange(m, n, x):
        return (n, torch.maximum(m, x)), (m,)

    program, _ = program_of("exchange", {"exchange": (exchange, sizes(_X, _X), sizes(_X), [])})
    found = certify_adjoint(program, analyse(program), _differentiated)
    assert not found.proved and found.note.startswith("of several best paths")
    inputs = [torch.zeros(2, 3).double()] * 2, {0: torch.zeros(8, 2, 3).double()}, {}
    seeds = [torch.ones(2, 3).double()] * 2, [torch.zeros(8, 2, 3).double()]
    want = wanted(program, inputs, 8, seeds, torch.float64)
    for length, same in ((2, True), (4, False)):
        with torch.no_grad():
            got = gradients(program, analyse(program), length, inputs, 8, seeds, torch.float64)
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True)) == same


def test_carries_coupled_by_truth_values_have_no_chunk_program():
    """What only takes the place of another carry stays the number it is."""
    program = random_step(2150)
    assert {s.semiring for s in analyse(program).stages} == {"or-and"}
    with pytest.raises(Unchunkable, match="truth values"):
        chunk(program, analyse(program), 4)


def test_coupled_beside_a_recurrence_over_numbers_there_is_no_chunk_program():
    def both(m, n, h, x):
        return (torch.maximum(m, n + x), torch.maximum(n, m), 0.5 * h + m), (h,)

    loops = {"both": (both, sizes(_X, _X, _X), sizes(_X), [])}
    program, _ = program_of("both", loops)
    with pytest.raises(Unchunkable, match="several carries are coupled"):
        chunk(program, analyse(program), 4)


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
