"""The operator a loop becomes: torch's own checks, and errors that help."""

import pytest
import torch
import torch.utils.checkpoint
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad

import tenfuse
from tenfuse.report.registry import recording
from tenfuse.runtime import backward, bind, forward, op, replay

OPTIONS = {"strict": True, "inner": "eager"}


def ema(x, a, h):
    ys = []
    for t in range(x.shape[1]):
        h = a * h + x[:, t]
        ys.append(torch.tanh(h))
    return torch.stack(ys, 1), h


def delta(k, v, b):
    s = v.new_zeros(v.shape[0], k.shape[-1], v.shape[-1])
    ys = []
    for t in range(k.shape[1]):
        k_t = k[:, t, :, None]
        s = s + k_t * (b[:, t] * (v[:, t] - (s * k_t).sum(1)))[:, None]
        ys.append((s * k_t).sum(1))
    return torch.stack(ys, 1)


def rotation(z, lam):
    state, ys = torch.zeros_like(z[:, 0]), []
    for t in range(z.shape[1]):
        state = lam * state + z[:, t]
        ys.append(state)
    return torch.stack(ys, 1)


CASES = {
    "ema": (ema, [(2, 5, 3), (3,), (2, 3)], torch.float64),
    "delta": (delta, [(2, 5, 3), (2, 5, 4), (2, 5, 1)], torch.float64),
    "complex": (rotation, [(2, 5, 3), (3,)], torch.complex128),
}


def inputs(*shapes, dtype=torch.float64):
    torch.manual_seed(0)
    return [(0.5 * torch.randn(s, dtype=dtype)).requires_grad_() for s in shapes]


def compiled(model, **options):
    torch._dynamo.reset()
    return torch.compile(model, backend="tenfuse", options={**OPTIONS, **options})


@pytest.fixture
def calls(monkeypatch):
    """The role of every kernel that runs."""
    seen, count = [], bind.count

    def launched(name, times):
        seen.extend([name.split("_", 2)[2]] * times)
        count(name, times)

    monkeypatch.setattr(forward, "_replays", replay.Replays())
    monkeypatch.setattr(replay, "count", launched)
    return seen


@pytest.fixture
def given(monkeypatch):
    """The carries, streams and invariants of every loop that runs, and its key."""
    seen, run = [], op.run_forward

    def spied(carries, streams, invariants, steps, key, save):
        seen.append(((carries, streams, invariants), key))
        return run(carries, streams, invariants, steps, key, save)

    monkeypatch.setattr(op, "run_forward", spied)
    return seen


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name):
    model, shapes, dtype = CASES[name]
    assert torch.autograd.gradcheck(compiled(model), inputs(*shapes, dtype=dtype))
    assert tenfuse.reports()[-1].loops[0].status == "fused"


@pytest.mark.parametrize("name", CASES)
def test_opcheck(name, given):
    model, shapes, dtype = CASES[name]
    args = inputs(*shapes, dtype=dtype)
    compiled(model)(*args)
    groups, key = given[-1]
    leaves = [[t.detach().clone().requires_grad_() for t in group] for group in groups]
    steps = args[0].shape[1]
    torch.library.opcheck(torch.ops.tenfuse.loop.default, (*leaves, steps, key, True))


def test_a_gradient_that_was_not_planned_is_no_silent_zero(given):
    x, a, h = inputs((2, 5, 3), (3,), (2, 3))
    compiled(ema)(x, a.detach(), h)
    groups, key = given[-1]
    leaves = [[t.detach().clone().requires_grad_() for t in group] for group in groups]
    outputs = torch.ops.tenfuse.loop(*leaves, 5, key, True)
    with pytest.raises(RuntimeError, match="did not want when it was compiled"):
        outputs[0].sum().backward()


def test_the_gradient_of_some_results_is_enough():
    """Where nothing depends on a result, its gradient is zero."""
    for chosen in (0, 1):
        args = inputs((2, 5, 3), (3,), (2, 3))
        want = torch.autograd.grad(ema(*args)[chosen].square().sum(), args)
        got = torch.autograd.grad(compiled(ema)(*args)[chosen].square().sum(), args)
        torch.testing.assert_close(got, want)


def test_gradients_of_some_inputs():
    x, a, h = inputs((2, 5, 3), (3,), (2, 3))
    run = compiled(ema)
    for chosen in ([x], [a], [h], [x, h], [x, a, h]):
        want = torch.autograd.grad(ema(x, a, h)[0].square().sum(), chosen)
        torch.testing.assert_close(torch.autograd.grad(run(x, a, h)[0].square().sum(), chosen), want)


@pytest.fixture
def operands(given):
    """A loop's tensors, its steps and its plan, as the operator takes them."""
    x, a, h = inputs((2, 5, 3), (3,), (2, 3))
    compiled(ema)(x, a, h)
    groups, key = given[-1]
    return [[t.detach() for t in group] for group in groups], 5, key


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "dual"])
def test_transforms_that_would_lose_something_are_errors(transform, operands):
    (carries, (stream,), invariants), steps, key = operands

    def summed(x):
        return sum(y.sum() for y in torch.ops.tenfuse.loop(carries, [x], invariants, steps, key, True))

    def run():
        if transform == "dual":
            with forward_ad.dual_level():
                return summed(forward_ad.make_dual(stream, torch.ones_like(stream)))
        if transform == "jvp":
            return torch.func.jvp(summed, (stream,), (stream,))
        return getattr(torch.func, transform)(summed)(stream)

    with pytest.raises(RuntimeError, match=r"autograd.Function|[Bb]atching rule"):
        run()


def test_tensors_in_other_modes_take_the_dispatcher(operands):
    """A view that is a conjugate or a negation, and tensors without memory."""
    (carries, (stream,), invariants), steps, key = operands
    loop = torch.ops.tenfuse.loop.default
    want = loop(carries, [-stream], invariants, steps, key, True)
    negated = torch._neg_view(stream)
    for requires in (False, True):
        given = negated.detach().requires_grad_(requires)
        assert given.is_neg()
        torch.testing.assert_close(
            [x.detach() for x in loop(carries, [given], invariants, steps, key, True)], want
        )
    with FakeTensorMode() as mode:
        fake = [[mode.from_tensor(x) for x in group] for group in (carries, [stream], invariants)]
        assert [x.shape for x in loop(*fake, steps, key, True)] == [x.shape for x in want]


def test_inference_mode_and_checkpoints():
    args = inputs((2, 5, 3), (3,), (2, 3))
    run, want = compiled(ema), ema(*args)
    with torch.inference_mode():
        torch.testing.assert_close(run(*args), want)
    got = torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=False)
    torch.testing.assert_close(
        torch.autograd.grad(got[0].square().sum(), args), torch.autograd.grad(want[0].square().sum(), args)
    )


def test_no_second_derivative():
    args = inputs((2, 5, 3), (3,), (2, 3))
    y, _ = compiled(ema)(*args)
    (g,) = torch.autograd.grad(y.square().sum(), args[1], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        g.sum().backward()


def test_runs_one_kernel_each_way(calls):
    y, h = compiled(ema)(*inputs((2, 5, 3), (3,), (2, 3)))
    (y.sum() + h.sum()).backward()
    assert calls == ["forward", "backward"]


def test_unknown_plan_is_named():
    with pytest.raises(RuntimeError, match="compile the model again"):
        torch.ops.tenfuse.loop([torch.ones(2)], [], [], 3, "0" * 32, False)


@pytest.mark.parametrize("steps", [63, 64, 65, 129])
def test_chunks_of_saved_states(steps):
    args = inputs((1, steps, 2), (2,), (1, 2))
    want = torch.autograd.grad(ema(*args)[0].square().sum(), args)
    got = torch.autograd.grad(compiled(ema)(*args)[0].square().sum(), args)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunk_option_makes_no_difference(chunk):
    args = inputs((2, 7, 3), (2, 7, 4), (2, 7, 1))
    want = torch.autograd.grad(delta(*args).square().sum(), args)
    got = torch.autograd.grad(compiled(delta, chunk=chunk)(*args).square().sum(), args)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_dynamic_batch_compiles_once():
    model = compiled(ema)
    with recording() as reports:
        for batch in (4, 7, 3):
            x, a, h = inputs((batch, 5, 3), (3,), (batch, 3))
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(h, 0)
            found, want = model(x, a, h), ema(x, a, h)
            torch.testing.assert_close(found, want)
            got = torch.autograd.grad(found[0].square().sum(), (x, a, h))
            torch.testing.assert_close(got, torch.autograd.grad(want[0].square().sum(), (x, a, h)))
    assert len(reports) == 1


def resonance(x, r):
    """A matrix applied to the state at every step: its gradient is a sum of outer products."""
    z, ys = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        z = (0.9 * z + x[:, t]) @ r
        ys.append(z)
    return torch.stack(ys, 1)


def backwards(x, r):
    z, ys = torch.zeros_like(x[:, 0]), []
    for t in reversed(range(x.shape[1])):
        z = (0.9 * z + x[:, t]) @ r
        ys.insert(0, z)
    return torch.stack(ys, 1)


@pytest.mark.parametrize("model", [resonance, backwards])
@pytest.mark.parametrize("chunk", ["auto", 4])
@pytest.mark.parametrize("piece", [1, 1 << 13, 1 << 21])
def test_sums_of_outer_products_in_pieces(model, chunk, piece, calls, monkeypatch):
    """States kept at every step or recomputed; all at once, or pieces that do not divide T."""
    monkeypatch.setattr(backward, "PIECE", piece)
    torch.manual_seed(0)
    x = torch.randn(3, 19, 32, dtype=torch.float64, requires_grad=True)
    r = (torch.eye(32) + 0.05 * torch.randn(32, 32)).double().requires_grad_()
    expected = torch.autograd.grad(model(x, r).sin().sum(), (x, r))
    got = torch.autograd.grad(compiled(model, chunk=chunk)(x, r).sin().sum(), (x, r))
    torch.testing.assert_close(got, expected)
    pieces = {1: (19, 5), 1 << 13: (4, 5), 1 << 21: (1, 1)}[piece][chunk == 4]
    assert calls.count("product_1") == calls.count("backward") == pieces


def overlapping(x):
    """q and k are views of one tensor."""
    q, k = x[..., :3], x[..., 3:6]
    s, ys = torch.zeros(x.shape[0], 3, 3, dtype=x.dtype), []
    for t in range(x.shape[1]):
        s = 0.9 * s + k[:, t, :, None] * k[:, t, None, :]
        ys.append((q[:, t, :, None] * s).sum(1))
    return torch.stack(ys, 1)


@pytest.mark.parametrize("model", [ema, overlapping])
def test_a_second_call_reads_its_own_tensors(model):
    """The second call replays the first; its tensors lie elsewhere, and differently."""
    torch.manual_seed(0)
    shapes = [(2, 5, 8)] + [(8,), (2, 8)] * (model is ema)
    run, kept = compiled(model), []
    for turn in range(4):
        args = [torch.randn(s, dtype=torch.float64) for s in shapes]
        if turn == 2:
            args[0] = torch.randn(5, 2, 8, dtype=torch.float64).transpose(0, 1)
        if turn == 3:
            args[0] = torch.randn(2, 1, 8, dtype=torch.float64).expand(2, 5, 8)
        with torch.no_grad():
            kept.append((run(*args), model(*args)))
    for got, expected in kept:
        torch.testing.assert_close(got, expected)


def test_an_empty_batch():
    args = inputs((0, 5, 3), (0, 5, 4), (0, 5, 1))
    found, want = compiled(delta)(*args), delta(*args)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), args), torch.autograd.grad(want.sum(), args))
    assert tenfuse.reports()[-1].loops[0].status == "fused"


def test_doubles_inside_a_single_precision_loop():
    def counted(x):
        h, ys = torch.ones(x.shape[0], 4), []
        for t in range(x.shape[1]):
            h = torch.where(h.double() > x[:, t], h, h + 1)
            ys.append(h)
        return torch.stack(ys, 1)

    torch.manual_seed(0)
    x = 1 + 1e-10 * torch.randn(3, 9, 4, dtype=torch.float64)
    assert torch.equal(compiled(counted)(x), counted(x))
    assert tenfuse.reports()[-1].loops[0].status == "fused"
