"""The factors of a state-free value that carry some axes.

Takes a node and a set of axes; leaves nodes.  An outer product k v^T, and any sum, mask or
batched product of such, is written into a matrix state without being formed: its factors
along K then lack V.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenfuse.step.program import AxisName, Builder, Contract, Input, Pointwise, Ref, arguments

_PRODUCTS = ("add", "sub", "mul", "neg", "div", "where", "cut")
"""Sums of products of their arguments: numbers, reciprocals and masks are factors."""


def leaves(build: Builder, ref: Ref, axes: frozenset[AxisName]) -> set[Ref]:
    """The factors with any of ``axes`` of a value that is a sum of products."""
    found: set[Ref] = set()
    seen: set[Ref] = set()
    pending = [ref]
    while pending:
        at = pending.pop()
        if at in seen or not build.axes[at] & axes:
            continue
        seen.add(at)
        node = build.nodes[at]
        product = isinstance(node, Pointwise) and node.fn in _PRODUCTS
        if product or (isinstance(node, Contract) and node.op == "sum"):
            pending += arguments(node)
        else:
            found.add(at)
    return found


def varies(build: Builder, ref: Ref, axes: frozenset[AxisName]) -> bool:
    """Whether ``ref`` varies along ``axes`` by something that changes from step to step."""
    seen: set[Ref] = set()
    pending = [ref]
    while pending:
        at = pending.pop()
        if at in seen or not build.axes[at] & axes:
            continue
        seen.add(at)
        node = build.nodes[at]
        if isinstance(node, Input) and node.kind != "invariant":
            return True
        pending += arguments(node)
    return False


def separated(
    factors: Sequence[frozenset[AxisName]], keys: frozenset[AxisName]
) -> tuple[list[int], list[int], list[int]] | None:
    """Factors of an outer product by their side: neither, K, V; None if it is not one.

    ``keys`` are axes of which some are K's; V is what a factor has beyond those of K's.
    """
    k = [i for i, own in enumerate(factors) if own & keys]
    if not k:
        return None
    taken = frozenset().union(*(factors[i] for i in k))
    v = [i for i, own in enumerate(factors) if own - taken]
    rest = [i for i in range(len(factors)) if i not in k and i not in v]
    return (rest, k, v) if v else None
