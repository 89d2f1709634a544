"""Running a whole sequence through chunk programs, and how close to the loop that must be."""

from __future__ import annotations

import dataclasses
import math

import torch

from tenfuse.algebra.chunks.chunk import chunk
from tenfuse.algebra.recurrence import Affine, Recurrence, Stage
from tenfuse.step import interpret
from tenfuse.step.adjoint import Summed, adjoint
from tenfuse.step.program import (
    Builder,
    CarrySpec,
    Input,
    OutSpec,
    StepProgram,
    arguments,
    prune,
    validate,
    with_arguments,
)
from tenfuse.step.tensors import rename

GATES = {
    "ordinary": lambda g: torch.rand_like(g) * 0.5 + 0.5,
    "zero": lambda g: torch.where(torch.rand_like(g) < 0.3, 0.0, torch.rand_like(g)),
    "one": lambda g: torch.ones_like(g),
    "negative": lambda g: torch.rand_like(g) * 2 - 1,
    "above": lambda g: torch.rand_like(g) * 0.1 + 1.0,
    "strong": lambda g: torch.full_like(g, 2.0611536224385579e-09),
}
"""Values of gates, given a tensor of their shape; the last is e^-20."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """A recurrence written in normal form; ``gates`` are streams to draw from ``GATES``."""

    build: Builder
    sizes: dict[str, int]
    carries: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    stages: tuple[Stage, ...]
    outs: tuple[tuple[Affine, tuple[str, ...]], ...]
    gates: frozenset[int] = frozenset()

    def recurrence(self) -> Recurrence:
        outs = tuple(a for a, _ in self.outs)
        form = self.stages[-1].form
        return Recurrence(tuple(self.build.nodes), self.sizes, frozenset(), self.stages, outs, (), form)

    def program(self) -> StepProgram:
        """The same step spelled out."""
        b, nodes = Builder(), self.build.nodes
        updates = {j: (s, u) for s in self.stages for j, u in zip(s.carries, s.updates, strict=True)}
        done: dict[int, int] = {}

        def ref(i: int) -> int:
            node = nodes[i]
            if i not in done:
                if isinstance(node, Input) and node.kind == "next":
                    names = dict(zip(self.carries[node.index][1], node.axes, strict=True))
                    done[i] = rename(b, affine(updates[node.index][1]), names)
                else:
                    done[i] = b.add(with_arguments(node, [ref(a) for a in arguments(node)]))
            return done[i]

        def affine(update: Affine) -> int:
            total = None if update.offset is None else ref(update.offset)
            for term in update.terms:
                value = ref(term.source)
                for f in term.factors:
                    value = b.call("mul", ref(f), value)
                value = b.contract(value, *term.contracted)
                total = value if total is None else b.call("add", total, value)
            return b.const(0.0) if total is None else total

        carries = tuple(
            CarrySpec(axes, affine(updates[j][1]), nexts) for j, (axes, nexts) in enumerate(self.carries)
        )
        outs = tuple(OutSpec(affine(a), axes) for a, axes in self.outs)
        sizes = self.sizes | {a: self.sizes[a.rstrip("'")] for axes in b.axes for a in axes}
        program = prune(StepProgram(tuple(b.nodes), sizes, carries, outs))
        validate(program)
        return program


def draw(program, steps, gates=frozenset(), kind="ordinary", seed=0):
    """``(initial carries, streams, invariants)`` in float64, representable in float32.

    Vectors are short enough that what a step writes back does not grow the state for long.
    """
    torch.manual_seed(seed)
    size = program.sizes

    def normal(axes, *lead):
        x = torch.randn([*lead, *(size[a] for a in axes)])
        x = x / (2 * x.norm(dim=-1, keepdim=True)) if axes else x / 2
        return x * (0.75 + 0.25 * torch.rand_like(x))

    inits = [normal(c.axes).double() for c in program.carries]
    xs = {}
    for i, axes in program.inputs("stream").items():
        x = normal(axes, steps)
        xs[i] = (GATES[kind](x) if i in gates else x).float().double()
    return inits, xs, {i: normal(axes).double() for i, axes in program.inputs("invariant").items()}


def exact(got, want):
    """In float64, up to rounding of the largest entry."""
    for g, w in zip(got, want, strict=True):
        scale = max(1.0, w.abs().max().item()) if w.numel() else 1.0
        torch.testing.assert_close(g, w, atol=1e-11 * scale, rtol=1e-9)


def run(program, recurrence, length, inits, xs, invariants, steps, dtype, **options):
    """``(final carries, ys)`` by chunks of ``length`` steps and what remains."""
    made, carries, rows = {}, [c.to(dtype) for c in inits], [[] for _ in program.outs]
    for start in range(0, steps, length):
        n = min(length, steps - start)
        if n not in made:
            made[n] = chunk(program, recurrence, n, **options)
        inputs = feed(made[n], carries, {i: x[start : start + n] for i, x in xs.items()}, invariants)
        carries, outs = interpret.step(made[n].program, inputs, dtype)
        for row, out in zip(rows, outs, strict=True):
            row.append(out.reshape(n, *out.shape[len(made[n].rows) :]))
    return carries, [torch.cat(row) for row in rows]


def feed(made, carries, xs, invariants):
    """The inputs of one chunk."""
    shape = [made.program.sizes[a] for a in made.rows]
    inputs = {("carry", i): c for i, c in enumerate(carries)}
    inputs |= {("stream", i): x.reshape(*shape, *x.shape[1:]) for i, x in xs.items()}
    return inputs | {("invariant", i): v for i, v in invariants.items()}


class Errors:
    """Relative squared errors of several runs, result by result: one number says little of a
    gradient that has one entry."""

    FLOOR = 4 * 2.0**-24

    def __init__(self):
        self.rows = {}

    def add(self, got, want, plain):
        for i, (g, w, p) in enumerate(zip(got, want, plain, strict=True)):
            scale = max(w.pow(2).mean().item(), 2.0**-200) if w.numel() else 1.0
            squares = [(x.double() - w).pow(2).sum().item() / scale for x in (g, p)]
            assert all(math.isfinite(s) for s in squares)
            self.rows.setdefault(i, []).append((*squares, w.numel()))

    def check(self):
        """RMSE at most four times that of the loop in the same precision, plus a floor."""
        for i, rows in self.rows.items():
            mine, plain, count = (sum(column) for column in zip(*rows, strict=True))
            found, allowed = ((s / max(count, 1)) ** 0.5 for s in (mine, plain))
            assert found <= 4 * allowed + self.FLOOR, (i, found, allowed)


def grown(carries, streams, invariants):
    """All of them, wanting gradients, in one order."""
    leaves = [*carries, *streams.values(), *invariants.values()]
    for leaf in leaves:
        leaf.requires_grad_()
    return leaves


def gradients(program, recurrence, length, inputs, steps, seeds, dtype, **options):
    """Gradients of carries, streams and invariants by the derived adjoints of the chunks."""
    inits, xs, invariants = (
        [x.to(dtype) for x in inputs[0]],
        *({i: x.to(dtype) for i, x in y.items()} for y in inputs[1:]),
    )
    finals, ys = seeds
    made, states, starts = {}, [inits], list(range(0, steps, length))
    for start in starts:
        n = min(length, steps - start)
        if n not in made:
            one = chunk(program, recurrence, n, **options)
            made[n] = one, adjoint(one.program, list(xs), list(invariants), len(xs))
        part = {i: x[start : start + n] for i, x in xs.items()}
        states.append(
            interpret.step(made[n][0].program, feed(made[n][0], states[-1], part, invariants), dtype)[0]
        )
    cotangents = [f.to(dtype) for f in finals]
    rows = {i: [] for i in xs}
    sums = {i: torch.zeros_like(v) for i, v in invariants.items()}
    for start, state in zip(starts[::-1], states[-2::-1], strict=True):
        n = min(length, steps - start)
        one, back = made[n]
        streams = {i: x[start : start + n] for i, x in xs.items()}
        streams |= {len(xs) + j: y[start : start + n].to(dtype) for j, y in enumerate(ys)}
        fed = feed(one, cotangents, streams, invariants) | {("state", i): s for i, s in enumerate(state)}
        cotangents, outs = interpret.step(back.program, fed, dtype)
        for i, row in rows.items():
            row.append(
                outs[back.streams[i]].reshape(n, *xs[i].shape[1:])
                if i in back.streams
                else torch.zeros_like(xs[i][:n])
            )
        for i, terms in back.invariants.items():
            sums[i] += sum((_term(t, back, outs, back.axes[i]) for t in terms), torch.zeros_like(sums[i]))
    return [*cotangents, *(torch.cat(r[::-1]) for r in rows.values()), *sums.values()]


def _term(term, back, outs, own):
    """One term of an invariant's gradient, from the adjoint's outputs."""
    specs = back.program.outs
    if isinstance(term, Summed):
        extra = [i for i, a in enumerate(specs[term.out].axes) if a not in own]
        return outs[term.out].sum(extra) if extra else outs[term.out]
    names = {a: i for i, a in enumerate({*specs[term.left].axes, *specs[term.right].axes, *own})}
    left, right = ([names[a] for a in specs[i].axes] for i in (term.left, term.right))
    return torch.einsum(outs[term.left], left, outs[term.right], right, [names[a] for a in own])
