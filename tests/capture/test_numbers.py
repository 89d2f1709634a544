"""Python numbers that change from step to step, wherever a step may use one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fates import FUSED, fates

B, T, D = 2, 6, 4
PERIODS = torch.tensor([1, 1, 2, 2])
ROWS = torch.tensor([1, 0])
COLUMNS = torch.tensor([2, 3])

STEPS = {
    "full": lambda h, x, t: torch.tanh(h + x + torch.full((B, 1), t / T)),
    "full by keyword": lambda h, x, t: torch.tanh(h + x + torch.full((B, 1), fill_value=t / T)),
    "whole full": lambda h, x, t: torch.tanh(h + x + torch.full((B,), t)[:, None] / T),
    "new_full of the state": lambda h, x, t: torch.tanh(h + x + h.new_full((B, 1), t)),
    "full_like": lambda h, x, t: torch.tanh(h + x + torch.full_like(x, t)),
    "an embedding of the time": lambda h, x, t: torch.tanh(
        h + x + torch.sin(torch.full((B, 1), t * 0.5) * torch.tensor([0.1, 0.2, 0.3, 0.4]))
    ),
    "a table of one row per step": lambda h, x, t: torch.tanh(h + F.embedding(torch.full((B,), t), x[0])),
    "tensor of one": lambda h, x, t: torch.tanh(h + x + torch.tensor([t / T])),
    "tensor of several": lambda h, x, t: torch.tanh(h + x * torch.tensor([t / T, 1.0, t, 2])),
    "periods": lambda h, x, t: torch.where(t % PERIODS == 0, torch.tanh(h + x), h),
    "whole division": lambda h, x, t: torch.tanh(h + x + t // PERIODS),
    "a limit": lambda h, x, t: h.clamp(max=0.3 * t) + x,
    "two limits": lambda h, x, t: (h + x).clamp(min=-1.0, max=0.3 * t),
    "where": lambda h, x, t: torch.where(h > 0, h * 0.5 + x, 0.1 * t),
    "masked_fill": lambda h, x, t: (h * 0.5 + x).masked_fill(h > 0.5, t * 0.1),
    "lerp": lambda h, x, t: torch.lerp(h, x, t / T),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_the_number_of_the_step(step):
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            xt = x if step is STEPS["a table of one row per step"] else x[:, t]
            h = step(h, xt, t)
            out.append(h)
        return torch.stack(out, 1)

    assert fates(f, (B, T, D)) == FUSED


GATHERS = {
    "row and time": lambda e, t: e[ROWS, t],
    "time and row": lambda e, t: e[t, ROWS],
    "row, time, column": lambda e, t: e[ROWS, t, COLUMNS][:, None],
    "rows made in the step": lambda e, t: e[torch.arange(B), t],
    "from the end": lambda e, t: e[ROWS, -1 - t],
    "not evenly": lambda e, t: e[ROWS, (3 * t) % T],
}


@pytest.mark.parametrize("read", GATHERS.values(), ids=GATHERS.keys())
def test_the_number_of_the_step_among_tensors_of_indices(read):
    def f(x, e):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = torch.tanh(h) + x[:, t] + read(e, t)
            out.append(h)
        return torch.stack(out, 1)

    assert fates(f, (B, T, D), (T, T, D)) == FUSED


def test_the_score_of_tags():
    def f(emissions, transitions, tags, mask):
        score = emissions[0, torch.arange(B), tags[0]]
        for i in range(1, T):
            score = score + transitions[tags[i - 1], tags[i]] * mask[i]
            score = score + emissions[i, torch.arange(B), tags[i]] * mask[i]
        return score

    torch.manual_seed(0)
    given = [torch.randn(T, B, D), torch.randn(D, D), torch.randint(0, D, (T, B)), torch.ones(T, B)]
    assert fates(f, inputs=given) == FUSED


def test_a_size_that_grows_is_no_fill():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = torch.tanh(h) + x[:, t] + torch.full((t + 1,), 0.5).sum()
            out.append(h)
        return torch.stack(out, 1)

    assert fates(f, (B, T, D)) != FUSED


def test_a_number_between_slices_selects_before_tensors_do():
    def f(x, e):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = torch.tanh(h) + x[:, t] + e[t, :, torch.tensor([2, 0, 1, 3])]
            out.append(h)
        return torch.stack(out, 1)

    fates(f, (B, T, D), (T, B, D))
