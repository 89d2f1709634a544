"""A plan's kernels and tensors: allocated, viewed as the kernels see them, launched.

Takes registered ``LoopPlan``s and the tensors of one call; leaves tensors by role and index,
as ``Kernel.operands`` name them.  Decides nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch._dynamo.utils import counters

from tenfuse.plan.kernel import Kernel
from tenfuse.plan.loop import LoopPlan
from tenfuse.plan.tensors import Layout
from tenfuse.plan.tiles.plan import TilePlan
from tenfuse.runtime.launch import DTYPES, Launcher
from tenfuse.step.program import AxisName
from tenfuse.step.reader import Placed
from tenfuse.step.whole import whole_inputs

Bound = dict[tuple[str, int], torch.Tensor]
"""Tensors by role and index."""

Groups = dict[str, Sequence[torch.Tensor]]

_plans: dict[str, LoopPlan] = {}
_tiled: dict[str, TilePlan] = {}
_launchers: dict[tuple[str, str, int], Launcher] = {}
"""By plan, role and number of operands: a kernel that also saves states has more of them."""
_lock = threading.Lock()
L = TypeVar("L")
launches: Counter[str] = Counter()
"""Launches of every kernel by its name."""


def register(plan: LoopPlan | TilePlan) -> str:
    """Make ``plan`` known to the operator; the key to call it with."""
    key = plan.key()
    if isinstance(plan, TilePlan):
        _tiled.setdefault(key, plan)
        plan = plan.base
    _plans.setdefault(key, plan)
    return key


def tiles_of(key: str) -> TilePlan | None:
    """The plan on tiles, where the loop has one; ``plan_of`` is then only its layout."""
    return _tiled.get(key)


def kernel_name(key: str, role: str) -> str:
    return f"loop_{key[:12]}_{role}"


def product_role(n: int) -> str:
    return f"product_{n + 1}"


def once(
    made: dict[tuple[str, str, int], L], make: Callable[[Any], L], kernel: Any, key: str, role: str
) -> L:
    """The launcher of a kernel, made by whoever asks first; all that ask get the same one."""
    which = (key, role, len(kernel.operands))
    with _lock:
        found = made.get(which)
    if found is None:
        fresh = make(kernel)
        with _lock:
            found = made.setdefault(which, fresh)
    return found


def prepare(kernel: Kernel, key: str, role: str) -> Launcher:
    """Compile ``kernel`` (once); refuses when there is no compiler or it fails."""
    return once(_launchers, Launcher, kernel, key, role)


def sizes_of(plan: LoopPlan, groups: Groups) -> dict[AxisName, Any]:
    """Sizes of the dynamic axes at this call."""
    found = {}
    for axis, (group, i, dim, unit) in plan.dynamic:
        lead = 1 if group == "streams" else 0
        found[axis] = groups[group][i].shape[dim + lead] // unit
    return found


def all_sizes(plan: LoopPlan, dynamic: dict[AxisName, Any]) -> dict[AxisName, Any]:
    sizes = dict(plan.forward.program.sizes)
    if plan.backward is not None:
        sizes |= plan.backward.kernel.program.sizes
    return {a: dynamic.get(a.rstrip("'"), n) for a, n in sizes.items()}


def viewed(tensor: torch.Tensor, place: Placed, sizes: dict[AxisName, Any], lead: int) -> torch.Tensor:
    """The tensor seen with the axes of ``place``, after ``lead`` dimensions of its own."""
    view = place.view
    if view.part is not None:
        tensor = torch.view_as_real(tensor.resolve_conj())[..., view.part]
    offset = tensor.storage_offset() + sum(n * tensor.stride(d + lead) for d, n in view.offset)
    return tensor.as_strided(
        [*tensor.shape[:lead], *(sizes[a] for a in view.axes)],
        [*tensor.stride()[:lead], *(tensor.stride(d + lead) * n for d, n in view.dims)],
        offset,
    )


def _export(layout: Layout, steps: Any, sizes: dict[AxisName, Any], like: torch.Tensor) -> torch.Tensor:
    """An empty ``[steps, *shape]`` with time behind ``lead`` dimensions in memory."""
    shape = [e if isinstance(e, int) else sizes[e[0]] * e[1] for e in layout.shape]
    k = layout.lead
    packed = like.new_empty([*shape[:k], steps, *shape[k:]], dtype=layout.dtype)
    return packed.movedim(k, 0)


def _chunks(plan: LoopPlan, steps: Any) -> Any:
    assert plan.saving is not None
    chunk = plan.saving.checkpoint
    # One more than needed: no size is then 1 at some lengths only, which would be a guard.
    return steps // chunk + 2 if chunk else 0


def allocate(
    plan: LoopPlan,
    groups: Groups,
    steps: Any,
    save: bool,
    sizes: dict[AxisName, Any],
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Empty finals, exports and saved states."""
    like = (*groups["carries"], *groups["streams"])[0]
    finals = [torch.empty_like(c, memory_format=torch.contiguous_format) for c in groups["carries"]]
    exports = [_export(layout, steps, sizes, like) for layout in plan.exports]
    return finals, exports, _saves(plan, steps, sizes, like) if save else []


def _saves(plan: LoopPlan, steps: Any, sizes: dict[AxisName, Any], like: torch.Tensor) -> list[torch.Tensor]:
    """Empty tensors for the states saved at chunk borders, or kept at every step."""
    specs = plan.forward.program.carries
    if not plan.kept and (plan.saving is None or not plan.saving.checkpoint):
        return []
    rows = steps if plan.kept else _chunks(plan, steps)
    which = plan.kept or range(len(specs))
    whole = whole_inputs(plan.forward.program)
    types = [torch.int64 if ("carry", i) in whole else DTYPES[plan.forward.compute] for i in which]
    types += [DTYPES[plan.forward.compute]] * len(plan.sums)
    axes = [*(specs[i].axes for i in which), *plan.sums]
    shapes = [[rows, *(sizes[a] for a in each)] for each in axes]
    return [like.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, types, strict=True)]


def grouped(carries: Any, streams: Any, invariants: Any) -> Groups:
    return {"carries": carries, "streams": streams, "invariants": invariants}


def plan_of(key: str) -> LoopPlan:
    if key not in _plans:
        raise RuntimeError(
            f"tenfuse: the loop {key[:12]} was compiled in another process; compile the model again"
        )
    return _plans[key]


def count_launch(key: str, role: str) -> None:
    count(kernel_name(key, role), 1)


def count(name: str, times: int) -> None:
    """The kernel with this name was launched so often."""
    launches[name] += times
    counters["tenfuse"]["launches"] += times


def dynamic_names(kernel: Kernel, dynamic: dict[AxisName, Any]) -> dict[AxisName, Any]:
    names = set(kernel.program.dynamic) | (set(kernel.recompute.dynamic) if kernel.recompute else set())
    return {a: dynamic[a.rstrip("'")] for a in names}


def enter(plan: LoopPlan, groups: Groups, sizes: dict[AxisName, Any]) -> Bound:
    """Streams and invariants as the kernels see them."""
    bound = {
        ("stream", i): viewed(groups["streams"][p.source], p, sizes, 1) for i, p in enumerate(plan.streams)
    }
    bound |= {
        ("constant", i): viewed(groups["invariants"][p.source], p, sizes, 0)
        for i, p in enumerate(plan.invariants)
    }
    return bound


def saved(plan: LoopPlan, n: int, role: str, first: int) -> tuple[str, int]:
    """How a kernel names the ``n``-th saved tensor."""
    return (role, first + n) if plan.kept else ("save", n)
