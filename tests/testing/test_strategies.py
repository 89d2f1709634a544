"""The generator itself: what it prints runs, and spellings of one recurrence agree."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

from tenfuse.testing.recipe import CELLS, MUTANTS, Recipe, normal
from tenfuse.testing.strategies import Program, mutants, programs

quick = settings(max_examples=60, deadline=None, derandomize=True)


def differentiate(program):
    inputs = program.inputs()
    for x in inputs:
        x.requires_grad_(program.grad)
    results = program.load()(*inputs)
    outs = [x for x in results if isinstance(x, torch.Tensor) and x.requires_grad]
    if outs:
        torch.autograd.backward(outs, [torch.ones_like(x) for x in outs])
    return results, inputs


@quick
@given(programs())
def test_spellings_of_one_recurrence_agree(program):
    exact = dataclasses.replace(program.recipe, dtype="float64")
    r = Recipe()
    plain = dataclasses.replace(
        exact,
        header="reversed" if exact.backwards else "range",
        access=r.access,
        contract=r.contract,
        time=r.time,
        init="given" if exact.init == "given" else r.init,
        out_time=r.out_time,
        helper=False,
        strided=False,
        order=0,
        collect="final" if exact.collect == "final" else r.collect,
    )
    assert normal(plain).meaning == exact.meaning
    ours, theirs = Program(exact), Program(normal(plain))
    mine, inputs = differentiate(ours)
    other, others = differentiate(theirs)
    for a, b in zip(ours.outputs(mine), theirs.outputs(other), strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-4 if exact.casts else 1e-9, atol=1e-5 if exact.casts else 1e-11
        )
    assert [x.grad is None for x in inputs] == [x.grad is None for x in others]


@quick
@given(mutants())
def test_mutants_run_eagerly(program):
    differentiate(program)


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_is_stable_and_alive(cell):
    program = Program(normal(Recipe(cell=cell, steps=60)))
    results, inputs = differentiate(program)
    assert all(x.isfinite().all() and 1e-4 < x.abs().max() < 1e3 for x in results)
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in inputs)


def test_every_mutant_changes_the_program():
    plain = Program(normal(Recipe(steps=8))).source
    sources = {name: Program(normal(Recipe(steps=8, mutant=name))).source for name in MUTANTS}
    assert plain not in sources.values()
    assert len(set(sources.values())) == len(MUTANTS)


def test_printing_is_deterministic_and_has_a_file():
    program = Program(normal(Recipe(cell="delta", order=12345, header="while")))
    assert program.source == Program(program.recipe).source
    model = program.load()
    assert Path(model.__code__.co_filename).read_text() == program.source
    assert all(torch.equal(a, b) for a, b in zip(program.inputs(), program.inputs(), strict=True))
