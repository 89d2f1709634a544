"""Rules of operators that make or take apart complex values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tenfuse.reasons import UNSUPPORTED_OP, refuse
from tenfuse.step.rules.base import rule
from tenfuse.step.rules.shape import select
from tenfuse.step.tensors import Refs, Space, Value

aten = torch.ops.aten


def _parts(space: Space, fn: Callable[[Refs], Refs], *args: Value) -> Value:
    return space.pointwise(fn, *args)


@rule(aten._conj.default, aten._conj_physical.default, aten.conj_physical.default)
def conjugate(space: Space, target: Any, a: Value) -> Value:
    return _parts(space, lambda x: x if len(x) == 1 else (x[0], space.build.call("neg", x[1])), a)


@rule(aten.real.default)
def real(space: Space, target: Any, a: Value) -> Value:
    return _parts(space, lambda x: x[:1], a)


@rule(aten.imag.default)
def _imag(space: Space, target: Any, a: Value) -> Value:
    return _parts(space, lambda x: x[1:], a)


@rule(aten.complex.default)
def _complex(space: Space, target: Any, a: Value, b: Value) -> Value:
    return space.pointwise(lambda x, y: (*x, *y), a, b)


@rule(aten.polar.default)
def _polar(space: Space, target: Any, size: Value, angle: Value) -> Value:
    call = space.build.call

    def polar(r: Refs, phi: Refs) -> Refs:
        return (call("mul", r[0], call("cos", phi[0])), call("mul", r[0], call("sin", phi[0])))

    return space.pointwise(polar, size, angle)


@rule(aten.angle.default)
def _angle(space: Space, target: Any, a: Value) -> Value:
    if not a.is_complex:
        raise refuse(UNSUPPORTED_OP, "the angle of a real state")
    return space.pointwise(lambda x: (space.build.call("atan2", x[1], x[0]),), a)


@rule(aten.view_as_real.default)
def _view_as_real(space: Space, target: Any, a: Value) -> Value:
    parts = [space.unsqueeze(real(space, None, a), -1), space.unsqueeze(_imag(space, None, a), -1)]
    return space.cat(parts, -1)


@rule(aten.view_as_complex.default)
def _view_as_complex(space: Space, target: Any, a: Value) -> Value:
    real, imag = (select(space, None, a, -1, i) for i in (0, 1))
    return _complex(space, None, real, imag)
