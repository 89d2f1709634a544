"""The backward of a fused loop: the adjoint kernel, piece by piece.

Takes the tensors of ``tenfuse::loop_backward``; leaves gradients.  Where the gradient of an
invariant is a sum of outer products over time, the adjoint kernel writes their factors and
a second kernel sums them up.  The loop then runs in pieces of time, last piece first, so
that the factors of a piece are still in the cache when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from tenfuse.plan.kernel import Kernel
from tenfuse.plan.loop import LoopPlan, dense_like
from tenfuse.runtime.bind import (
    Bound,
    Groups,
    all_sizes,
    dynamic_names,
    enter,
    grouped,
    plan_of,
    product_role,
    run,
    saved,
    sizes_of,
    viewed,
)
from tenfuse.runtime.launch import DTYPES
from tenfuse.runtime.pages import advise
from tenfuse.step.adjoint import Summed
from tenfuse.step.program import AxisName

PIECE = 2 << 20
"""Bytes of factors that stay in a processor's cache until they are summed up."""


def gradients(plan: LoopPlan, groups: Groups) -> tuple[list[Any], list[Any], list[Any]]:
    """Tensors for the gradients that are wanted, in the order the operator returns them."""
    assert plan.backward is not None
    carries = [torch.empty_like(c, memory_format=torch.contiguous_format) for c in groups["carries"]]
    streams = [
        None if not want else dense_like(s) if full else dense_like(s).zero_()
        for s, want, full in zip(groups["streams"], plan.wanted.streams, plan.backward.covered, strict=True)
    ]
    invariants = [
        torch.zeros_like(v, memory_format=torch.contiguous_format) if want else None
        for v, want in zip(groups["invariants"], plan.wanted.invariants, strict=True)
    ]
    return carries, streams, invariants


def run_backward(
    grads: Any, carries: Any, streams: Any, invariants: Any, saves: Any, steps: int, key: str
) -> list[torch.Tensor]:
    """The implementation of ``tenfuse::loop_backward`` on the CPU."""
    plan, groups = plan_of(key), grouped(carries, streams, invariants)
    results = gradients(plan, groups)
    for large in (g for g in results[1] if g is not None):
        advise(large)
    _Backward(plan, key, steps, groups, results).run(grads, saves)
    return [g for group in results for g in group if g is not None]


class _Backward:
    """One call: the pieces of its time, and what they sum to."""

    def __init__(self, plan: LoopPlan, key: str, steps: int, groups: Groups, results: Any) -> None:
        assert plan.backward is not None
        self.plan, self.key, self.steps, self.groups = plan, key, steps, groups
        self.carries, self.streams, self.invariants = results
        self.back, self.kernel = plan.backward.adjoint, plan.backward.kernel
        self.products = plan.backward.products
        self.dynamic = sizes_of(plan, groups)
        self.sizes: dict[AxisName, int] = all_sizes(plan, self.dynamic)
        self.dtype = DTYPES[self.kernel.compute]
        self.like = (*groups["carries"], *groups["streams"])[0]
        self.gradient_of = {out: i for i, out in self.back.streams.items()}

    def run(self, grads: Any, saves: Any) -> None:
        plan, sizes = self.plan, self.sizes
        finals, exports = grads[: len(self.carries)], grads[len(self.carries) :]
        bound = enter(plan, self.groups, sizes)
        count = len(plan.streams)
        bound |= {
            ("stream", count + j): viewed(exports[p.source], p, sizes, 1) for j, p in enumerate(plan.outs)
        }
        bound |= {saved(plan, n, "stream", count + len(plan.outs)): x for n, x in enumerate(saves)}
        for k, i in self.gradient_of.items():
            place = plan.streams[i]
            bound["out", k] = viewed(self.streams[place.source], place, sizes, 1)
        pieces = list(self._pieces())
        scratch = self._scratch(max(time.stop - time.start for time, _ in pieces))
        states = [viewed(finals[p.source], p, sizes, 0) for p in plan.carries]
        last = [viewed(self.carries[p.source], p, sizes, 0) for p in plan.carries]
        for n, (time, chunks) in enumerate(pieces):
            piece = {
                k: x[time] if self._timed(k) else x[chunks] if k[0] == "save" else x for k, x in bound.items()
            }
            after = last if n == len(pieces) - 1 else [torch.empty_like(x) for x in last]
            steps = time.stop - time.start
            piece |= {k: x[:steps] if timed else x for k, (timed, x) in scratch.items()}
            self._piece(piece, states, after, steps)
            states = after

    def _timed(self, name: tuple[str, int]) -> bool:
        return name[0] == "stream" or (name[0] == "out" and name[1] in self.gradient_of)

    def _pieces(self) -> Iterator[tuple[slice, slice]]:
        """Time and saved chunks of every piece, in the order in which they are run."""
        length = self._length()
        chunk = self.kernel.checkpoint or 1
        for first in reversed(range(0, self.steps, length)):
            stop = min(first + length, self.steps)
            time = slice(first, stop)
            if self.plan.forward.reverse:
                time = slice(self.steps - stop, self.steps - first)
            yield time, slice(first // chunk, None)
        if not self.steps:
            yield slice(0, 0), slice(0, None)

    def _length(self) -> int:
        """Steps of a piece: all, unless there are factors to sum up."""
        if not self.products:
            return max(self.steps, 1)
        outs = {out for _, term, _ in self.products for out in (term.left, term.right)}
        entries = sum(math.prod(self.sizes[a] for a in self.back.program.outs[k].axes) for k in outs)
        chunk = self.kernel.checkpoint or 1
        return max(1, PIECE // max(entries * self.dtype.itemsize, 1) // chunk) * chunk

    def _scratch(self, steps: int) -> dict[tuple[str, int], tuple[bool, torch.Tensor]]:
        """What the adjoint writes beside the gradients of streams: sums, and factors per step."""
        found = {}
        for k, out in enumerate(self.back.program.outs):
            if k not in self.gradient_of:
                shape = [self.sizes[a] for a in out.axes]
                fresh = self.like.new_empty(shape if out.accumulate else [steps, *shape], dtype=self.dtype)
                found["out", k] = (not out.accumulate, advise(fresh))
        return found

    def _piece(self, bound: Bound, states: list[Any], after: list[Any], steps: int) -> None:
        bound |= {("init", i): x for i, x in enumerate(states)}
        bound |= {("final", i): x for i, x in enumerate(after)}
        self._launch(self.kernel, "backward", bound, steps)
        for i, terms in self.back.invariants.items():
            for term in terms:
                if isinstance(term, Summed):
                    axes, partial = self.back.program.outs[term.out].axes, bound["out", term.out]
                    rest = [n for n, a in enumerate(axes) if a not in self.back.axes[i]]
                    self._add(i, partial.sum(rest) if rest else partial)
        for n, (i, term, product) in enumerate(self.products):
            total = self.like.new_empty([self.sizes[a] for a in self.back.axes[i]], dtype=self.dtype)
            factors: Bound = {("stream", 0): bound["out", term.left], ("stream", 1): bound["out", term.right]}
            self._launch(product, product_role(n), factors | {("out", 0): total}, steps)
            self._add(i, total)

    def _launch(self, kernel: Kernel, role: str, bound: Bound, steps: int) -> None:
        run(kernel, self.key, role, bound, steps, dynamic_names(kernel, self.dynamic))

    def _add(self, i: int, total: torch.Tensor) -> None:
        place = self.plan.invariants[i]
        viewed(self.invariants[place.source], place, self.sizes, 0).add_(total)


__all__ = ["gradients", "run_backward"]
