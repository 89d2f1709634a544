"""The step programs of a model's loops, as the pipeline reads them before planning."""

from __future__ import annotations

import torch

from tenfuse.capture import door
from tenfuse.capture.functional import functionalize
from tenfuse.capture.roll import Kept, find_loops
from tenfuse.plan.placement import Placement
from tenfuse.rewrite.tree import restore
from tenfuse.step import interpret
from tenfuse.step.adjoint import adjoint
from tenfuse.step.fission import split
from tenfuse.step.normalize import normalize
from tenfuse.step.reader import read
from tenfuse.surroundings import autocast


def steps_of(model, *inputs):
    """A ``Step`` for every loop with a carry, in source order."""
    return [step for step, _ in reads_of(model, *inputs)]


def reads_of(model, *inputs):
    """The same, each with the ATen graph it was read from."""
    found = []

    @door.ours
    def backend(gm, example_inputs, **kwargs):
        copy = functionalize(gm)
        for loop in find_loops(copy):
            if not isinstance(loop, Kept):
                aten = normalize(loop, autocast(loop, copy))
                if aten.live:
                    found.append((read(aten, split(aten, Placement())), aten.graph))
        return restore(gm).forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(*inputs)
    return found


def complex_carries(step):
    """Carries that are the two parts of one complex tensor."""
    places = list(enumerate(step.carries))
    return [
        (i, j) for i, p in places for j, q in places
        if p.source == q.source and (p.view.part, q.view.part) == (0, 1) and p.view.dims == q.view.dims
        and p.view.offset == q.view.offset
    ]  # fmt: skip


def backward(program):
    """The adjoint of a program with respect to everything."""
    return adjoint(program, list(program.inputs("stream")), list(program.inputs("invariant"))).program


def run(program, steps=5, seed=0):
    """Final carries and outputs of a program on random inputs, the same for programs alike."""
    gen = torch.Generator().manual_seed(seed)

    def random(axes, *lead):
        return (
            torch.rand([*lead, *(program.sizes[a] for a in axes)], generator=gen, dtype=torch.float64) - 0.4
        )

    carries = [random(c.axes) for c in program.carries]
    streams, fixed, states = {}, {}, {}
    for kind, where, lead in (
        ("stream", streams, (steps,)),
        ("invariant", fixed, ()),
        ("state", states, (steps,)),
    ):
        for i, axes in program.inputs(kind).items():
            # An input that a rebuilt program no longer reads must not shift the others.
            gen.manual_seed(seed * 1000 + 7 * i + len(kind))
            where[i] = random(axes, *lead)
    finals, outs = interpret.scan(program, carries, streams, fixed, steps, states=states)
    return [*finals, *outs]


def assert_same(program, other, tolerance=1e-9):
    """Equal values up to rounding; a NaN or an infinity in one stands in the other too."""
    for x, y in zip(run(program), run(other), strict=True):
        torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance, equal_nan=True)
