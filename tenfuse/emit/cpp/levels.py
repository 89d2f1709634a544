"""At which loop of a nest each value is computed, and on which side of the loops inside.

Takes a ``Nest``; leaves, per number of open loops, the values that the loops further in read,
and those that only what follows them reads.
"""

from __future__ import annotations

from tenfuse.emit.cpp.schedule import Scheduler
from tenfuse.emit.cpp.shape import Nest
from tenfuse.step.program import Const, Pointwise, Ref, arguments


class Levels:
    """``before`` and ``after`` the inner loops of each level; ``late`` needs finished sums."""

    def __init__(self, scheduler: Scheduler, nest: Nest) -> None:
        self.scheduler, self.nest, self.nodes = scheduler, nest, scheduler.program.nodes
        self._classify()

    def _classify(self) -> None:
        """Sort the nest's nodes by level, before or after the loops inside that level."""
        depth = len(self.nest.order) + 1
        self.before: list[list[Ref]] = [[] for _ in range(depth)]
        self.after: list[list[Ref]] = [[] for _ in range(depth)]
        self.late = late = set[Ref]()
        for ref in sorted(self.scheduler.computed(self.nest)):
            node = self.nodes[ref]
            if isinstance(node, Const):
                continue
            if ref in self.nest.reductions and ref not in self.nest.kept:
                late.add(ref)
                continue
            if (
                isinstance(node, Pointwise)
                and ref not in self.nest.kept
                and any(a in late for a in node.args)
            ):
                late.add(ref)
                self.after[self._level(ref)].append(ref)
            else:
                self.before[self._level(ref)].append(ref)
        for level in range(depth - 1):
            inside = self._used_inside(level)
            waiting = [r for r in self.before[level] if r not in inside]
            self.before[level] = [r for r in self.before[level] if r in inside]
            self.after[level] = sorted(waiting + self.after[level])

    def _used_inside(self, level: int) -> set[Ref]:
        """The values of a level that its inner loops, or sums taken before them, read: others
        would only take registers from the loops."""
        found = {a for r in self.nest.reductions for a in arguments(self.nodes[r])}
        for deeper in range(level + 1, len(self.before)):
            for ref in (*self.before[deeper], *self.after[deeper]):
                if ref not in self.nest.kept:
                    found |= set(arguments(self.nodes[ref]))
        found |= {s.ref for s in self.nest.stores if self.nest.level(s.axes) > level}
        for ref in reversed(self.before[level]):
            if ref in found and ref not in self.nest.kept:
                found |= set(arguments(self.nodes[ref]))
        return found

    def _level(self, ref: Ref) -> int:
        return self.nest.level(self.scheduler.axes[ref])


__all__ = ["Levels"]
