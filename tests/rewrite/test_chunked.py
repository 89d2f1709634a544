"""Loops run chunk by chunk, from the user's source to outputs and gradients.

A plan for two cores rarely takes this way, so the tests give the plan many cores.
"""

from types import SimpleNamespace

import pytest
import torch

import tenfuse.testing
from reference import CASES
from tenfuse.plan.choose import ALGORITHMS, SHORT, choose
from tenfuse.plan.chunked import ChunkPlan
from tenfuse.rewrite.chunked import whole_pieces
from tenfuse.step.program import Contract
from tenfuse.step.reader import Placed, View
from tenfuse.study import study
from tests.algebra.cores import reads_of

OPTIONS = {"strict": True, "inner": "eager"}
IN_CHUNKS = {
    "elementwise/ema", "elementwise/bidirectional", "delta/deltanet", "delta/gated", "delta/kda",
    "delta/rwkv7", "delta/transposed", "linear/gla", "linear/retnet",
    "linear/attention-normalised", "ten/v2", "ten/v5", "lam/dual", "returns/gae", "ssm/mamba1",
    "titans/frozen", "filters/biquad", "semiring/running-max", "semiring/decayed-max", "semiring/crf",
}  # fmt: skip
"""One of every form, and what makes each of them harder."""

NOT_IN_CHUNKS = {"semiring/viterbi"}
"""Its gradient in chunks is not proved: maxima over states within maxima."""


CHUNKED = [case for case in CASES if case.name in IN_CHUNKS | NOT_IN_CHUNKS]


def test_the_cases_exist():
    assert {case.name for case in CHUNKED} == IN_CHUNKS | NOT_IN_CHUNKS


@pytest.mark.parametrize("length", [4, 16])
@pytest.mark.parametrize("case", CHUNKED, ids=lambda c: c.name)
def test_every_form_in_chunks(case, length, chunks_of):
    """A ragged tail behind whole chunks, and one chunk shorter than its length."""
    chunks_of(length)
    model, inputs = case.make(11)
    result = tenfuse.testing.assert_equivalent(model, *inputs, options=OPTIONS)
    fused = [loop for loop in result.loops if loop.status == "fused" and loop.form != "map"]
    assert fused
    for loop in fused:
        in_chunks = case.name in IN_CHUNKS
        assert loop.algorithm == (ALGORITHMS[loop.form] if in_chunks else "sequential")
        assert in_chunks == any("proved" in line and "chunk" in line for line in loop.evidence)


CONTAINED = ("lam/lam", "lam/state-gated", "cells/lstm", "cells/gru", "titans/mlp")


@pytest.mark.parametrize("case", [c for c in CASES if c.name in CONTAINED], ids=lambda c: c.name)
def test_a_nonlinear_core_by_itself(case, chunks_of):
    """Everything that does not reach the state is batched, step by step only the smallest core."""
    chunks_of(1)
    model, inputs = case.make(6)
    result = tenfuse.testing.assert_equivalent(model, *inputs, options=OPTIONS)
    (loop,) = [loop for loop in result.loops if loop.status == "fused" and loop.form != "map"]
    assert (loop.form, loop.algorithm) == ("nonlinear", "sequential")
    assert any(line.startswith("predicted, the core of the normal form") for line in loop.evidence)


def test_a_chunk_loop_leaves_one_square_product_per_state():
    """LAM: tokens of a chunk by keys become keys by keys before the loop, and stay out of it."""
    model, inputs = next(c for c in CASES if c.name == "lam/lam").make(6)
    known = study_of(model, *inputs)
    _, core = ChunkPlan(known.program, known.recurrence, 1).core(1)
    products = [n for n in core.program.nodes if isinstance(n, Contract)]
    state = {a for c in core.program.carries for a in (*c.axes, *c.next_axes)}
    axes = core.program.axes_of()
    matrices = [n for n in products if len(axes[n.arg]) > len(axes[core.program.carries[0].next])]
    assert len(matrices) == len(core.program.carries) == 2
    assert all(core.program.sizes[a] == 4 for n in matrices for a in n.axes)
    assert {a for i, n in enumerate(core.program.nodes) for a in axes[i]} <= state | set().union(
        *(n.axes for n in products)
    )


def test_a_maximum_in_chunks_without_gradients(chunks_of):
    chunks_of(4)
    model, inputs = next(c for c in CASES if c.name == "semiring/running-max").make(11)
    with torch.no_grad():
        result = tenfuse.testing.assert_equivalent(model, *inputs, options=OPTIONS)
    assert [loop.algorithm for loop in result.loops] == ["scan"]


@pytest.mark.parametrize(
    ("view", "whole"),
    [
        (View(("a", "b"), ((0, 1), (1, 1))), True),
        (View(("b", "a"), ((0, 1), (0, 3))), True),
        (View(("a", "b"), ((0, 3), (0, 1)), offset=((0, 6),)), True),
        (View(("a", "b"), ((0, 4), (0, 1))), False),  # a column is left out in every row
        (View(("a",), ((0, 2),)), False),
    ],
)
def test_only_ranges_of_dimensions_are_taken_out(view, whole):
    program = SimpleNamespace(sizes={"a": 2, "b": 3})
    step = SimpleNamespace(streams=[Placed(0, view)], invariants=[], carries=[], outs=[], program=program)
    assert whole_pieces(step, [], []) == whole


def test_many_cores_take_chunks_and_two_do_not():
    """A recurrence narrower than the machine: the sequential kernel has one task."""
    found = {}

    def ema(a, b):
        h, ys = torch.zeros_like(b[:, 0]), []
        for t in range(b.shape[1]):
            h = a[:, t] * h + b[:, t]
            ys.append(h)
        return torch.stack(ys, 1)

    known = study_of(ema, torch.rand(1, 12, 4), torch.rand(1, 12, 4))
    for cores in (1, 2, 64):
        found[cores] = choose(known.program, known.recurrence, 1 << 16, cores).algorithm
    assert found == {1: "sequential", 2: "sequential", 64: "scan"}


def test_a_state_that_may_grow_is_taken_in_short_chunks():
    """A gate without a bound, and one that is at most one, on a machine with many cores."""

    def delta(k, v, a):
        s, ys = torch.zeros(1, 8, 8), []
        for t in range(k.shape[1]):
            k_t = k[:, t, :, None]
            s = a[:, t, None, None] * s
            s = s + k_t * (v[:, t] - (s * k_t).sum(1))[:, None]
            ys.append((s * k_t).sum(1))
        return torch.stack(ys, 1)

    def gated(k, v, a):
        s, ys = torch.zeros(1, 8, 8), []
        for t in range(k.shape[1]):
            k_t = k[:, t, :, None]
            s = torch.sigmoid(a[:, t])[:, None, None] * s
            s = s + k_t * (v[:, t] - (s * k_t).sum(1))[:, None]
            ys.append((s * k_t).sum(1))
        return torch.stack(ys, 1)

    inputs = torch.rand(1, 12, 8), torch.rand(1, 12, 8), torch.rand(1, 12)
    lengths = {}
    for model in (delta, gated):
        known = study_of(model, *inputs)
        choice = choose(known.program, known.recurrence, 1 << 16, 4096, known.steady)
        lengths[model.__name__] = choice.chunks.length if choice.chunks else 0
    assert 0 < lengths["delta"] <= SHORT < lengths["gated"]


def study_of(model, *inputs):
    ((step, graph),) = reads_of(model, *inputs)
    return study(step, graph)
