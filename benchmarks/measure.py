"""Timing several ways of computing one thing, side by side, and how wrong each is.

Takes callables; leaves medians of ratios taken within one round, so that a machine that
slows down for a while slows all of them.  Errors are relative RMSE against float64.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from tenfuse.testing.precision import Copier, Precision

Call = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    low: float
    median: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return Spread(values[0], values[0], values[0])
        low, mid, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(low, mid, high)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def alternate(
    calls: Mapping[str, Call], rounds: int, budget: float = 60.0, least: int = 3
) -> dict[str, list[float]]:
    """Seconds of each call in each round; every call once a round, the order turning.

    Stops after ``rounds``, or after ``least`` of them once ``budget`` seconds are spent.  The calls should
    have run once before: what the first call compiles is not for the table.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            before = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - before)
        if turn + 1 >= least and time.perf_counter() - start > budget:
            break
    return seconds


def warm(calls: Mapping[str, Call]) -> Mapping[str, Call]:
    """The same calls, each made once."""
    for call in calls.values():
        call()
    return calls


def ratio(seconds: Mapping[str, list[float]], over: str, under: str) -> Spread:
    """How many times longer ``over`` took than ``under``, round by round."""
    return Spread.of([a / b for a, b in zip(seconds[over], seconds[under], strict=True)])


def leaves_of(model: Any, inputs: Sequence[Any]) -> list[torch.Tensor]:
    """The floating inputs, made to require gradients, and the model's parameters."""
    own = list(model.parameters()) if isinstance(model, torch.nn.Module) else []
    return [x.requires_grad_() for x in inputs if x.is_floating_point()] + own


def gradients(model: Any, inputs: Sequence[Any], leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Outputs, then the gradients of a fixed weighted sum of them."""
    outs = [x for x in tree_leaves(model(*inputs)) if isinstance(x, torch.Tensor) and x.requires_grad]
    weights = [_weight(x.shape, x.dtype) for x in outs]
    grads = torch.autograd.grad(outs, leaves, weights, allow_unused=True, materialize_grads=True)
    return [*outs, *grads]


@functools.lru_cache(maxsize=8)
def _weight(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """The cotangent of an output: made once, so that making it is not measured."""
    return torch.linspace(-1, 1, shape.numel(), dtype=dtype).view(shape)


def in_double(model: Any, inputs: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], int]:
    """The same as ``gradients`` with everything in float64; and how many of them are outputs."""
    copier = Copier(torch.float64)
    twin, wide = copier.module(model), [copier(x) for x in inputs]
    leaves = leaves_of(twin, wide)
    with Precision(torch.float64, torch.float32):
        found = gradients(twin, wide, leaves)
    return found, len(found) - len(leaves)


def error(got: Sequence[torch.Tensor], oracle: Sequence[torch.Tensor]) -> float:
    """The largest RMSE of a tensor over the RMS of its oracle."""
    worst = 0.0
    for mine, true in zip(got, oracle, strict=True):
        size = true.square().mean().sqrt().item()
        off = (mine.detach().double() - true).square().mean().sqrt().item()
        worst = max(worst, off / size if size else off)
    return worst


def environment() -> dict[str, Any]:
    """What the figures belong to: device, cores, versions and commit."""
    return {
        "device": _processor(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": _output(os.environ.get("CXX", "g++"), "--version").split("\n")[0],
        "commit": _output("git", "rev-parse", "--short", "HEAD"),
        "changed": bool(_output("git", "status", "--porcelain", "--untracked-files=no", "--", "tenfuse")),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:
        return ""
    return done.stdout.strip()
