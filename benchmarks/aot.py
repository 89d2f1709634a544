"""Every generated Triton kernel compiled ahead of time, for four cards, without any of them.

    python -m benchmarks.aot            # all loops of aot_loops.py, in as many processes as cores
    python -m benchmarks.aot --quick    # every loop once, for one card

What was compiled before is taken from tenfuse's cache, so that a run that was stopped goes on
where it was, and after a change only the kernels it changed are compiled (``--again`` for all).

Writes ``results/triton-aot.md`` and ``.json``: registers, spilled bytes, shared memory,
matrix instructions and seconds to compile of each kernel on each target, and the bytes its
pass moves over the least there is to move.  A kernel that does not compile is a row that
says so, and the command then ends with status 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any
from unittest import mock

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from benchmarks.aot_compile import SHARED, compiled
from benchmarks.aot_launches import CACHE, PASSES, Launch, Pass, launches
from benchmarks.aot_loops import LOOPS, LoopCase
from benchmarks.cpu import RESULTS, write
from tenfuse.report.report import LoopReport

BATCH, TRACED, STEPS = 8, 128, 4096
"""Kernels do not depend on the number of steps beyond these; bytes are those of STEPS."""
MAIN = "sm_90"
"""The target of sizes and dtypes beside each loop's first; the first is compiled for all."""
DTYPES = {
    "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32, "complex64": torch.complex64,
}  # fmt: skip
"""Of the tensors; "tf32" is float32 with torch's own setting allowing TF32 in products."""


def inputs(case: LoopCase, setting: tuple[tuple[str, int], ...], dtype: torch.dtype) -> list[Tensor]:
    """Tensors without values, which nobody reads."""
    sizes = {"B": BATCH, "T": TRACED, **dict(setting)}
    return [
        torch.empty([sizes[n] if n in sizes else int(n) for n in shape.split()], dtype=dtype)
        for shape in case.shapes
    ]


def rows(
    case: LoopCase, setting: tuple[tuple[str, int], ...], dtype: str, targets: list[str], again: bool = False
) -> Iterator[dict[str, Any]]:
    """One row per kernel of a loop; of targets where it is planned otherwise, rows of their own."""
    head = {"loop": " ".join([case.name, *(f"{n}{x}" for n, x in setting)]), "dtype": dtype}
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        given = inputs(case, setting, DTYPES[dtype])
        made = {t: launches(case.run, given, STEPS, functools.partial(_put_away, t)) for t in targets}
    except Exception as error:  # The table goes on with the next loop.
        yield {**head, "failed": _said(error)}
        return
    finally:
        torch.set_float32_matmul_precision(precision)
    for alike in _alike(made):
        report, passes = made[alike[0]]
        if report.status != "fused" or report.form != case.form:
            yield {**head, "failed": f"{report.status} as {report.form or '-'}: {report.reason or ''}"}
            continue
        seen: dict[str, str] = {}
        for name in PASSES:
            own = head | {"algorithm": report.algorithm, "pass": name}
            yield from _pass(own, passes[name], alike, seen, again)


def _put_away(target: str, launch: Launch) -> float:
    """Bytes of a thread, as a card would know once the kernel is loaded; infinite where it is not."""
    binary = compiled(launch, target)
    return math.inf if binary.failed or binary.shared > SHARED[target] else binary.spilled


def _alike(made: dict[str, tuple[LoopReport, dict[str, Pass]]]) -> list[list[str]]:
    """The targets, those together for which the kernels are the same."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for target, (report, passes) in made.items():
        kernels = tuple(x.kernel.key for name in PASSES for x in passes[name].launches)
        found.setdefault((report.status, report.reason, *kernels), []).append(target)
    return list(found.values())


def _pass(
    head: dict[str, Any], found: Pass, targets: list[str], seen: dict[str, str], again: bool
) -> Iterator[dict[str, Any]]:
    """A kernel that an earlier pass has too is named, not compiled again."""
    for n, launch in enumerate(found.launches):
        name = f"{head['pass']} {n + 1} of {len(found.launches)}"
        row = {**head, "kernel": name, "ratio of pass": found.ratio, "ratio": launch.moved / found.least}
        row["of memory"] = found.of_memory
        row |= {"tile": _tile(launch), "warps": launch.kernel.tiling.warps}
        if launch.kernel.key in seen:
            yield {**row, "same as": seen[launch.kernel.key], "targets": targets}
            continue
        seen[launch.kernel.key] = name
        yield {**row, "binaries": [dataclasses.asdict(compiled(launch, t, again)) for t in targets]}


def _tile(launch: Launch) -> str:
    """Sizes of an instance's tile axes; positions of a chunk first, blocks marked."""
    tiling = launch.kernel.tiling
    sizes = [f"{n}{'*' if a in tiling.split else ''}" for a, n in tiling.blocks]
    return "x".join(sizes) + (" all chunks at once" if launch.kernel.parallel else "")


def markdown(found: list[dict[str, Any]], targets: list[str], option: str = "") -> str:
    lines = [
        "# Triton kernels, compiled ahead of time", "",
        f"Made by `python -m benchmarks.aot{option}` without a GPU; bytes are those of T={STEPS}.  Per",
        "target: registers of a thread / bytes spilled by it / KiB of shared memory / matrix instructions in",
        "the text / seconds of a processor to compile.  Tiles: positions of a chunk first, * an axis in",
        "blocks.  Bytes are what the instances of a pass load and store over inputs and outputs once (a",
        "tensor that enters in two shapes is one), this kernel's share in brackets; behind the comma, what",
        "of them memory moves: of an operand of up to",
        f"{CACHE >> 20} MiB, which all caches hold, several instances read what came from memory once.",
        "`forward` is without gradients, `saving` leaves what the backward reads.  A target for which a",
        "compiler's word led to other kernels has rows of its own.", "",
        f"| loop | dtype | kernel | tile, warps | bytes | {' | '.join(targets)} |",
        f"|---|---|---|---|---|{'---|' * len(targets)}",
    ]  # fmt: skip
    for row in found:
        if "kernel" not in row:
            lines.append(f"| {row['loop']} | {row['dtype']} | **{row['failed']}** |")
            continue
        bytes_ = f"{row['ratio of pass']:.2f} ({row['ratio']:.2f}), {row['of memory']:.2f}"
        cells = [row["loop"], row["dtype"], row["kernel"], f"{row['tile']}, {row['warps']}", bytes_]
        if "same as" in row:
            cells += [f"as {row['same as']}" if t in row["targets"][:1] else "" for t in targets]
        else:
            made = {b["target"]: _cell(b) for b in row["binaries"]}
            cells += [made.get(t, "") for t in targets]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(binary: dict[str, Any]) -> str:
    if binary["failed"]:
        return f"**{binary['failed']}**"
    matrix = ", ".join(f"{n} {name.split('.')[0]}" for name, n in binary["matrix"].items()) or "-"
    spilled = f"**{binary['spilled']}**" if binary["spilled"] else "0"
    shared = f"{binary['shared'] / 1024:.0f}"
    if binary["shared"] > SHARED[binary["target"]]:
        shared = f"**{shared}, too much**"
    return f"{binary['registers']} / {spilled} / {shared} / {matrix} / {binary['seconds']:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every generated Triton kernel without a GPU.")
    parser.add_argument("--quick", action="store_true", help=f"first sizes and dtypes, for {MAIN}")
    parser.add_argument("--only", default="", help="loops whose name contains this; writes nothing")
    parser.add_argument("--targets", default="", help=f"of {', '.join(SHARED)}; all without --quick")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    parser.add_argument("--again", action="store_true", help="compile what the cache has, too")
    parser.add_argument("--all", action="store_true", help="every size and dtype for every target: hours")
    args = parser.parse_args()
    targets = args.targets.split(",") if args.targets else [MAIN] if args.quick else [*SHARED]
    work = [
        (name, setting, dtype, targets if first or args.all else [MAIN], args.again)
        for name, setting, dtype, first in _chosen(args.quick, args.only)
    ]
    title = "".join(f" --{n}" for n in ("quick", "all") if getattr(args, n))
    found: list[dict[str, Any]] = []
    for found in _made(work, args.jobs, targets):
        if not args.only:
            (RESULTS / "triton-aot.md").write_text(markdown(found, targets, title))
            write("triton-aot", found)
    failed = [r for r in found if "failed" in r or any(b["failed"] for b in r.get("binaries", ()))]
    print(f"{len(found)} kernels, {len(failed)} of them failed")
    return 1 if failed else 0


Job = tuple[str, tuple[tuple[str, int], ...], str, list[str], bool]


def _made(work: list[Job], jobs: int, targets: list[str]) -> Iterator[list[dict[str, Any]]]:
    """All rows so far, in the order of ``work``, whenever those of one more loop are there."""
    made: list[list[dict[str, Any]]] = [[] for _ in work]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, TRITON_CACHE_DIR=cache),
        ProcessPoolExecutor(jobs, context) as pool,
        Progress(*columns) as progress,
    ):
        bar = progress.add_task("loops", total=len(work))
        futures = {pool.submit(_job, job): n for n, job in enumerate(work)}
        for future in as_completed(futures):
            rows_ = made[futures[future]] = future.result()
            lines = markdown(rows_, targets).splitlines()[-len(rows_) :]
            progress.console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
            progress.advance(bar)
            yield [row for one in made for row in one]


def _job(job: Job) -> list[dict[str, Any]]:
    """The rows of one loop, in a process of its own."""
    name, setting, dtype, targets, again = job
    try:
        return list(rows(next(c for c in LOOPS if c.name == name), setting, dtype, targets, again))
    except Exception as error:  # The table goes on with the next loop.
        return [{"loop": name, "dtype": dtype, "failed": _said(error)}]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n\n")[0].replace("\n", " ")[:200]


def _chosen(quick: bool, only: str) -> Iterator[tuple[str, tuple[tuple[str, int], ...], str, bool]]:
    """Every size in the first dtype, the first size in every dtype; whether it is both."""
    for case in LOOPS:
        if only not in case.name:
            continue
        for n, setting in enumerate(case.sizes[:1] if quick else case.sizes):
            for m, dtype in enumerate(case.dtypes[:1] if n or quick else case.dtypes):
                yield case.name, setting, dtype, n == m == 0


if __name__ == "__main__":
    sys.exit(main())
