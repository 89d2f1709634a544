"""The operator that a fused loop becomes, with its derivative.

Takes a registered ``LoopPlan`` and tensors; leaves tensors.  ``tenfuse::loop`` is one
operator for all loops: the plan's key says which.  ``tenfuse::loop_backward`` runs the
adjoint; it has no derivative of its own and says so.
"""

from __future__ import annotations

from typing import Any

import torch

from tenfuse.plan.loop import LoopPlan
from tenfuse.runtime import tiled
from tenfuse.runtime.backward import gradients, run_backward
from tenfuse.runtime.bind import (
    Groups,
    all_sizes,
    allocate,
    count_launch,
    dynamic_names,
    enter,
    grouped,
    kernel_name,
    launches,
    plan_of,
    prepare,
    product_role,
    register,
    run,
    saved,
    sizes_of,
    tiles_of,
    viewed,
)
from tenfuse.runtime.pages import advise
from tenfuse.runtime.replay import Replay, Signature, replay, signature

_LIB = torch.library.Library("tenfuse", "FRAGMENT")
_LIB.define(
    "loop(Tensor[] carries, Tensor[] streams, Tensor[] invariants, SymInt steps, str key, bool save)"
    " -> Tensor[]"
)
_LIB.define(
    "loop_backward(Tensor[] grads, Tensor[] carries, Tensor[] streams, Tensor[] invariants, Tensor[] saves,"
    " SymInt steps, str key) -> Tensor[]"
)


_REPLAYS: dict[Signature, Replay | None] = {}
_MOST = 256
"""Layouts remembered; all are forgotten when there are more."""


def _loop(
    carries: Any, streams: Any, invariants: Any, steps: int, key: str, save: bool
) -> list[torch.Tensor]:
    tiles = tiles_of(key)
    if tiles is not None:
        return tiled.run_forward(tiles, key, grouped(carries, streams, invariants), steps, save)
    tensors = [*carries, *streams, *invariants]
    which = signature(key, save, steps, tensors)
    known = _REPLAYS.get(which)
    if known is not None:
        count_launch(key, "forward")
        return known(tensors)
    results, found = _first(plan_of(key), tensors, grouped(carries, streams, invariants), steps, key, save)
    if len(_REPLAYS) > _MOST:
        _REPLAYS.clear()
    _REPLAYS[which] = found
    return results


def _first(
    plan: LoopPlan, tensors: list[torch.Tensor], groups: Groups, steps: int, key: str, save: bool
) -> tuple[list[torch.Tensor], Replay | None]:
    """A call with a new layout: its results, and how to repeat it."""
    dynamic = sizes_of(plan, groups)
    sizes = all_sizes(plan, dynamic)
    finals, exports, saves = allocate(plan, groups, steps, save, sizes)
    for large in (*exports, *saves):
        advise(large)
    first = len(finals) + len(exports)
    zeroed: tuple[tuple[int, int], ...] = ()
    if saves and not plan.kept and plan.saving is not None:
        zeroed = tuple((first + n, -(-steps // plan.saving.checkpoint)) for n in range(len(saves)))
    results = [*finals, *exports, *saves]
    for i, row in zeroed:
        results[i][row:].zero_()
    bound = enter(plan, groups, sizes)
    of = _sources(plan, groups)
    for role, places, lead in (("init", plan.carries, 0), ("final", plan.carries, 0), ("out", plan.outs, 1)):
        for i, p in enumerate(places):
            base = [*tensors, *results][of[role, i]]
            bound[role, i] = viewed(base, p, sizes, lead)
    for n, x in enumerate(saves):
        name = saved(plan, n, "out", len(plan.outs))
        bound[name], of[name] = x, len(tensors) + first + n
    kernel = plan.saving if save and plan.saving is not None else plan.forward
    names = dynamic_names(kernel, dynamic)
    run(kernel, key, "forward", bound, steps, names)
    operands = [(bound[o.role, o.index], of[o.role, o.index]) for o in kernel.operands]
    launcher = prepare(kernel, key, "forward")
    return results, replay(launcher, steps, operands, tensors, results, zeroed, names)


def _sources(plan: LoopPlan, groups: Groups) -> dict[tuple[str, int], int]:
    """Which tensor, given ones first and then results, every operand is a view of."""
    a, b, c = (len(groups[name]) for name in ("carries", "streams", "invariants"))
    of = {("init", i): p.source for i, p in enumerate(plan.carries)}
    of |= {("stream", i): a + p.source for i, p in enumerate(plan.streams)}
    of |= {("constant", i): a + b + p.source for i, p in enumerate(plan.invariants)}
    of |= {("final", i): a + b + c + p.source for i, p in enumerate(plan.carries)}
    return of | {("out", j): a + b + c + a + p.source for j, p in enumerate(plan.outs)}


def _loop_fake(
    carries: Any, streams: Any, invariants: Any, steps: Any, key: str, save: bool
) -> list[torch.Tensor]:
    plan, tiles, groups = plan_of(key), tiles_of(key), grouped(carries, streams, invariants)
    if tiles is not None:
        return [x for group in tiled.results(tiles, groups, steps, save) for x in group]
    sizes = all_sizes(plan, sizes_of(plan, groups))
    finals, exports, saves = allocate(plan, groups, steps, save, sizes)
    return [*finals, *exports, *saves]


def _loop_backward_fake(
    grads: Any, carries: Any, streams: Any, invariants: Any, saves: Any, steps: Any, key: str
) -> list[torch.Tensor]:
    out = gradients(plan_of(key), grouped(carries, streams, invariants))
    return [g for group in out for g in group if g is not None]


def _loop_backward(
    grads: Any, carries: Any, streams: Any, invariants: Any, saves: Any, steps: int, key: str
) -> list[torch.Tensor]:
    tiles = tiles_of(key)
    if tiles is not None:
        groups = grouped(carries, streams, invariants)
        return tiled.run_backward(tiles, key, grads, groups, saves, steps)
    return run_backward(grads, carries, streams, invariants, saves, steps, key)


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    carries, streams, invariants, steps, key, save = inputs
    plan = plan_of(key)
    ctx.set_materialize_grads(False)
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
    plan = plan_of(ctx.key)
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
    for device in ("CPU", "CUDA"):
        _LIB.impl("loop", _loop, device)
        _LIB.impl("loop_backward", _loop_backward, device)
    torch.library.register_fake("tenfuse::loop", _loop_fake, lib=_LIB)
    torch.library.register_fake("tenfuse::loop_backward", _loop_backward_fake, lib=_LIB)
    torch.library.register_autograd("tenfuse::loop", _derivative, setup_context=_setup, lib=_LIB)
    torch.library.register_autograd("tenfuse::loop_backward", _no_second, lib=_LIB)


_install()
__all__ = ["kernel_name", "launches", "prepare", "product_role", "register"]
