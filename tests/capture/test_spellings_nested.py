"""Several loops, loops in loops, steps unrolled by hand, and loops inside other constructs."""

from __future__ import annotations

import torch
from spelled import B, D, T, found, inputs, x_h
from stepwise import check


def test_unrolled_by_four_with_tail():
    def f(x, h):
        out = []
        t = 0
        while t + 3 < x.shape[1]:
            h = h * 0.5 + x[:, t]
            out.append(h)
            h = h * 0.5 + x[:, t + 1]
            out.append(h)
            h = h * 0.5 + x[:, t + 2]
            out.append(h)
            h = h * 0.5 + x[:, t + 3]
            out.append(h)
            t += 4
        while t < x.shape[1]:
            h = h * 0.5 + x[:, t]
            out.append(h)
            t += 1
        return torch.stack(out, 1)

    found(check(f, *x_h(18)), (18, 1))


def test_chunks_outside_steps_inside():
    def f(x, h):
        out = []
        for c in range(x.shape[1] // 5):
            chunk, inner = x[:, c * 5 : (c + 1) * 5], []
            for t in range(5):
                h = h * 0.5 + chunk[:, t]
                inner.append(h)
            out.append(torch.stack(inner, 1))
        return torch.cat(out, 1)

    harness = check(f, *x_h(20))
    assert sum(loop.steps for loop in harness.loops) in (20, 4)
    assert not harness.kept


def test_heads_inside_steps():
    def f(x, h):
        out = []
        hs = list(h.unbind(1))
        for t in range(x.shape[1]):
            for k in range(3):
                hs[k] = hs[k] * 0.5 + x[:, t, k]
            out.append(torch.stack(hs, 1))
        return torch.stack(out, 1)

    (loop,) = check(f, *inputs((B, T, 3, D), (B, 3, D))).loops
    assert loop.steps == T and len(loop.carries) == 3


def test_heads_around_steps():
    def f(x, h):
        heads = []
        for k in range(3):
            s, out = h[:, k], []
            for t in range(x.shape[1]):
                s = s * 0.5 + x[:, t, k]
                out.append(s)
            heads.append(torch.stack(out, 1))
        return torch.stack(heads, 2)

    found(check(f, *inputs((B, T, 3, D), (B, 3, D))), (T, 1), (T, 1), (T, 1))


def test_both_directions():
    def f(x, h):
        a = b = h
        fwd, bwd = [], []
        for t in range(x.shape[1]):
            a = a * 0.5 + x[:, t]
            fwd.append(a)
        for t in reversed(range(x.shape[1])):
            b = b * 0.5 + x[:, t]
            bwd.append(b)
        return torch.stack(fwd, 1) + torch.stack(bwd[::-1], 1)

    harness = found(check(f, *x_h()), (T, 1), (T, 1))
    assert [loop.reverse for loop in harness.loops] == [False, True]


def test_second_loop_reads_the_first():
    def f(x, h):
        first, out = [], []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            first.append(h)
        g = torch.zeros_like(h)
        for t in range(x.shape[1]):
            g = torch.tanh(g + first[t])
            out.append(g)
        return torch.stack(out, 1)

    harness = found(check(f, *x_h()), (T, 1), (T, 1))
    assert "stack([" not in harness.graphs[0].code


def test_second_loop_reads_a_softmax_of_the_first():
    def f(x, h):
        first, out = [], []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            first.append(h)
        a = torch.stack(first, 1).softmax(1)
        for t in range(x.shape[1]):
            h = h * a[:, t] + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h()), (T, 1), (T, 1))


def test_detach_at_chunk_borders():
    def f(x, h):
        out = []
        for c in range(3):
            if c > 0:
                h = h.detach()
            for t in range(5):
                h = h * 0.5 + x[:, c * 5 + t]
                out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h(15)), (15, 1))


def test_without_grad():
    def f(x, h):
        out = []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    found(check(f, *x_h(), grad=False), (T, 1))


def test_no_grad_block():
    def f(x, h):
        out = []
        with torch.no_grad():
            for t in range(x.shape[1]):
                h = h * 0.5 + x[:, t]
                out.append(h)
        return torch.stack(out, 1) + x

    found(check(f, *x_h()), (T, 1))


def test_autograd_function():
    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = h * 0.5 + x[:, t]
                out.append(h)
            return torch.stack(out, 1)

        @staticmethod
        def backward(ctx, grad):
            g, out = torch.zeros_like(grad[:, 0]), []
            for t in reversed(range(grad.shape[1])):
                g = g * 0.5 + grad[:, t]
                out.append(g)
            return torch.stack(out[::-1], 1)

    harness = check(lambda x: Scan.apply(x * 2), *inputs((B, T, D)))
    assert [(loop.steps, len(loop.carries)) for loop in harness.loops] == [(T, 1), (T, 1)]


def test_checkpoint():
    from torch.utils.checkpoint import checkpoint

    def f(x, h):
        def inner(x, h):
            out = []
            for t in range(x.shape[1]):
                h = torch.tanh(h * 0.5 + x[:, t])
                out.append(h)
            return torch.stack(out, 1)

        return checkpoint(inner, x, h, use_reentrant=False)

    found(check(f, *x_h()), (T, 1))
