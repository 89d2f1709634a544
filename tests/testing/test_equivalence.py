"""The judge is judged: right answers pass, subtly wrong ones do not.  No backend of ours."""

import pytest
import torch
from torch import nn

from tenfuse.testing.equivalence import NotEquivalent, assert_equivalent


def same(model):
    return torch.compile(model, backend="eager")


def instead(wrong):
    return lambda model: wrong


class Cell(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4))
        self.register_buffer("calls", torch.zeros(2, dtype=dtype))

    def forward(self, x):
        self.calls.add_(1)
        h = torch.zeros(x.shape[0], 4)
        out = []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t].float() @ self.w.float()
            out.append(torch.nn.functional.dropout(h, 0.5).to(x.dtype))
        return torch.stack(out, 1), h


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_module_equals_itself_with_dropout_and_casts(dtype):
    model, x = Cell(dtype), torch.randn(2, 9, 3, dtype=dtype)
    result = assert_equivalent(model, x, compiler=same)
    names = {row.name for row in result.rows}
    assert names == {"output 0", "output 1", "grad of input 0", "grad of w", "calls afterwards"}
    assert not x.requires_grad and model.calls.sum() == 0
    wide = max(r.eager for r in result.rows if r.name == "output 0")
    assert 0 < wide < 1e-6 if dtype == torch.float32 else wide < 0.1


def recurrence(x, a):
    h = torch.zeros_like(x[:, 0])
    for t in range(x.shape[1]):
        h = a * h + x[:, t]
    return h


def test_float64_gets_a_rule_too():
    x = torch.randn(3, 50, 40, dtype=torch.float64)
    a = torch.rand(40, dtype=torch.float64)
    rows = assert_equivalent(recurrence, x, a, compiler=same).rows
    assert all(0 < r.limit < 1e-12 for r in rows)

    def off(x, a):
        return recurrence(x, a) * (1 + 1e-12)

    with pytest.raises(NotEquivalent, match="RMSE"):
        assert_equivalent(recurrence, x, a, compiler=instead(off))


def test_reordered_arithmetic_passes():
    def other(x, a):
        powers = a[None, :] ** torch.arange(x.shape[1] - 1, -1, -1)[:, None]
        return (x * powers).sum(1)

    assert_equivalent(recurrence, torch.randn(3, 20, 40), torch.rand(40), compiler=instead(other))


@pytest.mark.parametrize("scale", [1.00001, 0.99999])
def test_a_small_wrong_factor_fails(scale):
    def wrong(x, a):
        return recurrence(x, a) * scale

    with pytest.raises(NotEquivalent, match="RMSE"):
        assert_equivalent(recurrence, torch.randn(3, 20, 40), torch.rand(40), compiler=instead(wrong))


def test_a_wrong_gradient_alone_fails():
    def wrong(x, a):
        return recurrence(x, a.detach())

    with pytest.raises(NotEquivalent) as error:
        assert_equivalent(recurrence, torch.randn(3, 20, 40), torch.rand(40), compiler=instead(wrong))
    assert [r.name for r in error.value.result.rows if not r.ok] == ["grad of input 1"]
    assert_equivalent(recurrence, torch.randn(3, 20, 40), torch.rand(40), compiler=instead(wrong), grad=False)


def test_one_wrong_entry_among_many_fails_in_bfloat16():
    def wrong(x, a):
        h = recurrence(x, a).clone()
        h[0, 0] += 2
        return h

    x = torch.randn(64, 20, 64, dtype=torch.bfloat16)
    a = 0.9 * torch.rand(64, dtype=torch.bfloat16)  # nearer 1, eager's own rounding allows for as much
    with pytest.raises(NotEquivalent, match=r"one entry|RMSE"):
        assert_equivalent(recurrence, x, a, compiler=instead(wrong))


def test_nan_and_infinity_must_stand_where_they_stood():
    x = torch.randn(2, 5, 3)
    x[0, 2, 1] = float("nan")
    x[1, 0, 0] = float("inf")
    assert_equivalent(recurrence, x, torch.ones(3), compiler=same)
    with pytest.raises(NotEquivalent, match="misplaced"):
        assert_equivalent(
            recurrence, x, torch.ones(3), compiler=instead(lambda x, a: recurrence(x.nan_to_num(), a))
        )


def test_shapes_structure_and_dtype_are_compared():
    x, a = torch.randn(2, 5, 3), torch.ones(3)
    for wrong in (
        lambda x, a: (recurrence(x, a),),
        lambda x, a: recurrence(x, a)[:1],
        lambda x, a: recurrence(x, a).double(),
        lambda x, a: recurrence(x, a).detach(),
    ):
        with pytest.raises(NotEquivalent, match="instead of"):
            assert_equivalent(recurrence, x, a, compiler=instead(wrong))


def test_mutated_inputs_are_compared():
    def write(x, out):
        h = x[0]
        for t in range(x.shape[0]):
            h = 0.5 * h + x[t]
            out[t] = h
        return h

    x, out = torch.randn(6, 3), torch.zeros(6, 3)
    result = assert_equivalent(write, x, out, compiler=same)
    assert "input 1 afterwards" in {r.name for r in result.rows}
    assert out.abs().max() == 0
    with pytest.raises(NotEquivalent) as error:
        assert_equivalent(write, x, out, compiler=instead(lambda x, out: write(x, out.clone())))
    assert {r.name for r in error.value.result.rows if not r.ok} == {"input 1 afterwards"}


def test_outputs_that_alias_inputs():
    x = torch.randn(4, 3)
    with pytest.raises(NotEquivalent, match="sharing memory"):
        assert_equivalent(lambda x: x[1:], x, compiler=instead(lambda x: x[1:].clone()))


def test_views_of_one_storage_stay_views():
    base = torch.randn(6, 3)
    assert_equivalent(lambda x, y: x * y.t()[0, 0], base[::2], base[1].expand(2, 3), compiler=same)


def test_complex_integers_and_plain_values():
    def model(z, n):
        h = torch.zeros_like(z[0])
        for t in range(z.shape[0]):
            h = h * (0.5 + 0.5j) + z[t]
        return h, n + 1, h.abs().argmax(), 7, "x", None

    z = torch.randn(5, 3, dtype=torch.complex64)
    assert_equivalent(model, z, torch.arange(3), compiler=same)
    with pytest.raises(NotEquivalent, match="8 instead of 7"):
        assert_equivalent(
            model, z, torch.arange(3), compiler=instead(lambda z, n: (*model(z, n)[:3], 8, "x", None))
        )


def test_a_scalar_gradient_is_not_a_lottery():
    """Both errors of a single number are luck; reassociation must pass at every seed."""

    def forward(x, a):
        return (x * a).sum()

    def reordered(x, a):
        total = torch.zeros(())
        for chunk in (x * a).flatten().split(16):
            total = total + chunk.sum()
        return total

    for seed in range(12):
        torch.manual_seed(seed)
        assert_equivalent(forward, torch.randn(40, 50), torch.rand(()), compiler=instead(reordered))


def test_empty_batch():
    assert_equivalent(recurrence, torch.randn(0, 5, 3), torch.ones(3), compiler=same)
