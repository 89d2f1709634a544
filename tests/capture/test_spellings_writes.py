"""What a loop writes in place: buffers it fills and reads back, states it changes."""

from __future__ import annotations

import torch
from spelled import B, D, T, found, inputs, x_h
from stepwise import check


def test_setitem_into_zeros():
    def f(x, h):
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[:, t] = h
        return out

    found(check(f, *x_h()), (T, 1))


def test_setitem_into_empty_time_first():
    def f(x, h):
        out = torch.empty(x.shape[1], x.shape[0], x.shape[2])
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[t] = h * 2
        return out

    found(check(f, *x_h()), (T, 1))


def test_two_buffers():
    def f(x, h):
        a, b = torch.empty_like(x), torch.zeros(x.shape[0], x.shape[2], x.shape[1])
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            a[:, t] = h
            b[..., t] = h * h
        return a, b

    found(check(f, *x_h()), (T, 1))


def test_two_writes_to_one_buffer():
    def f(x, h):
        out = torch.zeros(x.shape[0], x.shape[1], 2 * x.shape[2])
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[:, t, : x.shape[2]] = h
            out[:, t, x.shape[2] :] = h * 2
        return out

    found(check(f, *x_h()), (T, 1))


def test_write_then_add_in_place():
    def f(x, h):
        out = torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[:, t] = h
            out[:, t] += 1
        return out

    found(check(f, *x_h()), (T, 1))


def test_state_read_back_from_the_buffer():
    def f(x, h):
        s = torch.zeros(x.shape[0], x.shape[1] + 1, x.shape[2])
        s[:, 0] = h
        for i in range(1, x.shape[1] + 1):
            s[:, i] = s[:, i - 1] * 0.5 + x[:, i - 1]
        return s[:, 1:]

    found(check(f, *x_h()), (T, 1))


def test_state_read_back_from_a_clone_of_the_input():
    def f(x):
        out = x.clone()
        for t in range(1, x.shape[1]):
            out[:, t] = out[:, t - 1] * 0.9 + x[:, t]
        return out

    found(check(f, *inputs((B, T, D))), (T - 1, 1))


def test_state_read_back_through_a_transposed_slice():
    def f(x, h):
        s = torch.zeros(x.shape[1] + 1, x.shape[0], x.shape[2])
        s[0] = h
        for i in range(x.shape[1]):
            s[i + 1] = s[i].t().t() * 0.5 + x[:, i]
        return s

    found(check(f, *x_h()), (T, 1))


def test_state_read_back_and_detached():
    def f(x, h):
        s = torch.zeros(x.shape[1] + 1, x.shape[0], x.shape[2])
        s[0] = h
        for i in range(x.shape[1]):
            s[i + 1] = s[i].detach() * 0.5 + x[:, i]
        return s

    found(check(f, *x_h()), (T, 1))


def test_reversed_buffer():
    def f(r, v):
        out = torch.zeros_like(r)
        for t in reversed(range(r.shape[0] - 1)):
            out[t] = r[t] + 0.9 * out[t + 1]
        return out + v

    h = found(check(f, *inputs((T, D), (T, D))), (T - 1, 1))
    assert h.loops[0].reverse


def test_in_place_state():
    def f(x, h):
        h, out = h.clone(), []
        for t in range(x.shape[1]):
            h.mul_(0.5).add_(x[:, t])
            out.append(h.clone())
        return torch.stack(out, 1), h

    found(check(f, *x_h()), (T, 1))


def test_in_place_state_that_the_caller_sees():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h.mul_(0.5).add_(x[:, t])
            out.append(h.clone())
        return torch.stack(out, 1)

    x, h = x_h()
    found(check(f, x, h.detach()), (T, 1))


def test_augmented_assignment():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5
            h += x[:, t]
            out.append(h * 2)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_output_overwrites_the_input():
    def f(x, h):
        y = x * 1.0
        for t in range(x.shape[1]):
            h = h * 0.5 + y[:, t]
            y[:, t] = h
        return y

    found(check(f, *x_h()), (T, 1))
