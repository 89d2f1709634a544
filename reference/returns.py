"""Reverse scans of reinforcement learning: discounted returns and advantages.

Takes rewards [T, B], values [T + 1, B] and continuation masks [T, B]; leaves [T, B].
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.case import Case, gate, normal


def discounted_returns(rewards: Tensor, masks: Tensor, gamma: float = 0.99) -> Tensor:
    """g_t = r_t + gamma mask_t g_{t+1}, the state read back from the buffer."""
    returns = torch.zeros(
        rewards.shape[0] + 1, *rewards.shape[1:], dtype=rewards.dtype, device=rewards.device
    )
    for t in reversed(range(rewards.shape[0])):
        returns[t] = rewards[t] + gamma * masks[t] * returns[t + 1].clone()
    return returns[:-1]


def discounted_returns_reversed(rewards: Tensor, masks: Tensor, gamma: float = 0.99) -> Tensor:
    """The same with a local carry and a list turned round at the end."""
    g = torch.zeros_like(rewards[0])
    returns = []
    for t in range(rewards.shape[0]):
        back = rewards.shape[0] - 1 - t
        g = rewards[back] + gamma * masks[back] * g
        returns.append(g)
    return torch.stack(returns[::-1])


def gae(rewards: Tensor, values: Tensor, masks: Tensor, gamma: float = 0.99, lam: float = 0.95) -> Tensor:
    """Advantages: delta_t = r_t + gamma mask_t v_{t+1} - v_t, a_t = delta_t + gamma lam mask_t a_{t+1}."""
    advantages = torch.zeros_like(rewards)
    last = 0.0
    for t in range(rewards.shape[0] - 1, -1, -1):
        delta = rewards[t] + gamma * values[t + 1] * masks[t] - values[t]
        last = delta + gamma * lam * masks[t] * last
        advantages[t] = last
    return advantages


def example_inputs(steps: int = 64, batch: int = 4) -> tuple[Tensor, ...]:
    """rewards and masks for ``discounted_returns``."""
    return normal(steps, batch), (gate(steps, batch) > 0.1).float()


def _gae_inputs(steps: int) -> tuple[Tensor, ...]:
    rewards, masks = example_inputs(steps, 3)
    return rewards, normal(steps + 1, 3), masks


CASES = (
    Case("returns/discounted", lambda steps: (discounted_returns, example_inputs(steps, 3))),
    Case(
        "returns/discounted-list",
        lambda steps: (discounted_returns_reversed, example_inputs(steps, 3)),
        same_as="returns/discounted",
    ),
    Case("returns/gae", lambda steps: (gae, _gae_inputs(steps))),
)
