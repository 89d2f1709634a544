"""In which order the values of a step are made."""

from tenfuse.plan.tiles.schedule import schedule
from tenfuse.step.program import Builder, Const, OutSpec, StepProgram, arguments

SIZES = {"i": 64, "j": 64}


def two_outputs():
    """One small output, and one that takes a large value to make."""
    build = Builder()
    a = build.input("stream", 0, ("i",))
    b = build.input("stream", 1, ("i", "j"))
    small = build.call("exp", a)
    large = build.contract(build.call("mul", build.call("exp", b), b), "j")
    outs = (OutSpec(large, ("i",)), OutSpec(small, ("i",)))
    return StepProgram(tuple(build.nodes), SIZES, (), outs), large, small


def order(program, lightest):
    def read(ref):
        return list(arguments(program.nodes[ref]))

    return schedule(program, SIZES, read, (), lightest)


def test_the_output_that_takes_most_room_comes_first_or_last():
    program, large, small = two_outputs()
    heavy, light = order(program, False), order(program, True)
    assert heavy.index(large) < heavy.index(small)
    assert light.index(small) < light.index(large)


def test_both_orders_make_every_value_once_behind_what_it_reads():
    program, *_ = two_outputs()
    for lightest in (False, True):
        found = order(program, lightest)
        needed = {i for i, n in enumerate(program.nodes) if not isinstance(n, Const)}
        assert sorted(found) == sorted(needed)
        for i in found:
            assert all(found.index(a) < found.index(i) for a in arguments(program.nodes[i]))
