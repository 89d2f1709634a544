"""Whether an iteration without inputs, such as the power method or a solver, is worth a kernel.

Takes the body of a loop that reads no slices and leaves nothing but its last state; says whether calling
its operators costs more than what they compute, which is what one kernel saves.  Steps over time are
fused whatever they cost; here the inner compiler, which has nothing to stack and no state to save for,
is the better one from the bounds below on (fp32, one core, forward and backward: even at 4,096 entries
of an elementwise step, and at 131,072 products of a step with two matrices).
"""

from __future__ import annotations

import math

import torch
import torch.fx as fx

from tenfuse.capture.views import static, value_of

CALLS = 48
"""Operators called in all steps, at least: what a kernel and its derivative take to be called."""

ENTRIES, PRODUCTS = 1 << 11, 1 << 16
"""Entries of a value, and products in a step, at most."""


def worthwhile(body: fx.Graph, steps: int) -> bool:
    calls = [n for n in body.nodes if n.op in ("call_function", "call_method")]
    tensors = [n for n in body.nodes if isinstance(value_of(n), torch.Tensor)]
    sizes = {n: [static(s) for s in value_of(n).shape] for n in tensors}
    if len(calls) * steps < CALLS or any(None in shape for shape in sizes.values()):
        return False
    entries = {n: math.prod(s for s in shape if s is not None) for n, shape in sizes.items()}
    if any(entries[n] > ENTRIES for n in calls if n in entries):
        return False
    return sum(_products(n, entries) for n in calls if n in entries) <= PRODUCTS


def _products(node: fx.Node, entries: dict[fx.Node, int]) -> float:
    """Those of a product of matrices [m, k] [k, n] are the root of mk, kn and mn multiplied."""
    given = sorted((entries[a] for a in node.all_input_nodes if a in entries), reverse=True)
    shapes = [value_of(a).shape for a in node.all_input_nodes if a in entries]
    if len(given) < 2 or _broadcasts(shapes, value_of(node).shape):
        return 0.0
    return math.sqrt(given[0] * given[1] * entries[node])


def _broadcasts(shapes: list[torch.Size], result: torch.Size) -> bool:
    """Whether a value of ``result`` may be computed entry by entry."""
    return all(
        len(s) <= len(result)
        and all(a in (1, b) for a, b in zip(reversed(s), reversed(result), strict=False))
        for s in shapes
    )


__all__ = ["worthwhile"]
