"""Certificates for adjoints: that of one chunk is that of so many steps run backwards.

Takes a ``StepProgram``, its ``Recurrence`` and a function that differentiates programs;
leaves a ``Certificate``.  At tiny sizes the step's adjoint is run from the last of a few
steps to the first, with the states the loop had there; the adjoint of the chunk program is
run once.  Every entry of the gradients of the initial states and of the streams is shown
to be the same, for every input and every cotangent.  Gradients of invariants are sums over
time taken outside of the program and are not part of the claim.

It refuses like ``certify``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from tenfuse.algebra.chunks.chunk import Chunk, Unchunkable, chunk
from tenfuse.algebra.chunks.paths import mixing
from tenfuse.algebra.proof.cases import TIED, by_cases, masked, tied
from tenfuse.algebra.proof.certify import WORK, Certificate, Differs, attempt, same
from tenfuse.algebra.proof.certify_chunk import Maker, Steps
from tenfuse.algebra.proof.evaluate import Array, Evaluator
from tenfuse.algebra.proof.shrink import shrunk
from tenfuse.algebra.proof.symbols import Field
from tenfuse.algebra.proof.tiny import least_sizes
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.step.program import StepProgram

Differentiated = tuple[StepProgram, Mapping[int, int]]
"""An adjoint program, and for streams the output that is their gradient."""
LENGTH, BLOCK = 2, 1
_SHARES = "of several best paths a chunk gives each another share of the gradient than the steps do"
"""A step shares it among what is best of the step before, however many paths lead there; a product
of steps shares it among paths of the whole chunk.  Where carries exchange places, paths may meet again
only after as many steps as there are carries, more than a proof has: these are not tried."""


def certify_adjoint(
    program: StepProgram,
    recurrence: Recurrence,
    differentiate: Callable[[StepProgram], Differentiated],
    work: int = WORK,
    make: Maker = chunk,
) -> Certificate:
    """Whether the adjoint of a chunk program is the adjoint of its steps."""
    claim = f"the adjoint of a chunk of {LENGTH} steps is that of these steps, for every input"
    sizes = least_sizes(program, recurrence)
    if any(s.semiring in TIED and len(s.carries) > 1 for s in recurrence.stages):
        return Certificate(False, claim, tuple(sorted(sizes.items())), 0.0, 0, _SHARES)
    small, normal = shrunk(program, recurrence, sizes)
    prove = partial(_prove, small, normal, differentiate, make)
    how = partial(by_cases, prove) if tied(normal) else prove
    found = attempt(claim, sizes, work, how, not tied(normal) and masked(normal))
    chosen = mixing(normal) and any(s.semiring in TIED for s in normal.stages)
    if found.proved or found.unfinished or not chosen:
        return found
    return dataclasses.replace(found, note=f"{_SHARES}: {found.note}")


def _prove(
    program: StepProgram,
    recurrence: Recurrence,
    differentiate: Callable[[StepProgram], Differentiated],
    make: Maker,
    field: Field,
) -> None:
    try:
        made = make(program, recurrence, LENGTH, BLOCK)
    except Unchunkable as why:
        raise Differs(f"there is no chunk program: {why}") from why
    steps = Steps(field, program, LENGTH)
    ends = [steps.unknown(c.axes) for c in program.carries]
    seeds = [[steps.unknown(o.axes) for _ in range(LENGTH)] for o in program.outs]
    one = _stepwise(steps, differentiate(program), ends, seeds)
    whole = _at_once(steps, made, differentiate(made.program), ends, seeds)
    for i, (got, want) in enumerate(zip(whole[0], one[0], strict=True)):
        same(field, got, want, f"the gradient of carry {i}")
    if set(whole[1]) != set(one[1]):
        raise Differs("a stream has a gradient in one adjoint and none in the other")
    for i, want in one[1].items():
        same(field, whole[1][i].reshape(want.shape), want, f"the gradient of stream {i}")


def _stepwise(
    steps: Steps, back: Differentiated, ends: list[Array], seeds: list[list[Array]]
) -> tuple[list[Array], dict[int, Array]]:
    """Gradients of the initial states and of all streams, from the last step to the first."""
    program, found = back
    run, states = Evaluator(steps.field, program.sizes), steps.states()
    gradients, offset = ends, len(steps.streams)
    rows: dict[int, list[Array]] = {i: [] for i in found}
    for t in reversed(range(steps.length)):
        inputs = {("carry", i): g for i, g in enumerate(gradients)}
        inputs |= {("state", i): s for i, s in enumerate(states[t])}
        inputs |= {("stream", i): xs[t] for i, xs in steps.streams.items()}
        inputs |= {("stream", offset + j): g[t] for j, g in enumerate(seeds)}
        inputs |= {("invariant", i): v for i, v in steps.invariants.items()}
        values = run.run(program.nodes, inputs)
        gradients = [run.expanded(values[c.next], c.next_axes) for c in program.carries]
        for i, out in found.items():
            rows[i].insert(0, run.expanded(values[program.outs[out].ref], program.outs[out].axes))
    return gradients, {i: np.stack(row) for i, row in rows.items()}


def _at_once(
    steps: Steps, made: Chunk, back: Differentiated, ends: list[Array], seeds: list[list[Array]]
) -> tuple[list[Array], dict[int, Array]]:
    """The same from the adjoint of the chunk program."""
    program, found = back
    run, offset = Evaluator(steps.field, program.sizes), len(made.program.inputs("stream"))
    inputs = {("carry", i): g for i, g in enumerate(ends)}
    inputs |= {("state", i): s for i, s in enumerate(steps.inits)}
    inputs |= {("stream", i): steps.stacked(xs, made) for i, xs in steps.streams.items()}
    inputs |= {("stream", offset + j): steps.stacked(g, made) for j, g in enumerate(seeds)}
    inputs |= {("invariant", i): v for i, v in steps.invariants.items()}
    values = run.run(program.nodes, inputs)
    gradients = [run.expanded(values[c.next], c.next_axes) for c in program.carries]
    outs = {i: program.outs[out] for i, out in found.items()}
    return gradients, {
        i: run.expanded(values[o.ref], o.axes).reshape(steps.length, *steps.streams[i][0].shape)
        for i, o in outs.items()
    }


__all__ = ["certify_adjoint"]
