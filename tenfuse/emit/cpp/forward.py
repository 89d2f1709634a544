"""A task's walk over time in run order.

Takes the ``Memory`` of a kernel; leaves the lines of the walk: carries filled, one loop over
the steps that keeps carries at checkpoints, results copied out.
"""

from __future__ import annotations

from tenfuse.emit.cpp import ahead
from tenfuse.emit.cpp.memory import Memory
from tenfuse.emit.cpp.step import following, pointers
from tenfuse.emit.cpp.task import Task, kept


def forward(memory: Memory) -> list[str]:
    task, backwards = Task(memory), memory.settled.kernel.reverse
    lines = task.carries()
    before, step = task.step(None)
    lines += before
    step = _asking(memory, step, backwards)
    lines += task.start("steps - 1" if backwards else "0")
    saves = _saves(task)
    lines += ["for (int64_t r = 0; r < steps; r++) {", *saves]
    lines += pointers(memory, step, "steps - 1 - r" if backwards else "r", following(backwards))
    return [*task.heads, *lines, *step, "}", *task.finish()]


def _asking(memory: Memory, step: list[str], backwards: bool) -> list[str]:
    """The step, with the streams of a later one asked for first."""
    asking = ahead.soon(memory.operands, step, memory.work)
    distance = ahead.distance(memory.work)
    step = asking + step
    return ahead.lead(step, -distance if backwards else distance, f"r + {distance} < steps") + step


def _saves(task: Task) -> list[str]:
    """Lines that keep the carries with which a chunk begins."""
    lines: list[str] = []
    chunk = task.settled.kernel.checkpoint
    if not chunk:
        return lines
    for i in range(len(task.program.carries)):
        if task.operands.place("save", i) is not None:
            lines += kept(task, i, f"r / {chunk}")
    return [f"if (r % {chunk} == 0) {{", *lines, "}"] if lines else []


__all__ = ["forward"]
