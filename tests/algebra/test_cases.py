"""Proofs by cases: every input is in one of them, and none that is possible is left out."""

import itertools
import random

import pytest

from tenfuse.algebra.proof.cases import Case, Cases, by_cases, possible
from tenfuse.algebra.proof.certify import Differs
from tenfuse.algebra.proof.symbolic import SYMBOLIC
from tenfuse.algebra.proof.symbols import Field, GaveUp

ONE = -1


def counted(prove, work=None):
    """The cases that ``prove`` is run in, as they are when it ends."""
    found, field = [], Field(work)

    def run(one):
        prove(one)
        found.append(one.case)

    by_cases(run, field)
    return found, field


def at(form, point):
    return sum(c * (1 if x == ONE else point[x]) for x, c in form.items())


def inside(case, point):
    return (
        all(at(form, point) == point[x] for x, form in case.replaced.items())
        and all(at(form, point) > 0 for form in case.positive)
        and all(at(dict(line), point) != 0 for line in case.apart)
    )


def largest(f, *values):
    total = values[0]
    for v in values[1:]:
        total = SYMBOLIC["maximum"](f, total, v)
    return total


def compared(f):
    x, y, z = f.symbol(), f.symbol(), f.symbol()
    for a, b in ((x, y), (y, z), (x, z)):
        SYMBOLIC["gt"](f, a, b)
        SYMBOLIC["eq"](f, a, b)


def mixed(f):
    x, y, z = f.symbol(), f.symbol(), f.symbol()
    m = largest(f, f.add(x, y), z, f.const(1.0))
    SYMBOLIC["eq"](f, m, f.add(x, x))
    SYMBOLIC["lt"](f, largest(f, m, y), f.sub(z, x))


def test_three_values_have_thirteen_orders():
    assert len(counted(compared)[0]) == 13
    assert len(counted(lambda f: SYMBOLIC["lt"](f, f.symbol(), f.symbol()))[0]) == 3


@pytest.mark.parametrize("prove", [compared, mixed])
def test_every_input_is_in_one_case(prove):
    cases, _ = counted(prove)
    for point in itertools.product((-2, -1, 0, 0.5, 1, 3), repeat=3):
        assert sum(inside(case, point) for case in cases) == 1, point


def test_what_holds_but_at_a_tie_is_not_proved():
    def prove(f):
        x, y = f.symbol(), f.symbol()
        share = f.add(SYMBOLIC["gt"](f, x, y), SYMBOLIC["gt"](f, y, x))
        if not f.equal(share, f.const(1.0)):
            raise Differs("they share nothing where they are equal")

    with pytest.raises(Differs):
        counted(prove)


def test_a_tie_holds_in_all_that_follows():
    def prove(f):
        x, y, z = f.symbol(), f.symbol(), f.symbol()
        one, other = largest(f, x, y, z), largest(f, f.sub(z, x), f.sub(y, x), f.const(0.0))
        if not f.equal(f.sub(one, x), other):
            raise Differs("a maximum does not move with its arguments")

    assert len(counted(prove)[0]) >= 3


def test_a_maximum_is_not_its_first_argument():
    def prove(f):
        x, y = f.symbol(), f.symbol()
        if not f.equal(largest(f, x, y), x):
            raise Differs("it is the other")

    with pytest.raises(Differs):
        counted(prove)


def test_values_that_are_not_linear_stay_unknown():
    def prove(f):
        x, y = f.symbol(), f.symbol()
        assert f.sign(f.mul(x, y)) is None and f.null(f.mul(x, y)) is None
        assert f.sign(SYMBOLIC["exp"](f, x)) is None

    assert len(counted(prove)[0]) == 1


def test_the_work_of_all_cases_is_counted():
    _, field = counted(compared)
    assert field.spent > 13
    with pytest.raises(GaveUp):
        counted(compared, field.spent - 1)


def test_no_system_with_a_solution_is_called_impossible():
    rng, found = random.Random(0), {True: 0, False: 0}
    for _ in range(300):
        forms = [
            {x: c for x in (0, 1, 2, ONE) if (c := rng.randint(-2, 2))} for _ in range(rng.randint(1, 6))
        ]
        grid = itertools.product((-3, -1, -0.5, 0, 0.5, 1, 2), repeat=3)
        solved = any(all(at(form, point) > 0 for form in forms) for point in grid)
        answer = possible(forms, lambda _: None)
        assert answer or not solved
        found[answer] += 1
    assert min(found.values()) > 20


def test_systems_without_a_solution_are_found():
    x, y = 0, 1
    assert not possible([{x: 1}, {x: -1}], lambda _: None)
    assert not possible([{x: 1, y: -1}, {y: 1, ONE: -2}, {x: -1, ONE: 2}], lambda _: None)
    assert possible([{x: 1, y: -1}, {y: 1, ONE: -2}, {x: -1, ONE: 3}], lambda _: None)


def test_a_case_forgets_nothing_when_an_entry_is_replaced():
    x, y, z = 0, 1, 2
    case = Case().where({x: 1, y: -1}, 1).where_not_zero({y: 1, z: 1}).where({z: 1, x: -1}, 0)
    assert inside(case, (2, 1, 2)) and not inside(case, (1, 2, 1)) and not inside(case, (2, -2, 2))
    assert not inside(case, (2, 1, 3))
    one = Cases(case, [])
    a, b, c = one.symbol(), one.symbol(), one.symbol()
    assert a == c and one.sign(one.sub(b, a)) == -1 and not one.others
