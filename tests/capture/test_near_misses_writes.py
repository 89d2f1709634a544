"""Tensors written, shared or overwritten around a loop: left alone, or exactly right."""

from __future__ import annotations

import torch
from nearly import B, D, T, codes, inputs, steps, x_h
from stepwise import check


def test_write_through_a_view_of_the_carry():
    def f(x, h):
        h, out = h.clone(), []
        for t in range(x.shape[1]):
            h[:, 0] = x[:, t, 0]
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    check(f, *x_h())


def test_write_through_a_view_of_the_carry_in_place():
    def f(x, h):
        h, out = h.clone(), []
        for t in range(x.shape[1]):
            h[:, 0] += x[:, t, 0]
            h.mul_(0.5)
            out.append(h.clone())
        return torch.stack(out, 1), h

    check(f, *x_h())


def test_appended_state_changed_later():
    def f(x, h):
        h, out = h.clone(), []
        for t in range(x.shape[1]):
            h.mul_(0.5)
            h.add_(x[:, t])
            out.append(h)
        return torch.stack(out, 1)

    check(f, *x_h())


def test_output_aliases_an_input():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1), x, x[:, 0]

    assert steps(check(f, *x_h())) == [T]


def test_input_overwritten():
    def f(x, h):
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            x[:, t] = h
        return h

    x, h = x_h()
    assert steps(check(f, x.detach(), h)) == [T]


def test_saved_input_overwritten_by_the_loop():
    def f(x, g, h):
        y = x * 1.0
        for t in range(x.shape[1]):
            h = h * g[:, t] + y[:, t].detach()
            y[:, t] = h
        return y

    assert steps(check(f, *inputs((B, T, D), (B, T, D), (B, D)))) == [T]


def test_input_changed_after_the_loop():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        x.add_(1)
        return torch.stack(out, 1), x * 2

    x, h = x_h()
    assert steps(check(f, x.detach(), h)) == [T]


def test_input_changed_before_its_old_value_is_read():
    def f(x, h):
        old = h
        g = old * 2
        h = h + 1
        x.mul_(2)
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t] + g
        x.mul_(2)
        return h, x + 0

    x, h = x_h()
    assert steps(check(f, x.detach(), h)) == [T]


def test_final_state_changed_in_place_after_the_loop():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h * 1)
        h.add_(1)
        return torch.stack(out, 1), h

    assert steps(check(f, *x_h())) == [T]


def test_one_output_changed_in_place_after_the_loop():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        out[3].mul_(2)
        return torch.stack(out, 1)

    x, h = x_h()
    check(f, x.detach(), h.detach())


def test_buffer_partly_read_after_being_half_filled():
    def f(x, h):
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t] + out.sum(1)
            out[:, t] = h
        return out

    harness = check(f, *x_h())
    assert not harness.loops and codes(harness) == ["TF107"]


def test_buffer_read_at_another_distance():
    def f(x, h):
        s = torch.zeros(B, T + 2, D)
        s[:, 0], s[:, 1] = h, h * 2
        for t in range(2, T + 2):
            s[:, t] = 0.5 * s[:, t - 1] - 0.25 * s[:, t - 2] + x[:, t - 2]
        return s

    (loop,) = check(f, *x_h()).loops
    assert loop.steps == T and len(loop.carries) == 2


def test_buffer_zeroed_in_the_middle():
    def f(x, h):
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[:, t] = h
            if t == 4:
                out.zero_()
        return out

    check(f, *x_h())


def test_overlapping_windows_written():
    def f(x, h):
        out = torch.zeros(B, T + 1, D)
        for t in range(T):
            h = h * 0.5 + x[:, t]
            out[:, t : t + 2] += h[:, None]
        return out

    check(f, *x_h())


def test_state_used_by_view_after_the_loop():
    def f(x, h):
        s = torch.zeros(B, T + 1, D)
        for t in range(T):
            s[:, t + 1] = s[:, t] * 0.5 + x[:, t]
        v = s.view(B, -1)
        v[:, 0] = 7.0
        return s, v * h.sum()

    assert steps(check(f, *x_h())) == [T]
