"""Exact symbolic numbers: what is equal is found equal, what is not never."""

import pytest
import torch

from tenfuse.algebra.proof.evaluate import Evaluator, array
from tenfuse.algebra.proof.polynomials import ONE, ZERO
from tenfuse.algebra.proof.symbolic import SYMBOLIC
from tenfuse.algebra.proof.symbols import Field, GaveUp
from tenfuse.algebra.proof.tiny import unknowns
from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.program import Input, Pointwise, Position
from tenfuse.step.whole import NAMES


def _fn(field, name, *args):
    return SYMBOLIC[name](field, *args)


def test_fractions_are_equal_when_their_numerators_are():
    f = Field()
    a, b, c = f.symbol(), f.symbol(), f.symbol()
    left = _fn(f, "div", f.add(f.mul(a, a), f.neg(f.mul(b, b))), f.add(a, b))
    assert f.equal(left, f.sub(a, b))
    assert not f.equal(left, f.add(a, b))
    nested = _fn(f, "div", ONE, f.add(ONE, _fn(f, "div", a, f.add(b, c))))
    assert f.equal(nested, _fn(f, "div", f.add(b, c), f.add(a, f.add(b, c))))


def test_arguments_equal_as_fractions_make_one_atom():
    f = Field()
    a, b = f.symbol(), f.symbol()
    one = _fn(f, "tanh", _fn(f, "div", f.mul(f.add(a, b), f.add(a, b)), f.add(a, b)))
    assert one == _fn(f, "tanh", f.add(a, b))
    assert one != _fn(f, "tanh", f.sub(a, b))
    assert one != _fn(f, "sigmoid", f.add(a, b))


def test_where_selects_and_forgets_nothing_where_it_would_divide_by_zero():
    f = Field()
    x, y, z, d = (f.symbol() for _ in range(4))
    c = _fn(f, "lt", x, y)
    assert f.equal(_fn(f, "where", c, _fn(f, "where", c, x, y), z), _fn(f, "where", c, x, z))
    assert f.equal(_fn(f, "where", _fn(f, "logical_not", c), x, z), _fn(f, "where", c, z, x))
    below = _fn(f, "where", c, d, ZERO)
    assert not f.equal(
        _fn(f, "where", c, _fn(f, "div", x, below), y), _fn(f, "where", c, _fn(f, "div", x, below), z)
    )


def test_zero_divided_by_is_no_proof_of_anything():
    f = Field()
    x, y = f.symbol(), f.symbol()
    nothing = f.sub(_fn(f, "div", f.mul(x, f.add(x, y)), f.add(x, y)), x)
    assert not f.equal(_fn(f, "div", x, nothing), _fn(f, "div", y, nothing))


def test_maximum_and_logaddexp_distribute_over_sums():
    f = Field()
    a, b, c = f.symbol(), f.symbol(), f.symbol()
    for name in ("maximum", "minimum", "logaddexp"):
        left = f.add(_fn(f, name, _fn(f, name, a, b), c), a)
        right = _fn(f, name, _fn(f, name, f.add(b, a), f.add(c, a)), f.add(a, a))
        assert f.equal(left, right), name
        assert not f.equal(left, f.add(a, _fn(f, name, a, b))), name
    assert f.equal(_fn(f, "maximum", a, a), a) and not f.equal(_fn(f, "logaddexp", a, a), a)
    top = _fn(f, "maximum", a, b)
    shifted = f.add(_fn(f, "exp", f.sub(a, top)), _fn(f, "exp", f.sub(b, top)))
    assert f.equal(f.add(_fn(f, "log", shifted), top), _fn(f, "logaddexp", a, b))


def test_cut_is_not_the_identity_but_passes_through_functions():
    f = Field()
    a, b = f.symbol(), f.symbol()
    assert not f.equal(_fn(f, "cut", a), a)
    whole = _fn(f, "cut", _fn(f, "tanh", f.mul(a, b)))
    parts = _fn(f, "tanh", f.mul(_fn(f, "cut", _fn(f, "cut", a)), _fn(f, "cut", b)))
    assert f.equal(whole, parts)


def test_the_cut_of_a_long_sum_may_be_nothing():
    f = Field()
    parts = [f.symbol() for _ in range(8)]
    gaps = f.total(f.sub(x, _fn(f, "cut", x)) for x in parts)
    name = f.named(gaps)
    assert len(name.terms) == 1 and _fn(f, "cut", name) == ZERO
    assert f.equal(f.mul(name, name), f.expanded(gaps, gaps))


def test_constants_rounded_elsewhere_agree():
    f = Field()
    assert f.mul(f.const(0.9), f.const(0.1)) == f.const(0.9 * 0.1)
    assert f.sub(f.const(1.0), f.const(0.7)) == f.const(1.0 - 0.7)
    assert f.const(0.9) != f.const(0.9000001)


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - NAMES))
def test_every_function_has_a_meaning_that_agrees_with_torch(name):
    """On numbers, where the meaning is a number; ``a`` is never equal to ``a + 1``."""
    for values in ((2.0, 3.0, -1.0), (-2.0, 0.0, 4.0), (0.5, 0.5, 0.5), (0.0, 1.0, 2.0)):
        args = values[: FUNCTIONS[name].arity]
        if name in ("div", "pow") and (args[1] == 0.0 or args[0] == 0.0):
            continue
        f = Field()
        found = SYMBOLIC[name](f, *(f.const(v) for v in args)).number()
        want = FUNCTIONS[name].torch(*(torch.tensor(v, dtype=torch.float64) for v in args))
        assert found is None or float(found) == pytest.approx(float(want))


def test_a_node_without_a_meaning_is_an_error():
    class Unknown:
        pass

    with pytest.raises(TypeError):
        Evaluator(Field(), {})._node(Unknown(), [], {})


def test_positions_are_numbers():
    f = Field()
    run = Evaluator(f, {"t": 3, "s": 3})
    nodes = [
        Position("t"),
        Position("s"),
        Pointwise("ge", (0, 1)),
        Input("stream", 0, ("s",)),
        Pointwise("where", (2, 3, 2)),
    ]
    values = run.run(nodes, unknowns(f, [nodes], run.sizes))
    assert values[2][0].tolist() == array((3, 3), lambda p: ONE if p[1] >= p[0] else ZERO).tolist()


def test_an_entry_that_grows_too_large_is_given_up():
    f = Field()
    big = f.total(f.symbol() for _ in range(10))
    with pytest.raises(GaveUp):
        f.power(big, 100)
