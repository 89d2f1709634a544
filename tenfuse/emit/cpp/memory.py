"""All the memory that a kernel touches.

Takes ``Settled``; leaves its tensors, scratch, copies of invariants and shares of sums, each
filled in as the lines of the kernel ask for it.
"""

from __future__ import annotations

from tenfuse.emit.cpp.arena import Arena
from tenfuse.emit.cpp.operands import Operands
from tenfuse.emit.cpp.packs import Packs
from tenfuse.emit.cpp.settle import Settled
from tenfuse.emit.cpp.shares import Shares


class Memory:
    """``work`` counts the vector iterations of the steps written so far.

    Tasks that walk back over time ``together`` take turns, chunk by chunk: what a task keeps
    between its turns lies in memory of its own, ``held``.
    """

    def __init__(self, settled: Settled) -> None:
        self.settled = settled
        self.operands = Operands(settled)
        self.arena = Arena(settled.spaces, settled.lanes)
        self.packs = Packs(settled, self.operands, self.arena)
        self.shares = Shares(settled, self.operands)
        self.together = settled.kernel.backward and self.shares.prevail()
        self.held = Arena(settled.spaces, settled.lanes, "own", "b") if self.together else self.arena
        self.work = 0
        self.leads = False
        """Whether streams read now may be asked for some steps before."""


__all__ = ["Memory"]
