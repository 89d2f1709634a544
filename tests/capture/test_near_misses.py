"""Programs that look like loops over time and are not quite: left alone, or exactly right."""

from __future__ import annotations

import pytest
import torch
from nearly import B, D, T, codes, inputs, steps, x_h
from stepwise import check


def test_one_odd_step_in_the_middle():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = torch.sin(h) if t == 4 else h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    harness = check(f, *x_h())
    assert all(s < T for s in steps(harness))


def test_two_different_halves():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t] if t < 4 else h * 0.5 - x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    assert sum(steps(check(f, *x_h()))) == T


def test_carry_escapes_in_the_middle():
    def f(x, h):
        kept = None
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            if t == 3:
                kept = h
        return h, kept

    assert steps(check(f, *x_h())) == [T]


def test_x_two_steps_back_is_a_shifted_stream():
    def f(x, h):
        out = []
        for t in range(2, x.shape[1]):
            h = h * 0.5 + x[:, t - 2]
            out.append(h)
        return torch.stack(out, 1)

    assert steps(check(f, *x_h())) == [T - 2]


def test_stale_carry():
    def f(x, h):
        out, old = [], h
        for t in range(x.shape[1]):
            new = old * 0.5 + h + x[:, t]
            old, h = h, new
            out.append(old)
        return torch.stack(out, 1), h

    (loop,) = check(f, *x_h()).loops
    assert loop.steps in (T - 1, T)


def test_first_state_used_at_every_step():
    def f(x, h):
        start, out = h, []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t] + start
            out.append(h)
        return torch.stack(out, 1)

    (loop,) = check(f, *x_h()).loops
    assert loop.steps == T and len(loop.invariants) == 1


def test_irregular_indices():
    def f(x, h):
        out = []
        for t in [0, 1, 3, 2, 5, 7, 4, 6]:
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    harness = check(f, *x_h())
    assert not harness.loops and codes(harness) == ["TF101"]


def test_growing_history():
    def f(x):
        out = [x[:, 0]]
        for t in range(1, x.shape[1]):
            out.append(torch.stack(out, 1).mean(1) + x[:, t])
        return torch.stack(out, 1)

    harness = check(f, *inputs((B, T, D)))
    assert not harness.loops


def test_growing_slice():
    def f(a):
        a = a.clone()
        for i in range(1, a.shape[-1]):
            a[..., i, :i] = a[..., i, :i] + (a[..., i, :, None].clone() * a[..., :, :i].clone()).sum(-2)
        return a

    harness = check(f, *inputs((B, 6, 6)))
    assert not harness.loops and codes(harness) == ["TF105"]


def test_fixed_point_iteration():
    def f(a, b):
        z = torch.zeros_like(b)
        for _ in range(12):
            z = torch.tanh(z @ a + b)
        return z

    harness = check(f, *inputs((D, D), (B, D)))
    assert not harness.loops and codes(harness) == ["TF108"]


@pytest.mark.parametrize("size, fused", [(D, True), (512, False)])
def test_iteration_is_fused_where_calls_cost_more_than_work(size, fused):
    def f(a, z):
        for _ in range(24):
            z = a @ z
            z = z / z.norm()
        return z @ (a @ z)

    harness = check(f, *inputs((size, size), (size,)))
    assert len(harness.loops) == fused and codes(harness) == ([] if fused else ["TF108"])


def test_an_iteration_inside_a_step_is_part_of_it():
    def f(x, w):
        out = []
        for t in range(T):
            z = torch.zeros_like(x[:, t])
            for _ in range(20):
                z = torch.tanh(z * w + x[:, t])
            out.append(z)
        return torch.stack(out, 1)

    harness = check(f, *inputs((B, T, D), (D,)))
    assert [loop.steps for loop in harness.loops] == [T] and not harness.loops[0].carries


def test_loop_over_depth():
    layers = torch.nn.ModuleList(torch.nn.Linear(D, D) for _ in range(6))

    def f(x):
        for layer in layers:
            x = torch.relu(layer(x))
        return x

    harness = check(f, *inputs((B, D)))
    assert not harness.loops and codes(harness) == ["TF104"]


def test_depth_around_time():
    layers = torch.nn.ModuleList(torch.nn.Linear(D, D) for _ in range(4))

    def f(x):
        for layer in layers:
            h, out = torch.zeros_like(x[:, 0]), []
            u = layer(x)
            for t in range(x.shape[1]):
                h = h * 0.5 + u[:, t]
                out.append(h)
            x = torch.stack(out, 1)
        return x

    assert steps(check(f, *inputs((B, T, D)))) == [T] * 4


def test_depth_inside_time():
    layers = torch.nn.ModuleList(torch.nn.Linear(D, D) for _ in range(4))

    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h + x[:, t]
            for layer in layers:
                h = torch.tanh(layer(h))
            out.append(h)
        return torch.stack(out, 1)

    assert steps(check(f, *x_h())) == [T]


def test_alike_calls_are_no_loop():
    def f(q, k, v):
        q, k, v = (torch.nn.functional.normalize(y, dim=-1) for y in (q, k, v))
        return q * k + v

    harness = check(f, *inputs((B, D), (B, D), (B, D)))
    assert not harness.found


def test_no_loop_at_all():
    def f(x):
        a = x * 2
        b = a * 2
        c = b * 2
        d = c * 2
        return d

    assert not check(f, *inputs((B, D))).found


def test_two_equal_loops_that_touch():
    def f(x, h, g):
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
        for t in range(x.shape[1]):
            g = g * 0.5 + x[:, t]
        return h, g

    assert steps(check(f, *inputs((B, T, D), (B, D), (B, D)))) == [T, T]


def test_chained_equal_loops():
    def f(x, h):
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
        return h

    assert steps(check(f, *x_h())) == [T, T]


def test_short_loops_are_right():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    for t in (1, 2, 3):
        x, h = inputs((B, t, D), (B, D))
        assert steps(check(f, x, h)) == ([3] if t == 3 else [])


def test_dropout_in_the_body_stays_in_the_body():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = torch.nn.functional.dropout(h, 0.0) * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    assert steps(check(f, *x_h())) == [T]


def test_grad_mode_inside_each_step():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            with torch.no_grad():
                s = h * 0.1
            h = h * 0.5 + x[:, t] + s
            out.append(h)
        return torch.stack(out, 1)

    check(f, *x_h())


def test_dtype_changes_in_the_first_step():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    x, h = x_h()
    assert steps(check(f, x.detach().double(), h.detach())) == [T - 1]


def test_numbers_on_integers():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = torch.where(x[:, t] > t, h + t, h * 2)
            out.append(h)
        return torch.stack(out, 1)

    x = torch.randint(0, 8, (B, T, D))
    assert steps(check(f, x, torch.zeros(B, D, dtype=torch.int64))) == [T]


def test_negative_zero_is_not_zero():
    def f(x, h):
        out = []
        for t, z in enumerate([0.0, -0.0, 0.0, -0.0]):
            h = h * 0.5 + torch.atan2(x[:, t] * z, x[:, t])
            out.append(h)
        return torch.stack(out, 1)

    check(f, *x_h())


def test_empty_batch():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    check(f, torch.zeros(0, T, D), torch.zeros(0, D))


def test_expanded_and_transposed_inputs():
    def f(x, h):
        out = torch.zeros(x.shape[1], B, D)
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out[t] = h
        return out

    x = torch.randn(D, T).t().expand(B, T, D)
    assert steps(check(f, x, torch.zeros(1, D).expand(B, D))) == [T]
