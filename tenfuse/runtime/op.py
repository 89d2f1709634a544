"""The operator that a fused loop becomes, with its derivative.

Takes a registered ``LoopPlan`` and tensors; leaves tensors.  ``tenfuse::loop`` is one
operator for all loops: the plan's key says which.  ``tenfuse::loop_backward`` runs the
adjoint; it has no derivative of its own and says so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import _C

from tenfuse.runtime import tiled
from tenfuse.runtime.backward import gradients, run_backward
from tenfuse.runtime.bind import (
    all_sizes,
    allocate,
    grouped,
    kernel_name,
    launches,
    plan_of,
    prepare,
    product_role,
    register,
    sizes_of,
    tiles_of,
)
from tenfuse.runtime.derivative import Implementation, Loop, Second, recorded
from tenfuse.runtime.forward import run_forward

_LIB = torch.library.Library("tenfuse", "FRAGMENT")
_LIB.define(
    "loop(Tensor[] carries, Tensor[] streams, Tensor[] invariants, SymInt steps, str key, bool save)"
    " -> Tensor[]"
)
_LIB.define(
    "loop_backward(Tensor[] grads, Tensor[] carries, Tensor[] streams, Tensor[] invariants, Tensor[] saves,"
    " SymInt steps, str key) -> Tensor[]"
)

_DEVICES = ("CPU", "CUDA")
_DIRECT = {getattr(_C.DispatchKey, device) for device in _DEVICES}


def _loop(
    carries: Any, streams: Any, invariants: Any, steps: int, key: str, save: bool
) -> list[torch.Tensor]:
    tiles = tiles_of(key)
    if tiles is not None:
        return tiled.run_forward(tiles, key, grouped(carries, streams, invariants), steps, save)
    return run_forward(carries, streams, invariants, steps, key, save)


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


def _below(operator: Any, implementation: Implementation, keys: _C.DispatchKeySet) -> Implementation:
    """What the dispatcher would do next, below autograd, with these keys."""
    left = keys & _C._after_autograd_keyset

    def call(*args: Any) -> list[torch.Tensor]:
        with _C._AutoDispatchBelowAutograd():
            # On plain tensors it would call the implementation, and take longer to find it.
            if left.highestPriorityTypeId() in _DIRECT:
                return implementation(*args)
            return operator.redispatch(left, *args)

    return call


def _loop_recorded(
    keys: Any, carries: Any, streams: Any, invariants: Any, steps: Any, key: str, save: bool
) -> list[torch.Tensor]:
    below = _below(torch.ops.tenfuse.loop.default, _loop, keys)
    if not recorded(carries, streams, invariants):
        return below(carries, streams, invariants, steps, key, save)
    counts = (len(carries), len(streams))
    return list(Loop.apply(below, counts, steps, key, save, *carries, *streams, *invariants))


def _loop_backward_recorded(
    keys: Any, grads: Any, carries: Any, streams: Any, invariants: Any, saves: Any, steps: Any, key: str
) -> list[torch.Tensor]:
    below = _below(torch.ops.tenfuse.loop_backward.default, _loop_backward, keys)
    groups = (grads, carries, streams, invariants, saves)
    if not recorded(*groups):
        return below(*groups, steps, key)
    counts = tuple(len(group) for group in groups[:-1])
    return list(Second.apply(below, counts, steps, key, *(x for group in groups for x in group)))


def _install() -> None:
    for device in _DEVICES:
        _LIB.impl("loop", _loop, device)
        _LIB.impl("loop_backward", _loop_backward, device)
    torch.library.register_fake("tenfuse::loop", _loop_fake, lib=_LIB)
    torch.library.register_fake("tenfuse::loop_backward", _loop_backward_fake, lib=_LIB)
    _LIB.impl("loop", _loop_recorded, "Autograd", with_keyset=True)
    _LIB.impl("loop_backward", _loop_backward_recorded, "Autograd", with_keyset=True)


_install()
__all__ = ["kernel_name", "launches", "prepare", "product_role", "register"]
