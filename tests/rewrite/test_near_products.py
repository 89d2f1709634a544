"""Loops that are nearly matrices taking each other in place, and are not: their form, and right.

Everything that has a chunk program is planned in chunks, so that a wrong one would show.
"""

import pytest
import torch

import tenfuse.testing
from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.products import Products
from tests.algebra.cores import steps_of

OPTIONS = {"strict": True, "inner": "eager"}
B, T, K, V = 2, 7, 3, 3


def trained(change):
    """A memory trained by gradient descent; ``change`` takes it and the momentum one step on."""

    def f(q, k, v, eta, theta, alpha):
        memory, momentum, out = torch.zeros(B, K, V), torch.zeros(B, K, V), []
        for t in range(T):
            error = torch.einsum("bk,bkv->bv", k[:, t], memory) - v[:, t]
            down = torch.sigmoid(theta[:, t])[:, None, None] * k[:, t, :, None] * error[:, None, :]
            keep = torch.sigmoid(eta[:, t])
            memory, momentum = change(memory, momentum, down, keep, torch.sigmoid(alpha[:, t, 0, None, None]))
            out.append(torch.einsum("bk,bkv->bv", q[:, t], memory))
        return torch.stack(out, 1)

    torch.manual_seed(0)
    gates = [torch.randn(B, T, K), torch.randn(B, T), torch.randn(B, T, K)]
    keys = torch.nn.functional.normalize(torch.randn(B, T, K), dim=-1)
    return f, (torch.randn(B, T, K), keys, torch.randn(B, T, V), *gates)


def momentum(m, s, down, keep, alpha):
    s = keep[:, :1, None] * s - down
    return alpha * m + s, s


def before_the_step(m, s, down, keep, alpha):
    return alpha * m + s, keep[:, :1, None] * s - down


def without_cycle(m, s, down, keep, alpha):
    """The memory is read by itself alone, and the momentum takes it too."""
    s = keep[:, :1, None] * s - down + 0.1 * m
    return alpha * m + s, s


def gate_along_a_summed_axis(m, s, down, keep, alpha):
    s = keep[:, :, None] * s - down
    return alpha * m + s, s


def turned(m, s, down, keep, alpha):
    s = keep[:, :1, None] * s - down
    return alpha * m + s.transpose(1, 2), s


def mixed(m, s, down, keep, alpha):
    s = keep[:, :1, None] * s - down
    return alpha * m + s.sum(1, keepdim=True), s


def bent(m, s, down, keep, alpha):
    s = keep[:, :1, None] * s - down
    return alpha * m + torch.tanh(s), s


def gated_by_the_other(m, s, down, keep, alpha):
    s = torch.sigmoid(m.sum((1, 2), keepdim=True)) * s - down
    return alpha * m + s, s


def multiplied(m, s, down, keep, alpha):
    s = keep[:, :1, None] * s - down
    return alpha * m + s * s, s


TOGETHER = {"momentum": momentum, "before the step": before_the_step, "a cycle": without_cycle}
NEARLY = {
    "gate along a summed axis": (gate_along_a_summed_axis, "low-rank"),
    "turned": (turned, "dense"),
    "summed and spread": (mixed, "low-rank"),
    "bent": (bent, "nonlinear"),
    "gated by the other": (gated_by_the_other, "nonlinear"),
    "multiplied": (multiplied, "nonlinear"),
}


def held(change, chunks_of, form):
    chunks_of(4)
    model, inputs = trained(change)
    (loop,) = tenfuse.testing.assert_equivalent(model, *inputs, options=OPTIONS).loops
    assert (loop.status, loop.form) == ("fused", form), loop.reason
    return loop


@pytest.mark.parametrize("name", TOGETHER)
def test_two_matrices_that_take_each_other(name, chunks_of):
    assert held(TOGETHER[name], chunks_of, "low-rank").algorithm == "chunked"


@pytest.mark.parametrize("name", NEARLY)
def test_nearly(name, chunks_of):
    held(NEARLY[name][0], chunks_of, NEARLY[name][1])


def grouped(change, read):
    """Two matrices written by one key and read by one query."""

    def f(q, k, v, eta, theta, alpha):
        fast, slow, out = torch.zeros(B, K, V), torch.zeros(B, K, V), []
        for t in range(T):
            write = k[:, t, :, None] * v[:, t, None, :]
            fast, slow = change(fast, slow, write, torch.sigmoid(eta[:, t]), torch.sigmoid(alpha[:, t]))
            out.append(read(q[:, t], fast, slow))
        return torch.stack(out, 1)

    return f, trained(momentum)[1]


def exchange(f, s, write, a, b):
    return a[:, :1, None] * f + write, b[:, :1, None] * s + 0.3 * f


def gates_of_both_axes(f, s, write, a, b):
    return a[:, :1, None] * f + write, (b[:, :, None] * a[:, None, :]) * s + 0.3 * f


def exchange_of_squares(f, s, write, a, b):
    return a[:, :1, None] * f + write, b[:, :1, None] * s + 0.3 * f * f


def summed(q, f, s):
    return torch.einsum("bk,bkv->bv", q, f + s)


def entries(q, f, s):
    return f * s


def as_they_are(q, f, s):
    return s + f.sum()


GROUPS = {
    "exchange": (exchange, summed, [2]),
    "gates of both axes": (gates_of_both_axes, summed, [1, 1]),
    "squares": (exchange_of_squares, summed, [1, 1]),
    "read entry by entry": (exchange, entries, [1, 1]),
    "read as they are": (exchange, as_they_are, [1, 1]),
}


@pytest.mark.parametrize("name", GROUPS)
def test_what_runs_together(name, chunks_of):
    change, read, want = GROUPS[name]
    model, inputs = grouped(change, read)
    (step,) = steps_of(model, *inputs)
    groups = Products(step.program, analyse(step.program)).groups()
    assert [len(g.stages) for g in groups] == want
    assert want == [2] or not groups[1].products
    chunks_of(4)
    (loop,) = tenfuse.testing.assert_equivalent(model, *inputs, options=OPTIONS).loops
    assert loop.status == "fused", loop.reason
