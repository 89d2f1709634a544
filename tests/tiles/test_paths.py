"""What people write around a loop, run on tiles: batches, states, layouts, several loops, refusals."""

import pytest
import torch
from torch import nn

pytest.importorskip("triton.language")

import tenfuse
import tenfuse.testing
from tenfuse.report.registry import recording
from tenfuse.runtime.tiles import interpreting
from tests.tiles.loops import FORMS, attention, delta, ema, rnn

pytestmark = [
    pytest.mark.skipif(not interpreting(), reason="TRITON_INTERPRET=1 runs kernels without a GPU"),
    pytest.mark.filterwarnings("ignore"),
]
TILES = {"strict": True, "inner": "eager", "target": "triton", "chunk": 8}
FORM = {f.loop.__name__: f for f in FORMS}


def check(model, *inputs, count=1, **given):
    """Equal to eager, and all of ``count`` loops on tiles."""
    result = tenfuse.testing.assert_equivalent(model, *inputs, options=TILES, **given)
    assert len(result.loops) == count
    for loop in result.loops:
        assert loop.status == "fused", f"{loop.code} {loop.reason}"
        assert {language for _, language, _ in loop.kernels} == {"triton"}
    return result


def kept(model, *inputs, code, **options):
    """Not fused, for the reason ``code``; and as right as without tenfuse."""
    given = {**TILES, **options}
    result = tenfuse.testing.assert_equivalent(model, *inputs, options=given)
    assert [(loop.status, loop.code) for loop in result.loops] == [("kept", code)]
    return result.loops[0]


def compiled(model, **given):
    torch._dynamo.reset()
    return torch.compile(model, backend="tenfuse", options=TILES, **given)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


# -- states ---------------------------------------------------------------------------------


def test_initial_state_and_final_state_have_gradients():
    def model(a, x, h):
        out = []
        for t in range(x.shape[1]):
            h = a[:, t] * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1), h * 2

    check(model, torch.rand(2, 11, 5), normal(2, 11, 5), normal(2, 5))


def test_only_the_final_state_is_used():
    def model(a, k, v):
        s = k.new_zeros(2, 6, 5)
        for t in range(k.shape[1]):
            s = a[:, t, None, None] * s + k[:, t, :, None] * v[:, t, None, :]
        return s

    check(model, torch.rand(2, 11), normal(2, 11, 6), normal(2, 11, 5))


def test_a_loop_that_runs_backwards():
    def model(a, x):
        h = torch.zeros_like(x[:, 0])
        out = [None] * x.shape[1]
        for t in range(x.shape[1] - 1, -1, -1):
            h = a[:, t] * h + x[:, t]
            out[t] = h
        return torch.stack(out, 1)

    check(model, torch.rand(2, 11, 5), normal(2, 11, 5))


def test_two_loops_of_which_one_reads_the_other():
    check(lambda a, x: ema(a, torch.tanh(ema(a, x))), torch.rand(2, 11, 5), normal(2, 11, 5), count=2)


def test_packed_sequences_start_from_nothing():
    """A gate of exactly zero at the first step of each sequence: nothing crosses, not even infinity."""
    a, q, k, v = FORM["attention"].make(19, gates="plain")
    a[:, [5, 12]] = 0.0
    check(attention, a, q, k, v)
    whole = compiled(attention)(a, q, k, v)
    alone = torch.cat(
        [attention(*(x[:, i:j] for x in (a, q, k, v))) for i, j in ((0, 5), (5, 12), (12, 19))], 1
    )
    torch.testing.assert_close(whole, alone)


# -- modes ----------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gate, self.write = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.gate(x[:, t])) * h + self.write(x[:, t])
            out.append(h)
        return torch.stack(out, 1)


def test_a_module_in_training():
    check(Layer(), normal(2, 11, 5))


def test_evaluation_without_gradients():
    model, x = Layer().eval(), normal(2, 11, 5)
    with torch.no_grad():
        check(model, x, grad=False)


def test_first_with_gradients_then_without():
    call, x = compiled(ema), normal(2, 11, 5)
    a = torch.rand(2, 11, 5, requires_grad=True)
    call(a, x).sum().backward()
    assert a.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(call(a, x), ema(a, x))


# -- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["ema", "delta", "rnn"])
def test_one_compilation_for_every_batch(form):
    call, loop = compiled(FORM[form].loop, dynamic=False), FORM[form].loop
    before = torch._dynamo.utils.counters["tenfuse"]["fused"]
    for batch in (3, 4):
        inputs = FORM[form].make(9)
        inputs = [torch.cat([x, x])[:batch].clone() if x.shape[0] == 2 else x for x in inputs]
        for x in inputs:
            if x.shape[0] == batch:
                torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(call(*inputs), loop(*inputs), rtol=2e-5, atol=2e-6)
    assert torch._dynamo.utils.counters["tenfuse"]["fused"] == before + 1


def test_one_compilation_for_every_length():
    from torch._higher_order_ops.scan import scan

    def step(h, x):
        h = x[0] * h + x[1]
        return h, h.clone()

    def model(a, x, h):
        return scan(step, h, (a, x))

    call = compiled(model)
    before = torch._dynamo.utils.counters["tenfuse"]["fused"]
    for steps in (13, 16, 35):
        a, x, h = torch.rand(steps, 2, 5), normal(steps, 2, 5), normal(2, 5)
        for tensor in (a, x):
            torch._dynamo.mark_dynamic(tensor, 0)
        got, want = (
            call(a, x, h),
            ema(a.transpose(0, 1), torch.cat([x[:1] + a[:1] * h, x[1:]]).transpose(0, 1)),
        )
        torch.testing.assert_close(got[1].transpose(0, 1), want, rtol=2e-5, atol=2e-6)
    assert torch._dynamo.utils.counters["tenfuse"]["fused"] == before + 1


def test_one_step():
    tenfuse.testing.assert_equivalent(ema, torch.rand(2, 1, 5), normal(2, 1, 5), options=TILES)


def test_a_batch_without_entries():
    check(ema, torch.rand(0, 11, 5), normal(0, 11, 5))


def test_an_axis_in_blocks():
    """Gradients that are sums over it are written in parts, and added up."""
    gates, steps = torch.rand(1, 11), (1, 11)
    check(delta, gates, normal(*steps, 6), normal(*steps, 6), normal(*steps, 150))


def test_inputs_are_read_where_they_lie():
    """Time innermost, a slice of a wider tensor, and a value expanded over time."""
    a = torch.rand(2, 5, 11).transpose(1, 2)
    x = normal(2, 22, 10)[:, 1::2, 3:8]
    check(ema, a, x)
    check(ema, torch.rand(2, 1, 5).expand(2, 11, 5), x)
    q, k, v = normal(2, 3, 11, 6).unbind(1)
    check(attention, torch.rand(2, 11), q, k, v)


# -- values that are not finite ---------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_step_by_step_they_reach_what_they_reach_in_eager(value):
    a, x, w = FORM["rnn"].make(11)
    x[0, 5, 2] = value
    check(rnn, a, x, w)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_scan_in_chunks_keeps_them_where_they_are(value):
    """An elementwise scan combines in order: no earlier step of the chunk is reached."""
    a, x = FORM["ema"].make(19, gates="plain")
    x[0, 11, 2] = value
    got, want = compiled(ema)(a, x), ema(a, x)
    assert torch.equal(got.isnan(), want.isnan()) and torch.equal(got.isinf(), want.isinf())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_products_spread_them_within_the_chunk(value):
    """A sum over the positions of a chunk reads them all; chunks before it are not reached."""
    a, q, k, v = FORM["delta"].make(27, gates="plain")
    v[0, 12, 2] = value
    got, want = compiled(delta)(a, q, k, v), delta(a, q, k, v)
    assert not got[~want.isfinite()].isfinite().any()
    assert got[:, :8].isfinite().all() and got[1].isfinite().all()


# -- refusals -------------------------------------------------------------------------------


def test_a_matrix_too_large_to_be_read_at_every_step_is_kept_by_name():
    def model(x, weight):
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tanh(h @ weight + x[:, t])
            out.append(h)
        return torch.stack(out, 1)

    loop = kept(model, normal(1, 3, 2100), normal(2100, 2100) * 0.02, code="TF403")
    assert "a step multiplies by 16777216 entries of matrices, more than 4194304" in loop.reason


def test_the_cpu_without_the_interpreter_is_kept(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    loop = kept(ema, torch.rand(2, 11, 5), normal(2, 11, 5), code="TF302")
    assert "TRITON_INTERPRET" in loop.reason


def test_two_devices_in_one_loop_are_kept_by_name():
    def model(a, x, y):
        h, m, out = torch.zeros_like(x[:, 0]), torch.zeros_like(y[:, 0]), []
        for t in range(x.shape[1]):
            h, m = a[:, t] * h + x[:, t], 0.5 * m + y[:, t]
            out.append(h)
        return torch.stack(out, 1), m

    a, x, y = torch.rand(2, 11, 5), normal(2, 11, 5), torch.empty(2, 11, 5, device="meta")
    with recording() as heard:
        found, other = compiled(model)(a, x, y)
    (loop,) = [loop for report in heard for loop in report.loops]
    assert (loop.status, loop.code) == ("kept", "TF302") and "cpu and meta" in loop.reason
    torch.testing.assert_close(found, model(a, x, y)[0])
    assert other.is_meta


def test_integers_are_kept():
    def model(x):
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = h // 2 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    kept(model, torch.arange(22).reshape(2, 11), code="TF403")
