"""How long the first call of a long loop takes, with and without going ahead of the tracer.

    python -m benchmarks.trace              T = 256 and 1024; writes results/trace.json
    python -m benchmarks.trace --steps 512  another length; writes nothing

Each figure is the processor's seconds of one first call, forward, with ``inner="eager"``: Dynamo's tracing,
tenfuse's capture, and kernels from a warm cache.  Both ways alternate in one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import measure
from benchmarks.cpu import BENCHES, compiled
from reference import delta

RESULTS = Path(__file__).parent / "results"
ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Traced:
    name: str
    loop: Callable[..., Tensor]
    inputs: Callable[[int], tuple[Tensor, ...]]


LOOPS = (
    *(Traced(b.name, b.loop, b.inputs) for b in BENCHES if b.name in ("elementwise", "TEN", "gated delta")),
    Traced(
        "delta rule, zip of unbind", delta.deltanet_pointwise, lambda t: delta.example_inputs(4, 4, t, 64)
    ),
)


def seconds(bench: Traced, steps: int, ahead: bool) -> float:
    inputs = bench.inputs(steps)
    torch._dynamo.reset()
    call = compiled(bench.loop, inner="eager", fast_forward=ahead)
    start = time.process_time()
    with torch.no_grad():
        call(*inputs)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=None)
    chosen = parser.parse_args()
    console = Console()
    table = Table("loop", "T", "every step s", "going ahead s", "ratio")
    rows = []
    for bench in LOOPS:
        for steps in chosen.steps or (256, 1024):
            seconds(bench, steps, True)  # the kernel is compiled
            pairs = [(seconds(bench, steps, False), seconds(bench, steps, True)) for _ in range(ROUNDS)]
            slow, fast = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            rows.append({"loop": bench.name, "steps": steps, "every": slow, "ahead": fast, "ratio": ratio})
            table.add_row(bench.name, str(steps), f"{slow:.3g}", f"{fast:.3g}", f"{ratio:.3g}")
            console.print(rows[-1])
    console.print(table)
    if chosen.steps is None:
        text = json.dumps({"machine": measure.environment(), "rows": rows}, indent=1)
        (RESULTS / "trace.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
