"""Sums of outer products over time: the gradient of a matrix that every step multiplies by.

Takes an adjoint and its kernel; leaves one kernel per ``Product`` term of an invariant: a
program without a carry that multiplies the factors of every step and adds up over time.
(A matrix library would do the same, at half the speed where it does not use the widest
vectors of the machine.)
"""

from __future__ import annotations

from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.step.adjoint import Adjoint, Product
from tenfuse.step.program import Builder, OutSpec, StepProgram, validate


def products(back: Adjoint, kernel: Kernel) -> tuple[tuple[int, Product, Kernel], ...]:
    """``(invariant, term, kernel)`` for every ``Product`` term."""
    return tuple(
        (i, term, _summing(back, kernel, i, term))
        for i, terms in back.invariants.items()
        for term in terms
        if isinstance(term, Product)
    )


def _summing(back: Adjoint, kernel: Kernel, i: int, term: Product) -> Kernel:
    build, own = Builder(), back.axes[i]
    written = {o.index: o for o in kernel.operands if o.role == "out"}
    operands: list[Operand] = []
    factors = []
    for n, out in enumerate((term.left, term.right)):
        axes = back.program.outs[out].axes
        operands.append(Operand("stream", n, written[out].dtype, axes, written[out].unit))
        factors.append(build.input("stream", n, axes))
    total = build.call("mul", *factors)
    total = build.contract(total, *(build.axes[total] - set(own)))
    used = {a for axes in build.axes for a in axes} | set(own)
    sizes = {a: n for a, n in back.program.sizes.items() if a in used}
    program = StepProgram(
        tuple(build.nodes), sizes, (), (OutSpec(total, own, accumulate=True),), back.program.dynamic & used
    )
    validate(program)
    operands.append(Operand("out", 0, kernel.compute, own, own[-1] if own else None))
    return Kernel(program, tuple(operands), kernel.compute, kernel.reverse)
