"""Every function of integers as the generated code computes it, against torch: bit for bit."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from harness import DTYPES

from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.runtime.launch import DTYPES as STORED
from tenfuse.runtime.launch import Launcher
from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.program import Builder, CarrySpec, Const, OutSpec, StepProgram
from tenfuse.step.whole import ARITHMETIC, COMPARISONS

LEAST, MOST = -(2**63), 2**63 - 1
EDGES = [0, 1, -1, 2, 7, -7, 63, 64, -64, 2**24 + 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, MOST, LEAST]
DIVIDES = ("idiv", "ifloordiv", "imod", "irest")


def integers(n):
    gen = torch.Generator().manual_seed(1)
    edges = torch.tensor(EDGES)
    one = torch.cat([edges.repeat_interleave(len(EDGES)), torch.randint(-99, 99, (n,), generator=gen)])
    two = torch.cat([edges.repeat(len(EDGES)), torch.randint(-99, 99, (n,), generator=gen)])
    return one, two


def run(calls, given, stored, outs, compute, scalar=False):
    """One step of a kernel whose outputs are ``calls``, by vectors, or integer by integer."""
    b, axes = Builder(), ("b",) if scalar else ("d",)
    unit, n = None if scalar else "d", given[0].numel()
    entered = [b.call("whole", b.input("stream", i, axes)) for i in range(len(given))]
    made = [OutSpec(call(b, entered), axes) for call in calls]
    program = StepProgram(tuple(b.nodes), {axes[0]: n}, (), tuple(made), frozenset({"b"} if scalar else ()))
    results = [torch.empty(1, n, dtype=STORED[o]) for o in outs]
    operands = [Operand("stream", i, kind, axes, unit) for i, kind in enumerate(stored)]
    operands += [Operand("out", i, kind, axes, unit) for i, kind in enumerate(outs)]
    tensors = [*(x[None].contiguous() for x in given), *results]
    Launcher(Kernel(program, tuple(operands), compute))(tensors, 1, {"b": n})
    return [r[0] for r in results]


def called(fn):
    def call(b, entered):
        if fn == "ichoose":
            return b.call(fn, b.call("igt", *entered), *entered)
        return b.call(fn, *entered[: FUNCTIONS[fn].arity])

    return call


def wanted(fn, one, two):
    if fn == "ichoose":
        return FUNCTIONS[fn].torch(one > two, one, two)
    return FUNCTIONS[fn].torch(*(one, two)[: FUNCTIONS[fn].arity])


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("compute", ["f32", "f64"])
@pytest.mark.parametrize("divides", [False, True])
def test_functions(divides, compute, scalar):
    one, two = integers(57)
    names = DIVIDES if divides else [f for f in (*ARITHMETIC, *COMPARISONS, "number") if f not in DIVIDES]
    if divides:
        fine = (two != 0) & ~((one == LEAST) & (two == -1))  # the first is refused, the second torch's trap
        one, two = one[fine], two[fine]
    outs = [compute if f in COMPARISONS or f == "number" else "i64" for f in names]
    found = run([called(f) for f in names], (one, two), ("i64", "i64"), outs, compute, scalar)
    for fn, got in zip(names, found, strict=True):
        assert torch.equal(got, wanted(fn, one, two).to(got.dtype)), fn


def test_the_smallest_integer_by_minus_one_does_not_trap():
    given = (torch.tensor([LEAST] * 20), torch.tensor([-1] * 20))
    found = run([called(f) for f in DIVIDES], given, ("i64", "i64"), ["i64"] * 4, "f32")
    assert [set(x.tolist()) for x in found] == [{LEAST}, {LEAST}, {0}, {0}]


@pytest.mark.parametrize("scalar", [False, True])
def test_storage(scalar):
    kinds = ("i64", "i32", "i16", "i8", "u8")
    infos = [torch.iinfo(STORED[k]) for k in kinds]
    given = [
        torch.tensor([i.min, i.max, 0, 1, i.max // 2] * 9, dtype=STORED[k])
        for i, k in zip(infos, kinds, strict=True)
    ]
    calls = [lambda b, entered, i=i: entered[i] for i in range(5)]
    for got, want in zip(run(calls, given, kinds, kinds, "f32", scalar), given, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("kept", "summed", "compute"), [(3, 37, "f32"), (37, 3, "f64"), (1, 16, "f32"), (130, 70, "f32")]
)
def test_contraction(kept, summed, compute):
    b = Builder()
    x = b.call("whole", b.input("stream", 0, ("d", "k")))
    x = b.call("iadd", x, b.add(Const(1)))
    y, most, least = (b.contract(x, "k", op=op) for op in ("sum", "max", "min"))
    n = b.call("whole", b.input("carry", 0, ("d",)))
    carry = CarrySpec(("d",), b.call("imul", b.call("iadd", n, y), b.add(Const(3))), ("d",))
    outs = tuple(OutSpec(r, ("d",)) for r in (y, most, least))
    program = StepProgram(tuple(b.nodes), {"d": kept, "k": summed}, (carry,), outs)
    gen = torch.Generator().manual_seed(2)
    xs = torch.randint(-(2**60), 2**60, (5, kept, summed), generator=gen)
    start = torch.randint(-9, 9, (kept,), generator=gen)
    end, *ys = torch.empty(kept, dtype=torch.int64), *torch.empty(3, 5, kept, dtype=torch.int64)
    operands = (
        Operand("init", 0, "i64", ("d",), "d"), Operand("stream", 0, "i64", ("d", "k"), "k"),
        Operand("final", 0, "i64", ("d",), "d"), *(Operand("out", i, "i64", ("d",), "d") for i in range(3)),
    )  # fmt: skip
    Launcher(Kernel(program, operands, compute))([start, xs, end, *ys], 5)
    state = start
    for t in range(5):
        assert torch.equal(ys[0][t], (xs[t] + 1).sum(1))
        assert torch.equal(ys[1][t], (xs[t] + 1).amax(1)) and torch.equal(ys[2][t], (xs[t] + 1).amin(1))
        state = (state + (xs[t] + 1).sum(1)) * 3
    assert torch.equal(end, state)


def test_numbers_become_integers_towards_zero():
    b = Builder()
    y = b.call("truncated", b.input("stream", 0, ("d",)))
    program = StepProgram(tuple(b.nodes), {"d": 35}, (), (OutSpec(y, ("d",)),))
    x = torch.cat([torch.tensor([-0.9, 0.9, -2.5, 2.5, 1e18]), torch.randn(30) * 9])[None]
    for compute in ("f32", "f64"):
        out, given = torch.empty(1, 35, dtype=torch.int64), x.to(DTYPES[compute])
        operands = (Operand("stream", 0, compute, ("d",), "d"), Operand("out", 0, "i64", ("d",), "d"))
        Launcher(Kernel(program, operands, compute))([given, out], 1)
        assert torch.equal(out, given.to(torch.int64))
