"""A fused loop on tiles: its kernels launched on the tensors of one call.

Takes a ``TilePlan`` and the tensors of ``tenfuse::loop`` or its backward; leaves results.
Memory is allocated here and nowhere in a kernel; nothing waits for the device.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from tenfuse.plan.tile import TileKernel
from tenfuse.plan.tiled import TilePlan
from tenfuse.runtime.backward import gradients
from tenfuse.runtime.bind import (
    Bound,
    Groups,
    all_sizes,
    allocate,
    count_launch,
    enter,
    grouped,
    sizes_of,
    viewed,
)
from tenfuse.runtime.launch import DTYPES
from tenfuse.runtime.tiles import TileLauncher
from tenfuse.step.adjoint import Product, Summed
from tenfuse.step.program import AxisName

_prepared: dict[tuple[str, str], TileLauncher] = {}
_lock = threading.Lock()


def prepare(kernel: TileKernel, key: str, role: str) -> TileLauncher:
    """The launcher of a kernel, made once."""
    with _lock:
        found = _prepared.get((key, role))
    if found is None:
        found = TileLauncher(kernel)
        with _lock:
            _prepared.setdefault((key, role), found)
    return found


def kernels(plan: TilePlan) -> dict[str, TileKernel]:
    """The kernels that calls launch, by role."""
    if plan.backward is None or plan.saving is None:
        return {"forward": plan.forward}
    return {"saving": plan.saving, "backward": plan.backward.kernel}


def saves_of(
    plan: TilePlan, steps: Any, sizes: dict[AxisName, Any], like: torch.Tensor
) -> list[torch.Tensor]:
    """Empty tensors for the states kept at the start of every iteration."""
    specs, dtype = plan.forward.program.carries, DTYPES[plan.forward.compute]
    # One more than needed: no size is then 1 at some lengths only, which would be a guard.
    count = steps // plan.length + 2
    return [like.new_empty([count, *(sizes[a] for a in specs[i].axes)], dtype=dtype) for i in plan.kept]


def results(plan: TilePlan, groups: Groups, steps: Any, save: bool) -> tuple[list[torch.Tensor], ...]:
    """Empty finals, exports and saved states."""
    sizes = _sizes(plan, groups)
    finals, exports, _ = allocate(plan.base, groups, steps, False, sizes)
    like = (*groups["carries"], *groups["streams"])[0]
    return finals, exports, saves_of(plan, steps, sizes, like) if save else []


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
    bound |= {("out", len(base.outs) + n): x for n, x in enumerate(saves)}
    kernel = plan.saving if save and plan.saving is not None else plan.forward
    _run(kernel, key, "saving" if kernel is not plan.forward else "forward", bound, steps, sizes)
    return [*finals, *exports, *saves]


def run_backward(
    plan: TilePlan, key: str, grads: Any, groups: Groups, saves: Any, steps: int
) -> list[torch.Tensor]:
    """What ``tenfuse::loop_backward`` returns."""
    return _Backward(plan, key, groups, steps).run(grads, saves)


class _Backward:
    def __init__(self, plan: TilePlan, key: str, groups: Groups, steps: int) -> None:
        assert plan.backward is not None
        self.plan, self.key, self.groups, self.steps = plan, key, groups, steps
        self.base, self.back, self.kernel = plan.base, plan.backward.adjoint, plan.backward.kernel
        self.sizes = _sizes(plan, groups)
        self.like = (*groups["carries"], *groups["streams"])[0]
        self.count = -(-steps // plan.length)
        self.shared = dict(self.kernel.shared)
        self.extent = dict(self.kernel.tiling.blocks)

    def run(self, grads: Any, saves: Any) -> list[torch.Tensor]:
        base, sizes = self.base, self.sizes
        found = carries, streams, invariants = gradients(base, self.groups)
        finals, exports = grads[: len(carries)], grads[len(carries) :]
        bound = enter(base, self.groups, sizes)
        first = max(len(base.streams), self.kernel.within + 1)
        bound |= {
            ("stream", first + j): viewed(exports[p.source], p, sizes, 1) for j, p in enumerate(base.outs)
        }
        bound |= {("stream", first + len(base.outs) + n): x for n, x in enumerate(saves)}
        bound |= {("init", i): viewed(finals[p.source], p, sizes, 0) for i, p in enumerate(base.carries)}
        bound |= {("final", i): viewed(carries[p.source], p, sizes, 0) for i, p in enumerate(base.carries)}
        for i, k in self.back.streams.items():
            place = base.streams[i]
            bound["out", k] = viewed(streams[place.source], place, sizes, 1)
        bound |= self._scratch()
        parts = self._parts(bound)
        launched = bound | {("out", k): x for k, x in parts.items()}
        _run(self.kernel, self.key, "backward", launched, self.steps, sizes)
        for k, x in parts.items():
            lead = 0 if self.kernel.program.outs[k].accumulate else 1
            torch.sum(x, list(range(lead, lead + len(self.shared[k]))), out=bound["out", k])
        for i, terms in self.back.invariants.items():
            place = base.invariants[i]
            into = viewed(invariants[place.source], place, sizes, 0)
            for term in terms:
                into.add_(self._term(term, bound, self.back.axes[i]))
        return [g for group in found for g in group if g is not None]

    def _scratch(self) -> Bound:
        """What the adjoint writes beside the gradients of streams: sums, and factors per step."""
        own, found = set(self.back.streams.values()), {}
        for k, out in enumerate(self.kernel.program.outs):
            if k in own:
                continue
            shape = [self.sizes[a] for a in out.axes if out.accumulate or a not in self.kernel.rows]
            lead = [] if out.accumulate else [self._lead(out.axes)]
            found["out", k] = self.like.new_zeros([*lead, *shape], dtype=DTYPES[self.kernel.compute])
        return found

    def _parts(self, bound: Bound) -> dict[int, torch.Tensor]:
        """Memory for the parts of outputs that instances share."""
        found = {}
        for k, axes in self.shared.items():
            like = bound["out", k]
            lead = [] if self.kernel.program.outs[k].accumulate else [like.shape[0]]
            parts = [-(-self.sizes[a] // self.extent.get(a, 1)) for a in axes]
            found[k] = like.new_empty([*lead, *parts, *like.shape[len(lead) :]])
        return found

    def _lead(self, axes: tuple[AxisName, ...]) -> int:
        return self.count * (self.plan.length if set(axes) & set(self.kernel.rows) else 1)

    def _term(self, term: Summed | Product, bound: Bound, axes: tuple[AxisName, ...]) -> torch.Tensor:
        """One term of an invariant's gradient, over ``axes``."""
        outs = self.kernel.program.outs
        if isinstance(term, Summed):
            own, value = outs[term.out].axes, bound["out", term.out]
            gone = [n for n, a in enumerate(own) if a not in axes]
            return value.sum(gone) if gone else value
        sides = [self._factor(bound["out", k], outs[k].axes) for k in (term.left, term.right)]
        letters = {a: chr(ord("a") + n) for n, a in enumerate(sorted({*axes, *sides[0][1], *sides[1][1]}))}
        text = ",".join("Z" + "".join(letters[a] for a in own) for _, own in sides)
        return torch.einsum(f"{text}->{''.join(letters[a] for a in axes)}", *(x for x, _ in sides))

    def _factor(
        self, value: torch.Tensor, axes: tuple[AxisName, ...]
    ) -> tuple[torch.Tensor, tuple[AxisName, ...]]:
        """One factor with iterations first, then its positions, then its other axes."""
        rows = self.kernel.rows
        rest = tuple(a for a in axes if a not in rows)
        if not set(axes) & set(rows):
            return value, rest
        return value.unflatten(0, (self.count, *(self.sizes[a] for a in rows))), (*rows, *rest)


def _sizes(plan: TilePlan, groups: Groups) -> dict[AxisName, Any]:
    dynamic = sizes_of(plan.base, groups)
    sizes = all_sizes(plan.base, dynamic) | {
        a: dynamic.get(a, n) for a, n in plan.forward.program.sizes.items()
    }
    if plan.backward is not None:
        program = plan.backward.kernel.program
        sizes |= {a: dynamic.get(a.rstrip("'"), n) for a, n in program.sizes.items()}
    return sizes


def _run(
    kernel: TileKernel, key: str, role: str, bound: Bound, steps: int, sizes: dict[AxisName, Any]
) -> None:
    tensors = [bound[o.role, o.index] for o in kernel.operands]
    prepare(kernel, key, role)(tensors, steps, sizes)
    count_launch(key, "forward" if role == "saving" else role)


__all__ = ["grouped", "kernels", "prepare", "results", "run_backward", "run_forward"]
