"""Products of gates between two positions of a chunk, without a quotient or a logarithm.

Takes the gate ``a`` over the positions of a chunk (or over none: constant; or None: one);
leaves the decays ``rho(t, s) = prod_{r=s+1..t} a_r`` that the chunk formulas read.  Every
one is a product of gates, never a quotient of two products, so gates may be 0, negative or
above 1, and nothing overflows that the loop itself would not overflow.

A chunk has one axis of positions or, where a gate has an axis that is summed over, two:
blocks and positions in a block.  Then ``rho(t, s)`` of different blocks is the product of
three decays, from ``s`` to its block's end, over whole blocks, and from a block's start to
``t``, so that it is no matrix over ``t`` and ``s`` for every entry of the summed axis.
Source: section 4 of Yang et al. 2024, "Gated Linear Attention Transformers with
Hardware-Efficient Training" (secondary chunking); there the factors are quotients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tenfuse.algebra.chunks.entries import picked
from tenfuse.step.program import AxisName, Builder, Position, Ref, Scan, Shift


@dataclasses.dataclass(frozen=True)
class Positions:
    """The axes of the positions in a chunk, as rows and as columns of a matrix over them."""

    row: AxisName
    col: AxisName
    row_block: AxisName = ""
    col_block: AxisName = ""

    @property
    def rows(self) -> tuple[AxisName, ...]:
        return (self.row_block, self.row) if self.row_block else (self.row,)

    @property
    def cols(self) -> tuple[AxisName, ...]:
        return (self.col_block, self.col) if self.row_block else (self.col,)

    @property
    def to_cols(self) -> dict[AxisName, AxisName]:
        return dict(zip(self.rows, self.cols, strict=True))

    @property
    def within(self) -> dict[AxisName, AxisName]:
        """To the columns of the same block."""
        return {self.row: self.col}


def running(
    build: Builder,
    gate: Ref,
    axis: AxisName,
    size: int,
    reverse: bool = False,
    semiring: str = "sum-product",
) -> Ref:
    """Products of all gates so far, in the order of the positions or in reverse."""
    first = build.call("eq", build.add(Position(axis)), build.const(size - 1 if reverse else 0))
    begin = build.call("where", first, gate, build.const(0.0))
    return build.add(Scan(axis, gate, begin, reverse, semiring=semiring))


class Decay:
    """The decays of one gate, given over the rows or over none of them."""

    def __init__(
        self, build: Builder, gate: Ref | None, at: Positions, sizes: Mapping[AxisName, int]
    ) -> None:
        self.build, self.gate, self.at, self.sizes = build, gate, at, sizes

    def start(self, inclusive: bool) -> Ref | None:
        """``rho(t, 0)`` over the rows; without ``inclusive`` ``rho(t-1, 0)``."""
        if self.gate is None:
            return None
        inner = self._running(self.gate, self.at.row, inclusive=inclusive)
        if not self.at.row_block:
            return inner
        blocks = self._running(self._block(), self.at.row_block, inclusive=False)
        return self.build.call("mul", inner, blocks)

    def end(self) -> Ref | None:
        """``rho(C, s)`` over the rows (their names)."""
        if self.gate is None:
            return None
        inner = self._running(self.gate, self.at.row, inclusive=False, reverse=True)
        if not self.at.row_block:
            return inner
        blocks = self._running(self._block(), self.at.row_block, inclusive=False, reverse=True)
        return self.build.call("mul", inner, blocks)

    def whole(self) -> Ref | None:
        """``rho(C, 0)``."""
        if self.gate is None:
            return None
        block = self._block()
        return (
            self._last(self._running(block, self.at.row_block), self.at.row_block)
            if self.at.row_block
            else block
        )

    def near(self, inclusive: bool) -> Ref:
        """``rho(t, s)`` over a row and a column of the same block, and zero for later columns."""
        return self._segments(self.gate, self.at.row, self.at.col, inclusive)

    def far(self, inclusive: bool) -> tuple[Ref, ...]:
        """Factors of ``rho(t, s)`` over a row and a column of an earlier block; zero elsewhere."""
        at = self.at
        if self.gate is None:
            return (self._segments(None, at.row_block, at.col_block, False),)
        return (
            self._running(self.gate, at.row, inclusive=inclusive),
            self._segments(self._block(), at.row_block, at.col_block, False),
            self.build.rename(self._running(self.gate, at.row, inclusive=False, reverse=True), at.to_cols),
        )

    def _block(self) -> Ref:
        assert self.gate is not None
        return self._last(self._running(self.gate, self.at.row), self.at.row)

    def _last(self, value: Ref, axis: AxisName) -> Ref:
        return picked(self.build, value, axis, self.sizes[axis] - 1)

    def _running(self, gate: Ref, axis: AxisName, inclusive: bool = True, reverse: bool = False) -> Ref:
        found = running(self.build, gate, axis, self.sizes[axis], reverse)
        return found if inclusive else self.build.add(Shift(found, axis, -1 if reverse else 1, 1.0))

    def _segments(self, gate: Ref | None, row: AxisName, col: AxisName, inclusive: bool) -> Ref:
        """Products of the gates after ``col`` up to ``row``; exclusive: up to the one before it."""
        b = self.build
        i, j = b.add(Position(row)), b.add(Position(col))
        one, zero = b.const(1.0), b.const(0.0)
        if gate is None:
            return b.call("ge" if inclusive else "gt", i, j)
        later = b.call("where", b.call("gt", i, j), gate, zero)
        found = b.add(Scan(row, later, b.call("where", b.call("eq", i, j), one, zero)))
        return found if inclusive else b.add(Shift(found, row, 1))


__all__ = ["Decay", "Positions", "running"]
