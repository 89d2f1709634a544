"""Speed on a GPU: tenfuse, fla-core's kernels for the same recurrence, Inductor, and a copy.

    python -m benchmarks.gpu              every row; writes results/gpu.json and results/gpu.md
    python -m benchmarks.gpu --quick      one size each, without Inductor
    python -m benchmarks.gpu --only delta rows whose name contains this; writes nothing
    python -m benchmarks.gpu --dry        tiny sizes on the CPU, in Triton's interpreter; writes nothing
    --into FOLDER      writes there, after every row, whatever the other switches
    --minutes 25       begins nothing later than that
    --resume           keeps the rows that are in FOLDER already
    --ahead 12         processes that compile rows side by side, before the first is measured

Rows start from plain Python loops over steps written in PyTorch (``reference/steps.py``), compiled by
tenfuse.  Times are CUDA events around one call, every way once a round, the order
turning; medians with quartiles.  Beside each time stand its error against the loop in fp64, its
peak memory, and how much of the measured bandwidth of a copy it would take to read its inputs and
write its outputs once.  Rows are measured in a process of their own: one that fails, or takes
longer than ``PATIENCE``, is a text in the table.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import fla, measure
from benchmarks.apart import Apart, Lost
from benchmarks.gpu_rows import SIZES, Card, Job, Row, compile_ahead, fill_caches, measured, rows
from reference.steps import Size

RESULTS = Path(__file__).parent / "results"
PROGRESS = Console(stderr=True)
PATIENCE, COMPILING = 240.0, 420.0
"""Seconds that a row may take, and that all rows together may be compiled before."""
Found = dict[str, dict[str, Any]]
"""Figures by the name of the row."""


# -- in the process that measures -------------------------------------------------------------------


def _quiet() -> None:
    torch._dynamo.config.recompile_limit = 64
    # torch 2.11 leaves this logger at DEBUG: it prints every step's graphs.
    logging.getLogger("torch._higher_order_ops.partitioner").setLevel(logging.WARNING)


@functools.cache
def _card(dry: bool) -> Card:
    _quiet()
    return Card(dry)


def bandwidth(dry: bool) -> float:
    return _card(dry).bandwidth()


def one(job: Job, rounds: int, copy: float) -> dict[str, Any]:
    """The figures of a job; "lost" if the device is of no use any more."""
    found = measured(job, _card(job.dry), rounds, copy)
    try:
        if not job.dry:
            torch.cuda.synchronize()
    except RuntimeError:
        found["lost"] = True
    return found


def prepare(job: Job) -> None:
    """Compiles what the job will measure, and keeps no more of the card than that."""
    _quiet()
    compile_ahead(job)
    gc.collect()
    torch.cuda.empty_cache()


def prepare_fla(row: Row) -> None:
    """Fills the caches of compilers; timings, of a card that others use, are not kept."""
    os.environ["FLA_CACHE_RESULTS"] = "0"
    fill_caches(row)


# -- the whole run ----------------------------------------------------------------------------------


class Measuring:
    """Jobs compiled side by side, then measured one after the other, each written as soon as it is there."""

    def __init__(self, args: argparse.Namespace, dry: bool, found: Found) -> None:
        self.args, self.dry, self.found = args, dry, found
        self.shared, self.own = Apart(), dict[Job, Apart]()
        self.copy = float("nan")
        self.start = time.monotonic()

    def run(self, jobs: Sequence[Job]) -> None:
        left = [job for job in jobs if job.key not in self.found.get(str(job.row), {})]
        try:
            if self.args.ahead and not self.dry:
                self._prepare(left)
            self.copy = self.shared(bandwidth, self.dry, patience=PATIENCE)
            for job in left:
                self._measure(job)
        finally:
            for apart in (self.shared, *self.own.values()):
                apart.end()

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """Every job in the process that will measure it, fla's kernels in others; what takes too long is
        left to those who measure it."""
        PROGRESS.log(f"compiling {len(jobs)} rows, {self.args.ahead} at a time")
        until = time.monotonic() + COMPILING

        def call(apart: Apart, how: Callable[..., None], what: Job | Row) -> None:
            with contextlib.suppress(Lost):
                apart(how, what, patience=max(0.0, until - time.monotonic()))

        def alone(row: Row) -> None:
            apart = Apart()
            call(apart, prepare_fla, row)
            apart.end()

        self.own = {job: Apart() for job in jobs}
        # The longest sequences first: they take the longest to trace.
        order = sorted(jobs, key=lambda job: -job.size.steps)
        with concurrent.futures.ThreadPoolExecutor(self.args.ahead) as pool:
            waiting = [pool.submit(call, self.own[job], prepare, job) for job in order]
            waiting += [pool.submit(alone, job.row) for job in jobs if job.beside == "fla"]
            concurrent.futures.wait(waiting)

    def _measure(self, job: Job) -> None:
        entry = self.found.setdefault(str(job.row), {"name": str(job.row)})
        apart = self.own.pop(job, self.shared)
        if time.monotonic() - self.start > 60 * self.args.minutes:
            if "ways" not in entry:
                entry["problem"] = "not measured: no time was left"
            apart.end()
            return
        PROGRESS.log(str(job))
        try:
            made = apart(one, job, 1 if self.dry else self.args.rounds, self.copy, patience=PATIENCE)
        except Lost as error:
            made = {job.key: {"tenfuse": {"problem": str(error)}}}
        if made.pop("lost", False) or apart is not self.shared:
            apart.end()
        entry.update(made)
        if self.args.into is not None:
            write(list(self.found.values()), self.copy, self.args.into)
        if self.args.into is None or self.args.only:
            print(table([{"name": str(job.row), **made}]), flush=True)


def before(folder: Path | None) -> Found:
    """The rows measured by an earlier run."""
    path = (folder or RESULTS) / "gpu.json"
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())["results"]
    return {row["name"]: {k: v for k, v in row.items() if k != "problem"} for row in kept}


# -- what is written --------------------------------------------------------------------------------

HEAD = (
    "| loop | way | forward ms | of copy | error | MB | forward+backward ms | of copy | error | MB |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def table(found: list[dict[str, Any]]) -> str:
    lines = [HEAD]
    for row in found:
        if "problem" in row:
            lines.append(f"| {row['name']} | | {row['problem']}" + " |" * 8)
        for key, label in (("ways", row["name"]), ("short_ways", row.get("short", ""))):
            ways = row.get(key, {})
            for name, way in ways.items():
                lines.append(f"| {label} | {name} | " + " | ".join(_cells(way)) + " |")
                label = ""
    return "\n".join(lines)


def _cells(way: dict[str, Any]) -> list[str]:
    found = []
    for part, error in (("forward", "error"), ("both", "grad_error")):
        if f"{part}_ms" not in way:
            found += [way.get("problem", ""), "", "", ""]
            continue
        found += [_spread(way[f"{part}_ms"]), f"{100 * way[f'{part}_of_copy']:.0f} %"]
        found += [f"{way[error]:.1e}", f"{way[f'{part}_peak_mb']:.0f}"]
    return found


def _spread(value: Any) -> str:
    """Of this run, or read back from an earlier one."""
    return str(measure.Spread(**value) if isinstance(value, dict) else value)


def environment() -> dict[str, Any]:
    import triton

    names = ("device", "isa", "threads", "cores", "compiler", "load")
    found = {k: v for k, v in measure.environment().items() if k not in names}
    found |= {"cuda": torch.version.cuda, "triton": triton.__version__, "fla": fla.version()}
    if not torch.cuda.is_available():
        return found | {"device": "Triton's interpreter"}
    properties = torch.cuda.get_device_properties(0)
    return found | {"device": properties.name, "memory_gb": round(properties.total_memory / 2**30)}


def write(found: list[dict[str, Any]], copy: float, folder: Path) -> None:
    about = environment() | {"copy_gb_per_s": None if copy != copy else round(copy / 1e9)}
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": about, "results": found}, indent=1, default=dataclasses.asdict)
    (folder / "gpu.json").write_text(text + "\n")
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
    (folder / "gpu.md").write_text("\n".join(lines) + "\n")


def main() -> int:
    args = arguments()
    dry = args.dry or os.environ.get("TENFUSE_GPU_DRY") == "1"
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("no card: CUDA is not available (--dry runs tiny sizes on the CPU)", file=sys.stderr)
        return 1
    if args.into is None and not (args.only or dry):
        args.into = RESULTS
    chosen = [row for row in rows() if args.only in str(row)]
    if args.quick:
        chosen = [
            row for row in chosen if row.size in (SIZES[0], Size(8, 4096, 4, 256)) or row.size.heads == 1
        ]
    if dry:
        chosen = list({row.step: dataclasses.replace(row, size=Size(1, 19, 2, 4)) for row in chosen}.values())
    jobs = [Job(row, "fla", dry) for row in chosen]
    if not args.quick:
        first = {row.step: row for row in reversed(chosen)}
        jobs += [Job(row, "inductor", dry) for row in chosen if first[row.step] is row]
    Measuring(args, dry, before(args.into) if args.resume else {}).run(jobs)
    if args.into is not None:
        print(f"written to {args.into / 'gpu.json'} and gpu.md")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of tenfuse on a GPU, against fla-core and Inductor.")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="one size each, without Inductor")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--into", type=Path, help="the folder to write to")
    parser.add_argument("--minutes", type=float, default=25.0, help="nothing is begun later than that")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there already")
    parser.add_argument("--ahead", type=int, help="processes that compile at a time; 0: none before")
    found = parser.parse_args()
    if found.ahead is None:
        found.ahead = 0 if found.dry else min(12, os.cpu_count() or 1)
    return found


if __name__ == "__main__":
    sys.exit(main())
