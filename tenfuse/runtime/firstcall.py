"""``validate="first-call"``: hold the fused graph against the one it replaces, once.

Takes the compiled callable, the graph before and the graph after; leaves a callable.  At
the first call both graphs run eagerly on copies of the real inputs, and their outputs,
the inputs they change and the gradients of everything that wants one are compared by
relative root mean square error.  A difference raises ``ValidationError`` when ``strict``;
otherwise it is logged and counted, and the unfused graph takes over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.utils import _disable_saved_tensors_hooks_during_tracing as unhooked
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves

log = logging.getLogger("tenfuse")

LIMITS = {torch.float64: 1e-9, torch.complex128: 1e-9, torch.float32: 1e-3, torch.complex64: 1e-3}
_COARSE = 5e-2
Run = Callable[..., Any]


class ValidationError(AssertionError):
    """The fused graph and the one it replaces differ on real inputs."""


def checked(compiled: Run, before: Run, after: Run, fallback: Callable[[], Run], strict: bool) -> Run:
    """``compiled``, with a comparison of ``before`` and ``after`` at its first call."""
    chosen: list[Run] = []

    def call(*args: Any) -> Any:
        if not chosen:
            with unhooked():
                found = difference(before, after, args)
            if found and strict:
                raise ValidationError(found)
            if found:
                counters["tenfuse"]["fallback"] += 1
                log.warning("%s; the loops run unfused", found)
            chosen.append(fallback() if found else compiled)
        return chosen[0](*args)

    return call


def difference(before: Run, after: Run, args: Sequence[Any]) -> str:
    """One line that says where the two graphs differ, or ""."""
    want, got = _results(before, args), _results(after, args)
    for name, a in want.items():
        b = got[name]
        limit = LIMITS.get(a.dtype, _COARSE if a.is_floating_point() else 0.0)
        error = _error(a, b)
        if not error <= limit:
            return f"tenfuse validate: {name} {tuple(a.shape)} differs by {error:.2e}, more than {limit:.0e}"
    return ""


def _results(run: Run, args: Sequence[Any]) -> dict[str, torch.Tensor]:
    copies = [_copy(a) for a in args]
    devices = sorted({a.device.index for a in args if isinstance(a, torch.Tensor) and a.is_cuda})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        outputs = [o for o in tree_leaves(run(*copies)) if isinstance(o, torch.Tensor)]
    found = {f"output {i}": o.detach() for i, o in enumerate(outputs)}
    found |= {f"input {i}": c.detach() for i, c in enumerate(copies) if isinstance(c, torch.Tensor)}
    wants = [(i, c) for i, c in enumerate(copies) if isinstance(c, torch.Tensor) and c.requires_grad]
    heads = [o for o in outputs if o.requires_grad]
    if wants and heads:
        seeds = torch.Generator().manual_seed(0)
        cotangents = [torch.randn(o.shape, generator=seeds).to(o) for o in heads]
        grads = torch.autograd.grad(heads, [c for _, c in wants], cotangents, allow_unused=True)
        found |= {
            f"gradient of input {i}": g for (i, _), g in zip(wants, grads, strict=True) if g is not None
        }
    return found


def _copy(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root mean square of the difference over that of ``a``; infinite where NaN or Inf differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else float("inf")
    if a.numel() == 0:
        return 0.0
    whole = torch.isfinite(a)
    if not torch.equal(whole, torch.isfinite(b)):
        return float("inf")
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = a[whole].to(wide), b[whole].to(wide)
    scale = x.abs().square().mean().sqrt().clamp_min(1e-30) if x.numel() else torch.ones(())
    return float((x - y).abs().square().mean().sqrt() / scale) if x.numel() else 0.0
