"""``tenfuse::sloped(value, x, slope)``: the value, with a derivative of its own.

By ``value`` the derivative is one, by ``x`` it is ``slope``, which itself has none.  What an
``autograd.Function`` with a surrogate gradient says, as an operator that can be batched,
differentiated and read as a step.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.library.custom_op("tenfuse::sloped", mutates_args=())
def sloped(value: torch.Tensor, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """The value; ``Function.apply`` of a function that gives its own slope."""
    return value.clone()


@sloped.register_fake
def _(value: torch.Tensor, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(value)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[2])


def _backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    (slope,) = ctx.saved_tensors
    return g, g * slope, None


sloped.register_autograd(_backward, setup_context=_keep)


@sloped.register_vmap
def _(info: Any, dims: Any, value: Any, x: Any, slope: Any) -> Any:
    moved = [
        v.movedim(d, 0) if d is not None else v.expand(info.batch_size, *v.shape)
        for v, d in zip((value, x, slope), dims, strict=True)
    ]
    return sloped(*moved), 0


__all__ = ["sloped"]
