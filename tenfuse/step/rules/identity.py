"""Rules of operators that keep values (casts, copies, cuts of the gradient) and of constants."""

from __future__ import annotations

from typing import Any

import torch

from tenfuse.reasons import UNSUPPORTED_OP, refuse
from tenfuse.step.rules.base import each, lift, rule, through
from tenfuse.step.rules.complex import real
from tenfuse.step.rules.shape import expand, filled
from tenfuse.step.tensors import Space, Value

aten = torch.ops.aten


@rule(torch.ops.tenfuse.cut.default, aten.detach.default)
def _cut(space: Space, target: Any, a: Value) -> Value:
    return through(space, "cut", a)


@rule(torch.ops.tenfuse.sloped.default)
def _sloped(space: Space, target: Any, value: Value, x: Value, slope: Value) -> Value:
    return each(space, "sloped", value, x, slope)


@rule(aten.clone.default, aten.alias.default, aten.lift_fresh_copy.default, aten.contiguous.default,
      aten.resolve_conj.default, aten.resolve_neg.default)  # fmt: skip
def _same(space: Space, target: Any, a: Value, **kwargs: Any) -> Value:
    return a


@rule(aten.copy.default)
def _copy(space: Space, target: Any, a: Value, b: Value, non_blocking: bool = False) -> Value:
    return expand(space, target, b, space.shape(a))


def cast(space: Space, a: Value, old: torch.dtype, new: torch.dtype) -> Value:
    """A change of dtype: rounds where precision is lost, else nothing."""
    if old == new:
        return a
    if new is torch.bool:
        return each(space, "ne", a, 0.0)
    if not (new.is_floating_point or new.is_complex):
        raise refuse(UNSUPPORTED_OP, f"the state is converted to {new}")
    if new.is_floating_point and a.is_complex:
        a = real(space, None, a)
    coarse = {torch.bfloat16: "round_bf16", torch.float16: "round_f16"}.get(new)
    if coarse and old in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        return through(space, coarse, a)
    if new in (torch.float32, torch.complex64) and old in (torch.float64, torch.complex128):
        return through(space, "round_f32", a)
    return a


@rule(aten.full_like.default)
def _full_like(space: Space, target: Any, a: Value, number: Any, **kwargs: Any) -> Value:
    return filled(space, space.shape(a), number)


@rule(aten.zeros_like.default, aten.new_zeros.default)
def _zeros_like(space: Space, target: Any, a: Value, shape: Any = None, **kwargs: Any) -> Value:
    return filled(space, space.shape(a) if shape is None else shape, 0.0)


@rule(aten.ones_like.default, aten.new_ones.default)
def _ones_like(space: Space, target: Any, a: Value, shape: Any = None, **kwargs: Any) -> Value:
    return filled(space, space.shape(a) if shape is None else shape, 1.0)


@rule(aten.full.default, aten.new_full.default)
def _full(space: Space, target: Any, *args: Any, **kwargs: Any) -> Value:
    return filled(space, args[-2], args[-1])


@rule(aten.scalar_tensor.default)
def _scalar(space: Space, target: Any, number: Any, **kwargs: Any) -> Value:
    return lift(space, number)


@rule(aten.zeros.default)
def _zeros(space: Space, target: Any, shape: Any, **kwargs: Any) -> Value:
    return filled(space, shape, 0.0)


@rule(aten.empty.memory_format, aten.empty_permuted.default, aten.empty_strided.default)
def _empty(space: Space, target: Any, shape: Any, *layout: Any, **kwargs: Any) -> Value:
    """Entries of no particular value, which the step writes before it reads them."""
    return filled(space, shape, 0.0)


@rule(aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default)
def _empty_like(space: Space, target: Any, a: Value, shape: Any = None, *layout: Any, **kwargs: Any) -> Value:
    return filled(space, space.shape(a) if shape is None else shape, 0.0)


@rule(aten.ones.default)
def _ones(space: Space, target: Any, shape: Any, **kwargs: Any) -> Value:
    return filled(space, shape, 1.0)
