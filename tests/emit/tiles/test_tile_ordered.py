"""Scans, shifts, renamings, positions and triangular systems on tiles: the interpreter's values."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "step"))
from test_ordered import lower, others, program, scans, solves

from tenfuse.reasons import Refused
from tenfuse.step.adjoint import adjoint
from tenfuse.step.program import Builder, Contract, Scan, Shift, Solve
from tests.emit.tiles.tileharness import Bench, agree, interpreted

pytestmark = interpreted
EVERY = [*scans(), *solves(), *others()]
QUICK = (1, 12, 17, 22, 28, 37, 40, 43, 46, 48, 49)
"""One of each kind in the default run: the interpreter takes a scan entry by entry."""
some = [pytest.param(i, marks=() if i in QUICK else pytest.mark.slow) for i in range(len(EVERY))]


def same(made, steps=2, compute="f64", limit=1e-11, prepare=None, seed=0):
    bench = Bench(made, steps, compute, compute, seed=seed)
    if prepare is not None:
        bench.xs = {i: prepare(i, x) for i, x in bench.xs.items()}
    _, finals, outs = bench.run()
    want, ys = bench.want()
    for i, (mine, theirs) in enumerate(zip(finals + outs, want + ys, strict=True)):
        agree(mine, theirs, limit, i)


@pytest.mark.parametrize("which", some)
def test_values(which):
    same(EVERY[which])
    same(EVERY[which], 1, "f32", 2e-5)


@pytest.mark.parametrize("which", some)
def test_derivatives(which):
    made = EVERY[which]
    back = adjoint(made, list(made.inputs("stream")), []).program
    if not summed_systems(back):
        return same(back, 1)
    with pytest.raises(Refused, match="triangular system for every entry"):
        same(back, 1)


def summed_systems(made):
    """Whether systems differ along an axis that is summed over, which one instance then holds."""
    own = made.axes_of()
    over = {a for n in made.nodes if isinstance(n, Contract) for a in n.axes}
    return any(isinstance(n, Solve) and (own[n.lower] - {*n.rows, *n.cols}) & over for n in made.nodes)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ring", ["sum-product", "max-plus", "min-plus", "log-plus", "or-and"])
def test_semirings(ring, reverse):
    """13 positions: the tile has three more, which no scan may read."""
    b = Builder()
    d, x = b.input("stream", 0, ("t", "b")), b.input("stream", 1, ("t", "b", "v"))
    made = program(b, b.add(Scan("t", d, x, reverse, semiring=ring)))
    made = dataclasses.replace(made, sizes={**made.sizes, "t": 13, "b": 1, "v": 2})
    same(made, 1, prepare=(lambda i, x: (x > 0).double()) if ring == "or-and" else None)


@pytest.mark.parametrize("reverse", [False, True])
def test_scans_take_infinities_and_gates_of_zero(reverse):
    b = Builder()
    d, x = b.input("stream", 0, ("t",)), b.input("stream", 1, ("t", "v"))
    made = program(b, b.add(Scan("t", d, x, reverse, semiring="max-plus")))

    def spoiled(i, x):
        x = x.clone()
        x[:, 2] = float("-inf")
        return x

    same(made, prepare=spoiled)
    plain = program(b, b.add(Scan("t", d, x, reverse)))
    same(plain, prepare=lambda i, x: torch.where(x > 0.2, 0.0, x) if i == 0 else x)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("size", [1, 2, 16, 20, 40])
def test_triangular_systems(size, transpose):
    """Of one block, of several, and of sizes between; what lies behind the end is not read."""
    b = Builder()
    matrix = lower(b, b.input("stream", 0, ("t", "s")))
    made = program(b, b.add(Solve(matrix, b.input("stream", 1, ("t", "v")), ("t",), ("s",), transpose)))
    made = dataclasses.replace(made, sizes={**made.sizes, "t": size, "s": size})
    same(made, 1, prepare=lambda i, x: x * 0.3)


@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_systems_in_fp32_are_solved_as_well_as_by_substitution(scale):
    """With a ``scale`` of 2 the inverse of 64 rows has entries near 1e8."""
    b = Builder()
    made = program(
        b,
        b.add(
            Solve(
                lower(b, b.input("stream", 0, ("t", "s"))), b.input("stream", 1, ("t", "v")), ("t",), ("s",)
            )
        ),
    )
    made = dataclasses.replace(made, sizes={**made.sizes, "t": 64, "s": 64, "v": 16})
    bench = Bench(made, 1, "f32", "f32")
    bench.xs = {i: x * (scale if i == 0 else 1.0) for i, x in bench.xs.items()}
    _, _, outs = bench.run()
    _, want = bench.want()
    for got, exact in zip(outs, want, strict=True):
        matrix = torch.tril(bench.xs[0][0], -1) + torch.eye(64)
        eager = torch.linalg.solve_triangular(matrix, bench.xs[1][0], upper=False, unitriangular=True)
        limit = 4 * (eager.double() - exact[0]).norm() + 1e-6 * exact.norm()
        assert (got.double() - exact).norm() <= limit


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("size", [1, 2, 8, 11])
def test_shifts(size, by):
    b = Builder()
    made = program(b, b.add(Shift(b.input("stream", 0, ("t", "v")), "t", by, -1.5)))
    same(dataclasses.replace(made, sizes={**made.sizes, "t": size}), 1)
