"""The operator that a fused loop becomes, with its derivative.

Takes a registered ``LoopPlan`` and tensors; leaves tensors.  ``tenfuse::loop`` is one
operator for all loops: the plan's key says which.  ``tenfuse::loop_backward`` runs the
adjoint; it has no derivative of its own and says so.

Both allocate, view and launch; they decide nothing.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch._dynamo.utils import counters

from tenfuse.plan.kernel import Kernel
from tenfuse.plan.loop import Layout, LoopPlan, dense_like
from tenfuse.runtime.launch import DTYPES, Launcher
from tenfuse.runtime.pages import advise
from tenfuse.step.adjoint import Summed
from tenfuse.step.program import AxisName
from tenfuse.step.reader import Placed

_plans: dict[str, LoopPlan] = {}
_launchers: dict[tuple[str, str, int], Launcher] = {}
"""By plan, role and steps between saved states: what tells a plan's kernels apart."""
_lock = threading.Lock()
launches: Counter[str] = Counter()
"""Launches of every kernel by its name."""


def register(plan: LoopPlan) -> str:
    """Make ``plan`` known to the operator; the key to call it with."""
    key = plan.key()
    _plans.setdefault(key, plan)
    return key


def kernel_name(key: str, role: str) -> str:
    return f"loop_{key[:12]}_{role}"


def prepare(kernel: Kernel, key: str, role: str) -> Launcher:
    """Compile ``kernel`` (once); refuses when there is no compiler or it fails."""
    which = (key, role, kernel.checkpoint)
    with _lock:
        found = _launchers.get(which)
    if found is None:
        found = Launcher(kernel)
        with _lock:
            _launchers.setdefault(which, found)
    return found


def _sizes(plan: LoopPlan, groups: dict[str, Sequence[torch.Tensor]]) -> dict[AxisName, Any]:
    """Sizes of the dynamic axes at this call."""
    found = {}
    for axis, (group, i, dim, unit) in plan.dynamic:
        lead = 1 if group == "streams" else 0
        found[axis] = groups[group][i].shape[dim + lead] // unit
    return found


def _all_sizes(plan: LoopPlan, dynamic: dict[AxisName, Any]) -> dict[AxisName, Any]:
    sizes = dict(plan.forward.program.sizes)
    if plan.backward is not None:
        sizes |= plan.backward.kernel.program.sizes
    return {a: dynamic.get(a.rstrip("'"), n) for a, n in sizes.items()}


def _view(tensor: torch.Tensor, place: Placed, sizes: dict[AxisName, Any], lead: int) -> torch.Tensor:
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


def _allocate(
    plan: LoopPlan,
    groups: dict[str, Sequence[torch.Tensor]],
    steps: Any,
    save: bool,
    sizes: dict[AxisName, Any],
) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Empty finals, exports and saved states."""
    like = (*groups["carries"], *groups["streams"])[0]
    finals = [torch.empty_like(c, memory_format=torch.contiguous_format) for c in groups["carries"]]
    exports = [_export(layout, steps, sizes, like) for layout in plan.exports]
    saves: list[torch.Tensor] = []
    if save and plan.saving is not None and plan.saving.checkpoint:
        dtype = DTYPES[plan.forward.compute]
        saves = [
            like.new_empty([_chunks(plan, steps), *(sizes[a] for a in c.axes)], dtype=dtype)
            for c in plan.forward.program.carries
        ]
    return finals, exports, saves


_LIB = torch.library.Library("tenfuse", "FRAGMENT")
_LIB.define(
    "loop(Tensor[] carries, Tensor[] streams, Tensor[] invariants, SymInt steps, str key, bool save)"
    " -> Tensor[]"
)
_LIB.define(
    "loop_backward(Tensor[] grads, Tensor[] carries, Tensor[] streams, Tensor[] invariants, Tensor[] saves,"
    " SymInt steps, str key) -> Tensor[]"
)


def _groups(carries: Any, streams: Any, invariants: Any) -> dict[str, Sequence[torch.Tensor]]:
    return {"carries": carries, "streams": streams, "invariants": invariants}


def _plan(key: str) -> LoopPlan:
    if key not in _plans:
        raise RuntimeError(
            f"tenfuse: the loop {key[:12]} was compiled in another process; compile the model again"
        )
    return _plans[key]


def _run(
    kernel: Kernel,
    key: str,
    role: str,
    bound: dict[tuple[str, int], torch.Tensor],
    steps: int,
    dynamic: dict[AxisName, int],
) -> None:
    tensors = [bound[o.role, o.index] for o in kernel.operands]
    prepare(kernel, key, role)(tensors, steps, dynamic)
    launches[kernel_name(key, role)] += 1
    counters["tenfuse"]["launches"] += 1


def _dynamic_names(kernel: Kernel, dynamic: dict[AxisName, Any]) -> dict[AxisName, Any]:
    names = set(kernel.program.dynamic) | (set(kernel.recompute.dynamic) if kernel.recompute else set())
    return {a: dynamic[a.rstrip("'")] for a in names}


def _enter(
    plan: LoopPlan, groups: dict[str, Sequence[torch.Tensor]], sizes: dict[AxisName, Any]
) -> dict[tuple[str, int], torch.Tensor]:
    """Streams and invariants as the kernels see them."""
    bound = {
        ("stream", i): _view(groups["streams"][p.source], p, sizes, 1) for i, p in enumerate(plan.streams)
    }
    bound |= {
        ("constant", i): _view(groups["invariants"][p.source], p, sizes, 0)
        for i, p in enumerate(plan.invariants)
    }
    return bound


def _loop(
    carries: Any, streams: Any, invariants: Any, steps: int, key: str, save: bool
) -> list[torch.Tensor]:
    plan, groups = _plan(key), _groups(carries, streams, invariants)
    dynamic = _sizes(plan, groups)
    sizes = _all_sizes(plan, dynamic)
    finals, exports, saves = _allocate(plan, groups, steps, save, sizes)
    for large in (*exports, *saves):
        advise(large)
    for states in saves:
        states[-(-steps // plan.saving.checkpoint) :].zero_()  # type: ignore[union-attr]
    bound = _enter(plan, groups, sizes)
    bound |= {("init", i): _view(carries[p.source], p, sizes, 0) for i, p in enumerate(plan.carries)}
    bound |= {("final", i): _view(finals[p.source], p, sizes, 0) for i, p in enumerate(plan.carries)}
    bound |= {("out", i): _view(exports[p.source], p, sizes, 1) for i, p in enumerate(plan.outs)}
    bound |= {("save", i): x for i, x in enumerate(saves)}
    kernel = plan.saving if save and plan.saving is not None else plan.forward
    _run(kernel, key, "forward", bound, steps, _dynamic_names(kernel, dynamic))
    return [*finals, *exports, *saves]


def _loop_fake(
    carries: Any, streams: Any, invariants: Any, steps: Any, key: str, save: bool
) -> list[torch.Tensor]:
    plan, groups = _plan(key), _groups(carries, streams, invariants)
    sizes = _all_sizes(plan, _sizes(plan, groups))
    finals, exports, saves = _allocate(plan, groups, steps, save, sizes)
    return [*finals, *exports, *saves]


def _gradients(
    plan: LoopPlan, groups: dict[str, Sequence[torch.Tensor]]
) -> tuple[list[Any], list[Any], list[Any]]:
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


def _loop_backward(
    grads: Any, carries: Any, streams: Any, invariants: Any, saves: Any, steps: int, key: str
) -> list[torch.Tensor]:
    plan, groups = _plan(key), _groups(carries, streams, invariants)
    assert plan.backward is not None
    dynamic = _sizes(plan, groups)
    sizes = _all_sizes(plan, dynamic)
    back, kernel = plan.backward.adjoint, plan.backward.kernel
    out_carries, out_streams, out_invariants = _gradients(plan, groups)
    for large in (g for g in out_streams if g is not None):
        advise(large)
    bound = _enter(plan, groups, sizes)
    finals, exports = grads[: len(carries)], grads[len(carries) :]
    bound |= {("init", i): _view(finals[p.source], p, sizes, 0) for i, p in enumerate(plan.carries)}
    bound |= {
        ("stream", len(plan.streams) + j): _view(exports[p.source], p, sizes, 1)
        for j, p in enumerate(plan.outs)
    }
    bound |= {("save", i): x for i, x in enumerate(saves)}
    bound |= {("final", i): _view(out_carries[p.source], p, sizes, 0) for i, p in enumerate(plan.carries)}
    source = {out: i for i, out in back.streams.items()}
    like = (*carries, *streams)[0]
    for k, out in enumerate(back.program.outs):
        if k in source:
            place = plan.streams[source[k]]
            bound["out", k] = _view(out_streams[place.source], place, sizes, 1)
        else:
            shape = [sizes[a] for a in out.axes]
            dtype = DTYPES[kernel.compute]
            bound["out", k] = advise(
                like.new_empty(shape if out.accumulate else [steps, *shape], dtype=dtype)
            )
    _run(kernel, key, "backward", bound, steps, _dynamic_names(kernel, dynamic))
    for i, terms in back.invariants.items():
        place = plan.invariants[i]
        target = _view(out_invariants[place.source], place, sizes, 0)
        for term in terms:
            target += _term(plan, term, bound, back.axes[i], DTYPES[kernel.compute]).to(target.dtype)
    return [g for g in (*out_carries, *out_streams, *out_invariants) if g is not None]


def _term(
    plan: LoopPlan,
    term: Any,
    bound: dict[tuple[str, int], torch.Tensor],
    own: tuple[AxisName, ...],
    compute: torch.dtype,
) -> torch.Tensor:
    """One contribution to an invariant's gradient, over the invariant's axes.

    A factor may be the gradient of a stream, which has the stream's own dtype.
    """
    assert plan.backward is not None
    outs = plan.backward.adjoint.program.outs
    if isinstance(term, Summed):
        axes = outs[term.out].axes
        return (
            bound["out", term.out].sum([n for n, a in enumerate(axes) if a not in own])
            if len(axes) > len(own)
            else bound["out", term.out]
        )
    left, right = outs[term.left].axes, outs[term.right].axes
    letters = {a: n + 1 for n, a in enumerate(dict.fromkeys((*left, *right, *own)))}
    return torch.einsum(
        bound["out", term.left].to(compute), [0, *(letters[a] for a in left)],
        bound["out", term.right].to(compute), [0, *(letters[a] for a in right)],
        [letters[a] for a in own],
    )  # fmt: skip


def _loop_backward_fake(
    grads: Any, carries: Any, streams: Any, invariants: Any, saves: Any, steps: Any, key: str
) -> list[torch.Tensor]:
    out = _gradients(_plan(key), _groups(carries, streams, invariants))
    return [g for group in out for g in group if g is not None]


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    carries, streams, invariants, steps, key, save = inputs
    plan = _plan(key)
    results = len(carries) + len(plan.exports)
    asked = [
        *zip(streams, plan.wanted.streams, strict=True),
        *zip(invariants, plan.wanted.invariants, strict=True),
    ]
    ctx.unplanned = sum(t.requires_grad and not wanted for t, wanted in asked)
    ctx.counts = (len(carries), len(streams), len(invariants))
    ctx.steps, ctx.key, ctx.save = steps, key, save
    ctx.likes = [(o.shape, o.dtype, o.device) for o in output[:results]]
    ctx.save_for_backward(*carries, *streams, *invariants, *output[results:])


def _derivative(ctx: Any, grads: Any) -> Any:
    if not ctx.save:
        raise RuntimeError(
            "tenfuse: this loop was compiled without gradients; compile it where gradients are on"
        )
    if ctx.unplanned:
        raise RuntimeError(
            f"tenfuse: {ctx.unplanned} inputs of a fused loop want a gradient that they did not want when it"
            " was compiled; please report this, and compile the model with backend='inductor' meanwhile"
        )
    plan = _plan(ctx.key)
    a, b, c = ctx.counts
    tensors = ctx.saved_tensors
    carries, streams, invariants = tensors[:a], tensors[a : a + b], tensors[a + b : a + b + c]
    full = [
        g if g is not None else torch.zeros(shape, dtype=dtype, device=device)
        for g, (shape, dtype, device) in zip(grads, ctx.likes, strict=False)
    ]
    found = torch.ops.tenfuse.loop_backward(
        full, carries, streams, invariants, tensors[a + b + c :], ctx.steps, ctx.key
    )
    rest = iter(found)
    wanted = plan.wanted
    out_carries = [next(rest) for _ in carries]
    out_streams = [next(rest) if w else None for w in wanted.streams]
    out_invariants = [next(rest) if w else None for w in wanted.invariants]
    return out_carries, out_streams, out_invariants, None, None, None


def _no_second(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "tenfuse: the backward of a fused loop has no derivative of its own; "
        "for double backward compile this model with backend='inductor'"
    )


def _install() -> None:
    _LIB.impl("loop", _loop, "CPU")
    _LIB.impl("loop_backward", _loop_backward, "CPU")
    torch.library.register_fake("tenfuse::loop", _loop_fake, lib=_LIB)
    torch.library.register_fake("tenfuse::loop_backward", _loop_backward_fake, lib=_LIB)
    torch.library.register_autograd("tenfuse::loop", _derivative, setup_context=_setup, lib=_LIB)
    torch.library.register_autograd("tenfuse::loop_backward", _no_second, lib=_LIB)


_install()
__all__ = ["kernel_name", "launches", "prepare", "register"]
