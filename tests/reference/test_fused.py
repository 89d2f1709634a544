"""Every reference model in every spelling: fused, and equal to the eager loop with all gradients."""

import pytest

import tenfuse
import tenfuse.testing
from reference import CASES

LOOPS = [case for case in CASES if case.kind != "none"]
STRAIGHT = [case for case in CASES if case.kind == "none"]


def assert_all_fused(loops, case):
    kept = [loop for loop in loops if loop.status != "fused" and loop.code not in case.kept]
    assert not kept, "\n".join(f"{k.span}: {k.code} {k.reason}" for k in kept)
    fused = [loop for loop in loops if loop.status == "fused"]
    assert fused, f"no loop was seen in {case.name}"
    if case.kind == "carry":
        assert any(loop.form != "map" for loop in fused), f"the recurrence of {case.name} was not seen"


@pytest.mark.parametrize("case", LOOPS, ids=lambda c: c.name)
def test_explained_as_fused(case):
    model, inputs = case.make(7)
    loops = tenfuse.explain(model)(*inputs).loops
    assert_all_fused(loops, case)
    for loop in loops:
        if loop.status == "fused" and loop.form != "map":
            assert loop.formula and loop.algorithm == "sequential"
            assert any(line.startswith("proved over exact symbols") for line in loop.evidence)
            assert any(line.startswith("predicted") for line in loop.evidence)


@pytest.mark.parametrize("steps", [7, *(pytest.param(t, marks=pytest.mark.slow) for t in (64, 130))])
@pytest.mark.parametrize("case", LOOPS, ids=lambda c: c.name)
def test_fused_and_right(case, steps):
    model, inputs = case.make(steps)
    result = tenfuse.testing.assert_equivalent(model, *inputs, options={"strict": True, "inner": "eager"})
    assert_all_fused(result.loops, case)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_right_when_short(case, steps):
    model, inputs = case.make(steps)
    tenfuse.testing.assert_equivalent(model, *inputs, options={"strict": True, "inner": "eager"})


@pytest.mark.parametrize("case", STRAIGHT, ids=lambda c: c.name)
def test_nothing_to_fuse_is_left_alone(case):
    model, inputs = case.make(16)
    result = tenfuse.testing.assert_equivalent(model, *inputs, options={"strict": True, "inner": "eager"})
    assert all(loop.status == "kept" and loop.code in case.kept for loop in result.loops)
