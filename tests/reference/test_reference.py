"""The reference models: spellings of one function agree, formulas hold, gradients exist."""

import pytest
import torch

from reference import CASES, delta, elementwise, filters, linear_attention, returns, ssm
from reference.ten import V0, V1

BY_NAME = {case.name: case for case in CASES}
SPELLINGS = [case for case in CASES if case.same_as]


def in_double(case, steps):
    """The output of a case in float64, and what it takes gradients of."""
    model, inputs = case.make(steps)
    inputs = tuple(x.double().requires_grad_() if x.is_floating_point() else x for x in inputs)
    leaves = [x for x in inputs if x.requires_grad]
    if isinstance(model, torch.nn.Module):
        leaves += list(model.double().parameters())
    return model(*inputs), leaves


def test_names_are_unique_and_twins_exist():
    assert len(BY_NAME) == len(CASES)
    assert all(case.same_as in BY_NAME for case in SPELLINGS)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 65])
@pytest.mark.parametrize("case", SPELLINGS, ids=lambda c: c.name)
def test_spellings_agree(case, steps):
    (mine, my_leaves), (twin, twin_leaves) = in_double(case, steps), in_double(BY_NAME[case.same_as], steps)
    torch.testing.assert_close(mine, twin, rtol=1e-10, atol=1e-12)
    if len(my_leaves) != len(twin_leaves) or "truncated" in case.name:
        return
    weights = torch.randn_like(mine)
    mine_grads = torch.autograd.grad(mine, my_leaves, weights, allow_unused=True, materialize_grads=True)
    twin_grads = torch.autograd.grad(twin, twin_leaves, weights, allow_unused=True, materialize_grads=True)
    for a, b in zip(mine_grads, twin_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_same_inputs_at_every_call_and_finite_gradients(case):
    out, leaves = in_double(case, 7)
    again, _ = in_double(case, 7)
    assert torch.equal(out, again)
    assert out.isfinite().all()
    grads = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in grads)
    assert any(g is not None and g.abs().sum() > 0 for g in grads)


def test_closed_forms():
    """Where the recurrence has a closed form, the loop gives it."""
    x, a = torch.randn(2, 9, 3).double(), torch.rand(3).double()
    powers = a ** (torch.arange(9)[:, None, None] - torch.arange(9)[:, None]).clamp(min=0)
    weights = powers * torch.ones(9, 9).tril()[..., None] * (1 - a)
    torch.testing.assert_close(elementwise.ema(x, a), torch.einsum("tsd,bsd->btd", weights, x))

    q, k, v = (t.double() for t in linear_attention.example_inputs(2, 2, 9, 4))
    torch.testing.assert_close(linear_attention.linear_attention(q, k, v), (q @ k.mT).tril() @ v)

    rewards = torch.ones(5, 1).double()
    got = returns.discounted_returns(rewards, torch.ones_like(rewards), 0.5)
    torch.testing.assert_close(got[:, 0], 2 - 0.5 ** (5 - torch.arange(5).double()) * 2)


def test_delta_rule_stores_and_replaces():
    """With beta 1 and orthonormal keys, a value is read back; writing a key twice replaces it."""
    k = torch.eye(3).double()[torch.tensor([0, 1, 0])].view(1, 1, 3, 3)
    v = torch.randn(1, 1, 3, 2).double()
    o = delta.deltanet(k, k, v, torch.ones(1, 1, 3).double())
    torch.testing.assert_close(o, v)


def test_gates_at_their_limits():
    """Gated delta with no decay is DeltaNet; RWKV-7 with no removal is a decayed attention."""
    q, k, v, beta = (t.double() for t in delta.example_inputs(1, 1, 6, 4))
    torch.testing.assert_close(
        delta.gated_delta(q, k, v, beta, torch.zeros_like(beta)), delta.deltanet(q, k, v, beta)
    )
    one, zero = torch.ones_like(k), torch.zeros_like(k)
    torch.testing.assert_close(
        delta.rwkv7(q, one, k, v, zero, zero), linear_attention.linear_attention(q, k, v)
    )


def test_given_state_continues_a_sequence():
    """A recurrence cut in two, the state handed over, is the whole recurrence."""
    cell, x = V0(6, 4).double(), torch.randn(2, 8, 6).double()
    zero = torch.zeros(2, 4).double()
    torch.testing.assert_close(cell(x, zero, zero), cell(x))


def test_truncation_leaves_the_value_and_cuts_the_gradient():
    full, full_leaves = in_double(BY_NAME["ten/v1"], 70)
    cut, cut_leaves = in_double(BY_NAME["ten/v1-truncated-chunk"], 70)
    torch.testing.assert_close(full, cut)
    last = [
        torch.autograd.grad(y[:, -1].sum(), leaves[0])[0]
        for y, leaves in ((full, full_leaves), (cut, cut_leaves))
    ]
    assert last[0][:, :64].abs().max() > 0
    assert last[1][:, :64].abs().max() == 0
    torch.testing.assert_close(last[0][:, 64:], last[1][:, 64:])


def test_resonance_free_cell_is_a_complex_scan():
    cell, x = V1(6, 4, resonant=False).double(), torch.randn(2, 8, 6).double()
    lam = torch.complex(*cell.rotation())
    z, ys = torch.zeros(2, 4, dtype=lam.dtype), []
    for t in range(8):
        z = lam * z + x[:, t] @ cell.w_in.T
        ys.append(z.real @ cell.w_out.T)
    torch.testing.assert_close(cell(x), torch.stack(ys, 1))


def test_biquad_is_its_difference_equation():
    x, b, a = (t.double() for t in filters.example_inputs(1, 6))
    y = filters.biquad(x, b, a)[0]
    expected = b[0] * x[0, 5] + b[1] * x[0, 4] + b[2] * x[0, 3] - a[0] * y[4] - a[1] * y[3]
    torch.testing.assert_close(y[5], expected)


def test_selective_scan_without_decay_sums():
    x, dt, a, b, c, d = (t.double() for t in ssm.example_inputs(1, 5, 3, 2))
    y = ssm.selective_scan(x, dt, a * 0, b, c, d)
    writes = (dt * x)[..., None] * b[:, :, None]
    torch.testing.assert_close(y, (writes.cumsum(1) * c[:, :, None]).sum(-1) + x * d)
