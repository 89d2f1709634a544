"""A step of ``reference.steps`` compiled by tenfuse on the card, next to the loop in fp64.

The oracle is the Python loop itself, in segments whose inside is computed again for the
gradient, so that any length fits.  The rule is the one of ``tenfuse.testing``: at most four
times the RMSE of the same loop in the tensors' own dtype, and four roundings; and never more
than ``WORST`` of the values, for a state kept in bf16 is no measure.
"""

from __future__ import annotations

import dataclasses
import os

import torch
from torch.utils.checkpoint import checkpoint

from reference.steps import STEPS, Inputs, Size, Step, looped, scanned
from tenfuse.backend import tenfuse
from tenfuse.report.registry import recording

DRY = os.environ.get("TENFUSE_GPU_DRY") == "1"
DEVICE = "cpu" if DRY else "cuda"
WORST = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
SEGMENT = 64
Tensors = tuple[torch.Tensor, ...]


def sized(batch: int, steps: int, heads: int, dim: int) -> Size:
    """The size, or a small one in its place where the interpreter runs the kernels."""
    if not DRY:
        return Size(batch, steps, heads, dim)
    return Size(min(batch, 2), 70 if steps > 4096 else 19, min(heads, 2), max(dim // 16, 3))


def made(step: Step, size: Size, dtype: torch.dtype, device: str = DEVICE) -> Inputs:
    """Inputs that want gradients."""
    torch.manual_seed(0)
    given = step.make(size)

    def ready(tensors: Tensors, grad: bool) -> Tensors:
        return tuple(x.to(device, dtype).requires_grad_(grad) for x in tensors)

    return Inputs(
        ready(given.carry, True), ready(given.streams, True),
        ready(given.constants, True), ready(given.fixed, False),
    )  # fmt: skip


def compiled(step: Step, loop=scanned, inputs: Inputs | None = None, **options):
    """A function of carry, streams and constants, compiled; the fixed constants are bound."""
    fixed = inputs.fixed if inputs is not None else ()

    def run(carry, streams, constants):
        return loop(step, carry, streams, (*constants, *fixed))

    given = {"strict": True, "inner": "eager", **({"target": "triton"} if DRY else {}), **options}
    torch._dynamo.reset()
    return torch.compile(run, backend=tenfuse, options=given, dynamic=False)


def weights(values: Tensors) -> Tensors:
    """Cotangents, the same for every run."""
    random = torch.Generator(values[0].device).manual_seed(1)
    return tuple(torch.randn(x.shape, generator=random, device=x.device, dtype=torch.float32) for x in values)


def results(function, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Outputs and all gradients."""
    carry, y = function(inputs.carry, inputs.streams, inputs.constants)
    values = (*carry, y)
    towards = tuple(w.to(x.dtype) for w, x in zip(weights(values), values, strict=True))
    leaves = (*inputs.carry, *inputs.streams, *inputs.constants)
    grads = torch.autograd.grad(values, leaves, towards)
    found = {f"final {i}": x for i, x in enumerate(carry)} | {"output": y}
    found |= {f"gradient {i}": g for i, g in enumerate(grads)}
    return {k: x.detach() for k, x in found.items()}


def eager(step: Step, inputs: Inputs, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The Python loop in ``dtype``."""
    wide = Inputs(*(
        tuple(x.detach().to(dtype).requires_grad_(x.requires_grad) for x in group)
        for group in (inputs.carry, inputs.streams, inputs.constants, inputs.fixed)
    ))  # fmt: skip

    def segment(count, *tensors):
        carry, streams = tensors[:count], tensors[count:]
        return looped(step, carry, streams, (*wide.constants, *wide.fixed))

    def run(carry, streams, constants):
        pieces = zip(*(x.split(SEGMENT, dim=1) for x in streams), strict=True)
        outputs = []
        for piece in pieces:
            carry, y = checkpoint(segment, len(carry), *carry, *piece, use_reentrant=False)
            outputs.append(y)
        return carry, torch.cat(outputs, dim=1)

    return results(run, wide)


@dataclasses.dataclass(frozen=True)
class Judged:
    name: str
    error: float
    limit: float

    def __str__(self) -> str:
        return f"{self.name}: RMSE {self.error:.2e} of the values, {self.limit:.2e} allowed"


def judged(found: dict, own: dict, right: dict, dtype: torch.dtype) -> list[Judged]:
    """How far ``found`` is from ``right``, and how far it may be."""
    rows = []
    for name, true in right.items():
        size = _rms(true) or 1.0
        theirs = _rms(own[name].double() - true) / size
        error = _rms(found[name].double() - true) / size
        limit = min(4 * theirs + 4 * torch.finfo(dtype).eps, WORST[dtype])
        rows.append(Judged(name, error, limit))
    return rows


def _rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def check(step: Step, size: Size, dtype: torch.dtype, loop=scanned, algorithm: str | None = None) -> None:
    """Fused as it should be, and right."""
    inputs = made(step, size, dtype)
    with recording() as reports:
        found = results(compiled(step, loop, inputs), inputs)
    (seen,) = [x for report in reports for x in report.loops]
    expected = {algorithm or step.algorithm}
    # A matrix for a chunk is only worth its memory where it is small.
    expected |= {"sequential"} if "doubling" in expected else set()
    assert seen.status == "fused" and seen.algorithm in expected, seen.reason or seen.algorithm
    assert {language for _, language, _ in seen.kernels} == {"triton"}
    rows = judged(found, eager(step, inputs, dtype), eager(step, inputs, torch.float64), dtype)
    wrong = [str(row) for row in rows if not row.error <= row.limit]
    assert not wrong, "\n".join([f"{step.name} {size} {dtype}", *wrong])


__all__ = [
    "DEVICE",
    "DRY",
    "STEPS",
    "Size",
    "check",
    "compiled",
    "eager",
    "judged",
    "made",
    "results",
    "sized",
]
