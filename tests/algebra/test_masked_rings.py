"""Other semirings under masks: padded sequences, resets, transitions that are not allowed."""

import math

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.proof.certify import certify
from tenfuse.algebra.proof.certify_adjoint import certify_adjoint
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tenfuse.algebra.proof.polynomials import ONE, ZERO
from tenfuse.algebra.proof.symbolic import SYMBOLIC
from tenfuse.algebra.proof.symbols import Field
from tenfuse.step import interpret
from tenfuse.step.adjoint import adjoint
from tests.algebra.chunks import draw, gradients, run
from tests.algebra.test_chunk_adjoint import wanted
from tests.step.steps import analysed

B, K, T = 2, 3, 7
LOW = -math.inf
PLUS = {"max": torch.maximum, "sum": torch.logaddexp}
SUMS = {"max": lambda y: y.amax(1), "sum": lambda y: torch.logsumexp(y, 1)}


def padded(f, total):
    return lambda m, x, y, a, mask, edges: torch.where(mask, f(m + x, y), m)


def reset(f, total):
    return lambda m, x, y, a, mask, edges: f(m.masked_fill(mask, LOW) + x, y)


def started(f, total):
    return lambda m, x, y, a, mask, edges: torch.where(mask, y, f(m, x))


def padded_paths(f, total):
    return lambda m, x, y, a, mask, edges: torch.where(mask, total(m[..., None] + a) + x, m)


def allowed_paths(f, total):
    return lambda m, x, y, a, mask, edges: total((m[..., None] + a).masked_fill(edges, LOW)) + x


STEPS = {f.__name__: f for f in (padded, reset, started, padded_paths, allowed_paths)}


def program_of(name, ring, per=1):
    update = STEPS[name](PLUS[ring], SUMS[ring])

    def step(m, x, y, a, mask, edges):
        m = update(m, x, y, a, mask, edges)
        return (m,), (m,)

    bits = torch.empty(B, per, dtype=torch.bool), torch.empty(B, K, K, dtype=torch.bool)
    streams = [torch.empty(B, K), torch.empty(B, K), torch.empty(B, K, K), *bits]
    return analysed(step, [torch.empty(B, K)], streams, [])[2].program


def proofs(program, recurrence):
    def differentiate(p):
        found = adjoint(p, list(p.inputs("stream")), [])
        return found.program, found.streams

    found = certify(program, recurrence), certify_chunk(program, recurrence)
    return (*found, certify_adjoint(program, recurrence, differentiate))


def masks(program):
    """The streams that are read as truth values."""
    chosen = {n.args[0] for n in program.nodes if getattr(n, "fn", "") == "where"}
    inputs = [(i, n) for i, n in enumerate(program.nodes) if getattr(n, "kind", "") == "stream"]
    return {n.index for i, n in inputs if i in chosen}


def derivatives(f, values):
    leaves = [v.clone().requires_grad_() for v in values]
    finals, ys = f(leaves)
    total = sum(v[v.isfinite()].sin().sum() for v in (*finals, *ys))
    return [*finals, *ys], torch.autograd.grad(total, leaves, allow_unused=True)


@pytest.mark.parametrize("per", [1, K])
@pytest.mark.parametrize("ring", PLUS)
@pytest.mark.parametrize("name", ["padded", "reset", "started"])
def test_masked_scans_are_proved_and_right(name, ring, per):
    program = program_of(name, ring, per)
    recurrence = analyse(program)
    assert recurrence.form == "semiring"
    assert [c.note for c in proofs(program, recurrence)] == ["", "", ""]
    inits, xs, fixed = draw(program, T, seed=per)
    (mask,) = masks(program)
    order, start = sorted(set(xs) - {mask}), len(inits)
    for share in (0.0, 0.5, 1.0):
        xs[mask] = (torch.rand_like(xs[mask]) < share).double()

        def streams(leaves):
            return {mask: xs[mask], **dict(zip(order, leaves[start:], strict=True))}

        values = [*inits, *(xs[i] for i in order)]
        want = derivatives(lambda v: interpret.scan(program, v[:start], streams(v), fixed, T), values)
        got = derivatives(
            lambda v: run(program, recurrence, 4, v[:start], streams(v), fixed, T, torch.float64), values
        )
        for a, b in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ring", PLUS)
@pytest.mark.parametrize("name", ["padded_paths", "allowed_paths"])
def test_masked_paths_have_proved_values(name, ring):
    """And gradients, but where a maximum has ties, or a step may allow no path at all."""
    program = program_of(name, ring)
    recurrence = analyse(program)
    split, chunk, back = proofs(program, recurrence)
    assert split.proved and chunk.proved
    assert back.proved == ((name, ring) == ("padded_paths", "sum"))
    inits, xs, fixed = draw(program, T)
    (mask,) = masks(program)
    xs[mask] = (torch.rand_like(xs[mask]) < 0.5).double()
    states, outs = interpret.scan(program, inits, xs, fixed, T)
    finals, ys = run(program, recurrence, 4, inits, xs, fixed, T, torch.float64)
    for a, b in zip((*finals, *ys), (*states, *outs), strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_where_nothing_is_added_there_is_no_offset():
    for ring in PLUS:
        (update,) = analyse(program_of("allowed_paths", ring)).stages[0].updates
        assert len(update.terms) == 1 and update.offset is None


def summed(m, x, y):
    m = torch.logaddexp(m + x, y)
    return (m,), (m,)


def path_sums(m, x, a):
    m = torch.logsumexp(m[..., None] + a, 1) + x
    return (m,), (m,)


def two_masks(m, x, y, g, h):
    m = torch.logaddexp(torch.where(g, m + x, LOW), torch.where(h, m + y, x))
    return (m,), (m,)


NOT_ALLOWED = torch.tensor([[0.0, 0.1, LOW], [LOW, 0.2, 0.3], [0.4, LOW, LOW]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["late", "not-allowed", "padded-from-nothing", "padded-paths", "two-masks"])
def test_gradients_where_a_chunk_adds_nothing_to_nothing(name):
    """Inputs may be infinite where the loop's derivatives are numbers: those of the chunk are too."""
    rows = [torch.empty(B, K)] * 2
    if name == "late":
        program = analysed(summed, [torch.empty(B, K)], rows, [])[2].program
    elif name == "not-allowed":
        program = analysed(path_sums, [torch.empty(B, K)], rows[:1], [torch.empty(K, K)])[2].program
    elif name == "padded-paths":
        program = program_of("padded_paths", "sum")
    elif name == "two-masks":
        bits = [torch.empty(B, K, dtype=torch.bool)] * 2
        program = analysed(two_masks, [torch.empty(B, K)], rows + bits, [])[2].program
    else:
        program = program_of("padded", "sum")
    inits, xs, fixed = draw(program, T)
    if name == "late":
        xs[1][:5] = LOW
    elif name == "not-allowed":
        fixed[0].copy_(NOT_ALLOWED)
    elif name.startswith(("two", "padded-paths")):
        for i in masks(program):
            xs[i] = (torch.rand_like(xs[i]) < 0.5).double()
    else:
        (mask,) = masks(program)
        xs[mask], inits[0][:] = (torch.arange(T)[:, None] >= 5).double().expand(T, B).clone(), LOW
    inputs, recurrence = (inits, xs, fixed), analyse(program)
    states, outs = interpret.scan(program, *inputs, T)
    seeds = [torch.randn_like(v) for v in states], [torch.randn_like(v) for v in outs]
    want = wanted(program, inputs, T, seeds, torch.float64)
    assert all(w.isfinite().all() for w in want)
    with torch.no_grad():
        got = gradients(program, recurrence, 4, inputs, T, seeds, torch.float64)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def call(f, name, *args):
    return SYMBOLIC[name](f, *args)


def test_what_is_infinite_in_a_proof():
    f = Field()
    x, y, low = f.symbol(), f.symbol(), f.const(LOW)
    assert f.equal(call(f, "add", x, low), call(f, "sub", low, y))
    assert not f.equal(call(f, "add", x, low), call(f, "neg", low))
    assert call(f, "maximum", call(f, "add", x, low), y) == y
    assert call(f, "lt", call(f, "add", x, low), low) == ZERO
    assert call(f, "lt", call(f, "abs", call(f, "add", x, low)), f.const(math.inf)) == ZERO
    assert call(f, "logaddexp", low, low) == low
    assert call(f, "exp", call(f, "sub", low, x)) == ZERO


def test_what_is_not_a_number_equals_nothing():
    f = Field()
    x, low = f.symbol(), f.const(LOW)
    odd = [call(f, "sub", low, low), call(f, "sub", low, low), call(f, "mul", ZERO, low)]
    odd += [call(f, "mul", ZERO, call(f, "exp", odd[0])), call(f, "sub", odd[0], odd[0])]
    for i, a in enumerate(odd):
        assert not f.equal(a, ZERO) and not f.equal(a, ONE) and not f.equal(a, x)
        assert not any(f.equal(a, b) for b in odd[:i])


def test_a_quotient_of_sums_of_exponentials_under_a_logarithm():
    f = Field()
    x, y, z = (call(f, "exp", f.symbol()) for _ in range(3))
    ratio = call(f, "div", f.add(x, z), f.add(x, y))
    assert f.equal(f.add(call(f, "log", ratio), call(f, "log", f.add(x, y))), call(f, "log", f.add(x, z)))
    below = f.sub(x, y)  # may be negative, as what is above it
    ratio = call(f, "div", f.sub(x, z), below)
    assert not f.equal(f.add(call(f, "log", ratio), call(f, "log", below)), call(f, "log", f.sub(x, z)))


def over_both(h, x, y, z):
    return (torch.logaddexp(torch.logaddexp(h + x, y), z),)


def over_gates(h, x, y, z):
    return (torch.logaddexp(torch.logaddexp(h + x, y), h + z),)


@pytest.mark.parametrize("update", [over_both, over_gates])
def test_two_inputs_that_are_both_nothing(update):
    """The normal form adds what the step adds one after the other: of two infinities, too."""
    shape, nothing = torch.empty(B, K), torch.tensor(LOW, dtype=torch.float64)

    def step(h, x, y, z):
        return update(h, x, y, z), update(h, x, y, z)

    program = analysed(step, [shape], [shape] * 3, [])[2].program
    recurrence = analyse(program)
    assert all(p.proved for p in proofs(program, recurrence))
    for seed in range(4):
        inits, xs, fixed = draw(program, 11, seed=seed)
        inputs = inits, {i: torch.where(torch.rand_like(x) < 0.4, nothing, x) for i, x in xs.items()}, fixed
        finals, ys = interpret.scan(program, *inputs, 11)
        seeds = tuple([torch.randn_like(v) * v.isfinite() for v in group] for group in (finals, ys))
        want = wanted(program, inputs, 11, seeds, torch.float64)
        with torch.no_grad():
            got = gradients(program, recurrence, 4, inputs, 11, seeds, torch.float64)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g[w.isfinite()], w[w.isfinite()])
