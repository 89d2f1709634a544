"""Bad or unusual input: right, or kept with the documented reason; nothing crashes."""

import pytest
import torch
from torch import nn

import tenfuse
from tenfuse.report.registry import recording

OPTIONS = {"strict": True, "inner": "eager"}


def ema(x, a, h):
    ys = []
    for t in range(x.shape[1]):
        h = a * h + x[:, t]
        ys.append(h)
    return torch.stack(ys, 1), h


def inputs(batch=2, steps=6, width=3, dtype=torch.float32):
    torch.manual_seed(0)
    tensors = torch.randn(batch, steps, width), torch.rand(width), torch.randn(batch, width)
    return [t.to(dtype).requires_grad_(dtype.is_floating_point) for t in tensors]


def ran(model, *args, **options):
    """The compiled model's result and the loops that were seen."""
    torch._dynamo.reset()
    with recording() as reports:
        found = torch.compile(model, backend="tenfuse", options={**OPTIONS, **options})(*args)
    return found, [loop for report in reports for loop in report.loops]


def same(model, args, **options):
    """Outputs and gradients equal eager's; returns the loops."""
    found, loops = ran(model, *args, **options)
    want = model(*args)
    torch.testing.assert_close(found, want, equal_nan=True)
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    if leaves:
        sums = [
            sum(v.float().square().sum() for v in torch.utils._pytree.tree_leaves(o)) for o in (found, want)
        ]
        got, expected = (torch.autograd.grad(s, leaves, materialize_grads=True) for s in sums)
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4, equal_nan=True)
    return loops


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_few_steps(steps):
    same(ema, inputs(steps=steps))


def test_empty_batch():
    assert [loop.status for loop in same(ema, inputs(batch=0))] == ["fused"]


def test_no_steps():
    def model(x, a):
        h = a
        for t in range(x.shape[1]):
            h = a * h + x[:, t]
        return h

    x, a, _ = inputs(steps=0)
    assert same(model, (x, a)) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x[:1].expand(2, -1, -1),
        lambda x: x[..., :1].expand(-1, -1, 3),
        lambda x: torch.cat([x, x], -1)[..., ::2],
        lambda x: torch.cat([x, x], 1)[:, 3:9],
    ],
)
def test_strides(change):
    x, a, h = inputs()
    view = change(x.detach()).requires_grad_()
    assert [loop.status for loop in same(ema, (view, a, h))] == ["fused"]


def test_integer_state():
    loops = same(ema, inputs(dtype=torch.int64))
    assert [loop.status for loop in loops] == ["fused"]


def test_random_body_is_kept():
    def model(x, h):
        for t in range(x.shape[1]):
            h = nn.functional.dropout(h, 0.5) + x[:, t]
        return h

    x, _, h = inputs()
    _, loops = ran(model, x, h)
    assert [loop.code for loop in loops] == ["TF201"]
    assert "dropout" in dict(loops[0].source)[loops[0].blocker]


def test_item_breaks_the_graph_and_nothing_else():
    def model(x, h):
        for t in range(x.shape[1]):
            if h.sum().item() > 1e9:
                break
            h = 0.5 * h + x[:, t]
        return h

    x, _, h = inputs()
    same(model, (x, h))
    (loop,) = tenfuse.explain(model)(x, h).loops
    assert (loop.status, loop.code) == ("kept", "TF120")


def test_output_aliases_input():
    def model(x, a):
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = a * h + x[:, t]
        return h, x

    x, a, _ = inputs()
    (_, alias), loops = ran(model, x, a)
    assert alias.data_ptr() == x.data_ptr() and loops[0].status == "fused"


def test_mutated_input_is_seen_by_the_caller():
    def model(x, out, h):
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            out[:, t] = h
        return h

    x, _, h = (t.detach() for t in inputs())
    mine, theirs = torch.zeros_like(x), torch.zeros_like(x)
    _, loops = ran(model, x, mine, h)
    model(x, theirs, h)
    torch.testing.assert_close(mine, theirs)
    assert [loop.status for loop in loops] == ["fused"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_a_number_reaches_the_same_outputs(bad):
    x, a, h = (t.detach() for t in inputs())
    x[0, 2, 1] = bad
    same(ema, (x, a, h))
    same(lambda x, a, h: ema(x, torch.relu(a) * torch.maximum(a, -a), h), (x, a, h))


def test_names_never_reach_generated_code():
    evil = '"; system("rm'

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_parameter(evil, nn.Parameter(torch.rand(3)))

        def forward(self, x, h):
            for t in range(x.shape[1]):
                h = getattr(self, evil) * h + x[:, t]
            return h

    x, _, h = inputs()
    model = Named()
    found, (loop,) = ran(model, x, h)
    torch.testing.assert_close(found, model(x, h))
    assert loop.status == "fused" and loop.kernels
    assert not any("system" in source for _, _, source in loop.kernels)


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/compiler")
    loops = same(ema, inputs(width=11))
    assert [(loop.status, loop.code) for loop in loops] == [("kept", "TF401")]


def test_triton_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    loops = same(ema, inputs(), target="triton")
    assert [loop.code for loop in loops] == ["TF302"] and "triton" in loops[0].reason


def test_a_fault_inside_falls_back_and_is_counted(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("tenfuse.fuse.normalize", broken)
    with pytest.raises(Exception, match="a fault"):
        ran(ema, *inputs())
    before = torch._dynamo.utils.counters["tenfuse"]["fallback"]
    loops = same(ema, inputs(), strict=False)
    assert [loop.code for loop in loops] == ["TF901"]
    assert torch._dynamo.utils.counters["tenfuse"]["fallback"] > before


def test_a_graph_without_a_loop_is_handed_over_as_it_came(monkeypatch):
    import tenfuse.backend as backend

    graphs, real = [], backend._inner
    monkeypatch.setattr(backend, "_inner", lambda gm, *a, **k: graphs.append(gm) or real(gm, *a, **k))
    given, transform = [], backend.transform
    monkeypatch.setattr(backend, "transform", lambda gm, *a, **k: given.append(gm) or transform(gm, *a, **k))
    ran(lambda x: torch.softmax(x @ x.mT, -1), inputs()[0])
    assert graphs[0] is given[0]
