"""Which passes are taken: by what they weigh; and all in one, run whole."""

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import chunk
from tenfuse.plan.tiles.inverse import inverted
from tenfuse.plan.tiles.passes import groups
from tenfuse.plan.tiles.ways import cheapest
from tenfuse.reasons import NO_TILES, Refused, refuse
from tests.algebra.loops import program_of


def step(name):
    program, _ = program_of(name)
    return chunk(program, analyse(program), 4).program


def taken(program, weights):
    """The way taken where ``weights`` says what (whether inverses, how many groups) weighs."""
    other = inverted(program)

    def weigh(way):
        found = weights[way.program is not program, len(way.within)]
        if found is None:
            raise refuse(NO_TILES, "too large")
        return found

    way, made = cheapest(program, lambda way: (weigh(way), way)[1], weigh)
    assert made is way and way.program in (program, other)
    return way.program is not program, len(way.within)


def test_the_least_weight_wins():
    program = step("delta")
    assert len(groups(program)) == 1
    assert taken(program, {(0, 0): 10, (0, 1): 5, (1, 0): 9, (1, 1): 4}) == (True, 1)
    assert taken(program, {(0, 0): 10, (0, 1): 20, (1, 0): 12, (1, 1): 30}) == (False, 0)


def test_one_more_output_in_the_recurrence_gains_a_tenth_or_is_left():
    program = step("delta")
    assert taken(program, {(0, 0): 10, (0, 1): 9.5, (1, 0): 12, (1, 1): 11.5}) == (False, 0)


def test_what_a_card_cannot_hold_is_passed_over():
    program = step("delta")
    assert taken(program, {(0, 0): None, (0, 1): None, (1, 0): 12, (1, 1): 11}) == (True, 0)
    with pytest.raises(Refused, match="too large"):
        taken(program, dict.fromkeys([(0, 0), (0, 1), (1, 0), (1, 1)]))


def passed_on(kernel, said):
    """One, and what it reads that an earlier pass has left: fewest where an inverse is."""
    return 1.0 + sum(o.role == "cross" for o in kernel.operands)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, passes", [("attention", 1), ("gated", 1), ("delta", 2), ("erase", 2)])
def test_all_in_the_recurrence_is_right(name, passes, monkeypatch):
    """Forward in one pass behind what solves systems, handing on inverses; backward in as few."""
    pytest.importorskip("triton.language")
    import tenfuse.testing
    from tenfuse.plan.tiles import plan as tiled
    from tenfuse.runtime.tiles import interpreting
    from tests.tiles.loops import FORMS

    if not interpreting():
        pytest.skip("TRITON_INTERPRET=1 runs kernels without a GPU")
    monkeypatch.setattr(tiled, "nanoseconds", passed_on)
    form = next(f for f in FORMS if f.name == name)
    options = {"strict": True, "inner": "eager", "target": "triton", "chunk": 8}
    torch._dynamo.reset()
    result = tenfuse.testing.assert_equivalent(form.loop, *form.make(19), options=options)
    (loop,) = result.loops
    assert loop.status == "fused", f"{loop.code} {loop.reason}"
    assert sum("forward" in kernel for kernel, _, _ in loop.kernels) == passes
    assert sum("backward" in kernel for kernel, _, _ in loop.kernels) == passes
