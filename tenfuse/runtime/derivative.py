"""How a fused loop takes part in autograd.

Takes a call of ``tenfuse::loop`` that autograd sees; leaves outputs that know their derivative,
which is a call of ``tenfuse::loop_backward``.  Refuses, where the gradient is asked for: loops
compiled without gradients, inputs whose gradient was not planned, second derivatives, and
forward-mode derivatives.

``torch.library.register_autograd`` would flatten and restore the lists of tensors several times
at every call, which for short loops costs more than their kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from tenfuse.runtime.bind import plan_of

Tensors = Sequence[torch.Tensor]
Implementation = Callable[..., list[torch.Tensor]]


class Loop(torch.autograd.Function):
    """``tenfuse::loop``, as ``below`` computes it; its tensors follow each other."""

    @staticmethod
    def forward(
        ctx: Any,
        below: Implementation,
        counts: tuple[int, int],
        steps: int,
        key: str,
        save: bool,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        outputs = below(*_groups(tensors, counts), steps, key, save)
        plan = plan_of(key)
        ctx.set_materialize_grads(False)
        asked = ctx.needs_input_grad[len(ctx.needs_input_grad) - len(tensors) + counts[0] :]
        wanted = (*plan.wanted.streams, *plan.wanted.invariants)
        ctx.unplanned = sum(needs and not want for needs, want in zip(asked, wanted, strict=True))
        ctx.counts, ctx.steps, ctx.key, ctx.save = counts, steps, key, save
        results = counts[0] + len(plan.exports)
        ctx.given = len(tensors)
        ctx.likes = [(o.shape, o.dtype, o.device) for o in outputs[:results]]
        ctx.save_for_backward(*tensors, *outputs[results:])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        if not ctx.save:
            raise RuntimeError(
                "tenfuse: this loop was compiled without gradients; compile it where gradients are on"
            )
        if ctx.unplanned:
            raise RuntimeError(
                f"tenfuse: {ctx.unplanned} inputs of a fused loop want a gradient that they did not want"
                " when it was compiled; please report this, and compile the model with backend='inductor'"
                " meanwhile"
            )
        tensors = ctx.saved_tensors
        full = [
            g if g is not None else torch.zeros(shape, dtype=dtype, device=device)
            for g, (shape, dtype, device) in zip(grads, ctx.likes, strict=False)
        ]
        found = iter(
            torch.ops.tenfuse.loop_backward.default(
                full, *_groups(tensors[: ctx.given], ctx.counts), tensors[ctx.given :], ctx.steps, ctx.key
            )
        )
        wanted = plan_of(ctx.key).wanted
        asked = (*(True for _ in range(ctx.counts[0])), *wanted.streams, *wanted.invariants)
        return (None, None, None, None, None, *(next(found) if want else None for want in asked))


class Second(torch.autograd.Function):
    """``tenfuse::loop_backward``, which has no derivative."""

    @staticmethod
    def forward(
        ctx: Any, below: Implementation, counts: tuple[int, ...], steps: int, key: str, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        return tuple(below(*_groups(tensors, counts), steps, key))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> Any:
        raise RuntimeError(
            "tenfuse: the backward of a fused loop has no derivative of its own; "
            "for double backward compile this model with backend='inductor'"
        )


def _groups(tensors: Tensors, counts: Sequence[int]) -> list[Tensors]:
    """The groups that follow each other, of so many tensors each and the last of the rest."""
    found, first = [], 0
    for n in (*counts, len(tensors)):
        found.append(tensors[first : first + n])
        first += n
    return found


def recorded(*groups: Tensors) -> bool:
    """Whether autograd must see a call with these tensors: a gradient may flow to one of them, or
    forward mode is on, where ``Loop`` refuses tangents, which would otherwise be lost."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for group in groups for x in group)


__all__ = ["Loop", "Second", "recorded"]
