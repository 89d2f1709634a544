"""Steps that come round without a loop statement, and calls in one another that are no loop."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from fates import FUSED, fates
from torch.nn import functional as F

B, T, D = 2, 7, 4
X = (B, T, D)


def test_reduce():
    def f(x):
        return functools.reduce(lambda h, u: torch.sigmoid(u) * h + u, x.unbind(1), torch.zeros(B, D))

    assert fates(f, X) == FUSED


def test_accumulate():
    def f(x):
        return torch.stack(list(itertools.accumulate(x.unbind(1), lambda h, u: torch.tanh(0.7 * h + u))), 1)

    assert fates(f, X) == FUSED


def test_map_with_a_state_aside():
    def f(x):
        state = [torch.zeros(B, D)]

        def step(u):
            state[0] = state[0] * 0.5 + u
            return state[0].sin()

        return torch.stack(list(map(step, x.unbind(1))), 1), state[0]

    assert fates(f, X) == FUSED


def test_recursion():
    def f(x):
        def rest(h, t):
            return h if t == T else rest(torch.tanh(h * 0.5 + x[:, t]), t + 1)

        return rest(torch.zeros(B, D), 0)

    assert fates(f, X) == FUSED


def test_reduce_with_dropout_is_kept():
    def f(x):
        return functools.reduce(lambda h, u: F.dropout(h, 0.0) * 0.5 + u, x.unbind(1), torch.zeros(B, D))

    def random(x):
        return functools.reduce(lambda h, u: h * 0.5 + torch.bernoulli(u.sigmoid()), x.unbind(1), x[:, 0])

    assert fates(f, X) == FUSED
    assert fates(random, X, grad=False) == ["TF201"]


def test_an_iteration_without_input_is_no_loop():
    def f(x):
        return functools.reduce(lambda h, _: torch.tanh(h), range(T), x[:, 0])

    assert fates(f, X) == []


@pytest.mark.skipif(torch.__version__ < "2.13", reason="traces without columns: calls on one line look alike")
def test_a_few_calls_in_one_another_are_no_loop():
    def f(x):
        def p(a, i):
            return a * x[:, 0] + x[:, i]

        return p(p(p(x[:, 1], 2), 3), 4)

    assert fates(f, X) == []
