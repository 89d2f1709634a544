"""Entries of a state at fixed places: diagonals, columns, flat writes; and numbers that scale by name."""

from __future__ import annotations

import math

import pytest
import torch

from tenfuse.testing import assert_equivalent

B, T, D = 2, 6, 4


def loops(f, *shapes):
    torch.manual_seed(0)
    return assert_equivalent(f, *[torch.randn(*s) for s in shapes]).loops


def over_time(step, *shape):
    """``step`` over T inputs, from zeros; both of ``shape``."""

    def f(x):
        s, out = torch.zeros(*shape), []
        for t in range(T):
            s = step(s, x[t])
            out.append(s)
        return torch.stack(out)

    return loops(f, (T, *shape))


def diagonal_written(s, x):
    s = 0.9 * s + x
    s.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return s


DIAGONALS = {
    "einsum, a letter twice": lambda s, x: 0.9 * s + x * torch.einsum("bkk->bk", s)[:, None],
    "trace": lambda s, x: x + 0.1 * s / (1 + torch.einsum("bkk->b", s)[:, None, None] ** 2),
    "above": lambda s, x: 0.9 * s + x * torch.sigmoid(s.diagonal(1, 1, 2).sum()),
    "below, between other axes": lambda s, x: 0.9 * s + x * s.diagonal(-1, dim1=2, dim2=0).sum(),
    "embedded": lambda s, x: x + torch.diag_embed(torch.sigmoid(s.sum(-1))),
    "written": diagonal_written,
}


@pytest.mark.parametrize("step", DIAGONALS.values(), ids=list(DIAGONALS))
def test_diagonals(step):
    (loop,) = over_time(step, 4, D, D)
    assert loop.status == "fused", loop.reason


def test_diagonal_of_a_matrix_alone():
    (loop,) = over_time(lambda s, x: 0.5 * x + torch.diag(s) + torch.trace(s), D, D)
    assert loop.status == "fused" and loop.form == "dense", loop.reason


def test_what_stands_beside_a_diagonal_is_not_read():
    def f(x):
        s, out = torch.zeros(D, D), []
        for t in range(T):
            out.append(s.diagonal().sum())
            s = x[t] + 0.1 * s.diagonal()
        return torch.stack(out)

    x = torch.randn(T, D, D)
    x[:, 0, 1] = math.inf
    compiled = torch.compile(f, backend="tenfuse", options={"inner": "eager"})
    assert torch.isfinite(compiled(x)).all()
    torch.testing.assert_close(compiled(x), f(x))


@pytest.mark.parametrize("value", ["a number", "a tensor", "of the state"])
def test_flat_write_of_one_value(value):
    def step(s, x):
        s = 0.9 * s + x
        filler = {"a number": 0.5, "a tensor": x.sum(), "of the state": s.sum()}[value]
        s.view(-1)[5 if isinstance(filler, torch.Tensor) else slice(1, 6)] = filler
        return s

    (loop,) = over_time(step, B, D)
    assert loop.status == "fused", loop.reason


@pytest.mark.parametrize(
    "columns", [[2, 0, 3], torch.tensor([2, 0, 3]), torch.tensor([[0, 1], [3, 3]])], ids=["list", "1d", "2d"]
)
def test_columns_of_a_moving_slice(columns):
    def f(x, columns):
        h, out = torch.zeros(B, *x[:, 0, columns].shape[1:]), []
        for t in range(T):
            h = torch.tanh(h + x[:, -1 - t, columns])
            out.append(h + x[..., t, None, columns].sum(1))
        return torch.stack(out, 1)

    (loop,) = assert_equivalent(f, torch.randn(B, T, D), columns).loops
    assert loop.status == "fused" and loop.steps == T, loop.reason


def test_columns_apart_from_the_step_come_where_torch_puts_them():
    """NumPy would bring them to the front: ``x[t, :, columns]`` is ``x[t][:, columns]`` here."""

    def f(x, rows, columns):
        h, out = torch.zeros(2, B), []
        for t in range(T):
            h = torch.tanh(h + x[rows, :, t, columns])
            out.append(h)
        return torch.stack(out)

    (loop,) = assert_equivalent(f, torch.randn(3, B, T, D), torch.tensor([2, 0]), torch.tensor([3, 1])).loops
    assert loop.status == "fused", loop.reason


def test_a_list_picks_from_the_state():
    (loop,) = over_time(lambda s, x: torch.tanh(s[:, [1, 3, 0, 0]] + x), B, D)
    assert loop.status == "fused", loop.reason


SCALED = {
    "add": lambda p, g, i: torch.add(p, g, alpha=-0.1 * 0.5**i),
    "add of a number": lambda p, g, i: torch.add(p * g, 3.0, alpha=i / 3),
    "sub, of the state": lambda p, g, i: g.sub(p, alpha=1 / (i + 2)),
    "addcmul": lambda p, g, i: p.addcmul(p, g, value=0.1 * i),
    "addcdiv": lambda p, g, i: torch.addcdiv(p, g, 1 + g * g, value=-0.1 / math.sqrt(i + 1)),
}


@pytest.mark.parametrize("step", SCALED.values(), ids=list(SCALED))
def test_a_scale_by_name_moves_with_the_step(step):
    def f(p, g):
        out = []
        for i in range(T):
            p = step(p, g[i], i)
            out.append(p)
        return torch.stack(out)

    (loop,) = loops(f, (B, D), (T, B, D))
    assert loop.status == "fused", loop.reason


REFUSED = {
    "linalg_inv": lambda s, x: torch.linalg.inv(s @ s.mT + torch.eye(D)) + x,
    "linalg_cholesky": lambda s, x: torch.linalg.cholesky(s @ s.mT + torch.eye(D)) + x,
    "max_pool2d": lambda s, x: x + torch.nn.functional.max_pool2d(s[:, None], 3, 1, 1)[:, 0],
    "avg_pool2d": lambda s, x: x + torch.nn.functional.avg_pool2d(s[:, None], 3, 1, 1)[:, 0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_reason_names_the_operator_that_the_user_wrote(name):
    (loop,) = over_time(REFUSED[name], B, D, D)
    assert (loop.status, loop.code) == ("kept", "TF202") and loop.reason.startswith(name + " "), loop.reason
