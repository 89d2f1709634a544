"""Chunk programs: rounding of scans, laws, names that could be confused, and what has none."""

import dataclasses
from itertools import chain

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import Unchunkable, chunk
from tenfuse.algebra.recurrence import Affine, Stage, Term
from tenfuse.step import interpret
from tenfuse.step.program import Builder, Input, OutSpec, Pointwise
from tests.algebra.chunks import Draft, draw, exact, run
from tests.algebra.loops import LOOPS, program_of
from tests.algebra.test_chunk import agrees
from tests.algebra.test_chunk_adjoint import agrees as adjoint_agrees
from tests.step.steps import STEPS, analysed

SCANS = ("ema", "mamba", "rotation", "complex", "biquad", "slow-fast")


def absolute(program):
    """The program with every difference a sum."""
    nodes = tuple(
        Pointwise("add", n.args) if n == Pointwise("sub", getattr(n, "args", ())) else n
        for n in program.nodes
    )
    nodes = tuple(Pointwise("abs", n.args) if getattr(n, "fn", "") == "neg" else n for n in nodes)
    return dataclasses.replace(program, nodes=nodes)


@pytest.mark.parametrize("kind", ["ordinary", "zero", "one", "negative"])
@pytest.mark.parametrize("name", SCANS)
def test_entries_of_a_scan_stay_within_the_bound_of_the_loop(name, kind):
    """16 u X_t, with X_t the same loop on absolute values."""
    program, gates = program_of(name)
    recurrence = analyse(program)
    for C in (4, 64):
        T = 2 * C + 3
        inputs = draw(program, T, gates, kind)
        positive = [[x.abs() for x in inputs[0]], *({i: x.abs() for i, x in y.items()} for y in inputs[1:])]
        want = chain(*interpret.scan(program, *inputs, T))
        bound = chain(*interpret.scan(absolute(program), *positive, T))
        got = chain(*run(program, recurrence, C, *inputs, T, torch.float32))
        for g, w, x in zip(got, want, bound, strict=True):
            assert ((g.double() - w).abs() <= 16 * 2.0**-24 * x).all()


@pytest.mark.parametrize("name", ["delta", "kda", "product", "titans", "resonance", "soft"])
def test_the_chunk_makes_no_difference(name):
    program, gates = program_of(name)
    recurrence = analyse(program)
    T = 24
    inputs = draw(program, T, gates, "negative")
    found = [
        list(chain(*run(program, recurrence, C, *inputs, T, torch.float64, block=b)))
        for C, b in ((1, 1), (3, 16), (8, 2), (24, 6), (24, 24), (64, 16))
    ]
    for other in found[1:]:
        exact(other, found[0])


@pytest.mark.parametrize("name", STEPS)
def test_other_steps_agree_or_have_no_chunk_program(name):
    program = analysed(*STEPS[name])[2].program
    recurrence = analyse(program)
    if recurrence.form == "nonlinear":
        with pytest.raises(Unchunkable):
            chunk(program, recurrence, 4)
        return
    agrees(program, recurrence, frozenset(), "ordinary", (4,), 2)
    adjoint_agrees(program, recurrence, frozenset(), "ordinary", ((4, 11),))


def stream(b, i, *axes):
    return b.input("stream", i, axes)


def low(terms, offset, outs, b, gates=(), axes=("k", "v"), form="low-rank"):
    size = dict(k=3, v=4, i=3, n=3, r=2)
    stage = Stage((0,), (Affine(tuple(terms), offset),), form)
    return Draft(b, size, ((axes, axes),), (stage,), tuple(outs), frozenset(gates))


def checked(draft):
    agrees(draft.program(), draft.recurrence(), draft.gates, "zero", (4,), 2)
    adjoint_agrees(draft.program(), draft.recurrence(), draft.gates, "zero", ((4, 11),))


def test_a_query_axis_with_the_name_of_the_summed_axis():
    """o[k, v] = sum_i q[k, i] S[i, v]: k is another axis than that of the state."""
    b = Builder()
    s = b.input("carry", 0, ("k", "v"))
    offset = b.call("mul", stream(b, 0, "k"), stream(b, 1, "v"))
    read = Term(b.input("next", 0, ("i", "v")), (stream(b, 2, "k", "i"),), frozenset({"i"}))
    before = Term(b.input("carry", 0, ("i", "v")), (stream(b, 2, "k", "i"),), frozenset({"i"}))
    outs = [(Affine((read, before)), ("k", "v"))]
    checked(low([Term(s, (stream(b, 3, "k"),))], offset, outs, b, {3}))


def test_a_state_read_the_other_way_round():
    """o[i, k] = S[k, i] with a square state, and a sum over its second axis."""
    b = Builder()
    size = dict(k=3, v=3, i=3)
    offset = b.call("mul", stream(b, 0, "k"), stream(b, 1, "v"))
    turned = Term(b.input("next", 0, ("v", "k")), (stream(b, 2, "v"),))
    summed = Term(b.input("carry", 0, ("v", "i")), (stream(b, 2, "i"),), frozenset({"i"}))
    stage = Stage(
        (0,), (Affine((Term(b.input("carry", 0, ("k", "v")), (stream(b, 3),)),), offset),), "low-rank"
    )
    outs = ((Affine((turned,)), ("k", "v")), (Affine((summed,)), ("v",)))
    checked(Draft(b, size, ((("k", "v"), ("k", "v")),), (stage,), outs, frozenset({3})))


def erase(b, axis="k", fresh="i", rank=()):
    """``sum u[r, k] w[r, i] S[i, v]``."""
    u, w = stream(b, 4, *rank, "k"), stream(b, 5, *rank, fresh)
    return Term(b.input("carry", 0, (fresh, "v")), (u, w), frozenset({fresh, *rank}))


def test_erases_of_a_rank_axis_and_of_their_own():
    for terms in (1, 2):
        b = Builder()
        s = b.input("carry", 0, ("k", "v"))
        offset = b.contract(b.call("mul", stream(b, 0, "k", "r"), stream(b, 1, "r", "v")), "r")
        more = [erase(b, rank=("r",))]
        if terms == 2:
            more.append(
                Term(
                    b.input("carry", 0, ("i", "v")), (stream(b, 6, "k"), stream(b, 2, "i")), frozenset({"i"})
                )
            )
        read = Term(b.input("next", 0, ("i", "v")), (stream(b, 2, "i"),), frozenset({"i"}))
        checked(low([Term(s, (stream(b, 3),)), *more], offset, [(Affine((read,)), ("v",))], b, {3}))


def test_erases_without_a_gate_or_a_write():
    b = Builder()
    read = Term(b.input("next", 0, ("i", "v")), (stream(b, 0, "i"),), frozenset({"i"}))
    w = b.rename(stream(b, 1, "k"), {"k": "i"})
    u = stream(b, 2, "k")
    terms = [Term(b.input("carry", 0, ("i", "v")), (u, w), frozenset({"i"}))]
    checked(low(terms, None, [(Affine((read,)), ("v",))], b))


def test_a_sum_of_the_state_with_no_factor():
    b = Builder()
    s, t = b.input("carry", 0, ("k", "v")), b.input("next", 0, ("i", "v"))
    offset = b.call("add", stream(b, 0, "k"), stream(b, 1, "v"))
    outs = [
        (Affine((Term(t, (), frozenset({"i"})),)), ("v",)),
        (Affine((Term(t, (), frozenset({"i", "v"})),)), ()),
    ]
    checked(low([Term(s, (stream(b, 2),))], offset, outs, b, {2}))


def test_an_erase_from_both_sides_has_no_chunk_program():
    b = Builder()
    s = b.input("carry", 0, ("k", "v"))
    other = Term(b.input("carry", 0, ("k", "n")), (stream(b, 1, "v"), stream(b, 2, "n")), frozenset({"n"}))
    draft = low([Term(s), erase(b), other], None, [], b)
    with pytest.raises(Unchunkable, match="different axes"):
        chunk(draft.program(), draft.recurrence(), 4)


def test_a_turned_update_has_no_chunk_program():
    b = Builder()
    turned = Term(b.input("carry", 0, ("v", "k")), (stream(b, 0),))
    stage = Stage((0,), (Affine((turned,), stream(b, 1, "k", "v")),), "low-rank")
    axes = ("k", "v")
    draft = Draft(b, dict(k=3, v=3), ((axes, axes),), (stage,), ())
    for form in ("low-rank", "elementwise", "dense"):
        recurrence = dataclasses.replace(draft.recurrence(), stages=(dataclasses.replace(stage, form=form),))
        with pytest.raises(Unchunkable, match="permutes"):
            chunk(draft.program(), recurrence, 4)


def test_a_coefficient_over_both_axes_is_not_of_low_rank():
    b = Builder()
    term = Term(b.input("carry", 0, ("i", "v")), (stream(b, 0, "k", "i"),), frozenset({"i"}))
    draft = low([term], stream(b, 1, "k", "v"), [], b)
    with pytest.raises(Unchunkable, match="joins"):
        chunk(draft.program(), draft.recurrence(), 4)
    checked(dataclasses.replace(draft, stages=(dataclasses.replace(draft.stages[0], form="dense"),)))


def test_the_diagonal_of_a_state_is_refused():
    b = Builder()
    s = b.input("carry", 0, ("k", "v"))
    diagonal = Term(b.input("next", 0, ("i", "i")), (stream(b, 2, "i"),), frozenset({"i"}))
    axes = ("k", "v")
    stage = Stage((0,), (Affine((Term(s),), stream(b, 0, "k", "v")),), "low-rank")
    draft = Draft(b, dict(k=3, v=3, i=3), ((axes, axes),), (stage,), ())
    program = draft.program()
    out = OutSpec(program.carries[0].next, axes)
    recurrence = dataclasses.replace(draft.recurrence(), outs=(Affine((diagonal,)),))
    with pytest.raises(Unchunkable, match="diagonal"):
        chunk(dataclasses.replace(program, outs=(out,)), recurrence, 4)


def test_two_reflections_in_one_step_undo_each_other():
    """beta 2 with one key twice: each write alone would multiply errors by three per step."""
    step = analysed(*LOOPS["product"])[2]
    program, recurrence = step.program, analyse(step.program)
    T = 67
    torch.manual_seed(0)
    inputs = draw(program, T, frozenset(), "ordinary")
    k = torch.nn.functional.normalize(torch.randn(T, 2, 2, 3, dtype=torch.float64), dim=-1).float().double()
    values = {"k": k, "bk": 2 * k, "one": torch.ones(T, 2, 2, dtype=torch.float64)}
    for i, place in enumerate(step.streams):
        axes = program.inputs("stream")[i]
        name = str(place.source)
        if len(axes) == 3 and program.sizes[axes[-1]] == 3:
            inputs[1][i] = values["bk"] if name.startswith("mul") else values["k"]
        elif len(axes) == 2:
            inputs[1][i] = values["one"]
    want = list(chain(*interpret.scan(program, *inputs, T)))
    got = list(chain(*run(program, recurrence, 64, *inputs, T, torch.float32)))
    for g, w in zip(got, want, strict=True):
        assert (g.double() - w).pow(2).mean().sqrt() <= 64 * 2.0**-24 * w.pow(2).mean().sqrt()


def test_a_sequence_shorter_than_the_chunk_and_bound_inputs():
    program, _ = program_of("gated")
    made = chunk(program, analyse(program), 7, block=4)
    assert made.rows == ("t",) and made.length == 7
    assert len(chunk(program, analyse(program), 8, block=4).rows) == 2
    kinds = {n.kind for n in made.program.nodes if isinstance(n, Input)}
    assert kinds == {"carry", "stream"}


def test_sums_over_time_are_refused():
    program, _ = program_of("ema")
    out = dataclasses.replace(program.outs[0], accumulate=True)
    with pytest.raises(Unchunkable, match="summed over time"):
        chunk(dataclasses.replace(program, outs=(out,)), analyse(program), 4)


def test_dimensions_of_dynamic_size_may_be_anything_but_summed_over():
    program, _ = program_of("gated")
    batch = frozenset({program.carries[0].axes[0]})
    free = dataclasses.replace(program, dynamic=batch)
    made = chunk(free, analyse(free), 4, block=2)
    assert made.program.dynamic == batch
    summed = dataclasses.replace(program, dynamic=frozenset({program.carries[0].axes[2]}))
    with pytest.raises(Unchunkable, match="dynamic"):
        chunk(summed, analyse(summed), 4, block=2)
