"""A pass in two: the same values, the axis mixed no longer in the second."""

import pytest
import torch

from tenfuse.plan.tiles.divide import divided
from tenfuse.plan.tiles.passes import Part, passes
from tenfuse.step import interpret
from tenfuse.step.program import Builder, OutSpec, Scan, StepProgram
from tests.algebra.chunks import exact
from tests.plan.test_passes import NAMES, chunked, draw, in_passes

HANDED = 100


def in_two(parts):
    """Every division of every pass over all chunks, beside the others whole."""
    for n, whole in enumerate(parts):
        for two in divided(whole, HANDED) if whole.parallel else ():
            yield whole, two, (*parts[:n], *two, *parts[n + 1 :])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_division_is_the_step(name, direction):
    program = chunked(name)[direction == "backward"]
    held = "state" if direction == "forward" else "costate"
    inputs = draw(program)
    want = interpret.step(program, inputs, torch.float64)
    parts = passes(program, held, range(len(program.carries)))
    for whole, (first, second), every in in_two(parts):
        got = in_passes(every, inputs, held, len(program.outs))
        exact(got[0], want[0])
        exact(got[1], want[1])
        assert len(first.names) + len(second.names) >= len(whole.names)


@pytest.mark.parametrize("name", ["gated", "delta"])
def test_there_are_divisions(name):
    """Of the passes that compute gradients over one axis of a state from sums over it."""
    assert list(in_two(passes(chunked(name)[1], "costate", ())))


def part_of(make):
    build = Builder()
    out = make(build)
    axes = tuple(sorted(build.axes[out]))
    program = StepProgram(tuple(build.nodes), {"t": 4, "k": 8}, (), (OutSpec(out, axes),))
    return Part(program, (("out", 0),), True)


def test_what_is_summed_before_it_is_multiplied_is_handed_on():
    def normalised(build):
        x = build.input("stream", 0, ("t", "k"))
        return build.call("div", x, build.contract(x, "k"))

    ((first, second),) = divided(part_of(normalised), 3)
    assert first.names == (("cross", 3),) and second.names == (("out", 0),)
    assert second.program.inputs("cross") == {3: ("t",)} and "k" in second.program.parallel_axes()


def test_an_axis_mixed_by_a_scan_is_not_cut():
    def summed_and_scanned(build):
        x = build.input("stream", 0, ("t", "k"))
        y = build.call("mul", x, build.contract(x, "k"))
        return build.add(Scan("k", y, y))

    assert not list(divided(part_of(summed_and_scanned), 0))


def test_nothing_is_summed():
    assert not list(divided(part_of(lambda build: build.input("stream", 0, ("t", "k"))), 0))
