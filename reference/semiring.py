"""Recurrences in other semirings: the best path, the sum over paths, a running maximum.

Takes scores [B, T, S] of S states at each step and transition scores [S, S] (from, to);
leaves a score for every step and state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.case import Case, normal


def viterbi(scores: Tensor, transitions: Tensor) -> Tensor:
    """(max, +): the score of the best path that ends in each state, [B, T, S]."""
    best = scores[:, 0]
    rows = [best]
    for t in range(1, scores.shape[1]):
        best = (best.unsqueeze(-1) + transitions).amax(dim=1) + scores[:, t]
        rows.append(best)
    return torch.stack(rows, dim=1)


def crf_forward(scores: Tensor, transitions: Tensor) -> Tensor:
    """(logaddexp, +): the logarithm of the sum over all paths, [B]."""
    alpha = scores[:, 0]
    for t in range(1, scores.shape[1]):
        alpha = torch.logsumexp(alpha[:, :, None] + transitions[None], dim=1) + scores[:, t]
    return torch.logsumexp(alpha, dim=-1)


def hmm_forward(emissions: Tensor, transitions: Tensor) -> Tensor:
    """(+, x) with the probabilities rescaled at every step: nonlinear; [B, T, S]."""
    p = torch.softmax(emissions, dim=-1)
    step = torch.softmax(transitions, dim=-1)
    alpha = p[:, 0] / p[:, 0].sum(-1, keepdim=True)
    rows = [alpha]
    for t in range(1, p.shape[1]):
        alpha = (alpha @ step) * p[:, t]
        alpha = alpha / alpha.sum(-1, keepdim=True)
        rows.append(alpha)
    return torch.stack(rows, dim=1)


def running_max(x: Tensor) -> Tensor:
    """The largest value so far, [B, T, S]."""
    m = torch.full_like(x[:, 0], float("-inf"))
    out = torch.empty_like(x)
    for t in range(x.shape[1]):
        m = torch.maximum(m, x[:, t])
        out[:, t] = m
    return out


def decayed_max(x: Tensor, loss: Tensor) -> Tensor:
    """(max, +) with one state: m <- max(m - loss_t, x_t); x and loss [B, T, S]."""
    m = x[:, 0]
    rows = [m]
    for t in range(1, x.shape[1]):
        m = torch.max(m - loss[:, t], x[:, t])
        rows.append(m)
    return torch.stack(rows, dim=1)


def example_inputs(batch: int = 2, steps: int = 64, states: int = 6) -> tuple[Tensor, ...]:
    """scores and transitions for ``viterbi``."""
    return normal(batch, steps, states), normal(states, states)


# The first step stands before the loop, so one step more makes the trip count ``steps``.
CASES = (
    Case("semiring/viterbi", lambda steps: (viterbi, example_inputs(2, steps + 1, 4))),
    Case("semiring/crf", lambda steps: (crf_forward, example_inputs(2, steps + 1, 4))),
    Case("semiring/hmm", lambda steps: (hmm_forward, example_inputs(2, steps + 1, 4))),
    Case("semiring/running-max", lambda steps: (running_max, (normal(2, steps, 4),))),
    Case(
        "semiring/decayed-max",
        lambda steps: (decayed_max, (normal(2, steps + 1, 4), normal(2, steps + 1, 4).abs())),
    ),
)
