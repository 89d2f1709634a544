"""What is written in place while gradients are off: the numbers change, the derivative does not."""

from __future__ import annotations

import torch
from fates import FUSED, fates
from torch import nn

B, T, D = 2, 6, 4
X = (B, T, D)


def test_state_clamped_in_place_keeps_its_derivative():
    def f(x):
        h, o = torch.zeros(B, D), []
        for t in range(T):
            h = h * 0.9 + x[:, t]
            with torch.no_grad():
                h.clamp_(-0.5, 0.5)
            o.append(h)
        return torch.stack(o, 1)

    assert fates(f, X) == ["TF103"]


def test_buffer_with_gradients_scaled_without():
    def f(x):
        out, h = torch.zeros(B, T, D), torch.zeros(B, D)
        for t in range(T):
            h = h * 0.9 + x[:, t]
            out[:, t] = h
            with torch.no_grad():
                out[:, t] *= 0.5
        return out

    assert fates(f, X) == ["TF103"]


def test_states_written_down_without_gradients():
    def f(x):
        out, h = torch.zeros(B, T, D), torch.zeros(B, D)
        for t in range(T):
            h = h * 0.9 + x[:, t]
            with torch.no_grad():
                out[:, t] = h
        return out + h[:, None], h

    assert fates(f, X) == FUSED


class Running(nn.Module):
    """Takes off a running mean, which it updates at every step."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(D))
        self.scale = nn.Parameter(torch.randn(D))

    def forward(self, x):
        h, o = torch.zeros(B, D), []
        for t in range(T):
            h = h * torch.sigmoid(self.scale) + x[:, t]
            with torch.no_grad():
                self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
            o.append(h - self.mean)
        return torch.stack(o, 1)


def test_running_mean_in_a_buffer():
    assert fates(Running(), X) == FUSED


def test_a_buffer_gets_no_gradient_from_the_loop():
    model, x = Running(), torch.randn(*X)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="tenfuse", options={"strict": True, "inner": "eager"})
    for _ in range(2):
        compiled(x).sum().backward()
        assert not model.mean.requires_grad and model.mean.grad_fn is None


def test_results_without_gradient_have_none():
    def f(x, a):
        h, count, o = torch.zeros(B, D), torch.zeros(B, D), []
        for t in range(T):
            h = torch.tanh(h * a + x[:, t])
            count = count + h.detach().abs()
            o.append(h)
        return torch.stack(o, 1), count

    torch._dynamo.reset()
    compiled = torch.compile(f, backend="tenfuse", options={"strict": True, "inner": "eager"})
    states, count = compiled(torch.randn(*X), torch.randn(D, requires_grad=True))
    assert states.requires_grad and not count.requires_grad
