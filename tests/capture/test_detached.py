"""Truncated back-propagation: states detached now and then are one loop, cut where they were."""

from __future__ import annotations

import pytest
import torch
from fates import FUSED, fates, loops

B, T, D = 2, 12, 4
X = (B, T, D)


def cut_first(t, *states):
    return [s.detach() for s in states] if t % 4 == 0 else states


def test_before_the_step():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            if t % 4 == 0:
                h = h.detach()
            h = torch.tanh(h) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    assert [loop.steps for loop in loops(f, X)] == [T]


def test_behind_the_step_and_two_states():
    def f(x):
        h, c, out = torch.zeros(B, D), torch.zeros(B, D), []
        for t in range(T):
            c = 0.5 * c + torch.sigmoid(h) * x[:, t]
            h = torch.tanh(h + c)
            out.append(h)
            if (t + 1) % 3 == 0:
                h, c = h.detach(), c.detach()
        return torch.stack(out, 1), c

    assert [loop.steps for loop in loops(f, X)] == [T]


def test_a_loop_of_chunks():
    def f(x):
        h, out = torch.zeros(B, D), []
        for k in range(0, T, 3):
            h = h.detach()
            for t in range(k, k + 3):
                h = 0.5 * h + x[:, t]
                out.append(h)
        return torch.stack(out, 1), h

    assert [(loop.steps, loop.form) for loop in loops(f, X)] == [(T, "elementwise")]


def test_a_state_in_a_tuple():
    def f(x):
        state, out = (x[:, 0], x[:, 1]), []
        for t in range(T):
            h, c = cut_first(t, *state)
            new = torch.sin(h) + c
            state = new, 0.5 * c + torch.cos(h) * x[:, t]
            out.append(new)
        return torch.stack(out, 1)

    assert [loop.steps for loop in loops(f, X)] == [T]


def test_what_is_appended_is_cut_too():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            h = torch.tanh(h) + x[:, t]
            if t % 3 == 2:
                h = h.detach()
            out.append(h)
        return torch.stack(out, 1)

    fates(f, X)


def test_a_target_read_now_and_then():
    def f(x):
        h, loss = x[:, 0], 0.0
        for t in range(T):
            new = torch.sin(h) + x[:, t]
            if t % 3 == 0:
                loss = loss + (new - h.detach()).pow(2).sum()
            h = new
        return loss, h

    fates(f, X)


def test_uneven_cuts():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            if t in (2, 3, 7):
                h = h.detach()
            h = torch.tanh(h) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    assert [loop.steps for loop in loops(f, X)] == [T]


def test_a_state_written_in_place():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            if t % 4 == 0:
                h = h.detach()
            h = h.sin()
            h += x[:, t]
            out.append(h.clone())
        return torch.stack(out, 1)

    fates(f, X)


def test_a_cut_keeps_infinities_on_its_side():
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(T):
            if t % 3 == 0:
                h = h.detach()
            h = h * x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    x = torch.ones(X)
    x[:, 3] = float("inf")
    assert fates(f, inputs=[x]) == FUSED


@pytest.mark.parametrize("often", [1, 64])
def test_every_step_and_hardly_any(often):
    def f(x):
        h, out = torch.zeros(B, D), []
        for t in range(130):
            if t % often == 0:
                h = h.detach()
            h = 0.5 * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    assert set(fates(f, (B, 130, D))) == set(FUSED)
