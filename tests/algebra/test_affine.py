"""The normal form: rebuilt it is the same step, and it has the terms one writes by hand."""

import dataclasses
import time

import pytest
import torch

from reference import CASES
from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.names import original
from tenfuse.algebra.rebuild import rebuild
from tenfuse.step import interpret
from tenfuse.step.program import (
    Builder,
    CarrySpec,
    Contract,
    Input,
    OutSpec,
    Pointwise,
    StepProgram,
    arguments,
    validate,
)
from tests.algebra.cores import assert_same, backward, run, steps_of
from tests.algebra.random_steps import draw
from tests.emit.programs import FORWARD
from tests.step.steps import STEPS, analysed

CARRIED = [c for c in CASES if c.kind == "carry"]


def rebuilt(program):
    found = analyse(program)
    again = rebuild(found, program)
    assert_same(program, again)
    return found, again


def core(name):
    case = next(c for c in CASES if c.name == name)
    model, inputs = case.make(5)
    return steps_of(model, *inputs)[0].program


@pytest.mark.parametrize("case", CARRIED, ids=lambda c: c.name)
def test_reference_models_rebuilt(case):
    model, inputs = case.make(5)
    for step in steps_of(model, *inputs):
        rebuilt(step.program)
        rebuilt(backward(step.program))


@pytest.mark.parametrize("name", FORWARD)
def test_programs_rebuilt(name):
    program = FORWARD[name]()
    found, again = rebuilt(program)
    assert analyse(again).form == found.form
    rebuilt(backward(program))


@pytest.mark.parametrize("name", STEPS)
def test_steps_rebuilt(name):
    step, *inputs = STEPS[name]
    rebuilt(analysed(step, *inputs)[2].program)


@pytest.mark.parametrize("seed", range(60))
def test_random_programs_rebuilt(seed):
    program = draw(seed)
    found, again = rebuilt(program)
    rebuilt(backward(program))
    assert_same(again, rebuild(analyse(again), again))
    assert analyse(program) == found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 2060))
def test_many_random_programs_rebuilt(seed):
    rebuilt(draw(seed))


@pytest.mark.parametrize("seed", range(30))
def test_random_gradients_survive(seed):
    """Rebuilding changes no cotangent of a carry: selections, cuts and ties included."""
    program = draw(seed)
    again = rebuild(analyse(program), program)
    kinds = ("stream", "invariant")
    if all(program.inputs(kind) == again.inputs(kind) for kind in kinds):
        before, after = (run(backward(p), 1)[: len(program.carries)] for p in (program, again))
        for x, y in zip(before, after, strict=True):
            torch.testing.assert_close(y, x, rtol=1e-8, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("seed", range(30))
def test_a_dynamic_size_is_nowhere_a_number(seed):
    """Analysed at one size, right at another."""
    dynamic = frozenset({"b"}) if seed % 3 == 0 else frozenset({"v"}) if seed % 3 == 1 else frozenset("kj")
    program = dataclasses.replace(draw(seed), dynamic=dynamic)
    again = rebuild(analyse(program), program)

    def wide(one):
        sizes = {a: 7 if original(a, program.sizes) in dynamic else n for a, n in one.sizes.items()}
        return dataclasses.replace(one, sizes=sizes)

    assert_same(wide(program), wide(again))


def made(build, sizes, carries, outs=()):
    program = StepProgram(tuple(build.nodes), sizes, tuple(carries), tuple(outs))
    validate(program)
    return program


def sources(found, value):
    return [found.nodes[t.source] for t in value.terms]


def test_a_step_towards_the_input_has_one_coefficient():
    """h + z (x - h) is (1 - z) h + z x."""
    b = Builder()
    h, z, x = (b.input(k, i, ("d",)) for k, i in (("carry", 0), ("stream", 0), ("stream", 1)))
    y = b.call("add", h, b.call("mul", z, b.call("sub", x, h)))
    found, _ = rebuilt(made(b, {"d": 3}, [CarrySpec(("d",), y, ("d",))]))
    (term,) = found.stages[0].updates[0].terms
    (factor,) = term.factors
    assert found.nodes[factor].fn == "sub" and found.nodes[term.source] == Input("carry", 0, ("d",))


def test_a_mask_selects_and_does_not_multiply():
    """where(m, a h + x, h): an infinity in a step that is masked out stays out."""
    b = Builder()
    h, a, x, m = (
        b.input(k, i, ("d",)) for k, i in (("carry", 0), ("stream", 0), ("stream", 1), ("stream", 2))
    )
    y = b.call("where", m, b.call("add", b.call("mul", a, h), x), h)
    found, again = rebuilt(made(b, {"d": 1}, [CarrySpec(("d",), y, ("d",))]))
    assert found.form == "elementwise" and len(found.stages[0].updates[0].terms) == 1
    given = {("carry", 0): 2.0, ("stream", 0): float("inf"), ("stream", 1): float("nan"), ("stream", 2): 0.0}
    carries, _ = interpret.step(again, {k: torch.tensor([v]) for k, v in given.items()})
    assert carries[0].tolist() == [2.0]


def test_a_contraction_over_an_axis_that_only_one_term_has():
    """sum_d (h_b + x_bd) is D h_b + sum_d x_bd."""
    b = Builder()
    h, x = b.input("carry", 0, ("b",)), b.input("stream", 0, ("b", "d"))
    y = b.contract(b.call("add", h, x), "d")
    found, _ = rebuilt(made(b, {"b": 2, "d": 5}, [CarrySpec(("b",), y, ("b",))]))
    assert found.form == "elementwise"
    program = made(b, {"b": 2, "d": 5}, [CarrySpec(("b",), y, ("b",))])
    unknown = dataclasses.replace(program, dynamic=frozenset({"d"}))
    assert analyse(unknown).form == "nonlinear"
    assert_same(unknown, rebuild(analyse(unknown), unknown))


def test_a_cut_state_stays_cut():
    """The gradient of a rebuilt step that detaches its state is zero, as it was."""
    program = core("ten/v1-truncated-step")
    found, again = rebuilt(program)
    assert all(found.nodes[t.source].fn == "cut" for u in found.stages[0].updates for t in u.terms)
    before, after = run(backward(program)), run(backward(again))
    assert not any(x.any() for x in (*before[:2], *after[:2]))


def test_gradients_of_a_rebuilt_step_are_its_own():
    for name in ("delta/kda", "elementwise/masked", "semiring/crf", "lam/state-gated"):
        program = core(name)
        before, after = backward(program), backward(rebuild(analyse(program), program))
        assert len(run(before)) == len(run(after))
        for x, y in zip(run(before)[: len(program.carries)], run(after)[: len(program.carries)], strict=True):
            torch.testing.assert_close(y, x)


def test_the_smallest_core_of_a_normalised_state():
    """F <- N(a F + P - G Fh ...), Fh = N(a F): P and G are products of state-free matrices."""
    program = core("lam/lam")
    found, _ = rebuilt(program)
    assert found.form == "nonlinear" and [s.carries for s in found.stages] == [(0, 1)]
    for update in found.stages[0].updates:
        (term,) = update.terms
        assert not term.factors and found.nodes[term.source].fn == "div"
    moving = [False] * len(found.nodes)
    products, free = 0, 0
    for i, node in enumerate(found.nodes):
        moving[i] = (isinstance(node, Input) and node.kind in ("carry", "next")) or any(
            moving[a] for a in arguments(node)
        )
        if isinstance(node, Contract) and node.op == "sum":
            below = found.nodes[node.arg]
            matmul = isinstance(below, Pointwise) and len(set(below.args)) == 2
            products += moving[i] and matmul
            free += not moving[i]
    assert products == 2, "one d x d product per state"
    assert free >= 6, "P = k^T U, G = k^T W and the rest of the reads are batched"
    (first, second) = found.outs[0].terms
    assert first.contracted and second.contracted and len(first.factors) == 3


def test_what_distribution_would_blow_up_becomes_an_atom():
    """A product of many sums of two states is linear in each, with 2^n terms."""
    b = Builder()
    h = [b.input("carry", i, ("d",)) for i in range(70)]
    total = h[0]
    for i in range(1, 70):
        total = b.call("add", total, b.call("mul", b.input("stream", i, ("d",)), h[i]))
    carries = [CarrySpec(("d",), total if i == 0 else h[i - 1], ("d",)) for i in range(70)]
    found, _ = rebuilt(made(b, {"d": 2}, carries))
    assert found.form == "nonlinear"


def test_analysing_is_fast():
    program = core("lam/lam")
    analyse(program)
    start = time.thread_time()
    analyse(program)
    analyse(backward(program))
    assert time.thread_time() - start < 0.5


def test_outputs_say_when_they_read():
    program = core("delta/transposed")
    (out,) = analyse(program).outs
    assert sources(analyse(program), out)[0].kind == "carry"
    program = core("delta/deltanet")
    (out,) = analyse(program).outs
    assert sources(analyse(program), out)[0].kind == "next"


def test_what_the_atoms_of_an_output_read():
    """mLSTM divides q.C by a function of q.n: both reads are there in normal form."""
    found = analyse(core("cells/mlstm"))
    contracted = [value for _, value in found.reads if any(t.contracted for t in value.terms)]
    assert len(contracted) == 2
    assert all(found.nodes[t.source].kind == "next" for v in contracted for t in v.terms)


def test_outs_of_nothing_but_streams():
    b = Builder()
    x = b.input("stream", 0, ("d",))
    found, _ = rebuilt(made(b, {"d": 2}, [], [OutSpec(x, ("d",))]))
    assert found.form == "map" and found.outs[0].terms == ()
