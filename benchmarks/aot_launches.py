"""The kernel launches of a loop, written down instead of made.

Takes a plain loop and its arguments on the CPU; leaves every launch that its forward, its
forward with gradients and its backward make, with the bytes each moves.  The loop goes the
whole path of ``target="triton"``; only the launch itself is left out, so no GPU is needed
and no entry of a tensor is computed.  What a compiler says of a plan's kernels is asked as it
is on a card, so that the plan is the one that would be used there.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import tenfuse.surroundings
from tenfuse.plan.tensors import Examples
from tenfuse.plan.tiles.kernel import TileKernel, timed
from tenfuse.plan.tiles.plan import TilePlan
from tenfuse.plan.tiles.settle import Verdict
from tenfuse.plan.tiles.traffic import moved
from tenfuse.reasons import QUARANTINED, refuse
from tenfuse.report.report import LoopReport
from tenfuse.runtime import canary, tiled
from tenfuse.runtime.bind import grouped, register
from tenfuse.runtime.sample import Likes
from tenfuse.runtime.tiles import RESULTS, TileLauncher

PASSES = ("forward", "saving", "backward")
TRIED = 128
"""Steps of the call for which a plan is tried."""
CACHE = 32 << 20
"""Bytes of an operand that caches hold, as those of all cards of the table do."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """``arguments`` are what Triton's JIT would be called with."""

    kernel: TileKernel
    function: Any
    source: str
    arguments: tuple[Any, ...]
    instances: int
    moved: int
    """Bytes that all instances load and store, every reload counted."""
    fetched: int
    """Of these what memory moves: an operand that caches hold whole is read from there but once."""


@dataclasses.dataclass
class Pass:
    """``least`` are the bytes of the loop's inputs and outputs, each once."""

    launches: list[Launch]
    least: int = 0

    @property
    def ratio(self) -> float:
        return sum(x.moved for x in self.launches) / max(self.least, 1)

    @property
    def of_memory(self) -> float:
        return sum(x.fetched for x in self.launches) / max(self.least, 1)


Asked = Callable[[Launch], float]
"""Bytes that a thread of the launch's binary puts away; infinite where there is none."""


def launches(
    loop: Callable[..., Tensor], inputs: Sequence[Tensor], steps: int, asked: Asked
) -> tuple[LoopReport, dict[str, Pass]]:
    """The loop's report, and its passes: compiled without gradients, and with one for every input.

    Bytes are those of a call with ``steps`` steps: tracing a loop takes time by the step,
    and kernels do not depend on their number.
    """
    passes = {name: Pass([]) for name in PASSES}
    torch._dynamo.reset()
    compiled = torch.compile(
        loop, backend="tenfuse", dynamic=False,
        options={"strict": True, "inner": "eager", "target": "triton"},
    )  # fmt: skip
    leaves = [x.detach().requires_grad_() for x in inputs]
    with _writing(passes, steps, asked):
        with torch.no_grad():
            compiled(*inputs)
        out = compiled(*leaves)
        torch.autograd.grad(out, leaves, torch.empty_like(out), allow_unused=True)
    report = tenfuse.reports()[-1].loops[0]
    return report, passes


@contextlib.contextmanager
def _writing(passes: dict[str, Pass], longer: int, asked: Asked) -> Iterator[None]:
    run_forward, run_backward = tiled.run_forward, tiled.run_backward
    current: list[Pass] = []

    def forward(plan: Any, key: str, groups: Any, steps: int, save: bool) -> list[Tensor]:
        first = len(groups["carries"])
        last = first + len(plan.base.exports)
        own = passes["saving" if save else "forward"]
        current[:] = [own]
        found = run_forward(plan, key, groups, steps, save)
        own.least += _bytes([*groups["carries"], *groups["invariants"], *found[:first]])
        own.least += _bytes([*groups["streams"], *found[first:last]]) * longer // steps
        return found

    def backward(plan: Any, key: str, grads: Any, groups: Any, saves: Any, steps: int) -> list[Tensor]:
        current[:] = [passes["backward"]]
        found = run_backward(plan, key, grads, groups, saves, steps)
        first, wanted = len(groups["carries"]), sum(plan.base.wanted.streams)
        over_time = [*groups["streams"], *grads[first:], *found[first : first + wanted]]
        once = [
            *groups["carries"],
            *groups["invariants"],
            *grads[:first],
            *found[:first],
            *found[first + wanted :],
        ]
        passes["backward"].least += _bytes(once) + _bytes(over_time) * longer // steps
        return found

    def launch(self: TileLauncher, tensors: Sequence[Tensor], instances: int, numbers: Sequence[int]) -> None:
        given = (*tensors, *numbers)
        bytes_ = moved(self.kernel, longer), _fetched(self.kernel, tensors, longer, numbers[-2])
        current[0].launches.append(Launch(self.kernel, self.function, self.source, given, instances, *bytes_))

    def trial(plan: TilePlan, given: Examples) -> Verdict:
        current[:] = [Pass([])]
        # A thread of its own is in none of the compiler's modes.
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(_run, plan, Likes.of(given), run_forward, run_backward).result()
            said = {x.kernel.key: pool.submit(asked, x).result() for x in current[0].launches}
        failed = math.inf in said.values()
        return Verdict(said, refuse(QUARANTINED, "a kernel does not compile") if failed else None)

    with (
        mock.patch.object(tenfuse.surroundings, "interpreting", lambda: True),
        mock.patch.object(canary, "trial", trial),
        mock.patch.object(tiled, "run_forward", forward),
        mock.patch.object(tiled, "run_backward", backward),
        mock.patch.object(TileLauncher, "_launch", launch),
    ):
        yield


def _run(plan: TilePlan, likes: Likes, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
    """Make the launches of one call with gradients, on tensors without values."""
    register(plan)
    cpu, steps = torch.device("cpu"), TRIED
    groups = grouped(
        carries=[x.empty(cpu, None) for x in likes.carries],
        streams=[x.empty(cpu, steps) for x in likes.streams],
        invariants=[x.empty(cpu, None) for x in likes.invariants],
    )
    key, count = plan.key(), len(likes.carries) + len(plan.base.exports)
    found = forward(plan, key, groups, steps, plan.backward is not None)
    if plan.backward is not None:
        backward(plan, key, found[:count], groups, found[count:], steps)


def _fetched(kernel: TileKernel, tensors: Sequence[Tensor], steps: int, traced: int) -> int:
    """``tensors`` are those of a call with ``traced`` steps."""
    found = 0
    for operand, tensor in zip(kernel.operands, tensors, strict=True):
        every = moved(dataclasses.replace(kernel, operands=(operand,)), steps)
        once = _bytes([tensor]) * (steps // traced if timed(kernel, operand) else 1)
        again = operand.role not in RESULTS and once <= CACHE
        found += min(every, once) if again else every
    return found


def _bytes(tensors: Sequence[Tensor]) -> int:
    """Of distinct entries: an expanded dimension is one, and what enters in two shapes is one tensor."""
    found: dict[tuple[Any, ...], int] = {}
    for x in tensors:
        steps = sorted((n, s) for n, s in zip(x.shape, x.stride(), strict=True) if n > 1 and s)
        entries = math.prod(n for n, _ in steps)
        found[x.data_ptr(), x.dtype, tuple(steps)] = (entries if x.numel() else 0) * x.element_size()
    return sum(found.values())


__all__ = ["PASSES", "Launch", "Pass", "launches"]
