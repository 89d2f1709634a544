"""Scratch memory of one task.

Takes the axes of what is to be held; leaves an ``Array`` for each and the lines that place
them one after the other in the task's arena.  Nothing here knows what the arrays hold.
"""

from __future__ import annotations

import dataclasses

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.spaces import Spaces
from tenfuse.step.program import AxisName

Size = int | str


def times(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    return b if a == 1 else a if b == 1 else f"({a} * {b})"


@dataclasses.dataclass(frozen=True)
class Array:
    """Scratch of one task: ``places`` are the positions that have an extent, the unit one last."""

    name: str
    places: tuple[int, ...]
    strides: tuple[Size, ...]
    size: Size
    whole: bool = False
    """Whether it holds integers."""

    @property
    def ctype(self) -> str:
        return "int64_t" if self.whole else "T"

    def access(self, axes: tuple[AxisName, ...], pointer: str = "") -> Access:
        dims = tuple((axes[p], str(s)) for p, s in zip(self.places, self.strides, strict=True))
        return Access(pointer or self.name, dims, padded=True)

    def panels(self, axes: tuple[AxisName, ...], x: AxisName, block: int) -> Access:
        """The same memory with ``x`` cut in blocks of ``block`` entries, outermost."""
        pitch = int(self.strides[-2]) if len(self.strides) > 1 else block
        dims = []
        for p, s in zip(self.places, self.strides, strict=True):
            dims.append((axes[p], "1" if axes[p] == x else str(int(s) // pitch * block)))
        return Access(self.name, tuple(dims), padded=True, panel=str(int(self.size) // pitch))

    def clear(self, pointer: str = "") -> str:
        """The line that fills the array with zeros."""
        return f"memset({pointer or self.name}, 0, sizeof({self.ctype}) * {self.size});"

    def ones(self, pointer: str = "") -> str:
        """The line that fills the array with ones."""
        return f"for (int64_t z = 0; z < {self.size}; z++) {pointer or self.name}[z] = 1;"


class Arena:
    """Arrays one after the other from ``base`` on, in the order they were asked for."""

    def __init__(self, spaces: Spaces, lanes: int, base: str = "arena", letter: str = "w") -> None:
        self.spaces, self.lanes, self.base, self.letter = spaces, lanes, base, letter
        self.arrays: list[tuple[Array, int]] = []

    def array(
        self,
        axes: tuple[AxisName, ...],
        last: int | None,
        copies: int = 1,
        grain: int = 1,
        whole: bool = False,
    ) -> Array:
        """Scratch over the local axes among ``axes``; ``last`` is the position with stride 1,
        its extent rounded up to whole vectors and to ``grain``."""
        places = [p for p, a in enumerate(axes) if self.spaces.axes[a].kind != "task"]
        if last in places:
            places.remove(last)  # type: ignore[arg-type]
            places.append(last)  # type: ignore[arg-type]
        size: Size = 1
        strides: list[Size] = []
        for n, p in enumerate(reversed(places)):
            strides.append(size)
            extent = self.spaces.axes[axes[p]].capacity
            if n == 0:
                extent = self._padded(-(-extent // grain) * grain if isinstance(extent, int) else extent)
            size = times(size, extent)
        size = self._padded(size) if not places else size
        name = f"{self.letter}{len(self.arrays)}"
        found = Array(name, tuple(places), tuple(reversed(strides)), size, whole)
        self.arrays.append((found, copies))
        return found

    def along(self, axes: tuple[AxisName, ...], x: AxisName | None, whole: bool = False) -> Array:
        """Scratch whose entries lie side by side along ``x``, if it is among ``axes``."""
        return self.array(axes, axes.index(x) if x in axes else None, whole=whole)

    def _padded(self, extent: Size) -> Size:
        if isinstance(extent, int):
            return -(-max(extent, 1) // self.lanes) * self.lanes
        return f"(({extent} + {self.lanes}) / {self.lanes} * {self.lanes})"

    def lines(self) -> list[str]:
        """Definitions of the arrays."""
        lines, offset = [], self.base
        for array, copies in self.arrays:
            lines.append(
                f"{array.ctype}* const {array.name} = {_as(array, offset)}; "
                f"const int64_t {array.name}_size = {array.size}; (void){array.name}_size;"
            )
            offset = f"{array.name} + {times(array.size, copies)}"
            offset = f"(T*)({offset})" if array.whole else offset
        return lines

    def need(self) -> str:
        """Entries of all arrays together."""
        return " + ".join(_need(a, c) for a, c in self.arrays) or "0"


def _as(array: Array, offset: str) -> str:
    return f"(int64_t*)({offset})" if array.whole else offset


def _need(array: Array, copies: int) -> str:
    """Entries of the size of a number that so many arrays take."""
    size = str(times(array.size, copies))
    return f"{size} * (int64_t)(sizeof(int64_t) / sizeof(T))" if array.whole else size


__all__ = ["Arena", "Array", "Size", "times"]
