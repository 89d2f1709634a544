"""Running a whole sequence through chunk programs, and how close to the loop that must be."""

from __future__ import annotations

import dataclasses

import torch

from tenfuse.algebra.chunk import chunk
from tenfuse.algebra.recurrence import Affine, Recurrence, Stage
from tenfuse.step import interpret
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
                    done[i] = b.rename(affine(updates[node.index][1]), names)
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
        program = prune(StepProgram(tuple(b.nodes), self.sizes, carries, outs))
        validate(program)
        return program


def draw(program, steps, gates=frozenset(), kind="ordinary", seed=0):
    """``(initial carries, streams, invariants)`` in float64, representable in float32."""
    torch.manual_seed(seed)
    size = program.sizes

    def normal(axes, *lead):
        return torch.randn([*lead, *(size[a] for a in axes)]) / max([1, *(size[a] for a in axes)]) ** 0.5

    inits = [normal(c.axes).double() for c in program.carries]
    xs = {}
    for i, axes in program.inputs("stream").items():
        x = normal(axes, steps)
        xs[i] = (GATES[kind](x) if i in gates else x).float().double()
    return inits, xs, {i: normal(axes).double() for i, axes in program.inputs("invariant").items()}


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


def close(got, want, plain, floor=4 * 2.0**-24):
    """RMSE of ``got`` against ``want`` at most four times that of ``plain``, plus a floor."""
    scale = want.pow(2).mean().sqrt().item() if want.numel() else 0.0
    error = (got.double() - want).pow(2).mean().sqrt().item() if want.numel() else 0.0
    other = (plain.double() - want).pow(2).mean().sqrt().item() if want.numel() else 0.0
    assert error <= 4 * other + floor * max(scale, 2.0**-100), (error, other, scale)
