"""How carries decay between two positions of a chunk, each by itself or several together.

Takes the gates ``a_ij``, what carry i takes of carry j in place, at the positions of a chunk;
leaves the entries of ``rho(t, s) = A_t A_{t-1} ... A_{s+1}`` over the carries, each a product
of factors.  Carries that take only of themselves have the decays of ``decay``.  Otherwise
``A_t`` are small matrices, over one axis of positions; their products are no quotients either,
and the order of the factors is kept, since matrices do not commute.  An entry that no chain of
gates reaches is None, and nothing is computed for it.
Refuses matrices of gates over positions in blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tenfuse.algebra.chunks.decay import Decay, Positions
from tenfuse.algebra.chunks.entries import picked, stacked
from tenfuse.algebra.chunks.summed import Unchunkable
from tenfuse.step.program import AxisName, Builder, Position, Ref, Scan, Shift

Factors = tuple[Ref, ...]
"""A product; of none, one."""
Gates = Sequence[Sequence[Ref | None]]
"""``gates[i][j]`` is what carry i takes of carry j; None is zero."""


class Decays(Protocol):
    """``rho`` from carry j to carry i; None is zero."""

    def start(self, i: int, j: int, inclusive: bool) -> Factors | None:
        """``rho(t, 0)`` over the rows; without ``inclusive`` ``rho(t-1, 0)``."""

    def end(self, i: int, j: int) -> Factors | None:
        """``rho(C, s)`` over the rows (their names)."""

    def whole(self, i: int, j: int) -> Factors | None:
        """``rho(C, 0)``."""

    def near(self, i: int, j: int, inclusive: bool) -> Factors | None:
        """``rho(t, s)`` over a row and a column of the same block, and zero for later columns."""

    def far(self, i: int, j: int, inclusive: bool) -> Factors | None:
        """``rho(t, s)`` over a row and a column of an earlier block, and zero elsewhere."""


def decays(
    build: Builder,
    gates: Gates,
    at: Positions,
    sizes: Mapping[AxisName, int],
    fresh: Callable[..., AxisName],
) -> Decays:
    """The decays of the carries of one stage."""
    members = range(len(gates))
    if all(gates[i][j] is None for i in members for j in members if i != j):
        return Apart(build, [gates[i][i] for i in members], at, sizes)
    return Together(build, gates, at, sizes, fresh)


class Apart:
    """Every carry decays by its own gate."""

    def __init__(
        self, build: Builder, gates: Sequence[Ref | None], at: Positions, sizes: Mapping[AxisName, int]
    ) -> None:
        one, made = build.const(1.0), [build.const(0.0) if g is None else g for g in gates]
        self.own = [Decay(build, None if g == one else g, at, sizes) for g in made]

    def start(self, i: int, j: int, inclusive: bool) -> Factors | None:
        return _factors(self.own[i].start(inclusive)) if i == j else None

    def end(self, i: int, j: int) -> Factors | None:
        return _factors(self.own[i].end()) if i == j else None

    def whole(self, i: int, j: int) -> Factors | None:
        return _factors(self.own[i].whole()) if i == j else None

    def near(self, i: int, j: int, inclusive: bool) -> Factors | None:
        return (self.own[i].near(inclusive),) if i == j else None

    def far(self, i: int, j: int, inclusive: bool) -> Factors | None:
        return self.own[i].far(inclusive) if i == j else None


def _factors(decay: Ref | None) -> Factors:
    return () if decay is None else (decay,)


class Together:
    """Carries that take of each other."""

    def __init__(
        self,
        build: Builder,
        gates: Gates,
        at: Positions,
        sizes: Mapping[AxisName, int],
        fresh: Callable[..., AxisName],
    ) -> None:
        if at.row_block:
            raise Unchunkable("coupled carries decay differently along an axis that is summed over")
        self.build, self.at, self.sizes = build, at, sizes
        self.rows, self.cols, self.starts = (fresh(name, len(gates)) for name in ("member",) * 3)
        self.reached = _chains(gates)
        zero = build.const(0.0)
        lines = [stacked(build, [zero if g is None else g for g in line], self.cols) for line in gates]
        self.matrix = stacked(build, lines, self.rows)

    def start(self, i: int, j: int, inclusive: bool) -> Factors | None:
        return self._entry(self._forward, i, j, None if inclusive else 1)

    def end(self, i: int, j: int) -> Factors | None:
        return self._entry(self._backward, j, i, -1) if self.reached[i][j] else None

    def whole(self, i: int, j: int) -> Factors | None:
        found = self.start(i, j, True)
        end = self.sizes[self.at.row] - 1
        return None if found is None else tuple(picked(self.build, f, self.at.row, end) for f in found)

    def near(self, i: int, j: int, inclusive: bool) -> Factors | None:
        if not self.reached[i][j]:
            return None
        found = self._between(self._segments, i, j)
        return (found if inclusive else self.build.add(Shift(found, self.at.row, 1)),)

    def far(self, i: int, j: int, inclusive: bool) -> Factors | None:
        return None

    @functools.cached_property
    def _forward(self) -> Ref:
        """``A_t ... A_1``, over ``rows`` and ``starts``."""
        moved = self.build.rename(self.matrix, {self.cols: self.starts})
        return self._scan(self._only(0, moved), False)

    @functools.cached_property
    def _backward(self) -> Ref:
        """The transpose of ``A_C ... A_t``, over ``rows`` and ``starts``."""
        moved = self.build.rename(self.matrix, {self.rows: self.starts, self.cols: self.rows})
        return self._scan(self._only(self.sizes[self.at.row] - 1, moved), True)

    @functools.cached_property
    def _segments(self) -> Ref:
        b = self.build
        i, j = b.add(Position(self.at.row)), b.add(Position(self.at.col))
        zero = b.const(0.0)
        later = b.call("where", b.call("gt", i, j), self.matrix, zero)
        same = b.call("eq", b.add(Position(self.rows)), b.add(Position(self.starts)))
        begin = b.call("where", b.call("eq", i, j), same, zero)
        return b.add(Scan(self.at.row, later, begin, False, (self.rows,), (self.cols,)))

    def _only(self, position: int, value: Ref) -> Ref:
        b = self.build
        here = b.call("eq", b.add(Position(self.at.row)), b.const(position))
        return b.call("where", here, value, b.const(0.0))

    def _scan(self, begin: Ref, backwards: bool) -> Ref:
        scan = Scan(self.at.row, self.matrix, begin, backwards, (self.rows,), (self.cols,), backwards)
        return self.build.add(scan)

    def _entry(self, products: Ref, i: int, j: int, by: int | None) -> Factors | None:
        if by != -1 and not self.reached[i][j]:
            return None
        found = self._between(products, i, j)
        one = 1.0 if i == j else 0.0
        return (found if by is None else self.build.add(Shift(found, self.at.row, by, one)),)

    def _between(self, products: Ref, i: int, j: int) -> Ref:
        """What products of the matrices take from carry ``j`` to carry ``i``."""
        return picked(self.build, picked(self.build, products, self.rows, i), self.starts, j)


def _chains(gates: Gates) -> list[list[bool]]:
    """Whether carry i takes of carry j, directly, through others or by being it."""
    members = range(len(gates))
    found = [[i == j or gates[i][j] is not None for j in members] for i in members]
    for k in members:
        for i in members:
            for j in members:
                found[i][j] = found[i][j] or (found[i][k] and found[k][j])
    return found


__all__ = ["Decays", "Factors", "decays"]
