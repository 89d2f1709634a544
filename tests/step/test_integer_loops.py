"""Loops with integers from Python to the kernel: exact integers, exact gradients beside them.

Every loop is compared with eager torch: integers and truth values bit for bit.
"""

import random

import pytest
import torch

import tenfuse
from tenfuse.report.registry import recording

LARGE = 2**53 + 1


def fused(fn, *args, form="nonlinear", gradients=True):
    """The results of ``fn`` compiled; fused, equal to eager, gradients included."""
    torch._dynamo.reset()
    given = [[a.clone().requires_grad_(a.is_floating_point() and gradients) for a in args] for _ in (0, 1)]
    run = torch.compile(fn, backend="tenfuse", options={"inner": "aot_eager", "strict": True})
    results = []
    with recording() as heard:
        for call, mine in ((fn, given[0]), (run, given[1])):
            found = call(*mine)
            found = found if isinstance(found, tuple) else (found,)
            smooth = [x.sin().sum() for x in found if x.requires_grad]
            if smooth:
                sum(smooth).backward()
            results.append(found)
    loops = [x for r in heard for x in r.loops]
    assert loops and all(x.status == "fused" for x in loops), [str(x.reason) for x in loops]
    assert loops[-1].form == form
    for want, got in zip(*results, strict=True):
        assert want.dtype == got.dtype
        if want.is_floating_point():
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(got, want)
    for a, b in zip(*given, strict=True):
        assert (a.grad is None) or torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    return results[1]


def kept(fn, *args):
    torch._dynamo.reset()
    run = torch.compile(fn, backend="tenfuse", options={"inner": "aot_eager", "strict": True})
    with recording() as heard:
        want, got = fn(*args), run(*args)
    assert torch.equal(want, got)
    (loop,) = (x for r in heard for x in r.loops)
    assert loop.status == "kept"
    return loop.reason


@pytest.fixture
def x():
    return torch.randn(70, 3, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_counters_wrap_where_their_type_does(x, dtype):
    def count(x, n):
        outs = []
        for t in range(x.shape[0]):
            n = n * 3 + (x[t] > 0) - 2
            outs.append(n)
        return torch.stack(outs), n

    fused(count, x, torch.full((3, 5), 7, dtype=dtype))


def test_integers_past_the_exact_floats(x):
    def count(x, n):
        for t in range(x.shape[0]):
            n = n + (x[t] > 0).long()
        return n

    (n,) = fused(count, x, torch.full((3, 5), LARGE))
    assert (n % 2 == 0).any()  # a double would have lost these


def test_a_counter_beside_a_state_leaves_its_gradient(x):
    def run(x, n, h):
        outs = []
        for t in range(x.shape[0]):
            h = torch.where(n % 3 == 0, torch.tanh(h) + x[t], 0.5 * h + x[t] / (n + 1))
            n = n + (h > 0).long()
            outs.append(h)
        return torch.stack(outs), n

    fused(run, x, torch.zeros(3, 5, dtype=torch.long), torch.randn(3, 5))


def test_the_last_step_that_did(x):
    def run(x, last):
        h, outs = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = 0.9 * h + x[t]
            last = torch.where(h > 0, t, last)
            outs.append(last.masked_fill(h > 1, t + 1))
        return torch.stack(outs), h

    fused(run, x, torch.full((3, 5), -1))


def test_viterbi_forward_and_back(x):
    def run(x, trans):
        score, pointers = x[0], []
        for t in range(1, x.shape[0]):
            score, index = (score[:, :, None] + trans).max(1)
            score = score + x[t]
            pointers.append(index)
        state = score.argmax(-1)
        path = [state]
        for t in range(len(pointers) - 1, -1, -1):
            state = pointers[t].gather(-1, state[:, None])[:, 0]
            path.append(state)
        return torch.stack(path), score

    fused(run, x, torch.randn(5, 5))


def test_a_walk_by_pairs_of_indices():
    def run(p, state):
        rows, path = torch.arange(p.shape[1]), []
        for t in range(p.shape[0] - 1, -1, -1):
            state = p[t][rows, state] - 1
            path.append(state)
        return torch.stack(path)

    fused(run, torch.randint(0, 7, (40, 4, 6)), torch.randint(-6, 6, (4,)))


def test_greedy_decoding(x):
    def run(x, w, table, token):
        h, outs = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = torch.tanh(table[token] + x[t] + h @ w)
            token = (h @ table.T).argmax(-1)
            outs.append(token)
        return torch.stack(outs), h

    fused(run, x, 0.3 * torch.randn(5, 5), torch.randn(7, 5), torch.zeros(3, dtype=torch.long))


def test_what_a_picked_entry_gets(x):
    """The picked entry alone gets the gradient, as ``gather`` gives it."""

    def run(x, s, i):
        for t in range(x.shape[0]):
            y = s.gather(1, i[:, None])[:, 0]
            s = torch.tanh(0.9 * s + x[t] * y[:, None])
            i = (i + 1 + (y > 0)) % 5
        return s, i

    fused(run, x, torch.randn(3, 5), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("largest", [True, False])
def test_ties_and_nan(x, largest):
    x = (2 * x).round()
    x[5, 1, 2] = float("nan")

    def run(x, n):
        s, outs = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            s = torch.where(n[:, None] % 2 == 0, x[t], s.roll(1, 1))
            i = s.argmax(-1) if largest else s.argmin(-1)
            n = n + i
            outs.append(i)
        return torch.stack(outs), n

    fused(run, x, torch.zeros(3, dtype=torch.long), gradients=False)


def test_a_ring_buffer(x):
    def run(x, place):
        ring, outs = torch.zeros(3, 4, 5), []
        i = torch.zeros((), dtype=torch.long)
        for t in range(x.shape[0]):
            ring = torch.where((place == i)[:, None], x[t][:, None, :], ring)
            i = (i + 1) % 4
            outs.append(ring.sum(1).tanh())
        return torch.stack(outs), i

    fused(run, x, torch.arange(4))


def test_many_steps_and_tasks():
    """Chunks of states recomputed, tiles of every axis, an axis that is no multiple of a vector."""

    def run(x, n):
        h, outs = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            h = 0.8 * torch.sin(h) / (n % 4 + 1) + x[t]
            n = torch.where(h > 1, n // 2 + 3, n + 1)
            outs.append(h)
        return torch.stack(outs), n

    fused(run, torch.randn(150, 9, 83, dtype=torch.float64), torch.randint(0, 99, (9, 83)))


def test_a_batch_of_any_size(x):
    def run(x, n):
        for t in range(x.shape[0]):
            n = torch.where(x[t] > 0, n + 1, n // 2)
        return n

    torch._dynamo.reset()
    compiled = torch.compile(run, backend="tenfuse", options={"inner": "aot_eager", "strict": True})
    for batch in (3, 19, 1):
        x, n = torch.randn(20, batch, 5), torch.randint(0, 99, (batch, 5))
        torch._dynamo.mark_dynamic(x, 1)
        torch._dynamo.mark_dynamic(n, 0)
        assert torch.equal(compiled(x, n), run(x, n))
    assert tenfuse.reports()[-1].loops[0].status == "fused"


def test_integers_beside_a_maximum_are_no_scan(x):
    def run(x, best, arg):
        outs = []
        for t in range(x.shape[0]):
            better = x[t] > best
            best = torch.maximum(best + 0.1, x[t])
            arg = torch.where(better, t, arg)
            outs.append(arg)
        return torch.stack(outs), best

    fused(run, x, torch.zeros(3, 5), torch.zeros(3, 5, dtype=torch.long))


def test_division_by_what_may_be_zero_is_kept(x):
    def run(x, n, d):
        for t in range(x.shape[0]):
            n = n // d + (x[t] > 0)
        return n

    assert "divided by what may be zero" in kept(run, x, torch.full((3, 5), 99), torch.full((3, 5), 2))


def test_a_large_table_is_kept(x):
    def run(x, token, table):
        h = torch.zeros(3, 64)
        for t in range(x.shape[0]):
            h = torch.tanh(h + table[token] + x[t, :, :1])
            token = (token + (h[:, 0] > 0)) % 4000
        return h

    assert "entries with an index" in kept(run, x, torch.zeros(3, dtype=torch.long), torch.randn(4000, 64))


ATOMS = (
    "n + {a}", "n - m", "n * {a} + m", "(n ^ {a}) + 1", "n & m", "n | {b}", "n % {a}", "n // {a}", "-m",
    "torch.where(h > {c}, n, m + {b})", "torch.where(n > m, m, {b})", "n + (h > {c})", "(n << 1) % 1000003",
    "n >> 1", "torch.maximum(n, m)", "n.clamp(-{a}, {a})", "(h * 4).long()", "m + (n == {b}).long()",
    "abs(n)",
    "torch.remainder(n, -{a})", "torch.div(m, {a}, rounding_mode='trunc')", "torch.where(flag, t, n)", "~n",
    "torch.fmod(n, {a})", "n.int().long() + 1", "h.argmax(-1, keepdim=True) + n",
    "n.sum(-1, keepdim=True) % 101 + m",
)  # fmt: skip
FLOATS = (
    "torch.tanh(h) + x[t]", "0.5 * h + x[t] * (n % 3)", "torch.where(n % 2 == 0, 0.3 * h, x[t])",
    "h * 0.9 + (m > n) * x[t]", "0.5 * h + x[t] / (n.abs() % 7 + 1)", "0.7 * h + torch.sin(x[t] + m % 5)",
    "torch.where(flag, x[t], h)",
)  # fmt: skip


def drawn(seed):
    """A random step on two integers, a truth value and a number, as Python."""
    r = random.Random(seed)

    def fill(text):
        return text.format(a=r.randint(1, 9), b=r.randint(-9, 9), c=round(r.uniform(-1, 1), 2))

    body = [f"n, m = ({fill(r.choice(ATOMS))} + m % 2) % 100003, {fill(r.choice(ATOMS))}"]
    body.append(f"h = {r.choice(FLOATS)}")
    body.append(fill(r.choice(["flag = flag | (h > {c})", "flag = (n > m) & (h > {c})", "flag = ~flag"])))
    r.shuffle(body)
    lines = ["def run(x, n, m, h, flag):", "    hs, ns = [], []", "    for t in range(x.shape[0]):"]
    lines += [f"        {line}" for line in (*body, "hs.append(h)", "ns.append(n)")]
    lines.append("    return torch.stack(hs), torch.stack(ns), m, flag")
    return "\n".join(lines)


def check_drawn(seed):
    text = drawn(seed)
    scope = {"torch": torch}
    exec(compile(text, f"<drawn {seed}>", "exec"), scope)
    gen = torch.Generator().manual_seed(seed)
    shape = [(3, 5), (2, 17), (1, 4)][seed % 3]
    x, h = torch.randn(20, *shape, generator=gen), torch.randn(*shape, generator=gen)
    n, m = (torch.randint(-50, 50, shape, generator=gen) for _ in (0, 1))
    try:
        fused(scope["run"], x.double(), n, m, h.double(), torch.zeros(shape, dtype=torch.bool))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{text}") from error


@pytest.mark.parametrize("seed", range(6))
def test_drawn_steps(seed):
    check_drawn(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 150))
def test_many_drawn_steps(seed):
    check_drawn(seed)
