"""What is compared for equality is computed alike wherever it is computed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from gradients import derived

from tenfuse.emit.cpp import AVX512, emit
from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram, compares, prune


def attained(op="max"):
    """``h <- tanh(max over k of c (x + sum over v of s h) + ...)``: a sum scaled, and added to."""
    b = Builder()
    h, x = b.input("carry", 0, ("b", "k", "v")), b.input("stream", 0, ("v",))
    mean = b.contract(b.call("mul", h, b.const(1 / 17)), "v")
    shifted = b.call("mul", b.call("add", x, mean), b.const(0.3))
    best = b.contract(shifted, "k", op=op)
    new = b.call("add", b.call("tanh", best), b.call("mul", h, b.const(0.5)))
    axes = ("b", "k", "v")
    return StepProgram(
        tuple(b.nodes),
        {"b": 20, "k": 16, "v": 17},
        (CarrySpec(axes, new, axes),),
        (OutSpec(best, ("b", "v")),),
    )


def test_the_gradient_of_a_maximum_reaches_the_entries_that_attain_it():
    for op in ("max", "min"):
        for name, mine, theirs in derived(attained(op), 5, 2, "f64", seed=3):
            error = float((mine.reshape(theirs.shape).double() - theirs).abs().max())
            assert error <= 1e-9 * max(1.0, float(theirs.abs().max())), (op, name, error)


def test_only_kernels_that_compare_do_without_fused_multiply_adds():
    b = Builder()
    x, y = b.input("stream", 0, ("k",)), b.input("stream", 1, ("k",))
    same, scaled = b.call("where", b.call("eq", x, y), x, b.const(0.0)), b.call("add", b.call("mul", x, y), x)
    texts = []
    for ref in (same, scaled):
        program = prune(StepProgram(tuple(b.nodes), {"k": 8}, (), (OutSpec(ref, ("k",)),)))
        operands = tuple(Operand("stream", i, "f32", ("k",), "k") for i in (0, 1))
        operands += (Operand("out", 0, "f32", ("k",), "k"),)
        texts.append(emit(Kernel(program, operands, "f32"), AVX512))
        assert compares(program) == (ref == same)
    assert ["fp-contract=off" in text for text in texts] == [True, False]
