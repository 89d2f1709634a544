"""Random step programs that are mostly linear in their carries, over shared and mixed axes."""

from __future__ import annotations

import random

from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram, prune, validate
from tests.emit.test_random import numbered

LINEAR = ("add", "sub", "mul", "mul", "add", "sub", "div", "where")
RINGS = (("maximum", "add"), ("minimum", "add"), ("logaddexp", "add"), ("logical_or", "logical_and"))


def draw(seed):
    """One to three carries over up to three of four axes; ``k`` and ``j`` have one size."""
    rng = random.Random(seed)
    sizes = {"b": rng.choice((1, 2)), "v": rng.choice((1, 2, 4)), "k": rng.choice((2, 3, 5))}
    sizes["j"] = sizes["k"]
    b = Builder()

    def inputs(kind, count):
        return [
            b.input(kind, i, tuple(rng.sample("bvkj", rng.randint(1, 3)))) for i in range(count)
        ]  # fmt: skip

    own = [tuple(a for a in "bkv" if a == "b" or rng.random() < 0.7) for _ in range(rng.randint(1, 3))]
    state = [b.input("carry", i, names) for i, names in enumerate(own)]
    moved = [tuple("j" if a == "k" else a for a in names) for names in own]
    state += [b.input("carry", i, names) for i, names in enumerate(moved)]
    free = [*inputs("stream", rng.randint(1, 4)), *inputs("invariant", rng.randint(0, 2))]
    free += [b.const(rng.choice((0.5, -1.0, 2.0, 1.0)))]
    for _ in range(rng.randint(0, 3)):
        fn = rng.choice(("sigmoid", "tanh", "cos", "mul", "sub"))
        args = [rng.choice(free) for _ in range(2 if fn in ("mul", "sub") else 1)]
        if len(frozenset().union(*(b.axes[a] for a in args))) < 4:
            free.append(b.call(fn, *args))
    ring = rng.choice(RINGS) if rng.random() < 0.2 else None
    for _ in range(rng.randint(3, 14)):
        made = _ring(rng, b, state, free, ring) if ring else _linear(rng, b, state, free)
        if made is not None and len(b.axes[made]) < 4:
            state.append(made)
    specs = []
    for names, other in zip(own, moved, strict=True):
        fits = [(r, n) for r in state for n in (names, other) if b.axes[r] <= set(n)]
        ref, place = rng.choice(fits[len(fits) // 2 :])
        if rng.random() < 0.1:
            ref = b.call("tanh", ref)
        specs.append(CarrySpec(names, ref, place))
    outs = [
        OutSpec(r, tuple(rng.sample(sorted(b.axes[r]), len(b.axes[r]))))
        for r in rng.sample(state, min(3, len(state)))
    ]
    program = numbered(prune(StepProgram(tuple(b.nodes), sizes, tuple(specs), tuple(outs))))
    validate(program)
    return program


def _linear(rng, b, state, free):
    x, y = rng.choice(state), rng.choice(state if rng.random() < 0.4 else free)
    kind = rng.random()
    if kind < 0.25:
        gone = [a for a in sorted(b.axes[x]) if rng.random() < 0.5]
        return b.contract(b.call("mul", x, b.const(0.5)), *gone) if gone else None
    if kind < 0.3:
        return b.call(rng.choice(("neg", "cut")), x)
    if kind < 0.34:
        return b.call(rng.choice(("tanh", "abs", "sin")), x)
    fn = rng.choice(LINEAR)
    if fn == "where":
        mask = b.call("gt", rng.choice(free), b.const(0.1))
        return b.call("where", mask, x, y) if rng.random() < 0.5 else b.call("where", mask, y, x)
    if fn == "div":
        return b.call("div", x, b.call("add", b.call("abs", rng.choice(free)), b.const(1.5)))
    if fn == "mul" and rng.random() < 0.8:
        y = rng.choice(free)
    return b.call(fn, x, y) if rng.random() < 0.5 else b.call(fn, y, x)


def _ring(rng, b, state, free, ring):
    plus, times = ring
    x, y = rng.choice(state), rng.choice(state if rng.random() < 0.4 else free)
    kind = rng.random()
    if kind < 0.2 and plus in ("maximum", "minimum"):
        gone = [a for a in sorted(b.axes[x]) if rng.random() < 0.5]
        return b.contract(x, *gone, op=plus[:3]) if gone else None
    if kind < 0.6:
        return b.call(times, x, rng.choice(free))
    if kind < 0.7:
        return b.call("where", b.call("gt", rng.choice(free), b.const(0.1)), x, y)
    return b.call(plus, x, y)
