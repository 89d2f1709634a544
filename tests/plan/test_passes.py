"""A chunk's step in passes, whichever outputs the recurrence computes: the same values as in one."""

import itertools

import pytest
import torch

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import chunk
from tenfuse.plan.tiles.inverse import inverted, is_inverse
from tenfuse.plan.tiles.passes import groups, passes
from tenfuse.step import interpret
from tenfuse.step.adjoint import adjoint
from tenfuse.step.program import Builder, OutSpec, Position, Solve, StepProgram
from tests.algebra.chunks import exact
from tests.algebra.loops import LOOPS, program_of

STEPS = 4
NAMES = [name for name in LOOPS if analyse(program_of(name)[0]).form in ("low-rank", "dense")]


def chunked(name):
    """The program of a chunk, and its adjoint."""
    program, _ = program_of(name)
    made = chunk(program, analyse(program), STEPS).program
    streams, invariants = list(made.inputs("stream")), list(made.inputs("invariant"))
    return made, adjoint(made, streams, invariants, 1 + max(streams, default=-1)).program


def draw(program):
    gen = torch.Generator().manual_seed(0)

    def normal(axes):
        shape = [program.sizes[a] for a in axes]
        return torch.randn(shape, generator=gen, dtype=torch.float64) * 0.3

    found = {("carry", i): normal(c.axes) for i, c in enumerate(program.carries)}
    for kind in ("stream", "invariant", "state"):
        found |= {(kind, i): normal(axes) for i, axes in program.inputs(kind).items()}
    return found


def in_passes(parts, inputs, held, count):
    """Next carries and outputs by way of what each pass leaves for the next."""
    known, outs, nexts = dict(inputs), {}, None
    for part in parts:
        carries, found = interpret.step(part.program, known, torch.float64)
        assert not (part.parallel and carries), "a pass over all chunks at once carries something"
        nexts = nexts or carries
        for (kind, i), value in zip(part.names, found, strict=True):
            if kind == "out":
                assert i not in outs, "an output is computed twice"
                outs[i] = value
            else:
                known[kind, i] = value
                if kind == held:
                    exact([value], [inputs["carry", i]])
    return nexts, [outs[j] for j in range(count)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_every_way_is_the_step(name, direction):
    program = chunked(name)[direction == "backward"]
    held = "state" if direction == "forward" else "costate"
    inputs = draw(program)
    want = interpret.step(program, inputs, torch.float64)
    for form in (program, inverted(program)):
        own = groups(form)
        for chosen in itertools.product((False, True), repeat=len(own)):
            within = [g for g, c in zip(own, chosen, strict=True) if c]
            parts = passes(form, held, range(len(form.carries)), (), within)
            got = in_passes(parts, inputs, held, len(program.outs))
            exact(got[0], want[0])
            exact(got[1], want[1])


@pytest.mark.parametrize("name", NAMES)
def test_inverses_stand_for_solutions(name):
    """One system for each matrix is left, and passes behind the first have none."""
    for program in chunked(name):
        solved = [n for n in program.nodes if isinstance(n, Solve)]
        made = inverted(program)
        left = [i for i, n in enumerate(made.nodes) if isinstance(n, Solve)]
        assert (made is program) == (not solved)
        assert all(is_inverse(made, i) for i in left)
        assert len(left) == len({n.lower for n in solved})
        for part in passes(made, "state", (), (), groups(made))[1:]:
            assert not any(isinstance(n, Solve) for n in part.program.nodes)


def test_all_in_the_recurrence_is_one_pass_without_systems():
    program, _ = chunked(next(n for n in NAMES if not any(isinstance(x, Solve) for x in chunked(n)[0].nodes)))
    (part,) = passes(program, "state", (), (), groups(program))
    assert not part.parallel and len(part.names) == len(program.outs)


def system(right):
    """(I + lower) z = what ``right`` makes of the rows and columns, times 1 or 0."""
    build = Builder()
    lower = build.input("stream", 0, ("t", "s"))
    return build, build.add(Solve(lower, right(build), ("t",), ("s",)))


def choosing(fn, one, other, yes=1.0, no=0.0):
    def right(build):
        same = build.call(fn, build.add(Position(one)), build.add(Position(other)))
        return build.call("where", same, build.const(yes), build.const(no))

    return right


@pytest.mark.parametrize(
    "right, found",
    [
        (choosing("eq", "t", "e"), True),
        (choosing("eq", "e", "t"), True),
        (choosing("ge", "t", "e"), False),
        (choosing("eq", "t", "e", 2.0), False),
        (choosing("eq", "t", "e", 0.0, 1.0), False),
        (choosing("eq", "t", "short"), False),
        (choosing("eq", "e", "f"), False),
        (lambda build: build.input("stream", 1, ("t", "e")), False),
    ],
)
def test_an_inverse_is_known_by_what_it_solves(right, found):
    build, solved = system(right)
    sizes = {"t": 4, "s": 4, "e": 4, "f": 4, "short": 3}
    made = StepProgram(tuple(build.nodes), sizes, (), (OutSpec(solved, tuple(sorted(build.axes[solved]))),))
    assert is_inverse(made, solved) == found
