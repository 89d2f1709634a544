"""Loops that nobody here wrote: fused, and right forward and backward."""

import pytest

pytest.importorskip("transformers")

import tenfuse
import tenfuse.testing
from tests.published.fixtures import PUBLISHED

STRICT = {"strict": True, "inner": "eager"}


def assert_fused(loops, case):
    kept = [loop for loop in loops if loop.status != "fused" and loop.code not in case.kept]
    assert not kept, "\n".join(f"{k.span}: {k.code} {k.reason}" for k in kept)
    fused = [loop for loop in loops if loop.status == "fused" and loop.form != "map"]
    assert fused, f"the recurrence of {case.name} was not seen"


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda c: c.name)
def test_explained_as_fused(case):
    model, inputs = case.make(7)
    assert_fused(tenfuse.explain(model)(*inputs).loops, case)


@pytest.mark.parametrize("steps", [7, 40])
@pytest.mark.parametrize("case", PUBLISHED, ids=lambda c: c.name)
def test_fused_and_right(case, steps):
    model, inputs = case.make(steps)
    result = tenfuse.testing.assert_equivalent(model, *inputs, options=STRICT)
    assert_fused(result.loops, case)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("case", PUBLISHED, ids=lambda c: c.name)
def test_right_when_short(case, steps):
    model, inputs = case.make(steps)
    tenfuse.testing.assert_equivalent(model, *inputs, options=STRICT)
