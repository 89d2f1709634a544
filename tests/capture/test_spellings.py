"""How people index time and gather what a loop makes: found, with its steps and carries, and right."""

from __future__ import annotations

import torch
from spelled import B, D, T, found, inputs, x_h
from stepwise import check


def test_append_and_stack():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = torch.tanh(h * 0.5 + x[:, t])
            out.append(h)
        return torch.stack(out, dim=1), h

    found(check(f, *x_h()), (T, 1))


def test_append_unsqueezed_and_cat():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h.unsqueeze(1))
        return torch.cat(out, dim=1)

    found(check(f, *x_h()), (T, 1))


def test_stack_on_the_last_dim():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, dim=-1)

    found(check(f, *x_h()), (T, 1))


def test_cat_of_slices_kept_long():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t : t + 1]
            out.append(h)
        return torch.cat(out, 1)

    x, h = inputs((B, T, D), (B, 1, D))
    found(check(f, x, h), (T, 1))


def test_reversed_range():
    def f(x, h):
        out = []
        for t in range(x.shape[1] - 1, -1, -1):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out[::-1], 1)

    assert found(check(f, *x_h()), (T, 1)).loops[0].reverse


def test_reversed_list_left_reversed():
    def f(x, h):
        out = []
        for t in reversed(range(x.shape[1])):
            h = h * 0.5 + x[:, t]
            out.insert(0, h)
        return torch.stack(out, 0)

    found(check(f, *x_h()), (T, 1))


def test_mixed_directions():
    def f(x, y, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t] + y[:, x.shape[1] - 1 - t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, T, D), (B, D))), (T, 1))


def test_unbind():
    def f(x, h):
        out = []
        for x_t in x.unbind(1):
            h = h * 0.5 + x_t
            out.append(h)
        return torch.stack(out, 1)

    harness = found(check(f, *x_h()), (T, 1))
    assert isinstance(harness.loops[0].streams[0].source, torch.fx.Node)


def test_split_chunk_zip_enumerate():
    def f(x, y, h):
        out = []
        for i, (a, b) in enumerate(zip(x.split(1, 1), y.chunk(y.shape[1], 1), strict=True)):
            h = h * 0.5 + a.squeeze(1) * b[:, 0] + 0.1 * i
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, T, D), (B, D))), (T, 1))


def test_iterate_a_transposed_tensor():
    def f(x, h):
        out = []
        for x_t in x.transpose(0, 1):
            h = h * 0.5 + x_t
            out.append(h)
        return torch.stack(out)

    found(check(f, *x_h()), (T, 1))


def test_select_and_narrow():
    def f(x, y, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x.select(1, t) + y.narrow(1, t, 1).squeeze(1)
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (B, T, D), (B, D))), (T, 1))


def test_ellipsis_and_none_indices():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[..., t, :] + x[:, None, t].sum(1)
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_strides_and_shifts():
    def f(x, h):
        out = []
        for t in range(1, x.shape[1] - 1):
            h = h * 0.5 + x[:, t - 1] - x[:, t] + x[:, t + 1]
            out.append(h)
        for t in range(0, x.shape[1], 2):
            h = h * 0.25 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T - 2, 1), ((T + 1) // 2, 1))


def test_chunk_slices():
    def f(x, s):
        out = []
        for i in range(x.shape[1] // 4):
            c = x[:, i * 4 : (i + 1) * 4]
            out.append(c @ s)
            s = s * 0.9 + c.transpose(1, 2) @ c
        return torch.cat(out, 1)

    found(check(f, *inputs((B, 16, D), (B, D, D))), (4, 1))


def test_overlapping_windows():
    def f(x, h):
        out = []
        for i in range(x.shape[1] - 2):
            h = h * 0.5 + x[:, i : i + 3].sum(1)
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T - 2, 1))


def test_numbers_that_change():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.9**t + x[:, t] * t
            out.append(h / (t + 1))
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1))


def test_no_carry_at_all():
    def f(x, w):
        out = []
        for t in range(x.shape[1]):
            out.append(torch.tanh(x[:, t] @ w))
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (D, D))), (T, 0))


def test_comprehension():
    def f(x, w):
        return torch.stack([torch.tanh(x[:, t] @ w) for t in range(x.shape[1])], 1)

    found(check(f, *inputs((B, T, D), (D, D))), (T, 0))


def test_two_time_axes():
    def f(x, y, h):
        out = []
        for t in range(x.shape[1]):
            h = h * y[t] + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *inputs((B, T, D), (T, D), (B, D))), (T, 1))


def test_dynamic_batch():
    def f(x, h):
        out = []
        for t in range(7):
            h = h * 0.5 + x[:, t]
            out.append(h.view(x.shape[0], 1, 3))
        return torch.cat(out, 1)

    x, h = x_h()
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(h, 0)
    found(check(f, x, h, dynamic=None), (T, 1))
