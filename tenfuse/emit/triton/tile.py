"""Tiles: values of an instance as text, with the axes their dimensions run along.

Takes a ``Tiling`` and the sizes of axes; leaves expressions that see a tile with other
dimensions.  A tile's axes always stand in the one order of the tiling, so that two tiles
differ only by dimensions of size one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from tenfuse.plan.tiles.kernel import Tiling
from tenfuse.reasons import NO_TILES, refuse
from tenfuse.step.program import AxisName


@dataclasses.dataclass(frozen=True)
class Tile:
    """``text`` is a name or a literal; ``truth`` says that its entries are truth values."""

    text: str
    axes: tuple[AxisName, ...] = ()
    truth: bool = False


class Space:
    """The axes of one kernel: which have a dimension, in which order, how far, and their names."""

    def __init__(self, tiling: Tiling, sizes: Mapping[AxisName, int], dynamic: Iterable[AxisName]) -> None:
        self.tiling, self.sizes, self.dynamic = tiling, sizes, frozenset(dynamic)
        self.extent = dict(tiling.blocks)
        self.order = {a: i for i, (a, _) in enumerate(tiling.blocks)}
        self.index = {a: f"i{i}" for i, (a, _) in enumerate(tiling.blocks)}
        self.index |= {a: f"g{i}" for i, a in enumerate(tiling.grid)}
        self.count = {a: f"n{i}" for i, a in enumerate(sorted(self.dynamic))}
        """The name of the size of a dynamic axis."""
        self.mirrored: frozenset[AxisName] = frozenset()
        """Axes whose entries stand in a tile from last to first."""
        self.moment = ""
        """The loop's variable, within the loop: what does not depend on it is held from before the loop."""

    def size(self, axis: AxisName) -> str:
        return self.count.get(axis, str(self.sizes[axis]))

    def ragged(self, axis: AxisName) -> bool:
        """Whether a tile holds entries along ``axis`` that do not exist."""
        if axis not in self.extent:
            return False
        return axis in self.dynamic or self.sizes[axis] % self.extent[axis] != 0

    def ordered(self, axes: Iterable[AxisName]) -> tuple[AxisName, ...]:
        """Those of ``axes`` that have a dimension, in order."""
        return tuple(sorted((a for a in set(axes) if a in self.order), key=self.order.__getitem__))

    def shape(self, axes: Sequence[AxisName]) -> str:
        return "[" + ", ".join(str(self.extent[a]) for a in axes) + "]"

    def volume(self, axes: Iterable[AxisName]) -> int:
        return math.prod(self.extent[a] for a in axes)

    def along(self, axis: AxisName, axes: Sequence[AxisName]) -> str:
        """The index along ``axis`` as a tile that broadcasts over ``axes``."""
        if axis not in self.extent:
            return self.index[axis]
        return seen(self.index[axis], (axis,), axes)

    def inside(self, ragged: Iterable[AxisName], axes: Sequence[AxisName]) -> str:
        """Where all indices along ``ragged`` exist; empty if they always do."""
        return " & ".join(
            f"({self.along(a, axes)} < {self.size(a)})" for a in self.ordered(ragged) if self.ragged(a)
        )


def seen(text: str, own: Sequence[AxisName], axes: Sequence[AxisName]) -> str:
    """A tile over ``own`` with a dimension for each of ``axes``, of size one where it has none."""
    if tuple(own) == tuple(axes) or not own:
        return text
    return text + "[" + ", ".join(":" if a in own else "None" for a in axes) + "]"


def permuted(text: str, own: Sequence[AxisName], order: Sequence[AxisName]) -> str:
    """The same entries with the dimensions in another order."""
    if tuple(own) == tuple(order):
        return text
    if len(own) == 2:
        return f"tl.trans({text})"
    return f"tl.permute({text}, ({', '.join(str(list(own).index(a)) for a in order)}))"


def literal(value: float) -> str:
    """A number as Triton reads it."""
    if math.isnan(value) or math.isinf(value):
        return f'float("{value}")'
    return repr(float(value))


def is_literal(text: str) -> bool:
    """Whether the text of a tile is a number."""
    return not text[0].isalpha() or text.startswith("float(")


def unsupported(what: str) -> Exception:
    return refuse(NO_TILES, what)


__all__ = ["Space", "Tile", "is_literal", "literal", "permuted", "seen", "unsupported"]
