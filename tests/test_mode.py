"""``torch.compile(..., mode=...)``: what Inductor understands by it reaches Inductor."""

from unittest import mock

import pytest
import torch
import torch._inductor.compile_fx as inductor


def ema(x, a):
    h = torch.zeros_like(x[:, 0])
    ys = []
    for t in range(x.shape[1]):
        h = a * h + x[:, t]
        ys.append(h)
    return torch.stack(ys, 1)


@pytest.mark.parametrize(
    ("mode", "wanted"), [("reduce-overhead", {"triton.cudagraphs": True}), ("default", None)]
)
def test_a_mode_reaches_inductor(mode, wanted):
    torch._dynamo.reset()
    real, seen = inductor.compile_fx, []

    def spy(*args, **kwargs):
        seen.append(kwargs.get("config_patches"))
        return real(*args, **kwargs)

    x, a = torch.randn(2, 9, 3), torch.rand(3)
    with mock.patch.object(inductor, "compile_fx", spy):
        found = torch.compile(ema, backend="tenfuse", mode=mode)(x, a)
    torch.testing.assert_close(found, ema(x, a))
    assert seen[0] == wanted


def test_an_unknown_mode_is_named():
    torch._dynamo.reset()
    with pytest.raises(Exception, match="no-such-mode"):
        torch.compile(ema, backend="tenfuse", mode="no-such-mode")(torch.randn(2, 9, 3), torch.rand(3))
