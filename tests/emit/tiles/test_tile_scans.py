"""Scans that run together, positions that lie the other way, and matrices written out entry by entry."""

import dataclasses

import pytest

from tenfuse.algebra.chunks.decay import running
from tenfuse.emit.triton.scans import is_product, mirrored, together
from tenfuse.emit.triton.small import known, powers, small
from tenfuse.step.program import Builder, CarrySpec, Contract, OutSpec, Position, Scan, Solve, StepProgram
from tests.emit.tiles.tileharness import Bench, agree, interpreted

SIZES = {"t": 8, "d": 3, "i": 2, "j": 2, "k": 2}


def program(build, outs, sizes=SIZES):
    """Outputs of a step that also carries a sum, so that iterations differ."""
    carry = build.input("carry", 0, ("d",))
    x = build.input("stream", 1, ("t", "d"))
    after = build.call("add", carry, build.contract(x, "t"))
    specs = tuple(OutSpec(o, tuple(sorted(build.axes[o]))) for o in outs)
    names = {a for own in build.axes for a in own}
    return StepProgram(
        tuple(build.nodes), {a: n for a, n in sizes.items() if a in names},
        (CarrySpec(("d",), after, ("d",)),), specs,
    )  # fmt: skip


def scans(reverse, count=2):
    """``count`` scans with one decay, and the products of the decays."""
    b = Builder()
    a = b.input("stream", 0, ("t", "d"))
    found = [b.add(Scan("t", a, b.input("stream", n + 1, ("t", "d")), reverse)) for n in range(count)]
    return b, [*found, running(b, a, "t", SIZES["t"], reverse)]


def checked(made):
    """The kernel's own text, after its results were those of the interpreter."""
    bench = Bench(made, 3)
    launcher, finals, outs = bench.run()
    theirs_finals, theirs = bench.want()
    for mine, other in zip((*finals, *outs), (*theirs_finals, *theirs), strict=True):
        agree(mine, other, 1e-5, made.outs)
    return launcher.source[launcher.source.rindex("def kernel") :]


@interpreted
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_scans_with_one_decay_run_together_and_turn_nothing(reverse, count):
    text = checked(program(*scans(reverse, count)))
    assert text.count("associative_scan") == (2 if count == 4 else 1)
    assert "flip" not in text and ("7 - tl.arange" in text) == reverse


@interpreted
def test_both_ways_in_one_step():
    b, there = scans(False)
    a = b.input("stream", 0, ("t", "d"))
    back = b.add(Scan("t", a, there[0], True))
    text = checked(program(b, [*there, back]))
    assert text.count("associative_scan") == 2 and "flip" in text


@interpreted
def test_a_scan_that_reads_a_scan_runs_behind_it():
    b, found = scans(False, 1)
    a = b.input("stream", 0, ("t", "d"))
    made = program(b, [*found, b.add(Scan("t", a, found[0]))])
    first, second = found[0], made.outs[-1].ref
    assert second not in together(made)[first]
    checked(made)


def other_argument(where, value, fill):
    """The scan with another argument: ``value`` at the position ``where``, ``fill`` elsewhere."""

    def change(b, scan):
        first = b.call("eq", b.add(Position("t")), b.const(where))
        arg = b.call("where", first, scan.decay if value is None else value, b.const(fill))
        return dataclasses.replace(scan, arg=arg)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda b, scan: dataclasses.replace(scan, reverse=True),
        lambda b, scan: dataclasses.replace(scan, semiring="max-plus"),
        other_argument(0.0, None, 1.0), other_argument(1.0, None, 0.0), other_argument(0.0, 1, 0.0),
    ],
)  # fmt: skip
def test_what_is_nearly_a_product_of_decays_is_none(change):
    b, found = scans(False, 1)
    node = b.nodes[found[1]]
    made = program(b, found)
    assert is_product(made, node)
    other = change(b, node)
    assert not is_product(program(b, found), other)


def test_positions_of_systems_and_of_carries_do_not_turn():
    b, found = scans(True)
    whole = frozenset({"t"})
    assert mirrored(program(b, found), whole) == {"t"}
    assert not mirrored(program(b, found), frozenset())
    lower = b.input("stream", 3, ("t", "s"))
    b.add(Solve(lower, b.input("stream", 1, ("t", "d")), ("t",), ("s",)))
    assert not mirrored(program(b, found, SIZES | {"s": 8}), whole)


def matrices(transpose=False, reverse=False, size=2, entering=False):
    """A scan whose decay is a matrix made of streams, and the products of the matrices."""
    b = Builder()
    names = [b.input("stream", n, ("t", "d")) for n in range(3)]
    at = {a: b.add(Position(a)) for a in "ij"}
    same, first = b.call("eq", at["i"], at["j"]), b.call("lt", at["i"], b.const(1.0))
    matrix = b.call("where", same, names[0], b.call("where", first, names[1], names[2]))
    vector = b.call("where", first, names[1], names[2])
    if entering:
        vector = b.input("stream", 3, ("t", "d", "i"))
    local = b.add(Scan("t", matrix, vector, reverse, ("i",), ("j",), transpose))
    begin = b.call(
        "where", b.call("eq", b.add(Position("t")), b.const(0.0)), b.rename(matrix, {"j": "k"}), b.const(0.0)
    )
    power = b.add(Scan("t", matrix, begin, False, ("i",), ("j",)))
    outs = [b.contract(b.call("mul", local, b.call("add", at["i"], b.const(1.0))), "i")]
    for i, k in ((0, 0), (0, 1), (1, 0), (1, 1)):
        row = b.contract(b.call("where", b.call("eq", at["i"], b.const(float(i))), power, b.const(0.0)), "i")
        column = b.call("eq", b.add(Position("k")), b.const(float(k)))
        outs.append(b.contract(b.call("where", column, row, b.const(0.0)), "k"))
    highest = b.add(Contract(frozenset({"i"}), local, "max"))
    return program(b, [*outs, highest], SIZES | dict.fromkeys("ijk", size)), power


@interpreted
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_a_scan_of_small_matrices_is_one_scan_of_their_entries(transpose, reverse, size):
    made, power = matrices(transpose, reverse, size)
    assert small(made) == {"i", "j", "k"}
    assert powers(made, made.nodes[power]) == ("k",)
    text = checked(made)
    alone = not transpose and not reverse
    assert text.count("associative_scan") == (1 if alone else 2) and "gather" not in text


@interpreted
def test_matrices_too_large_or_along_axes_that_enter_keep_their_dimensions():
    for made in (matrices(size=4)[0], matrices(entering=True)[0]):
        assert not small(made)
        assert "matrix_" not in checked(made)


def test_comparisons_of_positions_are_known_where_the_positions_are():
    b = Builder()
    i, one = b.add(Position("i")), b.const(1.0)
    below, at = b.call("lt", i, one), b.call("eq", one, i)
    both = b.call("logical_or", below, b.call("logical_not", at))
    x = b.call("gt", b.input("stream", 0, ("d",)), one)
    mixed = b.call("logical_or", below, x)
    made = StepProgram(tuple(b.nodes), {"i": 3, "d": 2}, (), (OutSpec(mixed, ("d", "i")),))
    assert [known(made, both, {"i": n}) for n in range(3)] == [True, False, True]
    assert known(made, mixed, {"i": 0}) is True and known(made, mixed, {"i": 1}) is None
    assert known(made, below, {}) is None and known(made, x, {"i": 0}) is None
