"""Sums over time: gradients of what every step shares.

``gathered`` takes an adjoint and leaves it with fewer sums.  The gradient of a matrix that
every step multiplies by is a sum of outer products: ``products`` takes the adjoint and its
kernel, and leaves for every ``Product`` term of an invariant how it is summed.  Large matrices are
left to the matrix library (None).  The others have a kernel: a
program without a carry that multiplies the factors and adds up.  A step of it takes several
steps of the loop: they are one more axis that is summed over, so that the sums stay in
registers for longer than the few entries that one step of the loop adds.
"""

from __future__ import annotations

import dataclasses
import math

from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.step.adjoint import Adjoint, Product, Summed
from tenfuse.step.program import AxisName, Builder, OutSpec, Pointwise, StepProgram, validate

SPAN = "~"
"""The axis of the steps taken at once.  It sorts, and so loops, behind all others."""

ROWS = 256
"""Entries, of the steps and of the axes summed over beside them, that are added up in registers
before they are added to memory."""


LARGE = 128 * 256
"""Entries of a matrix from which on the library sums it."""


def products(back: Adjoint, kernel: Kernel) -> tuple[tuple[int, Product, Kernel | None], ...]:
    """``(invariant, term, kernel)`` for every ``Product`` term; no kernel where the library sums it."""
    return tuple(
        (i, term, None if _large(back, i, term) else _summing(back, kernel, i, term))
        for i, terms in back.invariants.items()
        for term in terms
        if isinstance(term, Product)
    )


def _large(back: Adjoint, i: int, term: Product) -> bool:
    """Whether a term is a large matrix, each factor giving some of its axes."""
    left, right = (set(back.program.outs[k].axes) for k in (term.left, term.right))
    sides = [set(back.axes[i]) & own - other for own, other in ((left, right), (right, left))]
    entries = [math.prod(back.program.sizes[a] for a in side) for side in sides]
    return all(sides) and math.prod(entries) >= LARGE


def gathered(back: Adjoint) -> Adjoint:
    """``back`` with the terms of an invariant that are summed over the same axes as one sum."""
    groups: dict[tuple[int, tuple[AxisName, ...]], list[int]] = {}
    for i, terms in back.invariants.items():
        for term in terms:
            if isinstance(term, Summed):
                groups.setdefault((i, back.program.outs[term.out].axes), []).append(term.out)
    nodes, outs = list(back.program.nodes), list(back.program.outs)
    gone: set[int] = set()
    for first, *others in groups.values():
        for k in others:
            nodes.append(Pointwise("add", (outs[first].ref, outs[k].ref)))
            outs[first] = dataclasses.replace(outs[first], ref=len(nodes) - 1)
        gone |= set(others)
    if not gone:
        return back
    place = {k: n for n, k in enumerate(k for k in range(len(outs)) if k not in gone)}
    kept = tuple(outs[k] for k in place)
    program = dataclasses.replace(back.program, nodes=tuple(nodes), outs=kept)
    validate(program)
    invariants = {
        i: tuple(
            Summed(place[t.out]) if isinstance(t, Summed) else Product(place[t.left], place[t.right])
            for t in terms
            if not isinstance(t, Summed) or t.out in place
        )
        for i, terms in back.invariants.items()
    }
    streams = {i: place[k] for i, k in back.streams.items()}
    return dataclasses.replace(back, program=program, streams=streams, invariants=invariants)


def summed_over(back: Adjoint, i: int, term: Product) -> tuple[AxisName, ...]:
    """The axes of the factors, beside time, that the gradient of invariant ``i`` lacks."""
    both = (back.program.outs[k].axes for k in (term.left, term.right))
    return tuple(dict.fromkeys(a for axes in both for a in axes if a not in back.axes[i]))


def joined(kernel: Kernel, over: tuple[AxisName, ...]) -> bool:
    """Whether the kernel of a product knows the axes ``over`` and the steps as one axis."""
    return not set(over) <= set(kernel.program.sizes)


def _summing(back: Adjoint, kernel: Kernel, i: int, term: Product) -> Kernel:
    own, both = back.axes[i], (term.left, term.right)
    written = {o.index: o for o in kernel.operands if o.role == "out"}
    axes = {k: back.program.outs[k].axes for k in both}
    over = summed_over(back, i, term)
    # Memory of the backward's own is packed: its first dimensions can be counted as one with time.
    join = all(axes[k][: len(over)] == over and k not in back.streams.values() for k in both)
    build = Builder()
    operands: list[Operand] = []
    factors = []
    for n, k in enumerate(both):
        names = (SPAN, *(axes[k][len(over) :] if join else axes[k]))
        unit = written[k].unit if written[k].unit in names else None
        operands.append(Operand("stream", n, written[k].dtype, names, unit))
        factors.append(build.input("stream", n, names))
    total = build.call("mul", *factors)
    total = build.contract(total, *(build.axes[total] - set(own)))
    used = {a for each in build.axes for a in each} | {SPAN, *own}
    sizes = {a: n for a, n in back.program.sizes.items() if a in used} | {SPAN: ROWS}
    dynamic = (back.program.dynamic | {SPAN}) & used
    # Of two axes that serve equally well, kernels vectorise the first: so it lies last in memory.
    order = tuple(sorted(own, reverse=True))
    program = StepProgram(tuple(build.nodes), sizes, (), (OutSpec(total, order, accumulate=True),), dynamic)
    validate(program)
    operands.append(Operand("out", 0, kernel.compute, order, order[-1] if order else None))
    return Kernel(program, tuple(operands), kernel.compute, kernel.reverse)


__all__ = ["ROWS", "SPAN", "gathered", "joined", "products", "summed_over"]
