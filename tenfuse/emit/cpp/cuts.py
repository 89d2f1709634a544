"""Which axes tasks may be cut along.

Takes the programs of a ``Kernel``; leaves axes.  Along a parallel axis no task needs
another's values.  Along some others every task has a share of a sum, which is right only if
nothing but sums, products with what all tasks know, and outputs follows.
"""

from __future__ import annotations

from tenfuse.plan.kernel import Kernel
from tenfuse.step.program import AxisName, Contract, Input, Pointwise, Ref, StepProgram, arguments


def partial_sums(program: StepProgram, axis: AxisName) -> frozenset[Ref] | None:
    """The nodes that hold a share of a sum when ``axis`` is cut among tasks.

    None if it must not be cut: a carry, or anything not linear in the shares, would see a
    share instead of the sum.
    """
    axes = program.axes_of()
    share: set[Ref] = set()
    for i, node in enumerate(program.nodes):
        below = [a for a in arguments(node) if a in share]
        if isinstance(node, Contract) and axis in node.axes:
            if node.op != "sum" or below:
                return None
            share.add(i)
        elif below:
            if axis in axes[i] or not _linear(node, share):
                return None
            share.add(i)
    moved = any(
        before != after and axis in (before, after)
        for c in program.carries
        for before, after in zip(c.axes, c.next_axes, strict=True)
    )
    return None if moved or any(c.next in share for c in program.carries) else frozenset(share)


def _linear(node: object, share: set[Ref]) -> bool:
    """Whether summing a node over tasks equals computing it from the summed shares."""
    if isinstance(node, Contract):
        return node.op == "sum"
    assert isinstance(node, Pointwise)
    mine = [a in share for a in node.args]
    if node.fn in ("add", "sub"):
        return all(mine)
    if node.fn == "mul":
        return mine.count(True) == 1
    return node.fn == "neg" or (node.fn == "div" and mine == [True, False])


def divisible(kernel: Kernel, par: frozenset[AxisName]) -> frozenset[AxisName]:
    """Axes that tasks may be cut along if outputs are then summed over tasks.

    Every share must be computed by one task only: an output summed over one such axis may
    lack no other axis that tasks are cut along.  Nor may it be spread along that axis again:
    a task writes only the entries of its own cut.
    """
    programs = [kernel.program] + ([kernel.recompute] if kernel.recompute else [])
    good = {
        a
        for a in kernel.program.sizes
        if a not in par and all(partial_sums(p, a) is not None for p in programs)
    } - _renamed(kernel)
    shares = {a: partial_sums(kernel.program, a) or frozenset() for a in good | par}
    for out in kernel.program.outs:
        good -= {a for a in out.axes if a in shares and out.ref in shares[a]}
        lost = {a for a in good | par if a not in out.axes}
        if any(out.ref in shares[a] for a in lost) and not all(out.ref in shares[a] for a in lost):
            good -= lost
    return frozenset(good)


def task_parallel(kernel: Kernel) -> frozenset[AxisName]:
    """Axes along which tasks may be cut: parallel in every program of the kernel."""
    found = kernel.program.parallel_axes()
    if kernel.recompute is not None:
        found &= kernel.recompute.parallel_axes()
    return found - _renamed(kernel)


def _renamed(kernel: Kernel) -> frozenset[AxisName]:
    """Axes under which an input reads a state along another of the state's axes."""
    found: set[AxisName] = set()
    for program in [kernel.program] + ([kernel.recompute] if kernel.recompute else []):
        for node in program.nodes:
            if isinstance(node, Input) and node.kind in ("carry", "state"):
                owner = program if node.kind == "carry" else kernel.recompute
                assert owner is not None
                for mine, its in zip(node.axes, owner.carries[node.index].axes, strict=True):
                    if mine != its:
                        found |= {mine, its}
    return frozenset(found)


__all__ = ["divisible", "partial_sums", "task_parallel"]
