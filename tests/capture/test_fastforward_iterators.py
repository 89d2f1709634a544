"""Loops over lists, tuples, tensors, ``zip`` and ``enumerate`` are copied as those over a range are."""

import pytest
import torch
from copied import T, same, x


def outputs(steps):
    """A model that keeps a state over what ``steps`` makes of the inputs ``[B, T, D]``."""

    def model(xs, h):
        out = []
        for v in steps(xs):
            h = torch.tanh(h + v)
            out.append(h)
        return torch.stack(out, 1)

    return model


def a_comprehension(xs, h):
    return torch.stack([torch.tanh(h + xs[:, t]) for t in range(T)], 1)


def a_state_in_a_comprehension(xs, h):
    return torch.stack([h := torch.tanh(h + v) for v in xs.unbind(1)], 1)


def a_list_of_numbers(xs, h):
    for t in [7 * k % T for k in range(T)]:
        h = torch.tanh(h + xs[:, t] * t)
    return h


def numbered(xs, h):
    for t, v in enumerate(xs.unbind(1), start=5):
        h = torch.tanh(h + v * t + xs[:, t - 5])
    return h, t


def numbered_pairs(xs, h):
    out = torch.zeros_like(xs)
    for t, (u, v) in enumerate(zip(xs.split(1, 1), xs.chunk(T, 1), strict=True)):
        h = torch.tanh(h + u[:, 0] * v.squeeze(1))
        out[:, t] = h
    return out


def the_first_apart(xs, h):
    for t, v in enumerate(xs.unbind(1)):
        h = v if t == 0 else 0.5 * h + v
    return h


def one_list_twice(xs, h):
    rows = xs.unbind(1)
    for u, v in zip(rows, rows, strict=True):
        h = torch.tanh(h + u * v)
    return h


def of_unequal_length(xs, h):
    for v, t in zip(xs.unbind(1), range(3 * T), strict=False):
        h = torch.tanh(h + v * t)
    return h


def the_one_before(xs, h):
    before = None
    for v in xs.unbind(1):
        if before is not None:
            h = h + before
        h = torch.tanh(h + v)
        before = v
    return h, before


def the_variable_after(xs, h):
    for v in xs.unbind(1):
        v = v * 2
        h = torch.tanh(h + v)
    return h, v


def in_place(xs, h):
    xs = xs * 1.0
    for v in xs.unbind(1):
        v.mul_(2)
        h = torch.tanh(h + v)
    return h, xs


MODELS = {
    "tuple": outputs(lambda xs: xs.unbind(1)),
    "list": outputs(lambda xs: list(xs.unbind(1))),
    "tensor": outputs(lambda xs: xs.transpose(0, 1)),
    "made before": outputs(lambda xs: [torch.sin(xs[:, t]) for t in range(T)]),
} | {f.__name__.replace("_", " "): f for f in (
    a_comprehension, a_state_in_a_comprehension, a_list_of_numbers, numbered, numbered_pairs, the_first_apart,
    one_list_twice, of_unequal_length, the_one_before, the_variable_after,
)}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_copied(name):
    copied = (2 if name in ("made before", "a list of numbers") else 1) * (T - 3)
    same(MODELS[name], x(2, T, 3), x(2, 3), copied=copied)
    same(MODELS[name], x(2, T, 3).requires_grad_(), x(2, 3).requires_grad_(), copied=copied)


def test_steps_that_write_what_they_take():
    same(in_place, x(2, T, 3), x(2, 3))


def test_of_unequal_lengths():
    def model(xs, h):
        rows = list(xs.unbind(1))
        for u, v in zip(rows, xs[:, 1:].unbind(1), strict=False):
            h = torch.tanh(h + u * v)
        return h

    same(model, x(2, T, 3), x(2, 3), copied=T - 4)


def takes_two(xs, h):
    rows = iter(xs.unbind(1))
    for v in rows:
        h = torch.tanh(h + v - next(rows))
    return h


def takes_pairs(xs, h):
    rows = iter(xs.unbind(1))
    for u, v in zip(rows, rows, strict=True):
        h = torch.tanh(h + u - v)
    return h


def grows_what_it_runs_over(xs, h):
    rows = list(xs.unbind(1))
    for v in rows:
        h = torch.tanh(h + v)
        if len(rows) < 2 * T:
            rows.append(h)
    return h


def writes_what_it_runs_over(xs, h):
    rows = [xs[:, 0]] * T
    for v in rows:
        h = torch.tanh(h + v)
        rows[-1] = h
    return h


def takes_one_tensor_twice_at_last(xs, h):
    rows = list(xs.unbind(1))
    for u, v in zip(rows, [rows[T - 2]] * T, strict=True):
        h = torch.tanh(h + u) if u is v else h * u + v
    return h


def of_several_kinds(xs, h):
    rows = xs.unbind(1)
    for v in [*rows[:9], xs[0], *rows[9:]]:
        h = torch.tanh(h + v) if v.shape[0] == h.shape[0] else h.sum(0) * v
    return h


def a_generator(xs, h):
    for v in (u.sin() for u in xs.unbind(1)):
        h = torch.tanh(h + v)
    return h


@pytest.mark.parametrize(
    "model",
    [takes_two, takes_pairs, grows_what_it_runs_over, writes_what_it_runs_over,
     takes_one_tensor_twice_at_last, of_several_kinds, a_generator],
)  # fmt: skip
def test_steps_that_are_no_copies(model):
    same(model, x(2, T, 3), x(2, 3), copied=0)
