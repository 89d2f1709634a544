"""Fresh axis names: ``k^1``, ``k^2`` are axis ``k`` under another name.

Takes and leaves names; a contracted axis of a term has such a name, so that it never
meets the axis it was made from.  Renaming may add primes, as everywhere in the IR.
"""

from __future__ import annotations

from collections.abc import Collection

from tenfuse.step.program import AxisName
from tenfuse.step.tensors import rename


class Names:
    """Fresh names for a program with the axes ``known``, in which their mark occurs nowhere."""

    def __init__(self, known: Collection[AxisName]) -> None:
        self.mark = "^"
        while any(self.mark in name for name in known):
            self.mark += "^"

    def base(self, name: AxisName) -> AxisName:
        """The axis a fresh name was made from."""
        return name.split(self.mark)[0]

    def unused(self, axis: AxisName, taken: Collection[AxisName]) -> AxisName:
        """The first fresh name of ``axis`` (or of the one it was made from) that is not taken."""
        count = 1
        while f"{self.base(axis)}{self.mark}{count}" in taken:
            count += 1
        return f"{self.base(axis)}{self.mark}{count}"


def original(name: AxisName, known: Collection[AxisName]) -> AxisName:
    """The axis among ``known`` that ``name`` was made from."""
    start = name
    while name not in known:
        shorter = name[:-1] if name.endswith(("'", "^")) else name.rpartition("^")[0]
        if not shorter:
            raise ValueError(f"the axis {start} was made from none of the program's axes")
        name = shorter
    return name


__all__ = ["Names", "original", "rename"]
