"""Loops over chunks around loops over time, and writes through slices of a buffer."""

from __future__ import annotations

import pytest
import torch

from tenfuse.capture.nested import composed
from tenfuse.capture.views import All, At, New, Range, index_of
from tenfuse.testing import assert_equivalent

B, T, C, D = 2, 12, 4, 3


def inputs():
    torch.manual_seed(0)
    return torch.randn(B, T, D), torch.rand(D)


def split(x, a):
    h, out = x.new_zeros(B, D), []
    for chunk in x.split(C, 1):
        for t in range(C):
            h = a * h + chunk[:, t]
            out.append(h)
    return torch.stack(out, 1)


def sliced_to_a_sliced_buffer(x, a):
    h, out = x.new_zeros(B, D), torch.empty_like(x)
    for i in range(0, T, C):
        chunk, into = x[:, i : i + C], out[:, i : i + C]
        for t in range(C):
            h = a * h + chunk[:, t]
            into[:, t] = h
    return out


def narrowed_and_backwards(x, a):
    h, out = x.new_zeros(B, D), []
    for i in range(T // C - 1, -1, -1):
        chunk = x.narrow(1, C * i, C)
        for t in range(C):
            h = a * h + chunk[:, -1 - t]
            out.append(h)
    return torch.stack(out, 1)


def copied_into_a_view(x, a):
    h, out = x.new_zeros(B, D), torch.zeros(B, T + 1, D)
    behind = out[:, 1:]
    for t in range(T):
        h = a * h + x[:, t]
        behind[:, t].copy_(h)
    return out


def view_written_after_the_loop(x, a):
    h, out = x.new_zeros(B, D), torch.empty_like(x)
    into = out[:, :T]
    for t in range(T):
        h = a * h + x[:, t]
        into[:, t] = h
    into[:, 2] = 7.0
    return out


@pytest.mark.parametrize(
    "loop",
    [
        split,
        sliced_to_a_sliced_buffer,
        narrowed_and_backwards,
        copied_into_a_view,
        view_written_after_the_loop,
    ],
    ids=lambda f: f.__name__,
)
def test_one_loop_over_all_steps(loop, assert_fused):
    report = assert_fused(loop, *inputs(), loops=1)
    assert report.loops[0].steps == T
    assert_equivalent(loop, *inputs())


def rows_of_a_buffer(x, a):
    out = torch.zeros(B, T, D)
    for b in range(B):
        row, h = out[b], x.new_zeros(D)
        for t in range(T):
            h = a * h + x[b, t]
            row[t] = h
    return out


def test_a_row_at_a_time(assert_fused):
    report = assert_fused(rows_of_a_buffer, *inputs(), loops=B)
    assert {loop.steps for loop in report.loops} == {T}
    assert_equivalent(rows_of_a_buffer, *inputs())


def view_of_the_last_steps_tensor(x, a):
    h = x.new_zeros(B, D)
    for t in range(T):
        pair = torch.zeros(B, 2, D)
        pair[:, 0] = a * h + x[:, t]
        half = pair[:, 0]
        h = half * 1.0
    return half.unsqueeze(1) + h[:, None], pair


def last_steps_tensor_written_through_a_view(x, a):
    h = x.new_zeros(B, D)
    for t in range(T):
        pair = torch.zeros(B, 2, D)
        half = pair[:, 0]
        half.copy_(a * h + x[:, t])
        h = half * 1.0
    half[0] = 3.0
    return h, pair


def overlapping(x, a):
    """Windows that overlap: the step from one to the next is no step back by as much as any other."""
    h, out = x.new_zeros(B, D), []
    for i in range(0, T - C, 2):
        window = x[:, i : i + C]
        for t in range(C):
            h = a * h + window[:, t]
            out.append(h)
    return torch.stack(out, 1)


def another_gate_per_chunk(x, a):
    h, out = x.new_zeros(B, D), []
    for i, chunk in enumerate(x.split(C, 1)):
        gate = a**i
        for t in range(C):
            h = gate * h + chunk[:, t]
            out.append(h)
    return torch.stack(out, 1)


def view_read_by_the_steps(x, a):
    h, out = x.new_zeros(B, D), torch.zeros(B, T, D)
    into = out[:, :T]
    for t in range(T):
        h = a * h + x[:, t] + into.sum(1)
        into[:, t] = h
    return out


def same_place_through_two_views(x, a):
    h, out = x.new_zeros(B, D), torch.zeros(B, T + 1, D)
    left, right = out[:, :T], out[:, 1:]
    for t in range(T):
        h = a * h + x[:, t]
        left[:, t] = h
        right[:, t] = 2 * h
    return out


@pytest.mark.parametrize(
    "loop",
    [
        overlapping,
        another_gate_per_chunk,
        view_read_by_the_steps,
        same_place_through_two_views,
        view_of_the_last_steps_tensor,
        last_steps_tensor_written_through_a_view,
    ],
    ids=lambda f: f.__name__,
)
def test_near_misses_stay_right(loop):
    assert_equivalent(loop, *inputs())


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((All(), Range(4, 6)), (All(), At(2))),
        ((Range(1, 3, 2), At(5)), (At(1),)),
        ((All(), New(), Range(2, 8, 3)), (All(), All(), Range(1, 2))),
        ((At(1), All()), (New(), Range(0, 4), New())),
    ],
)
def test_an_index_of_an_index(first, then):
    x = torch.arange(8 * 12).reshape(8, 12)
    joined = composed(first, then)
    assert joined is not None and torch.equal(x[index_of(first)][index_of(then)], x[index_of(joined)])


def test_a_new_dimension_that_is_indexed_does_not_compose():
    assert composed((New(), All()), (At(0), All())) is None
