"""Scan operators, and the trees Dynamo makes of associative scans, become loops."""

from __future__ import annotations

import pytest
import torch
from stepwise import check
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.scan import scan


def inputs(*shapes):
    torch.manual_seed(0)
    return [torch.randn(*s).requires_grad_() for s in shapes]


def step(c, x):
    h = torch.tanh(c * 0.5 + x)
    return h, h * 2


def linear(left, right):
    return left[0] * right[0], right[0] * left[1] + right[1]


def test_scan():
    def f(h, x):
        return scan(step, h, x, dim=1)

    harness = check(f, *(t.detach() for t in inputs((2, 3), (2, 7, 3))))
    assert [(loop.steps, len(loop.carries)) for loop in harness.loops] == [(7, 1)]
    assert harness.loops[0].span.file.endswith("test_scan.py")


def test_scan_reversed():
    def f(h, x):
        return scan(step, h, x, dim=0, reverse=True)

    (loop,) = check(f, *(t.detach() for t in inputs((2, 3), (7, 2, 3)))).loops
    assert loop.steps == 7


@pytest.mark.parametrize("steps", [2, 3, 4, 7, 8, 16, 17])
@pytest.mark.parametrize("reverse", [False, True])
def test_generic_associative_scan(steps, reverse):
    def f(a, b):
        return associative_scan(linear, (a, b), dim=1, reverse=reverse, combine_mode="generic")[1]

    harness = check(f, *inputs((2, steps, 3), (2, steps, 3)))
    assert [(loop.steps, len(loop.carries)) for loop in harness.loops] == [(steps - 1, 1)]
    assert not harness.kept


def test_both_results_of_an_associative_scan():
    def f(a, b):
        p, h = associative_scan(linear, (a, b), dim=0, combine_mode="generic")
        return p * 2, h[-1]

    harness = check(f, *inputs((9, 2, 3), (9, 2, 3)))
    assert [(loop.steps, len(loop.carries)) for loop in harness.loops] == [(8, 2)]


def test_cumulative_sum():
    def f(x):
        return associative_scan(torch.add, x, dim=1, combine_mode="generic")

    harness = check(f, *inputs((2, 9, 3)))
    assert [(loop.steps, len(loop.carries)) for loop in harness.loops] == [(8, 1)]


def test_two_scans_in_a_row():
    def f(a, b):
        h = associative_scan(linear, (a, b), dim=1, combine_mode="generic")[1]
        return associative_scan(linear, (a, h), dim=1, combine_mode="generic")[1]

    harness = check(f, *inputs((2, 9, 3), (2, 9, 3)))
    assert [(loop.steps, len(loop.carries)) for loop in harness.loops] == [(8, 1), (8, 1)]
