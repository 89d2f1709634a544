"""A task's walk back over time, chunk by chunk.

Takes the ``Memory`` of a kernel that recomputes a forward program; leaves lines that, for
every chunk from the last to the first, compute the chunk's states again from its checkpoint
into a history, then walk its steps back.

Tasks that sum the same outputs read the same streams, too.  They take turns, ``turn`` being
the chunk, so that both are in the cache when the next task comes to them; one turn before the
chunks fills a task's carries, one behind them writes its results.
"""

from __future__ import annotations

from tenfuse.emit.cpp import ahead
from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.memory import Memory
from tenfuse.emit.cpp.step import following, nests, pointers
from tenfuse.emit.cpp.task import Task, first_sums, restored
from tenfuse.step.program import AxisName, Input, Ref, StepProgram
from tenfuse.step.whole import whole_inputs


def backward(memory: Memory) -> list[str]:
    task = Task(memory)
    lines = task.carries()
    history = History(memory)
    before, step = task.step(history.state)
    lines += before
    work = memory.work
    needed = any(isinstance(n, Input) and n.kind == "state" for n in task.program.nodes)
    chunk, reverse = history.chunk, memory.settled.kernel.reverse
    lines += task.start("0" if reverse else "steps - 1")
    walk = [f"const int64_t first = z * {chunk}, many = steps - first < {chunk} ? steps - first : {chunk};"]
    again: list[str] = []
    if needed:
        walk += history.restored()
        again = history.again()
        walk += again
    # While one chunk is walked back, the streams of the next one are asked for.
    step = ahead.soon(memory.operands, step + again, work) + step
    step = ahead.lead(step, chunk if reverse else -chunk, "z > 0") + step
    walk += ["for (int64_t k = many - 1; k >= 0; k--) {", *(history.slots() if needed else [])]
    walk += history.soon() if needed and not memory.together else []
    walk += [*pointers(memory, step, history.time(), following(not reverse)), *step, "}"]
    chunks = f"(steps + {chunk - 1}) / {chunk}"
    if not memory.together:
        loop = f"for (int64_t z = {chunks} - 1; z >= 0; z--) {{"
        return [*task.heads, *lines, loop, *walk, "}", *task.finish()]
    turns = [f"if (turn == {chunks}) {{", *lines, "} else if (turn >= 0) {", "const int64_t z = turn;"]
    return [*task.heads, *turns, *walk, *task.home(), "} else {", *task.finish(), "}"]


class History:
    """The states of one chunk, one after the other for each carry of the forward program."""

    def __init__(self, memory: Memory) -> None:
        settled = memory.settled
        assert settled.kernel.recompute is not None and settled.again is not None
        self.memory, self.settled, self.timing = memory, settled, settled.again
        self.forward: StepProgram = settled.kernel.recompute
        self.chunk, self.reverse = max(1, settled.kernel.checkpoint), settled.kernel.reverse
        whole = whole_inputs(self.forward)
        self.arrays = [
            memory.arena.array(c.axes, settled.state_last.get(i), self.chunk, whole=("carry", i) in whole)
            for i, c in enumerate(self.forward.carries)
        ]

    def time(self) -> str:
        """That of step ``k`` of the chunk."""
        return "steps - 1 - first - k" if self.reverse else "first + k"

    def slots(self) -> list[str]:
        """Pointers to the states before step ``k``."""
        return [f"{a.ctype}* const h{i} = {a.name} + k * {a.size};" for i, a in enumerate(self.arrays)]

    def state(self, node: Input) -> Access:
        return self.arrays[node.index].access(node.axes, f"h{node.index}")

    def restored(self) -> list[str]:
        """Lines that bring the chunk's first states back from the checkpoint."""
        lines: list[str] = []
        for i, carry in enumerate(self.forward.carries):
            if self.memory.operands.place("save", i) is not None:
                state = self.arrays[i].access(carry.axes)
                lines += restored(self.memory, i, carry.axes, state, "z")
        lines += [self.arrays[i].ones() for i in self.settled.state_scales.values()]
        return lines + first_sums(
            self.memory,
            self.timing,
            self.settled.state_last,
            lambda node: self.arrays[node.index].access(node.axes),
            lambda i: self.arrays[i].access(self.forward.carries[i].axes),
            "steps - 1 - first" if self.reverse else "first",
        )

    def soon(self) -> list[str]:
        """Lines that ask, in step ``k``, for a share of the checkpoint that the next chunk starts from."""
        lines: list[str] = []
        for i, carry in enumerate(self.forward.carries):
            if self.memory.operands.place("save", i) is not None:
                lines += ahead.checkpoint(self.memory.operands, i, carry.axes, self.chunk)
        return ["if (z > 0) {", *lines, "}"] if lines else []

    def again(self) -> list[str]:
        """The loop that computes the chunk's other states."""

        def old(ref: Ref) -> Access:
            node = self.forward.nodes[ref]
            assert isinstance(node, Input)
            return self.state(node)

        def new(i: int, axes: tuple[AxisName, ...], inplace: bool) -> Access:
            return self.arrays[i].access(axes, f"g{i}")

        lines, _ = nests(self.memory, self.forward, self.settled.state_last, old, new, {})
        nexts = [f"{a.ctype}* const g{i} = h{i} + {a.size};" for i, a in enumerate(self.arrays)]
        return [
            "for (int64_t k = 0; k + 1 < many; k++) {",
            *self.slots(),
            *nexts,
            *pointers(self.memory, lines, self.time(), following(self.reverse)),
            *lines,
            "}",
        ]


__all__ = ["backward"]
