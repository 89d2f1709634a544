"""Loops that Dynamo gave up on, found without any backend of ours."""

import pytest
import torch
from torch._dynamo.utils import get_compilation_metrics

from tenfuse.report.broken import broken_loops


def early_break(x):
    h = torch.zeros(3)
    for t in range(6):
        h = 0.5 * h + x[t]
        if h.sum() > 100:
            break
    return h


def item_in_while(x):
    h, t = x[0], 0
    while t < 6:
        h = h * h.sum().item()
        t += 1
    return h


def breaks(h):
    torch._dynamo.graph_break()
    return h * 2


def helper_breaks(x):
    h = x[0]
    for t in range(4):
        h = h + x[t]
    for t in range(4):
        h = breaks(h + x[t])
    return h


def no_loop(x):
    return breaks(x)


def lost(model):
    torch._dynamo.reset()
    earlier = {id(m) for m in get_compilation_metrics()}
    torch.compile(model, backend=lambda gm, inputs: gm.forward)(torch.randn(6, 3))
    return broken_loops(m for m in get_compilation_metrics() if id(m) not in earlier)


@pytest.mark.parametrize(
    ("model", "loop", "where"), [(early_break, 2, 4), (item_in_while, 2, 3), (helper_breaks, 4, None)]
)
def test_the_loop_and_the_line_are_named(model, loop, where):
    (found,) = lost(model)
    first = model.__code__.co_firstlineno
    assert (found.status, found.code, found.line) == ("kept", "TF120", first + loop)
    assert found.span == f"test_broken.py:{first + loop}"
    line = breaks.__code__.co_firstlineno + 1 if where is None else first + where
    assert found.where == f"test_broken.py:{line}"


def test_a_plain_graph_break_is_no_loop():
    assert lost(no_loop) == []
