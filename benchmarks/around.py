"""What of a call is spent in kernels and what around them, on one core.

    python -m benchmarks.around [part of a loop's name]

Takes the loops of ``benchmarks.cpu``; prints, in milliseconds of processor time, the hand-written
loop, the kernels of tenfuse's forward and of its forward with backward, and the rest of each call:
Dynamo's guards, autograd, the inner compiler's code, the results' memory.  The ways alternate.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks import cpu, measure
from tenfuse.runtime.launch import Launcher
from tenfuse.runtime.sequence import _Together

ROUNDS, WARM = 60, 5


@contextlib.contextmanager
def in_kernels(spent: list[float]) -> Iterator[None]:
    """Adds to ``spent`` the time of everything that compiled text runs."""

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.thread_time()
            try:
                return method(*args)
            finally:
                spent.append(time.thread_time() - start)

        return call

    with (
        mock.patch.object(Launcher, "launch", timed(Launcher.launch)),
        mock.patch.object(_Together, "__call__", timed(_Together.__call__)),
    ):
        yield


def account(bench: cpu.Bench) -> dict[str, tuple[float, float]]:
    """For every way, medians of the time in kernels and of all of it, in milliseconds."""
    torch.manual_seed(0)
    inputs = bench.inputs(bench.steps)
    leaves, plain = measure.leaves_of(bench.loop, inputs), tuple(x.detach() for x in inputs)
    ways: dict[str, Callable[[], Any]] = {"by hand, forward": partial(bench.limit, *plain)}
    for inner in ("eager", "inductor"):
        loop = cpu.compiled(bench.loop, inner=inner)
        ways[f"inner {inner}, forward"] = partial(loop, *plain)
        ways[f"inner {inner}, with backward"] = partial(measure.gradients, loop, inputs, leaves)
    spent: list[float] = []
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with in_kernels(spent):
        for _ in range(WARM + ROUNDS):
            for name, way in ways.items():
                spent.clear()
                start = time.thread_time()
                with torch.set_grad_enabled("backward" in name):
                    way()
                found[name].append((sum(spent), time.thread_time() - start))
    columns = {name: zip(*rows[WARM:], strict=True) for name, rows in found.items()}
    return {name: tuple(1e3 * statistics.median(c) for c in rows) for name, rows in columns.items()}


def main() -> None:
    torch.set_num_threads(1)
    for bench in cpu.BENCHES:
        if not sys.argv[1:] or sys.argv[1] in bench.name:
            for name, (kernels, whole) in account(bench).items():
                print(f"{bench.name:16s}{name:30s} kernels {kernels:7.3f}  all {whole:7.3f} ms", flush=True)


if __name__ == "__main__":
    main()
