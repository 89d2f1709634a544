"""The table of forms: every reference model, the generator's cells, hand-made cases and near-misses."""

import random

import pytest

from reference import CASES
from tenfuse.algebra.analyse import analyse
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram, validate
from tenfuse.testing.recipe import (
    ACCESSES,
    BACKWARDS,
    CELLS,
    COLLECTS,
    CONTRACTIONS,
    INITS,
    READS,
    Recipe,
    normal,
)
from tenfuse.testing.strategies import Program
from tests.algebra.cores import backward, complex_carries, steps_of
from tests.algebra.test_affine import rebuilt
from tests.emit.programs import FORWARD

FORMS = {
    "ten/v1-no-resonance": "block", "ten/v4-plain": "block", "ten/v4-by-8": "block", "ten/v4-by-4": "block",
    "ten/v5": "block", "ten/v6": "block", "ten/v6-per-head": "block", "ten/v6-silu": "block",
    "ten/v6-selective": "block", "ten/v6-selective-complex": "elementwise", "ten": "dense",
    "delta": "low-rank", "linear": "low-rank", "elementwise": "elementwise", "ssm": "elementwise",
    "ssm/lru-pairs": "block", "cells": "nonlinear", "cells/mlstm": "low-rank", "semiring": "semiring",
    "semiring/hmm": "nonlinear", "returns": "elementwise", "filters": "block", "filters/leaky": "elementwise",
    "spectral": "nonlinear", "spectral/ema-polar-scan": "elementwise", "lam": "nonlinear",
    "lam/linear": "elementwise", "lam/linear-slices": "elementwise", "lam/dual": "block",
    "titans/linear": "low-rank", "titans/event-driven": "low-rank", "titans/frozen": "block",
    "titans": "nonlinear",
}  # fmt: skip
"""By name, else by family.  LAM's plain linear state takes a write that is a matmul over the
tokens of a chunk: a full matrix per step, which no factorisation makes smaller."""

RINGS = {"crf": "log-plus", "viterbi": "max-plus", "running-max": "max-plus", "decayed-max": "max-plus"}
CARRIED = [c for c in CASES if c.kind == "carry"]
SAME = {"elementwise", "block", "low-rank", "dense"}


@pytest.mark.parametrize("case", CARRIED, ids=lambda c: c.name)
def test_reference_models(case):
    family, name = case.name.split("/")
    want = FORMS.get(case.name, FORMS[family])
    model, inputs = case.make(5)
    for step in steps_of(model, *inputs):
        pairs = complex_carries(step)
        found = analyse(step.program, pairs)
        assert found.form == want
        assert all(s.semiring == RINGS[name] for s in found.stages if name in RINGS)
        if want in SAME and "truncated" not in name:
            assert analyse(backward(step.program), pairs).form == want
        if want in ("block", "elementwise") and family == "ten" and "per-head" not in name:
            assert all(s.complex_pair for s in found.stages)


PROGRAMS = {
    "ema": "elementwise", "ten": "dense", "attention": "low-rank", "delta": "low-rank", "scan": "elementwise",
    "rnn": "nonlinear", "lstm": "nonlinear", "viterbi": "semiring", "masked": "elementwise",
    "normalised": "nonlinear", "softmax": "nonlinear", "swap": "block", "transposed": "dense",
    "bilinear": "nonlinear",
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    program = FORWARD[name]()
    assert analyse(program).form == PROGRAMS[name]
    if PROGRAMS[name] in SAME:
        assert analyse(backward(program)).form == PROGRAMS[name]


# -- hand-made states S[b, h, k, v] -----------------------------------------------------

SIZES = {"b": 2, "h": 2, "g": 2, "k": 4, "j": 4, "v": 3, "r": 2}
S = ("b", "h", "k", "v")


class Draft:
    """Streams and invariants by their axes: ``d.x("bhk")`` is a new stream."""

    def __init__(self, axes=S):
        self.b, self.axes, self.counts = Builder(), tuple(axes), {"stream": 0, "invariant": 0}
        self.s = self.b.input("carry", 0, self.axes)

    def x(self, axes, kind="stream"):
        self.counts[kind] += 1
        return self.b.input(kind, self.counts[kind] - 1, tuple(axes))

    def fixed(self, axes):
        return self.x(axes, "invariant")

    def mul(self, *refs):
        total = refs[0]
        for ref in refs[1:]:
            total = self.b.call("mul", total, ref)
        return total

    def add(self, *refs):
        total = refs[0]
        for ref in refs[1:]:
            total = self.b.call("add", total, ref)
        return total

    def dot(self, weight, state, *axes):
        return self.b.contract(self.mul(weight, state), *axes)

    def form(self, update, *outs, next_axes=None):
        specs = [OutSpec(o, tuple(sorted(self.b.axes[o]))) for o in outs]
        carry = CarrySpec(self.axes, update, next_axes or self.axes)
        program = StepProgram(tuple(self.b.nodes), SIZES, (carry,), tuple(specs))
        validate(program)
        return rebuilt(program)[0].form


def attention(d, decay="", k="bhk", v="bhv", q="bhk", over="k"):
    held = d.mul(d.x(decay), d.s) if decay else d.s
    new = d.add(held, d.mul(d.x(k), d.x(v)))
    return new, d.dot(d.x(q), new, *over)


@pytest.mark.parametrize("decay", ["", "bh", "bhk", "b"])
def test_linear_attention(decay):
    d = Draft()
    assert d.form(*attention(d, decay)) == "low-rank"


def test_a_decay_over_both_axes_is_elementwise():
    d = Draft()
    assert d.form(*attention(d, "bhkv")) == "elementwise"


def test_a_decay_over_the_value_axis_turns_keys_and_values_around_only_with_another_read():
    d = Draft()
    assert d.form(*attention(d, "bhv")) == "elementwise"
    d = Draft()
    assert d.form(*attention(d, "bhv", q="bhv", over="v")) == "low-rank"


def test_grouped_and_merged_heads():
    d = Draft()
    assert d.form(*attention(d, "bh", k="bk", q="bhk")) == "low-rank"
    d = Draft(("b", "g", "h", "k", "v"))
    assert d.form(*attention(d, "bgh", k="bgk", v="bghv", q="bghk")) == "low-rank"
    d = Draft(("v", "k"))
    assert d.form(*attention(d, "", k="k", v="v", q="k")) == "low-rank"


def test_a_full_write_is_elementwise():
    d = Draft()
    new = d.add(d.mul(d.x("bh"), d.s), d.x("bhkv"))
    assert d.form(new, d.dot(d.x("bhk"), new, "k")) == "elementwise"


def test_a_state_shown_whole_is_elementwise():
    d = Draft()
    new, out = attention(d, "bh")
    assert d.form(new, out, new) == "elementwise"


def test_a_filter_with_fixed_coefficients_is_elementwise():
    """S4D: decay, input and output matrices never change; only the batch is free of them."""
    d = Draft(("b", "k", "v"))
    new = d.add(d.mul(d.fixed("kv"), d.s), d.mul(d.fixed("kv"), d.x("bk")))
    assert d.form(new, d.dot(d.fixed("kv"), new, "v")) == "elementwise"


def delta(d, w, u, state=None, sign="sub"):
    state = d.s if state is None else state
    return d.b.call(sign, state, d.mul(u, d.dot(w, state, "k")))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_delta_rule_of_any_rank(count):
    d = Draft()
    new = d.mul(d.x("bhk"), d.s)
    for _ in range(count):
        new = d.add(delta(d, d.x("bhk"), d.x("bhk"), new), d.mul(d.x("bhk"), d.x("bhv")))
    assert d.form(new, d.dot(d.x("bhk"), new, "k")) == "low-rank"


def test_a_rank_axis_is_a_rank():
    """S - U (W^T S) with U and W [k, r], r below k."""
    d = Draft()
    z = d.dot(d.x("bhkr"), d.s, "k")
    new = d.b.call("sub", d.s, d.dot(d.x("bhkr"), z, "r"))
    assert d.form(new) == "low-rank"


def test_a_delta_rule_on_a_vector():
    d = Draft(("b", "k"))
    new = d.add(delta(d, d.fixed("k"), d.fixed("k")), d.x("bk"))
    assert d.form(new) == "low-rank"


def test_removing_the_mean_is_low_rank():
    d = Draft(("b", "k"))
    new = d.b.call("sub", d.s, d.mul(d.b.const(0.25), d.b.contract(d.s, "k")))
    assert d.form(new) == "low-rank"


def test_reads_over_two_axes_are_dense():
    d = Draft()
    new = delta(d, d.x("bhk"), d.x("bhk"))
    new = d.b.call("sub", new, d.mul(d.x("bhv"), d.dot(d.x("bhv"), d.s, "v")))
    assert d.form(new) == "dense"


@pytest.mark.parametrize("kind", ["x", "fixed"])
def test_a_matrix_between_the_axes_is_dense(kind):
    d = Draft(("b", "k"))
    matrix = getattr(d, kind)("kj")
    assert d.form(d.add(d.dot(matrix, d.s, "k"), d.x("bj")), next_axes=("b", "j")) == "dense"


def test_a_transposed_state_is_dense():
    d = Draft(("b", "k", "j"))
    other = d.b.input("carry", 0, ("b", "j", "k"))
    assert d.form(d.add(d.mul(d.b.const(0.5), other), d.x("bkj"))) == "dense"


NONLINEAR = ("tanh", "sigmoid", "abs", "relu", "exp", "round_bf16", "sin")


@pytest.mark.parametrize("fn", NONLINEAR)
def test_a_function_of_the_state_is_nonlinear(fn):
    d = Draft(("b", "k"))
    assert d.form(d.b.call(fn, d.add(d.mul(d.x("bk"), d.s), d.x("bk")))) == "nonlinear"


def test_gates_of_the_state_are_nonlinear():
    d = Draft(("b", "k"))
    gate = d.b.call("sigmoid", d.s)
    assert d.form(d.add(d.mul(gate, d.s), d.x("bk"))) == "nonlinear"
    d = Draft(("b", "k"))
    mask = d.b.call("gt", d.s, d.b.const(0.0))
    assert d.form(d.b.call("where", mask, d.x("bk"), d.mul(d.x("bk"), d.s))) == "nonlinear"
    d = Draft(("b", "k"))
    assert d.form(d.b.call("div", d.x("bk"), d.add(d.s, d.b.const(9.0)))) == "nonlinear"


@pytest.mark.parametrize("fn", ["clamp_min", "clamp_max"])
def test_a_clamp_is_nonlinear(fn):
    """Its derivative at the bound is not that of a maximum, so it is no semiring either."""
    d = Draft(("b", "k"))
    assert d.form(d.b.call(fn, d.add(d.s, d.x("bk")), d.b.const(0.0))) == "nonlinear"


# -- semirings --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plus", "times", "ring"),
    [("maximum", "add", "max-plus"), ("minimum", "add", "min-plus"), ("logaddexp", "add", "log-plus"),
     ("logical_or", "logical_and", "or-and")],
)  # fmt: skip
def test_semirings(plus, times, ring):
    d = Draft(("b", "k"))
    held = d.b.call(times, d.s, d.x("bk"))
    new = d.b.call(plus, held, d.x("bk"))
    program = StepProgram(tuple(d.b.nodes), SIZES, (CarrySpec(d.axes, new, d.axes),), ())
    found, _ = rebuilt(program)
    assert (found.form, found.stages[0].semiring) == ("semiring", ring)


def shifted(d, value, top, added):
    """log sum exp(value - top) + added, over k."""
    total = d.b.contract(d.b.call("exp", d.b.call("sub", value, top)), "k")
    return d.b.call("add", d.b.call("log", total), added)


def test_log_sum_exp_however_it_is_shifted():
    for guarded in (False, True):
        d = Draft(("b", "k"))
        value = d.add(d.s, d.fixed("kj"))
        top = d.b.contract(value, "k", op="max")
        top = d.b.call("cut", top) if guarded else top
        assert d.form(shifted(d, value, top, top), next_axes=("b", "j")) == "semiring"


def test_a_shift_that_is_not_added_back_is_nonlinear():
    d = Draft(("b", "k"))
    value = d.add(d.s, d.fixed("kj"))
    top = d.b.contract(value, "k", op="max")
    other = d.b.call("cut", top)
    assert d.form(shifted(d, value, top, other), next_axes=("b", "j")) == "nonlinear"
    d = Draft(("b", "k"))
    value = d.add(d.s, d.fixed("kj"))
    assert (
        d.form(shifted(d, value, d.s, d.b.contract(d.s, "k", op="max")), next_axes=("b", "j")) == "nonlinear"
    )


def test_a_scaled_maximum_is_nonlinear():
    d = Draft(("b", "k"))
    assert d.form(d.b.call("maximum", d.mul(d.x("bk"), d.s), d.x("bk"))) == "nonlinear"
    d = Draft(("b", "k"))
    best = d.b.call("maximum", d.add(d.s, d.x("bk")), d.x("bk"))
    assert d.form(d.b.call("minimum", best, d.x("bk"))) == "nonlinear"


# -- couplings --------------------------------------------------------------------------


def coupled(count, sign="sub", other=None):
    """A ring of ``count`` carries, each the sum of itself and the next."""
    b = Builder()
    own = [b.input("carry", i, ("b", "k")) for i in range(count)]
    p, q = b.input("stream", 0, ("b", "k")), b.input("stream", 1, ("b", "k"))
    r = q if other is None else b.input("stream", 2, ("b", "k"))
    specs = []
    for i, h in enumerate(own):
        mixed = b.call("mul", q if i == 0 else r, own[(i + 1) % count])
        new = b.call(sign if i == 0 else "add", b.call("mul", p, h), mixed)
        specs.append(CarrySpec(("b", "k"), new, ("b", "k")))
    program = StepProgram(tuple(b.nodes), SIZES, tuple(specs), ())
    return rebuilt(program)[0]


def test_complex_pairs():
    assert coupled(2).stages[0].complex_pair
    assert not coupled(2, "add").stages[0].complex_pair, "a hyperbolic rotation"
    assert not coupled(2, other=1).stages[0].complex_pair
    assert not coupled(3).stages[0].complex_pair


def test_the_largest_block():
    assert [coupled(n).form for n in (2, 3, 4, 5)] == ["block", "block", "block", "dense"]


def corrected(u="bk", w="bj", through=None):
    """Momentum beside memory, S[b, k, v]: both are corrected by what the memory answers."""
    b, axes = Builder(), ("b", "k", "v")
    memory, momentum = b.input("carry", 0, axes), b.input("carry", 1, axes)
    eta, alpha = b.input("stream", 0, ("b",)), b.input("stream", 1, ("b",))
    write, key = b.input("stream", 2, tuple(u)), b.input("stream", 3, tuple(w))
    there = b.rename(memory, {"k": "j"})
    answer = b.call("mul", key, there if through is None else b.call(through, there))
    correction = b.contract(b.call("mul", write, answer), "j")
    pushed = b.call("sub", b.call("mul", eta, momentum), correction)
    kept = b.call("add", b.call("mul", alpha, memory), pushed)
    carries = (CarrySpec(axes, kept, axes), CarrySpec(axes, pushed, axes))
    return rebuilt(StepProgram(tuple(b.nodes), SIZES, carries, ()))[0]


def test_momentum_beside_a_memory_is_of_low_rank_as_long_as_the_correction_is():
    assert [(s.carries, s.form) for s in corrected().stages] == [((0, 1), "low-rank")]
    assert corrected(u="bkj").form == "dense", "the write joins the key's axis to its own"
    assert corrected(through="tanh").form == "nonlinear"


@pytest.mark.parametrize("first", [0, 1])
def test_a_matrix_and_a_vector_that_read_each_other_are_dense(first):
    """Their updates contract the same place of a state, but there is no place that both have."""
    b, matrix, vector = Builder(), ("b", "k", "v"), ("b", "v")
    s, h = b.input("carry", first, matrix), b.input("carry", 1 - first, vector)
    key, query = b.input("stream", 0, ("b", "k")), b.input("stream", 1, ("b", "v"))
    answer = b.contract(b.call("mul", query, h), "v")
    write = b.call("mul", b.call("mul", key, query), answer)
    read = b.contract(b.call("mul", key, s), "k")
    carries = [CarrySpec(matrix, b.call("add", s, write), matrix), CarrySpec(vector, read, vector)]
    carries = carries[::-1] if first else carries
    assert rebuilt(StepProgram(tuple(b.nodes), SIZES, tuple(carries), ()))[0].form == "dense"


def test_a_complex_tensor_is_one_elementwise_carry():
    b = Builder()
    h, g = b.input("carry", 0, ("k",)), b.input("carry", 1, ("k",))
    p, q = b.input("invariant", 0, ("k",)), b.input("invariant", 1, ("k",))
    real = b.call("sub", b.call("mul", p, h), b.call("mul", q, g))
    imag = b.call("add", b.call("mul", p, g), b.call("mul", q, h))
    carries = tuple(CarrySpec(("k",), n, ("k",)) for n in (real, imag))
    program = StepProgram(tuple(b.nodes), SIZES, carries, ())
    assert analyse(program).form == "block"
    assert analyse(program, [(0, 1)]).form == "elementwise"


# -- the generator's cells ----------------------------------------------------------------


def drawn(seed, mutant=""):
    rng = random.Random(seed)
    pick = rng.choice
    return normal(
        Recipe(
            cell=pick(list(CELLS)), mutant=mutant, steps=5, width=pick((3, 4, 5)),
            header=pick(("range", *BACKWARDS)), access=pick(ACCESSES), init=pick(INITS),
            collect=pick(COLLECTS), read=pick(READS), contract=pick(CONTRACTIONS),
            helper=rng.random() < 0.5, project=rng.random() < 0.3,
            order=rng.randrange(10**6), variant=rng.randrange(6),
        )
    )  # fmt: skip


def forms(recipe):
    program = Program(recipe)
    return [analyse(s.program).form for s in steps_of(program.load(), *program.inputs())]


@pytest.mark.parametrize("seed", range(24))
def test_cells_in_any_spelling(seed):
    recipe = drawn(seed)
    assert forms(recipe) == [recipe.form]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(24, 424))
def test_cells_in_many_spellings(seed):
    recipe = drawn(seed)
    assert forms(recipe) == [recipe.form]


@pytest.mark.parametrize("mutant", ["tanh", "clamp", "gate_on_state"])
@pytest.mark.parametrize("seed", range(4))
def test_near_misses_are_nonlinear(seed, mutant):
    assert set(forms(drawn(seed, mutant))) == {"nonlinear"}
