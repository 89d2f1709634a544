"""The comparison at the first call sees what it is there to see."""

import pytest
import torch

import tenfuse
from tenfuse.runtime.firstcall import ValidationError, checked, difference


def ema(x, a):
    h, ys = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a * h + x[:, t]
        ys.append(h)
    return torch.stack(ys, 1)


def tensors():
    torch.manual_seed(0)
    return torch.randn(2, 6, 3, requires_grad=True), torch.rand(3, requires_grad=True)


def test_passes_where_nothing_differs():
    torch._dynamo.reset()
    options = {"strict": True, "inner": "eager", "validate": "first-call"}
    args = tensors()
    torch.testing.assert_close(torch.compile(ema, backend="tenfuse", options=options)(*args), ema(*args))
    assert [loop.status for loop in tenfuse.reports()[-1].loops] == ["fused"]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (lambda x, a: ema(x, a) + 0.1, "output 0"),
        (
            lambda x, a: ema(x, a) * torch.where(a > 2, torch.nan, 1.0).masked_fill(a > 0, torch.nan),
            "output 0",
        ),
        (lambda x, a: ema(x.detach(), a) + 0 * x.sum(), "gradient of input 0"),
        (lambda x, a: ema(x, a).double(), "output 0"),
    ],
)
def test_names_what_differs(wrong, name):
    assert name in difference(ema, wrong, tensors())


def test_a_changed_input_counts():
    def changing(x, a):
        y = ema(x, a)
        x.detach().zero_()
        return y

    assert "input 0" in difference(ema, changing, tensors())


def test_strict_raises_and_lenient_falls_back():
    wrong = lambda x, a: ema(x, a) + 1  # noqa: E731
    args = tensors()
    with pytest.raises(ValidationError, match="output 0"):
        checked(wrong, ema, wrong, lambda: ema, strict=True)(*args)
    lenient = checked(wrong, ema, wrong, lambda: ema, strict=False)
    torch.testing.assert_close(lenient(*args), ema(*args))
