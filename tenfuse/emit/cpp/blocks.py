"""One loop of a nest as blocks of unrolled positions.

Takes an axis' extent and how much of it is taken at once; leaves heads and, under each, the
positions that its text is written for: whole register tiles, single vectors, and the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Entry:
    """One unrolled position along an axis: where its block starts, the distance from
    there, and how many lanes are real."""

    base: str
    offset: int = 0
    count: str = ""

    @property
    def index(self) -> str:
        if self.base == "0":
            return str(self.offset)
        return f"{self.base} + {self.offset}" if self.offset else self.base


_TALL = 8
"""Entries taken at once from which on half as many are, too, where fewer are left."""

Block = tuple[str, list[Entry]]


def blocks(var: str, extent: int | str, many: int, lanes: int) -> Iterator[Block]:
    """The blocks of a loop over ``extent`` entries, ``many`` times ``lanes`` at once."""
    return _fixed(var, extent, many, lanes) if isinstance(extent, int) else _open(var, extent, many, lanes)


def _open(var: str, extent: str, many: int, lanes: int) -> Iterator[Block]:
    """For an extent known at launch; the blocks go on where the one before stopped."""
    stride = many * lanes
    if stride > 1:
        entries = [Entry(var, u * lanes) for u in range(many)]
        yield f"for (; {var} + {stride} <= {extent}; {var} += {stride})", entries
    if lanes == 1:
        if many >= _TALL:
            half = [Entry(var, u) for u in range(many // 2)]
            yield f"for (; {var} + {len(half)} <= {extent}; {var} += {len(half)})", half
        yield f"for (; {var} < {extent}; {var} += 1)", [Entry(var)]
        return
    if many > 1:
        yield f"for (; {var} + {lanes} <= {extent}; {var} += {lanes})", [Entry(var)]
    yield f"if ({var} < {extent})", [Entry(var, 0, f"{extent} - {var}")]


def _fixed(var: str, extent: int, many: int, lanes: int) -> Iterator[Block]:
    """For an extent known now; a loop that would run once is left out."""
    stride = many * lanes
    whole, rest = divmod(extent, stride)
    if whole == 1:
        yield "", [Entry("0", u * lanes) for u in range(many)]
    elif whole:
        entries = [Entry(var, u * lanes) for u in range(many)]
        yield f"for (int64_t {var} = 0; {var} < {whole * stride}; {var} += {stride})", entries
    if rest:
        base, last = whole * stride, -(-rest // lanes) - 1
        entries = [Entry(str(base), u * lanes) for u in range(last + 1)]
        if lanes > 1 and rest % lanes:
            entries[last] = Entry(str(base), last * lanes, str(rest % lanes))
        yield "", entries


__all__ = ["Block", "Entry", "blocks"]
