"""The backward of a fused loop: the adjoint kernel, piece by piece.

Takes the tensors of ``tenfuse::loop_backward``; leaves gradients.  Where the gradient of an
invariant is a sum of outer products over time, the adjoint kernel writes their factors and
a second kernel, or the matrix library, sums them up.  The loop then runs in pieces of time, last
piece first, so that the factors of a piece are still in the cache when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from tenfuse.plan.kernel import Kernel
from tenfuse.plan.loop import LoopPlan
from tenfuse.plan.product import ROWS, SPAN, joined, summed_over
from tenfuse.plan.tensors import dense_like
from tenfuse.runtime.bind import (
    Bound,
    Groups,
    all_sizes,
    dynamic_names,
    enter,
    grouped,
    plan_of,
    prepare,
    product_role,
    saved,
    sizes_of,
    viewed,
)
from tenfuse.runtime.frame import Frame
from tenfuse.runtime.launch import DTYPES
from tenfuse.runtime.matrices import Matrices
from tenfuse.runtime.replay import Replays
from tenfuse.runtime.totals import Totals
from tenfuse.step.program import AxisName

PIECE = 2 << 20
"""Bytes of factors that stay in a processor's cache until they are summed up."""

_OFTEN = 8
"""Bytes of factors in a piece per byte of the large matrices, which every piece lays out anew."""

_replays = Replays()


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
    groups = (grads, carries, streams, invariants, saves)

    def work_out(frame: Frame) -> None:
        first, *given, last = frame.grouped(groups)
        _Backward(plan_of(key), key, steps, grouped(*given), frame).run(first, last)

    return _replays.run(key, PIECE, steps, [x for group in groups for x in group], work_out)


class _Backward:
    """Works out one call: the pieces of its time, and what they sum to."""

    def __init__(self, plan: LoopPlan, key: str, steps: int, groups: Groups, frame: Frame) -> None:
        assert plan.backward is not None
        self.plan, self.key, self.steps, self.groups, self.frame = plan, key, steps, groups, frame
        self.back, self.kernel = plan.backward.adjoint, plan.backward.kernel
        self.products = plan.backward.products
        self.dynamic = sizes_of(plan, groups)
        self.sizes: dict[AxisName, int] = all_sizes(plan, self.dynamic)
        self.gradient_of = {out: i for i, out in self.back.streams.items()}
        self.carries, self.streams, self.invariants = gradients(plan, groups)
        full = [True] * len(self.carries) + list(plan.backward.covered) + [False] * len(self.invariants)
        for x, whole in zip((*self.carries, *self.streams, *self.invariants), full, strict=True):
            if x is not None:
                frame.result(x, None if whole else 0)

    def run(self, grads: Any, saves: Any) -> None:
        pieces, plan, sizes = list(self._pieces()), self.plan, self.sizes
        bound = self._bound(grads, saves)
        factors = self._factors(max(time.stop - time.start for time, _ in pieces))
        totals = Totals(plan, sizes, self.frame, self.invariants, len(pieces))
        matrices = Matrices(plan, sizes, self.frame, self.invariants)
        states = [viewed(grads[p.source], p, sizes, 0) for p in plan.carries]
        last = [viewed(self.carries[p.source], p, sizes, 0) for p in plan.carries]
        turns = [self._like(last) for _ in range(min(2, len(pieces) - 1))]
        for n, (time, chunks) in enumerate(pieces):
            steps = time.stop - time.start
            after = last if n == len(pieces) - 1 else turns[n % 2]
            piece = {
                k: x[time] if self._timed(k) else x[chunks] if k[0] == "save" else x for k, x in bound.items()
            }
            piece |= {("out", k): x[:steps] for k, x in factors.items()} | totals.of("out", n)
            piece |= {("init", i): x for i, x in enumerate(states)}
            piece |= {("final", i): x for i, x in enumerate(after)}
            self._launch(self.kernel, "backward", piece, steps, self.dynamic)
            sums = totals.of("product", n)
            for m, (_, _, kernel) in enumerate(self.products):
                if kernel is None:
                    matrices.add(m, piece)
                else:
                    self._sum(m, kernel, piece, sums["product", m], steps)
            totals.add(n)
            states = after
        matrices.finish()

    def _bound(self, grads: Any, saves: Any) -> Bound:
        """Streams, invariants, saved states and the gradients of streams."""
        plan, sizes = self.plan, self.sizes
        exports, count = grads[len(self.carries) :], len(plan.streams)
        bound = enter(plan, self.groups, sizes)
        bound |= {
            ("stream", count + j): viewed(exports[p.source], p, sizes, 1) for j, p in enumerate(plan.outs)
        }
        bound |= {saved(plan, n, "stream", count + len(plan.outs)): x for n, x in enumerate(saves)}
        for k, i in self.gradient_of.items():
            place = plan.streams[i]
            bound["out", k] = viewed(self.streams[place.source], place, sizes, 1)
        return bound

    def _timed(self, name: tuple[str, int]) -> bool:
        return name[0] == "stream" or (name[0] == "out" and name[1] in self.gradient_of)

    def _like(self, states: list[Any]) -> list[Any]:
        """Room for carries between two pieces, their dimensions in the same order in memory."""
        found = []
        for x in states:
            order = sorted(range(x.dim()), key=lambda d: -x.stride(d))
            packed = self.frame.scratch([x.shape[d] for d in order], x.dtype)
            found.append(packed.permute([order.index(d) for d in range(x.dim())]))
        return found

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
        size = DTYPES[self.kernel.compute].itemsize
        large = {i for i, _, kernel in self.products if kernel is None}
        matrices = sum(math.prod(self.sizes[a] for a in self.back.axes[i]) for i in large)
        return max(1, max(PIECE, _OFTEN * matrices * size) // max(entries * size, 1) // chunk) * chunk

    def _factors(self, steps: int) -> dict[int, torch.Tensor]:
        """Room for what the adjoint writes at every step beside the gradients of streams."""
        return {
            k: self.frame.scratch([steps, *(self.sizes[a] for a in out.axes)], DTYPES[self.kernel.compute])
            for k, out in enumerate(self.back.program.outs)
            if k not in self.gradient_of and not out.accumulate
        }

    def _sum(self, m: int, kernel: Kernel, piece: Bound, total: torch.Tensor, steps: int) -> None:
        """One product over a piece, as many steps at once as make at most ``ROWS``."""
        i, term, _ = self.products[m]
        over = summed_over(self.back, i, term)
        each, join = math.prod(self.sizes[a] for a in over), joined(kernel, over)
        most = max(1, min(ROWS // max(each, 1), steps))
        many = next(n for n in range(most, 0, -1) if steps % n == 0)
        sides = [piece["out", k] for k in (term.left, term.right)]
        sides = [
            _rows(x, many, each, len(over)) if join else x.unflatten(0, (steps // many, many)) for x in sides
        ]
        bound = {("stream", 0): sides[0], ("stream", 1): sides[1], ("out", 0): total}
        span = many * each if join else many
        self._launch(kernel, product_role(m), bound, steps // many, {**self.dynamic, SPAN: span})

    def _launch(
        self, kernel: Kernel, role: str, bound: Bound, steps: int, dynamic: dict[AxisName, Any]
    ) -> None:
        operands = [bound[o.role, o.index] for o in kernel.operands]
        launcher = prepare(kernel, self.key, role)
        self.frame.launch(launcher, role, operands, steps, dynamic_names(kernel, dynamic))


def _rows(x: torch.Tensor, many: int, each: int, over: int) -> torch.Tensor:
    """A packed tensor, time first, with ``many`` steps and the next ``over`` dimensions as one."""
    step, own = x.stride(0), slice(1 + over, None)
    return x.as_strided(
        (x.shape[0] // many, many * each, *x.shape[own]),
        (many * step, step // max(each, 1), *x.stride()[own]),
        x.storage_offset(),
    )


__all__ = ["gradients", "run_backward"]
