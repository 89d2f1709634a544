"""A step that may not happen: proved to be the step, or nothing at all; and its mutants are not.

To a proof infinity is one more unknown, so in semirings whose zero is infinite values are compared.
"""

import dataclasses

import pytest
import torch

from reference import CASES
from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.ragged import ragged
from tenfuse.algebra.proof.certify import certify
from tenfuse.algebra.rebuild import rebuild
from tenfuse.plan.choose import ALGORITHMS
from tenfuse.step import interpret
from tenfuse.step.program import Builder, CarrySpec, Input, OutSpec, StepProgram, arguments, with_arguments
from tests.algebra.cores import reads_of

CARRIED = [c for c in CASES if c.kind == "carry"]
SEMIRINGS = {
    "semiring/viterbi",
    "semiring/crf",
    "semiring/running-max",
    "semiring/decayed-max",
    "cells/mlstm",
}


def optional(program, stream):
    """``program`` where the stream is not zero; else every carry stays as it is."""
    build, place = Builder(), {}
    for i, node in enumerate(program.nodes):
        place[i] = build.add(with_arguments(node, [place[a] for a in arguments(node)]))
    happens = build.input("stream", stream, ())
    carries = tuple(
        CarrySpec(
            c.axes,
            build.call("where", happens, place[c.next], build.input("carry", i, c.next_axes)),
            c.next_axes,
        )
        for i, c in enumerate(program.carries)
    )
    outs = tuple(OutSpec(place[o.ref], o.axes) for o in program.outs)
    return StepProgram(tuple(build.nodes), program.sizes, carries, outs, program.dynamic)


def loops(case):
    model, inputs = case.make(5)
    for step, _ in reads_of(model, *inputs)[:1]:
        recurrence = analyse(step.program)
        if recurrence.form in ALGORITHMS:
            yield step.program, recurrence, 1 + max(step.program.inputs("stream"), default=-1)


def without_outputs(program, recurrence, stream):
    """What is read of the state after the update differs where nothing happens, and is not used."""
    normal = dataclasses.replace(ragged(program, recurrence, stream), outs=())
    return dataclasses.replace(program, outs=()), normal


@pytest.mark.parametrize("case", CARRIED, ids=lambda c: c.name)
def test_the_step_or_nothing(case):
    for program, recurrence, stream in loops(case):
        bare, normal = without_outputs(program, recurrence, stream)
        if all(stage.semiring == "sum-product" for stage in recurrence.stages):
            found = certify(optional(bare, stream), normal)
            assert found.proved, found.note


@pytest.mark.parametrize("happens", [0.0, 1.0])
@pytest.mark.parametrize("case", [c for c in CARRIED if c.name in SEMIRINGS], ids=lambda c: c.name)
def test_the_step_or_nothing_in_semirings(case, happens):
    generator = torch.Generator().manual_seed(1)
    for program, recurrence, stream in loops(case):
        bare, normal = without_outputs(program, recurrence, stream)
        want, got = optional(bare, stream), rebuild(normal, bare)
        inputs = {("stream", stream): torch.tensor(happens)}
        for node in (*want.nodes, *got.nodes):
            if isinstance(node, Input) and (node.kind, node.index) not in inputs:
                shape = [want.sizes[a] for a in node.axes]
                inputs[node.kind, node.index] = torch.randn(shape, generator=generator)
        for a, b in zip(interpret.step(want, inputs)[0], interpret.step(got, inputs)[0], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["delta/gated", "elementwise/ema", "ten/v2"])
def test_a_step_that_always_happens_is_not_that(name):
    for program, recurrence, stream in loops(next(c for c in CASES if c.name == name)):
        bare, _ = without_outputs(program, recurrence, stream)
        found = certify(optional(bare, stream), dataclasses.replace(recurrence, outs=()))
        assert not found.proved
