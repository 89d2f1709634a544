"""Reference models and loops of published packages on tiles: fused, and equal to eager with all gradients."""

import importlib.util

import pytest

pytest.importorskip("triton.language")

import tenfuse.testing
from reference import CASES
from tenfuse.runtime.tiles import interpreting

pytestmark = [
    pytest.mark.skipif(not interpreting(), reason="TRITON_INTERPRET=1 runs kernels without a GPU"),
    pytest.mark.filterwarnings("ignore"),
]
TILES = {"strict": True, "inner": "eager", "target": "triton"}
QUICK = {
    "ssm/mamba1", "ssm/lru", "linear/retnet", "ten/v3", "semiring/viterbi", "cells/lstm-cell", "returns/gae",
    "elementwise/bidirectional", "titans/event-driven",
}  # fmt: skip
"""Those of the default run: every form is in ``test_forms`` already."""
LOOPS = [case for case in CASES if case.kind == "carry"]


def published():
    if importlib.util.find_spec("transformers") is None:
        return []
    from tests.published.fixtures import PUBLISHED

    return list(PUBLISHED)


def on_tiles(case, steps):
    model, inputs = case.make(steps)
    result = tenfuse.testing.assert_equivalent(model, *inputs, options=TILES)
    kept = [loop for loop in result.loops if loop.status != "fused" and loop.code not in case.kept]
    assert not kept, "\n".join(f"{k.span}: {k.code} {k.reason}" for k in kept)
    fused = [loop for loop in result.loops if loop.status == "fused" and loop.form != "map"]
    assert fused, f"the recurrence of {case.name} was not seen"
    assert {language for loop in fused for _, language, _ in loop.kernels} == {"triton"}


def marked(cases):
    slow = pytest.mark.slow
    return [pytest.param(c, marks=() if c.name in QUICK else slow, id=c.name) for c in cases]


@pytest.mark.parametrize("case", marked(LOOPS))
def test_reference(case):
    on_tiles(case, 11)


@pytest.mark.slow
@pytest.mark.parametrize("case", published(), ids=lambda c: c.name)
def test_published(case):
    on_tiles(case, 9)
