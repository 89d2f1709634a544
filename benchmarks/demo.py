"""The main job in one command: ``make demo``.

TEN at its benchmark size, DeltaNet, and a Mamba mixer of the ``transformers`` package (its
plain loop and its default, an associative scan), each as written and compiled by tenfuse,
forward and backward.  Shows what was fused, how much faster it is, and how far each is
from the same model in float64.  Progress goes to the terminal, results to standard output.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

from benchmarks import measure
from reference import delta
from reference.case import normal
from reference.ten import V3
from tenfuse.report.registry import recording


@dataclasses.dataclass(frozen=True)
class Job:
    """One model at one size; ``build`` gives it and its inputs at a share of its ``steps``."""

    title: str
    size: str
    steps: int
    build: Callable[[int], tuple[Callable[..., Any], tuple[Tensor, ...]]]


@dataclasses.dataclass
class Outcome:
    """What is shown for a job; ``error`` and ``grad_error`` are (eager, tenfuse)."""

    job: Job
    steps: int
    loops: list[Any]
    first_call: float
    forward: dict[str, list[float]]
    both: dict[str, list[float]]
    error: tuple[float, float]
    grad_error: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        found = [
            (r.status, r.span, r.steps, r.form, r.algorithm, r.formula, r.code, r.reason) for r in self.loops
        ]
        return {
            "title": self.job.title, "size": self.job.size, "steps": self.steps,
            "loops": found, "first_call_s": self.first_call,
            "forward": measure.ratio(self.forward, "eager", "tenfuse").median,
            "forward_and_backward": measure.ratio(self.both, "eager", "tenfuse").median,
            "error": self.error, "grad_error": self.grad_error,
        }  # fmt: skip


def ten(steps: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return V3(1024, 128), (normal(16, steps, 1024),)


def deltanet(steps: int) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    return delta.deltanet, delta.example_inputs(4, 4, steps, 64)


def mamba(parallel: bool) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    """A mixer with random weights; d_model 768, 1536 channels, 16 states."""

    def build(steps: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        from transformers.models.mamba.modeling_mamba import MambaConfig, MambaMixer
        from transformers.utils import logging

        logging.set_verbosity_error()
        config = MambaConfig(
            hidden_size=768, state_size=16, num_hidden_layers=1, use_associative_scan=parallel
        )
        return MambaMixer(config, 0), (normal(2, steps, 768),)

    return build


JOBS = (
    Job("TEN, one cell (V3)", "B16 D1024 K128", 512, ten),
    Job("DeltaNet", "B4 H4 d64", 1024, deltanet),
    Job("Mamba mixer of transformers, plain loop", "B2 D768 N16", 256, mamba(False)),
    Job("Mamba mixer of transformers, associative_scan (its default)", "B2 D768 N16", 256, mamba(True)),
)


def run(job: Job, steps: int, rounds: int, step: Callable[[str], None]) -> Outcome:
    """Compile, check against float64, time side by side."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, inputs = job.build(steps)
    step("the same in float64")
    oracle, outputs = measure.in_double(model, inputs)
    leaves = measure.leaves_of(model, inputs)
    compiled = torch.compile(model, backend="tenfuse", dynamic=False)
    step("first call: tracing, fusing, compiling")
    before = time.perf_counter()
    with recording() as reports:
        got = measure.gradients(compiled, inputs, leaves)
    first_call = time.perf_counter() - before
    step("eager, forward and backward")
    plain = measure.gradients(model, inputs, leaves)
    ways = {"eager": model, "tenfuse": compiled}
    step("timing the forward pass")
    forward = measure.alternate({n: _forward(w, inputs) for n, w in ways.items()}, rounds, 12.0)
    step("timing forward and backward")
    both = measure.alternate({n: _both(w, inputs, leaves) for n, w in ways.items()}, rounds, 12.0)
    return Outcome(
        job, steps, [loop for report in reports for loop in report.loops], first_call, forward, both,
        (measure.error(plain[:outputs], oracle[:outputs]), measure.error(got[:outputs], oracle[:outputs])),
        (measure.error(plain[outputs:], oracle[outputs:]), measure.error(got[outputs:], oracle[outputs:])),
    )  # fmt: skip


def _forward(way: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """With gradients enabled: the same compiled graph as in training, so nothing is traced again."""
    return lambda: way(*inputs)


def _both(way: Callable[..., Any], inputs: tuple[Tensor, ...], leaves: list[Tensor]) -> Callable[[], Any]:
    return lambda: measure.gradients(way, inputs, leaves)


def describe(loop: Any) -> str:
    """One line or two: what became of a loop."""
    if loop.status == "kept":
        return f"[yellow]kept[/]  {loop.span}, {loop.steps} steps: {loop.code} {loop.reason}"
    formula = f"\n       {loop.formula}" if loop.formula else ""
    kernels = ", ".join(sorted({language for _, language, _ in loop.kernels}))
    made = f", {len(loop.kernels)} kernels in {kernels}" if kernels else ""
    return f"[green]fused[/] {loop.span}, {loop.steps} steps: {loop.form}, {loop.algorithm}{made}{formula}"


def panel(outcome: Outcome) -> Panel:
    table = Table(box=None, pad_edge=False)
    for column in ("", "eager ms", "tenfuse ms", "times faster", "error eager", "error tenfuse"):
        table.add_column(column, justify="right" if column else "left")
    rows = (
        ("forward", outcome.forward, outcome.error),
        ("forward + backward", outcome.both, outcome.grad_error),
    )
    for name, seconds, (eager, ours) in rows:
        ms = [f"{1e3 * measure.Spread.of(seconds[way]).median:.2f}" for way in ("eager", "tenfuse")]
        faster = measure.ratio(seconds, "eager", "tenfuse")
        table.add_row(name, *ms, f"[bold]{faster}[/]", f"{eager:.1e}", f"{ours:.1e}")
    seen = collections.Counter(describe(loop) for loop in outcome.loops)
    lines = "\n".join(text + (f" ({n} times)" if n > 1 else "") for text, n in seen.items())
    grid = Table.grid()
    grid.add_row(lines or "[yellow]no loop was seen[/]")
    grid.add_row(table)
    grid.add_row(f"[dim]first call, forward and backward: {outcome.first_call:.1f} s[/]")
    return Panel(grid, title=f"{outcome.job.title}  {outcome.job.size} T{outcome.steps}", title_align="left")


def main() -> int:
    parser = argparse.ArgumentParser(description="Eager against tenfuse on TEN, DeltaNet and Mamba.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="an eighth of the length")
    parser.add_argument("--json", metavar="PATH", help="also write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Of functions in transformers that ask for versions of packages: nothing the reader can act on.
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    scale, rounds = (0.125, 5) if args.quick else (1.0, 9)
    out = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    screen = out if out.is_terminal else Console(stderr=True)
    start = time.perf_counter()
    outcomes = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("")
        for number, job in enumerate(JOBS, 1):
            steps = int(job.steps * scale)

            def step(text: str, number: int = number, job: Job = job) -> None:
                progress.update(task, description=f"{number}/{len(JOBS)} {job.title}: {text}")

            outcomes.append(run(job, steps, rounds, step))
            out.print(panel(outcomes[-1]))
    out.print(
        f"errors: relative RMSE against float64, of the output (forward) and of the worst gradient; "
        f"{args.threads} threads; {time.perf_counter() - start:.0f} s in all"
    )
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"environment": measure.environment(), "jobs": [o.as_dict() for o in outcomes]},
                file,
                indent=1,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
