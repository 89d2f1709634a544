"""What is compared for equality is computed alike wherever it is computed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from gradients import derived

from tenfuse.emit.cpp import AVX512, emit
from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram, compares, prune


def attained(op="max"):
    """``h <- tanh(max over k of (x h + w)) + ...``, whose product is read by a second function.

    Where a nest needs the product for nothing but the sum, a compiler rounds both at once; where the
    backward needs it for the derivative of the second function too, it does not.
    """
    b = Builder()
    h, x, w = (
        b.input(*given) for given in (("carry", 0, ("b", "v")), ("stream", 0, ("k",)), ("stream", 1, ("v",)))
    )
    product = b.call("mul", h, x)
    best = b.contract(b.call("add", product, w), "k", op=op)
    beside = b.contract(b.call("tanh", product), "k")
    new = b.call("add", b.call("tanh", best), b.call("mul", beside, b.const(0.01)))
    axes = ("b", "v")
    return StepProgram(
        tuple(b.nodes),
        {"b": 4, "k": 16, "v": 17},
        (CarrySpec(axes, new, axes),),
        (OutSpec(best, axes),),
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
