"""Random step programs: whatever the nests become, the values are the interpreter's."""

import dataclasses
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from gradients import derived
from harness import forward

from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram, prune, validate

UNARY = ("neg", "tanh", "sigmoid", "sin", "abs")
BINARY = ("add", "sub", "mul", "mul", "add", "maximum")


def draw(seed):
    """A program of one to three carries over up to four axes, of which some are mixed."""
    rng = random.Random(seed)
    sizes = {a: rng.choice((1, 2, 3, 5, 16, 17, 20, 33)) for a in "bkv"}
    sizes["j"] = sizes["k"]
    b = Builder()
    axes = {}

    def add(ref, own):
        axes[ref] = frozenset(own)
        return ref

    carries = [tuple(a for a in "bkv" if a == "b" or rng.random() < 0.7) for _ in range(rng.randint(1, 3))]
    pool = [add(b.input("carry", i, own), own) for i, own in enumerate(carries)]
    for i in range(rng.randint(1, 4)):
        own = tuple(rng.sample("bkv", rng.randint(1, 3)))
        pool.append(add(b.input("stream", i, own), own))
    for i in range(rng.randint(0, 2)):
        own = rng.choice((("k", "j"), ("j", "k"), ("v",), ("k", "v"), ("k",)))
        pool.append(add(b.input("invariant", i, own), own))
    for _ in range(rng.randint(3, 12)):
        kind = rng.random()
        if kind < 0.2:
            x = rng.choice(pool)
            pool.append(add(b.call(rng.choice(UNARY), x), axes[x]))
        elif kind < 0.75:
            x, y = rng.choice(pool), rng.choice(pool)
            if len(axes[x] | axes[y]) < 4:
                pool.append(add(b.call(rng.choice(BINARY), x, y), axes[x] | axes[y]))
        else:
            x = rng.choice(pool)
            gone = [a for a in sorted(axes[x]) if rng.random() < (0.6 if a != "b" else 0.1)]
            if gone:
                scaled = b.call("mul", x, b.const(1.0 / max(1, sizes[gone[0]])))
                op = "max" if rng.random() < 0.15 else "sum"
                pool.append(add(b.contract(scaled, *gone, op=op), axes[x] - set(gone)))
    specs = []
    for own in carries:
        moved = tuple("j" if a == "k" else a for a in own)
        fits = [(r, n) for r in pool for n in (own, moved) if axes[r] <= set(n)]
        deep = fits[len(fits) // 2 :]
        ref, names = rng.choice(deep)
        specs.append(CarrySpec(own, b.call("tanh", ref), names))
    outs = [
        OutSpec(r, tuple(rng.sample(sorted(axes[r]), len(axes[r]))))
        for r in rng.sample(pool, min(3, len(pool)))
    ]
    program = prune(StepProgram(tuple(b.nodes), sizes, tuple(specs), tuple(outs)))
    program = numbered(program)
    validate(program)
    return program


def numbered(program):
    """Streams and invariants renumbered without gaps after pruning."""
    place = {
        kind: {old: new for new, old in enumerate(program.inputs(kind))} for kind in ("stream", "invariant")
    }
    nodes = tuple(
        dataclasses.replace(n, index=place[n.kind][n.index]) if getattr(n, "kind", "") in place else n
        for n in program.nodes
    )
    return dataclasses.replace(program, nodes=nodes)


def agree(mine, theirs, tolerance, what):
    assert mine.shape == theirs.shape
    if mine.numel():
        scale = max(1.0, float(theirs.abs().max()))
        error = float((mine.double() - theirs.double()).abs().max())
        assert error <= tolerance * scale, (what, error, scale)


@pytest.mark.parametrize("seed", range(40))
def test_forward(seed):
    program = draw(seed)
    style = ("plain", "reversed", "gaps")[seed % 3]
    (finals, outs, _), (want, ys), _ = forward(program, 5, style=style, reverse=seed % 2 == 1, seed=seed)
    for i, (mine, theirs) in enumerate(zip(finals + outs, want + ys, strict=True)):
        agree(mine, theirs, 2e-5, (seed, i))


@pytest.mark.parametrize("seed", range(40))
def test_backward(seed):
    program = draw(seed)
    for name, mine, theirs in derived(program, 5, 2, "f64", seed=seed):
        agree(mine.reshape(theirs.shape), theirs, 1e-9, (seed, name))
