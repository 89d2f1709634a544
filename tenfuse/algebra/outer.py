"""Whether a state-free value is a sum of products of a K-part and a V-part.

Takes a node and two sets of axes; leaves a truth.  An outer product k v^T, and any sum,
mask or batched product of such, is written into a matrix state without being formed.
"""

from __future__ import annotations

from tenfuse.step.program import AxisName, Builder, Contract, Input, Pointwise, Ref, arguments

Axes = frozenset[AxisName]


def factorises(build: Builder, ref: Ref, k: Axes, v: Axes) -> bool:
    """Whether ``ref`` is a sum of products none of whose factors has axes of both sets."""
    if not (build.axes[ref] & k and build.axes[ref] & v):
        return True
    node = build.nodes[ref]
    if isinstance(node, Contract):
        return node.op == "sum" and factorises(build, node.arg, k, v)
    if not isinstance(node, Pointwise):
        return False
    if node.fn in ("add", "sub", "mul", "neg", "cut"):
        return all(factorises(build, a, k, v) for a in node.args)
    if node.fn in ("div", "where"):
        # A divisor and a mask must themselves stand on one side.
        x, *rest = node.args if node.fn == "div" else (node.args[1], node.args[2], node.args[0])
        *more, last = rest
        one_sided = not (build.axes[last] & k and build.axes[last] & v)
        return one_sided and all(factorises(build, a, k, v) for a in (x, *more))
    return False


def varies(build: Builder, ref: Ref, k: Axes) -> bool:
    """Whether ``ref`` varies along ``k`` by something that changes from step to step."""
    seen: set[Ref] = set()
    pending = [ref]
    while pending:
        at = pending.pop()
        if at in seen or not build.axes[at] & k:
            continue
        seen.add(at)
        node = build.nodes[at]
        if isinstance(node, Input) and node.kind != "invariant":
            return True
        pending += arguments(node)
    return False
