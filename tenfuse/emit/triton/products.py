"""Sums of products over tiles: matrix products on tensor cores where there is one.

Takes the factors of a product and the axes it is summed over; leaves a tile.  The factors
are gathered into two operands, whose product is the cheapest; if these are matrices of
sufficient size the sum is a ``tl.dot``, else entries are multiplied and added up.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from tenfuse.emit.triton.functions import DTYPES
from tenfuse.emit.triton.matrices import multiplied
from tenfuse.emit.triton.tile import Space, Tile, permuted, seen, unsupported
from tenfuse.emit.triton.writer import Writer
from tenfuse.plan.tiles.kernel import LARGEST, LEAST
from tenfuse.step.program import AxisName

_SMALL = 4096
"""Products of so few entries are multiplied out."""
_FACTORS = 7


@dataclasses.dataclass(frozen=True)
class _Roles:
    """The axes of two operands: of both and kept, of one only, and summed over."""

    batch: tuple[AxisName, ...]
    left: tuple[AxisName, ...]
    right: tuple[AxisName, ...]
    summed: tuple[AxisName, ...]


class Products:
    def __init__(self, space: Space, writer: Writer, compute: str, dots: str) -> None:
        self.space, self.writer, self.compute, self.dots = space, writer, compute, dots

    def summed(self, factors: Sequence[Tile], over: frozenset[AxisName]) -> Tile:
        """The sum over ``over`` of the product of ``factors``, which are numbers."""
        union = self.space.ordered(a for f in factors for a in f.axes)
        missing = over - set(union)
        if missing:
            count = " * ".join(self.space.size(a) for a in sorted(missing))
            factors = [
                *factors,
                Tile(
                    f"({count}).to({DTYPES[self.compute]})"
                    if missing & self.space.dynamic
                    else f"{float(math.prod(self.space.sizes[a] for a in missing))}"
                ),
            ]
            over = over & set(union)
        if not over:
            return self.product(factors)
        if len(factors) > 1 and self.space.volume(union) > _SMALL:
            found = self._dot(factors, over)
            if found is not None:
                return found
        return self.total(self.product(factors), over)

    def product(self, factors: Sequence[Tile]) -> Tile:
        """Smallest tiles first; masks last, which leave out what they are false for."""
        order = sorted(factors, key=lambda f: (f.truth, self.space.volume(f.axes)))
        found = order[0]
        if found.truth:
            found = Tile(self.writer.let(f"{found.text}.to({DTYPES[self.compute]})"), found.axes)
        for f in order[1:]:
            axes = self.space.ordered({*found.axes, *f.axes})
            self.fits(axes)
            one, other = seen(found.text, found.axes, axes), seen(f.text, f.axes, axes)
            found = Tile(
                self.writer.let(f"tl.where({other}, {one}, 0.0)" if f.truth else f"{one} * {other}"), axes
            )
        return found

    def total(self, tile: Tile, over: frozenset[AxisName], op: str = "sum") -> Tile:
        """Over the entries that exist."""
        zero = {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}[op]
        text = self.masked(tile, over, zero)
        rest = tuple(a for a in tile.axes if a not in over)
        if op == "sum" and not rest and len(tile.axes) > 1:
            # At once: Triton 3.7 does not compile, for sm_100, one axis after the other of what tensor
            # cores have left in their memory.
            return Tile(self.writer.let(f"tl.sum({text})"))
        axes = list(tile.axes)
        for a in sorted(over, key=axes.index, reverse=True):
            dim = axes.index(a)
            call = (
                f"tl.sum({text}, axis={dim})"
                if op == "sum"
                else (f"tl.reduce({text}, {dim}, {'highest' if op == 'max' else 'lowest'})")
            )
            text = self.writer.let(call)
            axes.remove(a)
        return Tile(text, rest)

    def masked(self, tile: Tile, over: frozenset[AxisName], zero: str) -> str:
        """``tile`` with ``zero`` at entries along ``over`` that do not exist."""
        inside = self.space.inside(over & set(tile.axes), tile.axes)
        return self.writer.let(f"tl.where({inside}, {tile.text}, {zero})") if inside else tile.text

    def fits(self, axes: Sequence[AxisName]) -> None:
        if self.space.volume(axes) > LARGEST:
            shape = " x ".join(str(self.space.extent[a]) for a in axes)
            raise unsupported(f"a tile of {shape} entries, more than {LARGEST}")

    def matrices(self, axes: Sequence[frozenset[AxisName]], over: frozenset[AxisName]) -> bool:
        """Whether a product of values over ``axes`` is one of two matrices."""
        tiles = [Tile("0.0", self.space.ordered(own)) for own in axes]
        return len(tiles) > 1 and any(
            self._roles([tiles[0], *left], right, over) is not None
            for chosen in itertools.product((False, True), repeat=len(tiles) - 1)
            for left in ([t for t, c in zip(tiles[1:], chosen, strict=True) if not c],)
            for right in ([t for t, c in zip(tiles[1:], chosen, strict=True) if c],)
        )

    # -- matrix products ----------------------------------------------------------------

    def _dot(self, factors: Sequence[Tile], over: frozenset[AxisName]) -> Tile | None:
        best = min(self._splits(factors, over), key=lambda s: s[0], default=None)
        if best is None:
            return None
        _, roles, left, right = best
        turned = (*roles.batch, *roles.right, *roles.left)
        if self.space.ordered(turned) == turned:
            # The result then lies as tiles do; operands are turned on their way to the cores.
            roles = dataclasses.replace(roles, left=roles.right, right=roles.left)
            left, right = right, left
        a, b = self._operand(left, roles, over, False), self._operand(right, roles, over, True)
        rank = 3 if roles.batch else 2
        text = self.writer.let(multiplied(a, b, self.dots, self.compute))
        axes = (*roles.batch, *roles.left, *roles.right)
        if len(axes) != rank:
            text = self.writer.let(f"tl.reshape({text}, {self.space.shape(axes)})")
        order = self.space.ordered(axes)
        if order != axes:
            text = self.writer.let(permuted(text, axes, order))
        return Tile(text, order)

    def _splits(
        self, factors: Sequence[Tile], over: frozenset[AxisName]
    ) -> list[tuple[int, _Roles, list[Tile], list[Tile]]]:
        """Ways to make two matrices of the factors, with what they cost."""
        if len(factors) > _FACTORS:
            factors = [*factors[: _FACTORS - 1], self.product(factors[_FACTORS - 1 :])]
        found = []
        for chosen in itertools.product((False, True), repeat=len(factors) - 1):
            left = [factors[0], *(f for f, c in zip(factors[1:], chosen, strict=True) if not c)]
            right = [f for f, c in zip(factors[1:], chosen, strict=True) if c]
            roles = self._roles(left, right, over)
            if roles is not None:
                cost = sum(self.space.volume({a for f in side for a in f.axes}) for side in (left, right))
                inner = self.space.volume({a for f in factors for a in f.axes})
                found.append((cost * 8 + inner // 64, roles, left, right))
        return found

    def _roles(self, left: Sequence[Tile], right: Sequence[Tile], over: frozenset[AxisName]) -> _Roles | None:
        a, b = ({x for f in side for x in f.axes} for side in (left, right))
        ordered, volume = self.space.ordered, self.space.volume
        roles = _Roles(
            ordered((a & b) - over), ordered(a - b - over), ordered(b - a - over), ordered(a & b & over)
        )
        if over - (a & b) or len(roles.batch) > 1:
            return None
        if max(volume(a), volume(b)) > LARGEST or volume({*a, *b} - over) > LARGEST:
            return None
        enough = all(volume(axes) >= LEAST for axes in (roles.left, roles.right, roles.summed))
        return roles if enough else None

    def _operand(
        self, factors: Sequence[Tile], roles: _Roles, over: frozenset[AxisName], second: bool
    ) -> str:
        tile = self.product(factors)
        text = self.masked(tile, over, "0.0")
        own = roles.right if second else roles.left
        groups = (roles.summed, own) if second else (own, roles.summed)
        order = (*roles.batch, *groups[0], *groups[1])
        if len(groups[0]) == len(groups[1]) == 1:
            return self.writer.let(permuted(self._rounded(text), tile.axes, order))
        dims = [str(self.space.volume(g)) for g in ((roles.batch,) if roles.batch else ()) + groups]
        text = self.writer.let(f"tl.reshape({permuted(text, tile.axes, order)}, [{', '.join(dims)}])")
        # Something is computed behind a reshape: what is not is laid out in shared memory by its old
        # shape, in a way that may not exist ("Illegal shared layout", Triton 3.7).
        return self.writer.let(f"{text} + 0.0" if self.dots == "tf32" else self._rounded(text))

    def _rounded(self, text: str) -> str:
        """What is multiplied."""
        if self.compute == "f32" and self.dots == "bf16":
            return f"factor_bf16({text})"
        if self.compute == "f32" and self.dots == "f16":
            return f"{text}.to(tl.float16)"
        return text


__all__ = ["Products"]
