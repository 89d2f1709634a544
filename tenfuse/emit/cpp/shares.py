"""Outputs that several tasks sum: each thread's own share, and their sum at the end.

Takes ``Settled`` and the ``Operands``; leaves an ``Access`` per shared output and the lines
that lay the shares out and add them up.  Shares are summed thread by thread, in order, so
that a kernel gives the same bits at every call.
"""

from __future__ import annotations

import math

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.cuts import partial_sums
from tenfuse.emit.cpp.operands import Operands, timed, uses
from tenfuse.emit.cpp.preamble import STORAGE
from tenfuse.emit.cpp.settle import Settled
from tenfuse.step.program import AxisName


class Shares:
    """``found`` are the outputs that are summed over threads, ``cut`` the axes along which tasks
    sum them; ``order`` the positions of their axes in a share, of those that were asked for."""

    def __init__(self, settled: Settled, operands: Operands) -> None:
        self.program, self.spaces, self.operands = settled.kernel.program, settled.spaces, operands
        self.order: dict[int, tuple[int, ...]] = {}
        mine = {a: self._along(a) for a in self.spaces.task_axes()}
        self.cut = tuple(a for a, outs in mine.items() if outs)
        self.found = frozenset(i for outs in mine.values() for i in outs)

    def _along(self, axis: AxisName) -> frozenset[int]:
        """Outputs of which tasks along ``axis`` compute a share each."""
        share = partial_sums(self.program, axis) or frozenset()
        return frozenset(i for i, o in enumerate(self.program.outs) if o.ref in share)

    def prevail(self) -> bool:
        """Whether most of what a task reads and writes in a step others of its group do, too."""
        kernel = self.operands.kernel
        common = own = 0
        for o in kernel.operands:
            if o.role != "stream" and (o.role != "out" or not timed(kernel, o)):
                continue
            entries = math.prod(self.spaces.axes[a].trips for a in o.axes)
            if not any(a in self.cut for a in o.axes):
                common += entries * (2 if o.role == "out" else 1)
            else:
                own += entries
        return bool(self.found) and common > own

    def access(self, index: int, x: AxisName | None) -> Access:
        """This thread's share of an output: contiguous, time first, axis ``x`` last."""
        axes = self.program.outs[index].axes
        if index not in self.order:
            self.order[index] = tuple(sorted(range(len(axes)), key=lambda p: axes[p] == x))
        last = self.order[index][-1] if axes else None
        dims = tuple(
            (a, "1" if p == last else f"e{index}_{p}")
            for p, a in enumerate(axes)
            if self.spaces.axes[a].kind != "task"
        )
        accumulate = self.program.outs[index].accumulate
        return Access(f"{'u' if accumulate else 'y'}{index}", dims)

    # -- text ---------------------------------------------------------------------------

    def strides(self) -> tuple[list[str], str]:
        """Definitions of the strides and offsets of shared outputs, and their total size."""
        lines, offset = [], "0"
        for i in sorted(self.order):
            out = self.program.outs[i]
            size = "1"
            for p in reversed(self.order[i]):
                lines.append(f"const int64_t e{i}_{p} = {size}; (void)e{i}_{p};")
                size = f"e{i}_{p} * N{self.spaces.axes[out.axes[p]].id}"
            lines.append(f"const int64_t e{i}_t = {size}, e{i}_o = {offset};")
            offset = f"e{i}_o + e{i}_t" + ("" if out.accumulate else " * steps")
        return lines, offset

    def heads(self) -> list[str]:
        """Strides, and pointers to where a task's part of its thread's shares begins."""
        lines = self.strides()[0]
        for i in sorted(self.order):
            out = self.program.outs[i]
            terms = [f"share + e{i}_o"]
            for p, a in enumerate(out.axes):
                if self.spaces.axes[a].kind != "full":
                    terms.append(f"o{self.spaces.axes[a].id} * e{i}_{p}")
            lines.append(f"T* const u{i} = {' + '.join(terms)};")
        return lines

    def of_step(self, text: str) -> list[str]:
        """Definitions of the pointers that ``text`` uses at time ``t``."""
        return [
            f"T* const y{i} = u{i} + t * e{i}_t;"
            for i in self.order
            if not self.program.outs[i].accumulate and uses(text, f"y{i}")
        ]

    def gather(self) -> list[str]:
        """Lines that sum the threads' shares into the outputs."""
        return [line for i in sorted(self.order) for line in self._gathered(i)]

    def _gathered(self, i: int) -> list[str]:
        place = self.operands.place("out", i)
        assert place is not None
        kernel = self.operands.kernel
        out, operand = self.program.outs[i], kernel.operands[place]
        first = 0 if out.accumulate else 1
        strides = sum(len(o.axes) + timed(kernel, o) for o in kernel.operands[:place])
        mine, its = [f"e{i}_o"], [f"({STORAGE[operand.dtype]}*)P[{place}]"]
        loops = [f"for (int64_t t = 0; t < {'1' if out.accumulate else 'steps'}; t++)"]
        if not out.accumulate:
            mine.append(f"t * e{i}_t")
            its.append(f"t * S[{strides}]")
        for p in self.order[i]:
            mine.append(f"j{p} * e{i}_{p}")
            its.append(f"j{p} * S[{strides + p + first}]")
        *outer, last = self.order[i] or (None,)
        for p in outer:
            loops.append(f"for (int64_t j{p} = 0; j{p} < {self._total(i, p)}; j{p}++)")
        each = f"for (int w = 0; w < threads; w++) sum += {{}}(shares + w * total + {' + '.join(mine)});"
        address, many = " + ".join(its), "1" if last is None else self._total(i, last)
        whole, single = f"  {{ V sum = bc((T)0); {each.format('ld')}", f"  {{ T sum = 0; {each.format('ld1')}"
        if last is None:
            inner = [f"{single} st1({address}, sum); }}"]
        else:
            store = f"sts({address}, S[{strides + last + first}], sum, W);"
            if operand.unit == operand.axes[last]:
                store = f"st({address}, sum);"
            inner = [
                f"  int64_t j{last} = 0;",
                f"  for (; j{last} + W <= {many}; j{last} += W)",
                f"{whole} {store} }}",
                f"  for (; j{last} < {many}; j{last}++)",
                f"{single} st1({address}, sum); }}",
            ]
        return ["#pragma omp for schedule(static)", *loops, "{", *inner, "}"]

    def _total(self, i: int, place: int) -> str:
        """The size of one axis of an output."""
        return f"N{self.spaces.axes[self.program.outs[i].axes[place]].id}"


__all__ = ["Shares"]
