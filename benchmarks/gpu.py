"""Speed on a GPU: tenfuse, fla-core's kernels for the same recurrence, Inductor, and a copy.

    python -m benchmarks.gpu              every row; writes results/gpu.json and results/gpu.md
    python -m benchmarks.gpu --quick      one size each, without Inductor
    python -m benchmarks.gpu --only delta rows whose name contains this; writes nothing
    python -m benchmarks.gpu --dry        tiny sizes on the CPU, in Triton's interpreter; writes nothing

Rows start from a step written in plain PyTorch (``reference/steps.py``) under torch's ``scan``,
compiled by tenfuse.  Times are CUDA events around one call, every way once a round, the order
turning; medians with quartiles.  Beside each time stand its error against the loop in fp64, its
peak memory, and how much of the measured bandwidth of a copy it would take to read its inputs and
write its outputs once.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks import fla, measure
from benchmarks.measure import Spread
from reference.steps import STEPS, Inputs, Size, Step, looped, scanned

RESULTS = Path(__file__).parent / "results"
PROGRESS = Console(stderr=True)
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
        return scanned(step, carry, streams, (*constants, *fixed))

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


def measured(row: Row, card: Card, rounds: int, bandwidth: float, short: bool) -> dict[str, Any]:
    """One row: every way there is, at the row's size; ``short``, Inductor beside tenfuse at a short one."""
    x = prepared(row, row.size, card.device)
    ways: dict[str, Run | str] = {"tenfuse": compiled(row, x.fixed, card.dry), "fla": fla.run_of(row.step)}
    found: dict[str, Any] = {
        "name": str(row),
        "ways": _timed(ways, x, oracle(row, x), card, rounds, bandwidth),
    }
    if not short:
        return found
    size = dataclasses.replace(row.size, steps=3 if card.dry else INDUCTOR_STEPS)
    x = prepared(row, size, card.device)
    ways = {"tenfuse": compiled(row, x.fixed, card.dry), "inductor": by_inductor(STEPS[row.step], x.fixed)}
    found["short"] = f"the same at T{size.steps}"
    found["short_ways"] = _timed(ways, x, oracle(row, x), card, rounds, bandwidth)
    return found


def _timed(
    ways: dict[str, Run | str], x: Inputs, right: list[Tensor], card: Card, rounds: int, bandwidth: float
) -> dict[str, Any]:
    found: dict[str, Any] = {name: {"problem": way} for name, way in ways.items() if isinstance(way, str)}
    there: dict[str, Run] = {}
    least = {}
    n = len(x.carry) + 1
    for name, way in ways.items():
        if isinstance(way, str):
            continue
        try:
            outputs = gradients(way, x)
        except Exception as error:
            found[name] = {"problem": f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"}
            continue
        there[name] = way
        least = {part: least_bytes(x, outputs[:n], part == "both") for part in PARTS}
        found[name] = {
            "error": measure.error(outputs[:n], right[:n]),
            "grad_error": measure.error(outputs[n:], right[n:]),
        }
        del outputs
        for part, how in PARTS.items():
            found[name][f"{part}_peak_mb"] = card.peak(functools.partial(how, way, x)) / 1e6
    for part, how in PARTS.items():
        calls = {name: functools.partial(how, way, x) for name, way in there.items()}
        for name, spread in card.alternate(calls, rounds).items():
            found[name][f"{part}_ms"] = spread
            found[name][f"{part}_of_copy"] = least[part] / bandwidth / (spread.median / 1e3)
    return found


PARTS: dict[str, Callable[[Run, Inputs], list[Tensor]]] = {"forward": forward, "both": gradients}


# -- what is written --------------------------------------------------------------------------------

HEAD = (
    "| loop | way | forward ms | of copy | error | MB | forward+backward ms | of copy | error | MB |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table(found: list[dict[str, Any]]) -> str:
    lines = [HEAD]
    for row in found:
        for ways, label in ((row["ways"], row["name"]), (row.get("short_ways", {}), row.get("short", ""))):
            for name, way in ways.items():
                lines.append(f"| {label} | {name} | " + " | ".join(_cells(way)) + " |")
                label = ""
    return "\n".join(lines)


def _cells(way: dict[str, Any]) -> list[str]:
    if "problem" in way:
        return [way["problem"], *[""] * 7]
    found = []
    for part, error in (("forward", "error"), ("both", "grad_error")):
        found += [str(way[f"{part}_ms"]), f"{100 * way[f'{part}_of_copy']:.0f} %"]
        found += [f"{way[error]:.1e}", f"{way[f'{part}_peak_mb']:.0f}"]
    return found


def environment() -> dict[str, Any]:
    import triton

    names = ("device", "isa", "threads", "cores", "compiler", "load")
    found = {k: v for k, v in measure.environment().items() if k not in names}
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "device": properties.name, "memory_gb": round(properties.total_memory / 2**30),
        "cuda": torch.version.cuda, "triton": triton.__version__, "fla": fla.version(),
    }  # fmt: skip


def write(found: list[dict[str, Any]], bandwidth: float) -> None:
    about = environment() | {"copy_gb_per_s": round(bandwidth / 1e9)}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"environment": about, "results": found}, indent=1, default=dataclasses.asdict)
    (RESULTS / "gpu.json").write_text(text + "\n")
    lines = [
        "# GPU, measured: `python -m benchmarks.gpu`",
        "",
        ", ".join(f"{k} {v}" for k, v in about.items()) + ".",
        "",
        'Medians with quartiles of one call with a cold cache. "of copy": the bytes of inputs and outputs'
        " (and gradients), moved once, at the bandwidth of a copy, over the time. Errors: relative RMSE to"
        " the loop in fp64, of outputs and of gradients. MB: memory allocated at most beyond the inputs.",
        "",
        table(found),
    ]
    (RESULTS / "gpu.md").write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of tenfuse on a GPU, against fla-core and Inductor.")
    parser.add_argument("--only", default="", help="rows whose name contains this; nothing is written")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="one size each, without Inductor")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU; nothing is written")
    args = parser.parse_args()
    dry = args.dry or os.environ.get("TENFUSE_GPU_DRY") == "1"
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.exit(1, "no card: CUDA is not available (--dry runs tiny sizes on the CPU)\n")
    torch._dynamo.config.recompile_limit = 64
    # torch 2.11 leaves this logger at DEBUG: it prints every step's graphs.
    logging.getLogger("torch._higher_order_ops.partitioner").setLevel(logging.WARNING)
    card = Card(dry)
    bandwidth = card.bandwidth()
    chosen = [row for row in rows() if args.only in str(row)]
    if args.quick:
        chosen = [
            row for row in chosen if row.size in (SIZES[0], Size(8, 4096, 4, 256)) or row.size.heads == 1
        ]
    if dry:
        chosen = list({row.step: dataclasses.replace(row, size=Size(1, 19, 2, 4)) for row in chosen}.values())
    found = []
    for row in chosen:
        PROGRESS.log(str(row))
        found.append(measured(row, card, 1 if dry else args.rounds, bandwidth, not args.quick))
        if args.only or dry:
            print(table(found[-1:]), flush=True)
    if not (args.only or dry):
        write(found, bandwidth)
        print("written to benchmarks/results/gpu.json and gpu.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
