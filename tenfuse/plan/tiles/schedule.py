"""In which order the values of a step are made, so that few are held at a time.

Takes a step program and the sizes of its tiles; leaves its nodes in an order.  Of what a node
reads that is made first which takes the most room beyond what it leaves (Sethi and Ullman 1970,
"The generation of optimal code for arithmetic expressions", for values of different sizes);
what is there already takes none.  Products that are only summed are never made, and what is
cheap to make again holds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from tenfuse.step.program import AxisName, Const, Position, Ref, StepProgram


def schedule(
    program: StepProgram,
    extent: Mapping[AxisName, int],
    read: Callable[[Ref], list[Ref]],
    there: Collection[Ref],
    lightest: bool = False,
) -> list[Ref]:
    """All nodes that outputs and carries need, arguments first, without those that are ``there``.

    ``read`` says which nodes are made before a node.  With ``lightest``, outputs and carries come in the
    opposite order.  What is made for the first is there for the others, which the rule does not
    see, so either order may hold less.
    """
    return _Scheduler(program, extent, read, there).run(min if lightest else max)


class _Scheduler:
    def __init__(
        self,
        program: StepProgram,
        extent: Mapping[AxisName, int],
        read: Callable[[Ref], list[Ref]],
        there: Collection[Ref],
    ) -> None:
        self.program = program
        self.reads = [list(dict.fromkeys(read(i))) for i in range(len(program.nodes))]
        axes = program.axes_of()
        self.sizes = [
            0 if isinstance(n, (Const, Position)) else math.prod(extent.get(a, 1) for a in axes[i])
            for i, n in enumerate(program.nodes)
        ]
        self.done, self.order = set(there), list[Ref]()
        self.needs: dict[Ref, int] = {}

    def run(self, first_of: Callable[..., Ref]) -> list[Ref]:
        outs = [o.ref for o in self.program.outs]
        for group in (outs, [c.next for c in self.program.carries]):
            left = list(dict.fromkeys(group))
            while left:
                self.needs.clear()
                first = first_of(left, key=lambda r: self._need(r) - self.sizes[r])
                left.remove(first)
                self._make(first)
        return self.order

    def _make(self, ref: Ref) -> None:
        if ref in self.done:
            return
        left = [a for a in self.reads[ref] if a not in self.done]
        while left:
            self.needs.clear()
            first = max(left, key=lambda r: self._need(r) - self.sizes[r])
            self._make(first)
            left = [a for a in left if a not in self.done]
        self.done.add(ref)
        self.order.append(ref)

    def _need(self, ref: Ref) -> int:
        """Entries held at most while a node is made from what is there."""
        if ref in self.done:
            return 0
        if ref not in self.needs:
            parts = [(self._need(a), self.sizes[a]) for a in self.reads[ref] if a not in self.done]
            parts.sort(key=lambda p: p[1] - p[0])
            held, most = 0, 0
            for need, size in parts:
                most = max(most, held + need)
                held += size
            self.needs[ref] = max(most, held + self.sizes[ref])
        return self.needs[ref]


__all__ = ["schedule"]
