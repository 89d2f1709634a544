"""Derivatives of the nodes for which order along an axis matters.

Takes such a node, its arguments, its value and the cotangent of its value; leaves the
cotangents of its arguments, as nodes of the same IR.  None divides: a gate may be zero.

* ``Scan``   h_t = d_t h_{t-1} + b_t:  G_t = g_t + d_{t+1} G_{t+1};  db = G,  dd_t = G_t h_{t-1}.
  In another semiring d_{t+1} stands for the derivative of h_{t+1} by h_t.
* ``Solve``  z + L z = b:  G + L^T G = g;  db = G,  dL = -G z^T.

Source: Griewank and Walther, "Evaluating Derivatives", ch. 3; for the solve, Giles 2008,
"Collected matrix derivative results", section 2.2.3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.program import Builder, Node, Position, Ref, Rename, Scan, Shift, Solve

_PLUS = {"max-plus": "maximum", "min-plus": "minimum", "log-plus": "logaddexp"}


def vjp(b: Builder, node: Node, args: Sequence[Ref], value: Ref, g: Ref) -> tuple[Ref | None, ...]:
    """The cotangent of every argument of ``node``; it may lack axes along which it is constant."""
    if isinstance(node, Position):
        return ()
    if isinstance(node, Rename):
        return (b.rename(g, {new: old for old, new in node.names}),)
    if isinstance(node, Shift):
        return (b.add(Shift(g, node.axis, -node.by)),)
    if isinstance(node, Solve):
        back = b.add(dataclasses.replace(node, lower=args[0], arg=g, transpose=not node.transpose))
        left, right = (value, back) if node.transpose else (back, value)
        right = b.rename(right, dict(zip(node.rows, node.cols, strict=True)))
        # The sign goes to a factor, so that the product stays one of a matrix product.
        return b.call("mul", b.call("neg", left), right), back
    assert isinstance(node, Scan)
    return (
        _scan(b, node, args, value, g) if node.semiring == "sum-product" else _other(b, node, args, value, g)
    )


def _shifted(b: Builder, node: Scan, ref: Ref, ahead: bool) -> Ref:
    """``ref`` one position earlier in the scan's order, or later (``ahead``)."""
    if node.axis not in b.axes[ref] and ahead:
        return ref
    return b.add(Shift(ref, node.axis, -1 if ahead != node.reverse else 1))


def _scan(b: Builder, node: Scan, args: Sequence[Ref], value: Ref, g: Ref) -> tuple[Ref | None, ...]:
    back = b.add(
        dataclasses.replace(
            node,
            decay=_shifted(b, node, args[0], ahead=True),
            arg=g,
            reverse=not node.reverse,
            transpose=not node.transpose,
        )
    )
    before = _shifted(b, node, value, ahead=False)
    left, right = (before, back) if node.transpose else (back, before)
    right = b.rename(right, dict(zip(node.rows, node.cols, strict=True)))
    return b.call("mul", left, right), back


def _other(b: Builder, node: Scan, args: Sequence[Ref], value: Ref, g: Ref) -> tuple[Ref | None, ...]:
    """``h_t = plus(times(d_t, h_{t-1}), b_t)``: the chain rule with both functions' own rules."""
    if node.semiring == "or-and":
        return None, None
    plus, one = FUNCTIONS[_PLUS[node.semiring]].vjp, b.const(1.0)
    later = b.add(Shift(one, node.axis, -1 if node.reverse else 1))
    moved = b.call("add", args[0], _shifted(b, node, value, ahead=False))
    zero, held, added = b.const(0.0), *(plus(b, one, (moved, args[1]), value, i) for i in (0, 1))
    assert held is not None and added is not None
    if node.semiring == "log-plus":  # of two infinities both would be NaN
        nothing = b.call("eq", value, b.const(-math.inf))
        held, added = b.call("where", nothing, zero, held), b.call("where", nothing, one, added)
    keep = b.call("where", later, held, zero)
    back = b.add(Scan(node.axis, _shifted(b, node, keep, ahead=True), g, not node.reverse))
    fresh = b.call("where", later, added, one)
    return b.call("mul", keep, back), b.call("mul", fresh, back)
