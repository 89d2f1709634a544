"""A fused loop on tiles: its kernels launched on the tensors of one call.

Takes a ``TilePlan`` and the tensors of ``tenfuse::loop`` or its backward; leaves results.
Memory is allocated here and nowhere in a kernel; nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from tenfuse.plan.tiles.kernel import TileKernel
from tenfuse.plan.tiles.plan import Pass, TilePlan
from tenfuse.runtime.backward import gradients
from tenfuse.runtime.bind import (
    Bound,
    Groups,
    all_sizes,
    allocate,
    count_launch,
    enter,
    once,
    sizes_of,
    viewed,
)
from tenfuse.runtime.launch import DTYPES
from tenfuse.runtime.tiles import TileLauncher
from tenfuse.step.adjoint import Product, Summed
from tenfuse.step.program import AxisName

_prepared: dict[tuple[str, str, int], TileLauncher] = {}
"""By plan, role and number of operands: a kernel that also keeps states has more of them."""


def prepare(kernel: TileKernel, key: str, role: str) -> TileLauncher:
    """The launcher of a kernel, made once."""
    return once(_prepared, TileLauncher, kernel, key, role)


def kernels(plan: TilePlan) -> dict[str, TileKernel]:
    """The kernels that calls launch, by role."""
    found = dict(_roles("forward", plan.saving if plan.backward is not None else plan.forward))
    return found | (dict(_roles("backward", plan.backward.passes)) if plan.backward is not None else {})


def _roles(direction: str, passes: tuple[Pass, ...]) -> Iterable[tuple[str, TileKernel]]:
    for n, one in enumerate(passes):
        yield (direction if len(passes) == 1 else f"{direction}_{n + 1}"), one.kernel


def results(plan: TilePlan, groups: Groups, steps: Any, save: bool) -> tuple[list[torch.Tensor], ...]:
    """Empty finals, exports and saved states."""
    sizes = _sizes(plan, groups)
    finals, exports, _ = allocate(plan.base, groups, steps, False, sizes)
    like = (*groups["carries"], *groups["streams"])[0]
    # One more than needed: no size is then 1 at some lengths only, which would be a guard.
    count = steps // plan.length + 2
    kept = plan.kept if save else ()
    return finals, exports, [_states(plan, i, count, sizes, like) for i in kept]


def _states(
    plan: TilePlan, i: int, count: Any, sizes: dict[AxisName, Any], like: torch.Tensor
) -> torch.Tensor:
    shape = [count, *(sizes[a] for a in plan.program.carries[i].axes)]
    return like.new_empty(shape, dtype=DTYPES[plan.handed])


def run_forward(plan: TilePlan, key: str, groups: Groups, steps: int, save: bool) -> list[torch.Tensor]:
    """What ``tenfuse::loop`` returns."""
    finals, exports, saves = results(plan, groups, steps, save)
    sizes, base = _sizes(plan, groups), plan.base
    bound = enter(base, groups, sizes)
    bound |= {
        ("init", i): viewed(groups["carries"][p.source], p, sizes, 0) for i, p in enumerate(base.carries)
    }
    bound |= {("final", i): viewed(finals[p.source], p, sizes, 0) for i, p in enumerate(base.carries)}
    bound |= {("out", j): viewed(exports[p.source], p, sizes, 1) for j, p in enumerate(base.outs)}
    bound |= {("state", i): x for i, x in zip(plan.kept, saves, strict=False)}
    like = (*groups["carries"], *groups["streams"])[0]
    passes = plan.saving if save else plan.forward
    _Run(plan, key, "forward", steps, sizes, like).run(passes, bound)
    return [*finals, *exports, *saves]


def run_backward(
    plan: TilePlan, key: str, grads: Any, groups: Groups, saves: Any, steps: int
) -> list[torch.Tensor]:
    """What ``tenfuse::loop_backward`` returns."""
    assert plan.backward is not None
    base, sizes, back = plan.base, _sizes(plan, groups), plan.backward.adjoint
    like = (*groups["carries"], *groups["streams"])[0]
    found = carries, streams, invariants = gradients(base, groups)
    finals, exports = grads[: len(carries)], grads[len(carries) :]
    first = max(len(base.streams), plan.backward.passes[0].kernel.within + 1)
    bound = enter(base, groups, sizes)
    bound |= {("stream", first + j): viewed(exports[p.source], p, sizes, 1) for j, p in enumerate(base.outs)}
    bound |= {("state", i): x for i, x in zip(plan.kept, saves, strict=True)}
    bound |= {("init", i): viewed(finals[p.source], p, sizes, 0) for i, p in enumerate(base.carries)}
    bound |= {("final", i): viewed(carries[p.source], p, sizes, 0) for i, p in enumerate(base.carries)}
    for i, k in back.streams.items():
        bound["out", k] = viewed(streams[base.streams[i].source], base.streams[i], sizes, 1)
    run = _Run(plan, key, "backward", steps, sizes, like)
    bound |= run.scratch(set(back.streams.values()))
    run.run(plan.backward.passes, bound)
    for i, terms in back.invariants.items():
        into = viewed(invariants[base.invariants[i].source], base.invariants[i], sizes, 0)
        for term in terms:
            into.add_(run.term(term, bound, back.axes[i]))
    return [g for group in found for g in group if g is not None]


class _Run:
    """The passes of one direction of one call."""

    def __init__(
        self,
        plan: TilePlan,
        key: str,
        direction: str,
        steps: int,
        sizes: dict[AxisName, Any],
        like: torch.Tensor,
    ) -> None:
        self.plan, self.key, self.direction, self.steps = plan, key, direction, steps
        self.sizes, self.like = sizes, like
        self.dtype = DTYPES[plan.base.forward.compute]
        self.count = -(-steps // plan.length)
        self.rows = plan.forward[0].kernel.rows

    def run(self, passes: tuple[Pass, ...], bound: Bound) -> None:
        for (role, kernel), one in zip(_roles(self.direction, passes), passes, strict=True):
            tensors, sums = [], []
            for operand in kernel.operands:
                if operand.role == "out":
                    made, into = self._output(one, operand.index, bound)
                    tensors.append(made)
                    sums += into
                else:
                    tensors.append(bound[operand.role, operand.index])
            prepare(kernel, self.key, role)(tensors, self.steps, self.sizes)
            count_launch(self.key, role)
            for value, gone, total in sums:
                torch.sum(value, gone, out=total)

    def _output(
        self, one: Pass, j: int, bound: Bound
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, list[int], torch.Tensor]]]:
        """Where a kernel writes output ``j``; and what is then summed up into where it belongs.

        It writes parts where instances share an axis, or where iterations side by side write
        what is a sum over time.
        """
        kernel, name = one.kernel, one.names[j]
        spec = kernel.program.outs[j]
        if name not in bound:
            sizes = {**kernel.program.sizes, **self.sizes}
            shape = [self.count, *(sizes[a] for a in spec.axes)]
            bound[name] = self.like.new_empty(shape, dtype=DTYPES[self.plan.handed])
        whole, extent = bound[name], dict(kernel.tiling.blocks)
        axes = dict(kernel.shared).get(j, ())
        parts = [-(-self.sizes[a] // extent.get(a, 1)) for a in axes]
        over_time = spec.accumulate and kernel.parallel
        if not parts and not over_time:
            return whole, []
        # What lies behind the end of time no instance writes.
        whole = whole if spec.accumulate else whole[: self.steps]
        lead = [self.count] if over_time else [] if spec.accumulate else [whole.shape[0]]
        rest = whole.shape if spec.accumulate else whole.shape[1:]
        made = whole.new_empty([*lead, *parts, *rest])
        first = 0 if over_time or spec.accumulate else 1
        return made, [(made, list(range(first, made.dim() - len(rest))), whole)]

    def scratch(self, gradients: set[int]) -> Bound:
        """What the adjoint writes beside the gradients of streams: sums, and factors per step.

        Zero is a sum that no instance writes, as there is none where an axis is empty, and what
        lies behind the end of time in a factor per step, which kernels leave as it is.
        """
        assert self.plan.backward is not None
        found, empty = {}, 0 in self.sizes.values()
        for k, out in enumerate(self.plan.backward.adjoint.program.outs):
            if k in gradients:
                continue
            shape = [self.sizes[a] for a in out.axes if out.accumulate or a not in self.rows]
            lead = [] if out.accumulate else [self._lead(out.axes)]
            made = self.like.new_empty([*lead, *shape], dtype=self.dtype)
            if out.accumulate or empty:
                made.zero_()
            elif lead[0] > self.steps:
                made[self.steps :].zero_()
            found["out", k] = made
        return found

    def _lead(self, axes: tuple[AxisName, ...]) -> int:
        return self.count * (self.plan.length if set(axes) & set(self.rows) else 1)

    def term(self, term: Summed | Product, bound: Bound, axes: tuple[AxisName, ...]) -> torch.Tensor:
        """One term of an invariant's gradient, over ``axes``."""
        assert self.plan.backward is not None
        outs = self.plan.backward.adjoint.program.outs
        if isinstance(term, Summed):
            own, value = outs[term.out].axes, bound["out", term.out]
            gone = [n for n, a in enumerate(own) if a not in axes]
            return value.sum(gone) if gone else value
        sides = [self._factor(bound["out", k], outs[k].axes) for k in (term.left, term.right)]
        letters = {a: chr(ord("a") + n) for n, a in enumerate(sorted({*axes, *sides[0][1], *sides[1][1]}))}
        text = ",".join("Z" + "".join(letters[a] for a in own) for _, own in sides)
        # Gradients of streams have the streams' dtype, other factors that of the arithmetic.
        factors = (x.to(self.dtype) for x, _ in sides)
        return torch.einsum(f"{text}->{''.join(letters[a] for a in axes)}", *factors)

    def _factor(
        self, value: torch.Tensor, axes: tuple[AxisName, ...]
    ) -> tuple[torch.Tensor, tuple[AxisName, ...]]:
        """One factor with iterations first, then its positions, then its other axes."""
        rest = tuple(a for a in axes if a not in self.rows)
        if not set(axes) & set(self.rows):
            return value, rest
        return value.unflatten(0, (self.count, *(self.sizes[a] for a in self.rows))), (*self.rows, *rest)


def _sizes(plan: TilePlan, groups: Groups) -> dict[AxisName, Any]:
    dynamic = sizes_of(plan.base, groups)
    programs = [plan.program, *([plan.backward.adjoint.program] if plan.backward is not None else [])]
    sizes = all_sizes(plan.base, dynamic)
    for program in programs:
        sizes |= {a: dynamic.get(a.rstrip("'"), n) for a, n in program.sizes.items()}
    return sizes


__all__ = ["kernels", "prepare", "results", "run_backward", "run_forward"]
