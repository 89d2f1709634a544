"""One row of the GPU table: the ways of running one loop, measured side by side.

Takes a ``Job``, a row and what tenfuse is measured beside, and a ``Card``; leaves figures by way.  A way
that fails is a text in its place, and one that has no gradient has its forward measured.  What a job
compiles is kept by its process, so that it may be compiled while nothing is measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import fla, measure
from benchmarks.measure import Spread
from reference.steps import STEPS, Inputs, Size, Step, looped

Run = Callable[[Inputs], Any]
INDUCTOR_STEPS = 128
"""Inductor unrolls a loop: minutes to compile at 1024 steps.  Its rows are at this length."""


@dataclasses.dataclass(frozen=True)
class Row:
    step: str
    size: Size
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.step}, {self.size}, {str(self.dtype).removeprefix('torch.')}"


@dataclasses.dataclass(frozen=True)
class Job:
    """A row beside "fla" at its size, or beside "inductor" at so few steps that its loop can be unrolled."""

    row: Row
    beside: str
    dry: bool = False

    @property
    def size(self) -> Size:
        if self.beside == "fla":
            return self.row.size
        return dataclasses.replace(self.row.size, steps=3 if self.dry else INDUCTOR_STEPS)

    @property
    def key(self) -> str:
        """Under which its figures are written."""
        return "ways" if self.beside == "fla" else "short_ways"

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def __str__(self) -> str:
        return f"{self.row}, beside {self.beside}"


SCANS = ("gated", "rotation", "selective", "decayed max")
HEADS = ("linear", "retnet", "decayed", "gla", "delta", "gated delta", "kda", "rwkv7")
SIZES = (Size(8, 4096, 16, 64), Size(8, 4096, 8, 128), Size(1, 32768, 16, 64))


def rows() -> list[Row]:
    found = [Row(n, Size(8, 4096, 16, 64), d) for n in SCANS for d in (torch.float32, torch.bfloat16)]
    found.append(Row("gated", Size(1, 32768, 4, 64), torch.float32))
    found += [Row(n, s, torch.bfloat16) for n in HEADS for s in SIZES]
    found.append(Row("gated delta", Size(8, 4096, 4, 256), torch.bfloat16))
    found += [
        Row("resonance", Size(16, 4096, 1, 128), torch.float32),
        Row("lstm", Size(8, 4096, 1, 64), torch.float32),
    ]
    return found


# -- the ways ---------------------------------------------------------------------------------------


def compiled(row: Row, fixed: tuple[Tensor, ...], dry: bool) -> Run:
    from tenfuse.backend import tenfuse

    step = STEPS[row.step]
    options = {"strict": True, **({"target": "triton", "inner": "eager"} if dry else {})}

    def run(carry: Any, streams: Any, constants: Any) -> Any:
        return looped(step, carry, streams, (*constants, *fixed))

    torch._dynamo.reset()
    fused = torch.compile(run, backend=tenfuse, options=options, dynamic=False)
    return lambda x: fused(x.carry, x.streams, x.constants)


def by_inductor(step: Step, fixed: tuple[Tensor, ...]) -> Run:
    def run(carry: Any, streams: Any, constants: Any) -> Any:
        return looped(step, carry, streams, (*constants, *fixed))

    made = torch.compile(run, backend="inductor", dynamic=False)
    return lambda x: made(x.carry, x.streams, x.constants)


# -- measuring --------------------------------------------------------------------------------------


class Card:
    """Clock and memory of the device; on the CPU there are none."""

    def __init__(self, dry: bool) -> None:
        self.dry = dry
        self.device = "cpu" if dry else "cuda"
        self._flush = torch.empty(0 if dry else 1 << 28, dtype=torch.uint8, device=self.device)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Of one call, with a cold second-level cache."""
        if self.dry:
            call()
            return float("nan")
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def peak(self, call: Callable[[], Any]) -> int:
        """Bytes allocated at most beyond what was before."""
        if self.dry:
            return 0
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def alternate(self, calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Spread]:
        for call in calls.values():
            for _ in range(0 if self.dry else 5):
                call()
        found: dict[str, list[float]] = {name: [] for name in calls}
        names = list(calls)
        for turn in range(rounds):
            for i in range(len(names)):
                name = names[(i + turn) % len(names)]
                found[name].append(1e3 * self.seconds(calls[name]))
        return {name: Spread.of(values) for name, values in found.items()}

    def bandwidth(self) -> float:
        """Bytes a second of a copy within the device, read and written."""
        if self.dry:
            return float("nan")
        a = torch.empty(1 << 30, dtype=torch.uint8, device=self.device)
        b = torch.empty_like(a)
        spread = self.alternate({"copy": lambda: b.copy_(a)}, 20)["copy"]
        return 2 * a.numel() / (spread.median / 1e3)


def flat(found: Any) -> list[Tensor]:
    carry, y = found
    return [*carry, y]


def gradients(run: Run, x: Inputs) -> list[Tensor]:
    """Outputs and gradients of carry, streams and constants."""
    values = [v for v in flat(run(x)) if v.requires_grad]
    leaves = [*x.carry, *x.streams, *x.constants]
    towards = [torch.ones_like(v) for v in values]
    grads = torch.autograd.grad(values, leaves, towards, allow_unused=True, materialize_grads=True)
    return [*values, *grads]


def forward(run: Run, x: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return flat(run(x))


def oracle(row: Row, x: Inputs) -> list[Tensor]:
    """Outputs and gradients of the loop in fp64, in segments that are computed again for gradients."""
    from torch.utils.checkpoint import checkpoint

    step = STEPS[row.step]
    wide = Inputs(*(
        tuple(t.detach().double().requires_grad_(t.requires_grad) for t in group)
        for group in (x.carry, x.streams, x.constants, x.fixed)
    ))  # fmt: skip

    def segment(count: int, *tensors: Tensor) -> Any:
        return looped(step, tensors[:count], tensors[count:], (*wide.constants, *wide.fixed))

    def run(given: Inputs) -> Any:
        carry, outputs = given.carry, []
        for piece in zip(*(s.split(64, dim=1) for s in given.streams), strict=True):
            carry, y = checkpoint(segment, len(carry), *carry, *piece, use_reentrant=False)
            outputs.append(y)
        return carry, torch.cat(outputs, dim=1)

    return [t.detach() for t in gradients(run, wide)]


def least_bytes(x: Inputs, outputs: list[Tensor], grad: bool) -> int:
    """Inputs read and outputs written once; with gradients: both again, and the inputs' gradients."""
    given = sum(t.numel() * t.element_size() for t in (*x.carry, *x.streams, *x.constants, *x.fixed))
    made = sum(t.numel() * t.element_size() for t in outputs)
    return (given + made) + (2 * given + made if grad else 0)


def prepared(row: Row, size: Size, device: str) -> Inputs:
    torch.manual_seed(0)
    x = STEPS[row.step].make(size)
    wants = ((x.carry, True), (x.streams, True), (x.constants, True), (x.fixed, False))
    return Inputs(*(tuple(t.to(device, row.dtype).requires_grad_(g) for t in ts) for ts, g in wants))


@functools.cache
def ready(job: Job) -> tuple[Inputs, dict[str, Run | str]]:
    """The job's inputs and ways; these compile at their first call."""
    row, x = job.row, prepared(job.row, job.size, job.device)
    other = fla.run_of(row.step) if job.beside == "fla" else by_inductor(STEPS[row.step], x.fixed)
    return x, {"tenfuse": compiled(row, x.fixed, job.dry), job.beside: other}


def compile_ahead(job: Job) -> None:
    """Compiles what ``measured`` will call in this process, but for fla's kernels, which time themselves."""
    x, ways = ready(job)
    for name, way in ways.items():
        if name != "fla" and not isinstance(way, str):
            for how in PARTS.values():
                with contextlib.suppress(Exception):  # whoever measures it says what is wrong
                    how(way, x)


def fill_caches(row: Row) -> None:
    """fla's kernels for a row, compiled in a process of their own: what they time here is of no use."""
    way = fla.run_of(row.step)
    if not isinstance(way, str):
        with contextlib.suppress(Exception):
            gradients(way, prepared(row, row.size, "cuda"))


def measured(job: Job, card: Card, rounds: int, bandwidth: float) -> dict[str, Any]:
    x, ways = ready(job)
    found = {job.key: _timed(ways, x, oracle(job.row, x), card, rounds, bandwidth)}
    return found if job.beside == "fla" else {"short": f"the same at T{job.size.steps}", **found}


def _timed(
    ways: dict[str, Run | str], x: Inputs, right: list[Tensor], card: Card, rounds: int, bandwidth: float
) -> dict[str, Any]:
    found: dict[str, Any] = {name: {"problem": way} for name, way in ways.items() if isinstance(way, str)}
    there = {name: way for name, way in ways.items() if not isinstance(way, str)}
    n, least = len(x.carry) + 1, {}
    calls: dict[str, dict[str, Callable[[], Any]]] = {part: {} for part in PARTS}
    for name, way in there.items():
        found[name] = {}
        for part, how in PARTS.items():
            try:
                outputs = how(way, x)
            except Exception as error:
                found[name].setdefault("problem", problem(error))
                continue
            least[part] = least_bytes(x, outputs[:n], part == "both")
            found[name]["error"] = measure.error(outputs[:n], right[:n])
            if part == "both":
                found[name]["grad_error"] = measure.error(outputs[n:], right[n:])
            del outputs
            calls[part][name] = functools.partial(how, way, x)
            found[name][f"{part}_peak_mb"] = card.peak(calls[part][name]) / 1e6
    for part, of in calls.items():
        for name, spread in card.alternate(of, rounds).items():
            found[name][f"{part}_ms"] = spread
            found[name][f"{part}_of_copy"] = least[part] / bandwidth / (spread.median / 1e3)
    return found


def problem(error: BaseException) -> str:
    """In one short line."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:80]}"


PARTS: dict[str, Callable[[Run, Inputs], list[Tensor]]] = {"forward": forward, "both": gradients}
