"""Right normal forms are certified, in time; a wrong one never is."""

import dataclasses

import pytest

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.proof.certify import certificate_from_text, certificate_to_text, certify
from tenfuse.algebra.recurrence import Affine, Recurrence, Stage, Term
from tenfuse.step.program import Builder, CarrySpec, Const, OutSpec, Pointwise, StepProgram
from tests.algebra.cores import backward
from tests.algebra.mutants import LINEAR, node_mutants
from tests.algebra.mutants import program as step_program
from tests.step.steps import STEPS


@pytest.mark.parametrize("name", STEPS)
def test_what_the_analysis_finds_is_proved(name):
    program = step_program(name)
    found = certify(program, analyse(program))
    assert found.proved, found.note
    assert found.sizes or not program.sizes


@pytest.mark.parametrize("name", LINEAR)
def test_the_normal_form_of_the_adjoint_is_proved(name):
    program = backward(step_program(name))
    found = certify(program, analyse(program))
    assert found.proved, found.note


def _hand_made():
    """h <- a h + sum_k u_j w_k h_k + x, read before and after; a stage of its own for z <- z + h'."""
    b = Builder()
    h, a, x = (
        b.input("carry", 0, ("b", "j")),
        b.input("stream", 0, ("b", "j")),
        b.input("stream", 1, ("b", "j")),
    )
    u, w = b.input("stream", 2, ("b", "j")), b.input("invariant", 0, ("k",))
    hk, z, m = (
        b.input("carry", 0, ("b", "k")),
        b.input("carry", 1, ("b", "j")),
        b.input("stream", 3, ("b", "j")),
    )
    dot = b.contract(b.call("mul", w, hk), "k")
    nxt = b.call("add", b.call("add", b.call("mul", a, h), b.call("mul", u, dot)), x)
    summed = b.call("add", z, b.call("where", b.call("lt", m, x), nxt, b.const(0.0)))
    carries = (CarrySpec(("b", "j"), nxt, ("b", "j")), CarrySpec(("b", "j"), summed, ("b", "j")))
    outs = (OutSpec(nxt, ("b", "j")), OutSpec(b.call("mul", h, x), ("b", "j")))
    program = StepProgram(tuple(b.nodes), {"b": 4, "j": 5, "k": 5}, carries, outs)
    after = b.input("next", 0, ("b", "j"))
    mask = b.call("where", b.call("lt", m, x), after, b.const(0.0))
    update = Affine((Term(h, (a,)), Term(hk, (u, w), frozenset("k"))), x)
    stages = (Stage((0,), (update,), "low-rank"), Stage((1,), (Affine((Term(z),), mask),), "elementwise"))
    normal = Recurrence(
        tuple(b.nodes), dict(program.sizes), frozenset(), stages,
        (Affine((Term(after),)), Affine((Term(h, (x,)),))), (), "low-rank",
    )  # fmt: skip
    return program, normal, dict(h=h, a=a, x=x, u=u, w=w, hk=hk, z=z, after=after, m=m, mask=mask)


def test_a_normal_form_made_by_hand_is_proved_and_kept_as_text():
    program, normal, _ = _hand_made()
    found = certify(program, normal)
    assert found.proved and dict(found.sizes) == {"b": 2, "j": 3, "k": 3}
    assert certificate_from_text(certificate_to_text(found)) == found


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"proved": 1}', "null", '{"proved": true, "sizes": 3}'])
def test_a_damaged_text_is_no_certificate(text):
    assert certificate_from_text(text) is None


def _with(normal, stage, update=None, **changes):
    stages = list(normal.stages)
    if update is not None:
        changes["updates"] = (update,)
    stages[stage] = dataclasses.replace(stages[stage], **changes)
    return dataclasses.replace(normal, stages=tuple(stages))


def _wrong():
    """Everything that a rewrite might get wrong, one at a time."""
    _, normal, r = _hand_made()
    one, two = normal.stages[0].updates[0], normal.stages[1].updates[0]
    own, erase = one.terms
    yield "no factor", _with(normal, 0, Affine((Term(r["h"]), erase), one.offset))
    yield "dropped term", _with(normal, 0, Affine((own,), one.offset))
    yield "dropped offset", _with(normal, 0, Affine(one.terms))
    yield "term twice", _with(normal, 0, Affine((own, own, erase), one.offset))
    yield "squared factor", _with(normal, 0, Affine((Term(r["h"], (r["a"], r["a"])), erase), one.offset))
    yield "other factor", _with(normal, 0, Affine((Term(r["h"], (r["u"],)), erase), one.offset))
    yield "not contracted", _with(normal, 0, Affine((own, Term(r["hk"], (r["u"], r["w"]))), one.offset))
    yield (
        "wrong axis",
        _with(normal, 0, Affine((own, Term(r["h"], (r["u"], r["w"]), frozenset("k"))), one.offset)),
    )
    yield "state in a factor", _with(normal, 0, Affine((Term(r["a"], (r["h"],)), erase), one.offset))
    yield "other semiring", _with(normal, 0, one, semiring="max-plus")
    yield "called elementwise", _with(normal, 0, form="elementwise")
    yield "called complex", _with(normal, 0, complex_pair=True)
    yield "before for after", dataclasses.replace(normal, outs=(Affine((Term(r["h"]),)), normal.outs[1]))
    yield (
        "after for before",
        dataclasses.replace(normal, outs=(normal.outs[0], Affine((Term(r["after"], (r["x"],)),)))),
    )
    yield "stages in the wrong order", dataclasses.replace(normal, stages=normal.stages[::-1])
    yield "a stage twice", dataclasses.replace(normal, stages=(*normal.stages, normal.stages[0]))
    yield "an output too few", dataclasses.replace(normal, outs=normal.outs[:1])
    yield "the whole offset", _with(normal, 1, Affine(two.terms, r["after"]))
    nodes = list(normal.nodes)
    for i, node in enumerate(nodes):
        if node == Pointwise("lt", (r["m"], r["x"])):
            for fn in ("le", "gt", "ge"):
                changed = [*nodes[:i], Pointwise(fn, node.args), *nodes[i + 1 :]]
                yield f"{fn} for lt", dataclasses.replace(normal, nodes=tuple(changed))


@pytest.mark.parametrize("name", [name for name, _ in _wrong()])
def test_a_wrong_normal_form_is_not_proved(name):
    program, _, _ = _hand_made()
    found = certify(program, dict(_wrong())[name])
    assert not found.proved and found.note


def _live(recurrence):
    """The nodes that updates and outputs read."""
    found = set()
    for affine in [*(u for s in recurrence.stages for u in s.updates), *recurrence.outs]:
        found |= {affine.offset} - {None}
        found |= {r for t in affine.terms for r in (t.source, *t.factors)}
    for i in range(len(recurrence.nodes) - 1, -1, -1):
        node = recurrence.nodes[i]
        if i in found:
            found |= set(getattr(node, "args", ())) | ({node.arg} if hasattr(node, "arg") else set())
    return found


_SLOW = [pytest.param("lam", marks=pytest.mark.slow)]
_QUICK = ["delta", "ten", "selective", "lstm", "stabilised", "crf", "rotation", "masked"]


@pytest.mark.parametrize("name", [*_QUICK, *_SLOW])
def test_no_mutant_of_a_normal_form_is_proved(name):
    program = step_program(name)
    normal = analyse(program)
    live, tried = _live(normal), 0
    for i, node in node_mutants(normal.nodes):
        if i in live:
            nodes = (*normal.nodes[:i], node, *normal.nodes[i + 1 :])
            assert not certify(program, dataclasses.replace(normal, nodes=nodes)).proved, (i, node)
            tried += 1
    for s, stage in enumerate(normal.stages):
        for u, update in enumerate(stage.updates):
            for t, term in enumerate(update.terms):
                terms = [update.terms[:t] + update.terms[t + 1 :]]
                terms += [
                    (
                        *update.terms[:t],
                        dataclasses.replace(term, factors=term.factors[1:]),
                        *update.terms[t + 1 :],
                    )
                ] * bool(term.factors)
                for changed in terms:
                    updates = (
                        *stage.updates[:u],
                        dataclasses.replace(update, terms=changed),
                        *stage.updates[u + 1 :],
                    )
                    assert not certify(program, _with(normal, s, updates=updates)).proved, (s, u, t)
                    tried += 1
    assert tried


def test_too_much_work_is_a_refusal():
    program = step_program("lam")
    found = certify(program, analyse(program), 100)
    assert not found.proved and found.unfinished and "more than 100 operations" in found.note


def test_counts_of_entries_shrink_with_their_axis():
    """sum_k (h + x_k) is n h + ...: the n of a large axis is not that of a tiny one."""
    b = Builder()
    h, x = b.input("carry", 0, ("i",)), b.input("stream", 0, ("i", "k"))
    nxt = b.contract(b.call("mul", b.call("add", h, x), b.const(0.01)), "k")
    program = StepProgram(tuple(b.nodes), {"i": 4, "k": 64}, (CarrySpec(("i",), nxt, ("i",)),), ())
    normal = analyse(program)
    assert certify(program, normal).proved
    for i, node in enumerate(normal.nodes):
        if isinstance(node, Const) and node.value != 0.01:
            nodes = (*normal.nodes[:i], Const(node.value * 1.5), *normal.nodes[i + 1 :])
            assert not certify(program, dataclasses.replace(normal, nodes=nodes)).proved
