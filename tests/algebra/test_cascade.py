"""Stages: carries that depend on each other both ways, in the order they can be computed."""

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.cascade import cascade
from tenfuse.step.program import Builder, CarrySpec, Input, OutSpec, StepProgram, validate
from tests.algebra.test_affine import core, rebuilt

D = ("d",)


def program(updates, count, outs=()):
    """Carries 0.. over one axis; ``updates(b, carries, x)`` gives their next values."""
    b = Builder()
    carries = [b.input("carry", i, D) for i in range(count)]
    nexts = updates(b, carries, b.input("stream", 0, D))
    made = StepProgram(
        tuple(b.nodes), {"d": 3}, tuple(CarrySpec(D, n, D) for n in nexts), tuple(OutSpec(o, D) for o in outs)
    )
    validate(made)
    return made


def stages(made):
    return [set(s) for s in cascade(made).stages]


def test_momentum_comes_before_the_weights():
    """Whichever carry is which: the one that is read comes first."""

    def first(b, c, x):
        s = b.call("add", b.call("mul", b.const(0.9), c[1]), x)
        return [b.call("add", b.call("mul", b.const(0.8), c[0]), s), s]

    made = program(first, 2)
    assert stages(made) == [{1}, {0}]
    found, _ = rebuilt(made)
    offset = found.nodes[found.stages[1].updates[0].offset]
    assert offset == Input("next", 1, D) and found.form == "block"


def test_carries_that_read_each_other_are_one_stage():
    made = program(lambda b, c, x: [b.call("add", c[1], x), b.call("mul", b.const(0.5), c[0])], 2)
    assert stages(made) == [{0, 1}]
    assert analyse(made).form == "block"


def test_a_carry_that_nobody_reads_stands_last():
    """Its next value reads the other carry, which therefore may not take it as given."""

    def updates(b, c, x):
        y = b.call("tanh", b.call("add", c[1], x))
        return [y, b.call("mul", b.const(0.5), y)]

    made = program(updates, 2)
    assert stages(made) == [{1}, {0}]
    found, _ = rebuilt(made)
    assert [s.form for s in found.stages] == ["nonlinear", "elementwise"]


def test_two_carries_with_one_next_value():
    def updates(b, c, x):
        y = b.call("add", b.call("mul", b.const(0.5), c[0]), x)
        return [y, y, b.call("add", c[1], y)]

    found, _ = rebuilt(program(updates, 3))
    assert [s.carries for s in found.stages] == [(0,), (1,), (2,)]


def test_a_delay_line_is_no_scan():
    """h <- 0.5 h + x - x_before: the carry that holds x_before makes it no block."""
    made = program(lambda b, c, x: [x, b.call("sub", b.call("mul", b.const(0.5), c[1]), c[0])], 2)
    found, _ = rebuilt(made)
    assert found.form == "elementwise" and [s.carries for s in found.stages] == [(0,), (1,)]


def test_independent_scans_stay_elementwise():
    made = program(lambda b, c, x: [b.call("add", c[0], x), b.call("sub", c[1], x)], 2)
    assert analyse(made).form == "elementwise"


def test_a_stabiliser_feeds_the_linear_scans():
    found = analyse(core("cells/mlstm"))
    assert [(s.form, s.semiring) for s in found.stages] == [
        ("semiring", "max-plus"), ("low-rank", "sum-product"), ("elementwise", "sum-product"),
    ]  # fmt: skip


def test_a_next_value_constant_along_an_axis_is_not_taken_as_given():
    """It is read with fewer axes than the carry has."""
    b = Builder()
    h, g, x = b.input("carry", 0, ("b", "d")), b.input("carry", 1, ("b",)), b.input("stream", 0, ("b",))
    y = b.call("add", b.contract(h, "d"), x)
    z = b.call("add", b.call("mul", b.const(0.5), g), y)
    carries = (CarrySpec(("b", "d"), y, ("b", "d")), CarrySpec(("b",), z, ("b",)))
    rebuilt(StepProgram(tuple(b.nodes), {"b": 2, "d": 3}, carries, (OutSpec(y, ("b",)),)))
