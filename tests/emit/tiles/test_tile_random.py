"""Random step programs and their adjoints on tiles: the values are the interpreter's."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gradients import reference, summed
from test_random import draw

from tenfuse.plan.keep import keeping, reading_kept
from tenfuse.step import interpret
from tenfuse.step.adjoint import adjoint
from tests.emit.tiles.tileharness import Bench, agree, interpreted

pytestmark = interpreted
STYLES = ("plain", "reversed", "gaps")
STEPS = 3
LARGE = {0, 9, 21}
"""Seeds whose programs have many instances."""
DEFAULT = [s for s in range(24) if s not in LARGE]


def small(seed):
    """A random program with few instances: the interpreter runs them one after the other."""
    program = draw(seed)
    sizes = {a: min(n, 3) if a == "b" else min(n, 20) for a, n in program.sizes.items()}
    return dataclasses.replace(program, sizes=sizes)


SEEDS = [*DEFAULT, *(pytest.param(s, marks=pytest.mark.slow) for s in range(300) if s not in DEFAULT)]


@pytest.mark.parametrize("seed", SEEDS)
def test_forward(seed):
    dtype, compute = (("f32", "f32"), ("f64", "f64"), ("bf16", "f32"), ("f16", "f32"))[seed % 4]
    bench = Bench(small(seed), STEPS, dtype, compute, STYLES[seed % 3], seed)
    reverse = seed % 2 == 1
    _, finals, outs = bench.run(reverse)
    want, ys = bench.want(reverse)
    exact = {"f32": 2e-5, "f64": 1e-12}[compute]
    stored = {"f32": 2e-5, "f64": 1e-12, "bf16": 2**-8, "f16": 2**-10}[dtype]
    for i, (mine, theirs) in enumerate(zip(finals, want, strict=True)):
        agree(mine, theirs, exact, (seed, "carry", i))
    for i, (mine, theirs) in enumerate(zip(outs, ys, strict=True)):
        agree(mine, theirs, stored, (seed, "out", i))


@pytest.mark.parametrize("seed", SEEDS)
def test_backward(seed):
    """The adjoint is a program like any other; the states it reads were kept at every step."""
    program = small(seed)
    reverse = seed % 2 == 1
    forward = Bench(program, STEPS, "f64", "f64", STYLES[seed % 3], seed)
    back = adjoint(program, list(program.inputs("stream")), list(program.inputs("invariant")))
    kept = list(back.program.inputs("state"))
    _, ys = interpret.scan(
        keeping(program, kept), forward.inits, forward.xs, forward.invariants, STEPS, reverse
    )
    states = ys[len(program.outs) :]
    first = len(program.inputs("stream"))
    last = first + len(program.outs)
    adjoined = reading_kept(back.program, {i: last + n for n, i in enumerate(kept)}, program, {})
    bench = Bench(adjoined, STEPS, "f64", "f64", STYLES[seed % 3], seed + 1)
    bench.invariants = {i: forward.invariants[i] for i in bench.invariants}
    ends = list(bench.inits)
    bench.xs |= {i: forward.xs[i] for i in bench.xs if i < first}
    bench.xs |= {last + n: s for n, s in enumerate(states)}
    cotangents = [bench.xs.get(first + j, _zeros(program, out.axes)) for j, out in enumerate(program.outs)]
    wanted = reference(
        program, forward.inits, forward.xs, forward.invariants, STEPS, reverse,
        [e.double() for e in ends], cotangents,
    )  # fmt: skip
    _, finals, outs = bench.run(not reverse)
    for i, mine in enumerate(finals):
        agree(mine, wanted["carry", i], 1e-10, (seed, "carry", i))
    for i, k in back.streams.items():
        agree(outs[k], wanted["stream", i], 1e-10, (seed, "stream", i))
    for i, terms in back.invariants.items():
        if terms:
            got = sum(summed(t, outs, back.program, back.axes[i]) for t in terms)
            agree(got.reshape(wanted["invariant", i].shape), wanted["invariant", i], 1e-10, (seed, i))


def _zeros(program, axes):
    return torch.zeros([STEPS, *[program.sizes[a] for a in axes]], dtype=torch.float64)
