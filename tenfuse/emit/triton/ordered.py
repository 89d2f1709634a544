"""Nodes for which order along an axis matters, on tiles.

Takes such a node and the tiles of its arguments; leaves a tile.  Scans are Triton's own
where the decay is a number, and by doubling (Hillis and Steele 1986) where it is a matrix.
A unit triangular system is multiplied by its inverse, which ``matrices`` makes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenfuse.emit.triton.functions import DTYPES
from tenfuse.emit.triton.matrices import inverse
from tenfuse.emit.triton.products import Products
from tenfuse.emit.triton.small import places
from tenfuse.emit.triton.tile import Space, Tile, permuted, seen, unsupported
from tenfuse.emit.triton.writer import Writer
from tenfuse.step.program import AxisName, Position, Rename, Scan, Shift, Solve

COMBINE = {
    "sum-product": "sum_product", "max-plus": "max_plus", "min-plus": "min_plus", "log-plus": "log_plus",
    "or-and": "or_and",
}  # fmt: skip
ZERO_ONE = {
    "sum-product": ("0.0", "1.0"), "max-plus": ('float("-inf")', "0.0"), "min-plus": ('float("inf")', "0.0"),
    "log-plus": ('float("-inf")', "0.0"), "or-and": ("0.0", "1.0"),
}  # fmt: skip


class Ordered:
    def __init__(self, space: Space, writer: Writer, products: Products, compute: str) -> None:
        self.space, self.writer, self.products = space, writer, products
        self.dtype = DTYPES[compute]
        self._inverses: dict[str, str] = {}

    def position(self, node: Position) -> Tile:
        if node.axis not in self.space.order:
            return Tile(self.writer.let(f"{self.space.index[node.axis]}.to({self.dtype})"))
        return Tile(self.writer.let(f"{self.space.index[node.axis]}.to({self.dtype})"), (node.axis,))

    def rename(self, node: Rename, tile: Tile) -> Tile:
        names = dict(node.names)
        axes = tuple(names.get(a, a) for a in tile.axes)
        self._same_extent(tile.axes, axes)
        order = self.space.ordered(axes)
        return Tile(self.writer.let(permuted(tile.text, axes, order)), order, tile.truth)

    def _same_extent(self, before: Sequence[AxisName], after: Sequence[AxisName]) -> None:
        for a, b in zip(before, after, strict=True):
            if self.space.extent[a] != self.space.extent.get(b):
                raise unsupported("a renaming between axes that lie differently on the card")

    # -- along one axis -----------------------------------------------------------------

    def shift(self, node: Shift, tile: Tile) -> Tile:
        if node.axis not in self.space.order:
            raise unsupported("a shift along an axis that no tile has")
        axes = self.space.ordered({*tile.axes, node.axis})
        text = self._spread(tile, axes)
        return Tile(self._moved(text, axes, node.axis, node.by, repr(float(node.fill))), axes)

    def _moved(self, text: str, axes: tuple[AxisName, ...], axis: AxisName, by: int, fill: str) -> str:
        """At position t the value of position t - ``by``, ``fill`` where there is none."""
        at, dim = self.space.along(axis, axes), axes.index(axis)
        last = f"({self.space.size(axis)} - 1)"
        edge = f"({at} < {by})" if by > 0 else f"({at} > {last} - {-by})"
        source = f"tl.maximum({at} - {by}, 0)" if by > 0 else f"tl.minimum({at} + {-by}, {last})"
        if axis in self.space.mirrored:
            source = f"{self.space.extent[axis] - 1} - {source}"
        index = self.writer.let(f"{source} + tl.zeros({self.space.shape(axes)}, tl.int32)")
        moved = self.writer.let(f"tl.gather({text}, {index}, {dim})")
        return self.writer.let(f"tl.where({edge}, {fill}, {moved})")

    def scan(self, node: Scan, decay: Tile, arg: Tile) -> Tile:
        """Of which the decay is a matrix."""
        if node.axis not in self.space.order:
            raise unsupported("a scan along an axis that no tile has")
        return self._matrix_scan(node, decay, arg)

    def scans(self, node: Scan, decay: Tile, args: Sequence[Tile | None]) -> list[Tile]:
        """Scans like ``node``, all with its decay, in one; None for the products of the decays."""
        if node.axis not in self.space.order:
            raise unsupported("a scan along an axis that no tile has")
        values = [a for a in args if a is not None]
        axes = self.space.ordered({*decay.axes, node.axis, *(a for v in values for a in v.axes)})
        self.products.fits(axes)
        zero, one = ZERO_ONE[node.semiring]
        texts = [self._spread(x, axes) for x in (decay, *values)]
        turned = node.reverse != (node.axis in self.space.mirrored)
        dim = axes.index(node.axis)
        if turned:
            inside = self.space.inside((node.axis,), axes)
            if inside:
                ends = (one, *[zero] * len(values))
                texts = [
                    self.writer.let(f"tl.where({inside}, {x}, {e})") for x, e in zip(texts, ends, strict=True)
                ]
            texts = [self.writer.let(f"tl.flip({x}, {dim})") for x in texts]
        name = COMBINE[node.semiring] + (f"_{len(values)}" if len(values) != 1 else "")
        several = f"({', '.join(texts)})" if values else texts[0]
        whole = self.writer.let(f"tl.associative_scan({several}, {dim}, {name})")
        numbers = iter(range(1, len(texts)))
        found = []
        for arg in args:
            place = 0 if arg is None else next(numbers)
            text = self.writer.let(f"{whole}[{place}]") if values else whole
            found.append(Tile(self.writer.let(f"tl.flip({text}, {dim})") if turned else text, axes))
        return found

    def matrices(self, node: Scan, entries: Sequence[Tile], parts: Sequence[Tile]) -> list[Tile]:
        """A scan with a matrix's ``entries``, row by row: the products of the matrices, and the result."""
        tiles = [*entries, *parts]
        axes = self.space.ordered({node.axis, *(a for t in tiles for a in t.axes)})
        self.products.fits(axes)
        texts, dim = [self._spread(t, axes) for t in tiles], axes.index(node.axis)
        turned = node.reverse != (node.axis in self.space.mirrored)
        if turned:
            inside = self.space.inside((node.axis,), axes)
            side = len(parts)
            if inside:
                eye = [float(i == j) for i in range(side) for j in range(side)] + [0.0] * side
                texts = [
                    self.writer.let(f"tl.where({inside}, {x}, {e})") for x, e in zip(texts, eye, strict=True)
                ]
            texts = [self.writer.let(f"tl.flip({x}, {dim})") for x in texts]
        whole = self.writer.let(f"tl.associative_scan(({', '.join(texts)}), {dim}, matrix_{len(parts)})")
        found = [self.writer.let(f"{whole}[{n}]") for n in range(len(texts))]
        if turned:
            found = [self.writer.let(f"tl.flip({x}, {dim})") for x in found]
        return [Tile(x, axes) for x in found]

    def _matrix_scan(self, node: Scan, decay: Tile, arg: Tile) -> Tile:
        """By doubling: h_t = A_t h_{t-s} + x_t for s = 1, 2, 4, ... steps at once."""
        batch = {*decay.axes, *arg.axes} - {*node.rows, *node.cols}
        whole = self.space.ordered({*batch, node.axis, *node.rows, *node.cols})
        vector = self.space.ordered({*batch, node.axis, *node.rows})
        self.products.fits(whole)
        matrix, value = self._spread(decay, whole), Tile(self._spread(arg, vector), vector)
        swap = dict(zip(node.rows, node.cols, strict=True)) | dict(zip(node.cols, node.rows, strict=True))
        if node.transpose:
            matrix = self._renamed(matrix, whole, swap)
        power, by, sign = Tile(matrix, whole), 1, -1 if node.reverse else 1
        while by < self.space.extent[node.axis]:
            before = self._moved(value.text, vector, node.axis, sign * by, "0.0")
            turned = self.space.ordered({swap.get(a, a) for a in vector})
            operand = Tile(self._renamed(before, vector, swap), turned)
            step = self._summed(power, operand, node.cols)
            value = Tile(self.writer.let(f"{value.text} + {seen(step.text, step.axes, vector)}"), vector)
            if 2 * by < self.space.extent[node.axis]:
                power = self._squared(node, power, by * sign)
            by *= 2
        return value

    def _squared(self, node: Scan, power: Tile, by: int) -> Tile:
        """A_t A_{t-s}: entry by entry over one more axis, which is small."""
        axes = power.axes
        before = self._moved(power.text, axes, node.axis, by, "0.0")
        parts = []
        for place in places(node.rows, dict(self.space.sizes)):
            column = self._picked(power, dict(zip(node.cols, place.values(), strict=True)))
            row = self._picked(Tile(before, axes), place)
            parts.append(self.products.product([column, row]).text)
        return Tile(self.writer.let(" + ".join(parts)), axes)

    def _picked(self, tile: Tile, place: dict[AxisName, int]) -> Tile:
        axes, text = list(tile.axes), tile.text
        for a, i in place.items():
            here = seen(self.space.index[a], (a,), axes)
            chosen = self.writer.let(f"tl.where({here} == {i}, {text}, 0.0)")
            text = self.writer.let(f"tl.sum({chosen}, axis={axes.index(a)})")
            axes.remove(a)
        return Tile(text, tuple(axes))

    def _renamed(self, text: str, axes: Sequence[AxisName], names: dict[AxisName, AxisName]) -> str:
        new = tuple(names.get(a, a) for a in axes)
        self._same_extent(axes, new)
        return self.writer.let(permuted(text, new, self.space.ordered(new)))

    def _summed(self, a: Tile, b: Tile, over: Sequence[AxisName]) -> Tile:
        return self.products.total(self.products.product([a, b]), frozenset(over))

    def _spread(self, tile: Tile, axes: tuple[AxisName, ...]) -> str:
        self.products.fits(axes)
        text = seen(tile.text, tile.axes, axes)
        if tile.axes == axes:
            return text
        return self.writer.let(f"{text} + tl.zeros({self.space.shape(axes)}, {self.dtype})")

    # -- triangular systems -------------------------------------------------------------

    def inverse(self, node: Solve, lower: Tile) -> Tile:
        """Of the system's matrix, over its rows and columns."""
        rows, cols = node.rows, node.cols
        batch = tuple(a for a in lower.axes if a not in (*rows, *cols))
        if batch or any(a not in self.space.order for a in (*rows, *cols)):
            raise unsupported("a triangular system for every entry of a tile")
        size = self.space.volume(rows)
        axes = self.space.ordered({*rows, *cols})
        matrix = self._spread(lower, axes)
        inside = self.space.inside({*rows, *cols}, axes)
        matrix = self.writer.let(f"tl.where({inside}, {matrix}, 0.0)") if inside else matrix
        flat = self._flat(permuted(matrix, axes, (*rows, *cols)), (rows, cols))
        if flat not in self._inverses:
            self._inverses[flat] = inverse(self.writer, flat, size)
        text = self._inverses[flat]
        text = self.writer.let(f"tl.trans({text})") if node.transpose else text
        if len(rows) > 1:
            text = self.writer.let(f"tl.reshape({text}, {self.space.shape((*rows, *cols))})")
        return Tile(self.writer.let(permuted(text, (*rows, *cols), axes)), axes)

    def solve(self, node: Solve, found: Tile, arg: Tile) -> Tile:
        """The system's solution by the inverse that was ``found``."""
        right = self.space.ordered({*arg.axes, *node.rows})
        names = dict(zip(node.rows, node.cols, strict=True))
        operand = Tile(
            self._renamed(self._spread(arg, right), right, names),
            self.space.ordered({names.get(a, a) for a in right}),
        )
        return self.products.summed([found, operand], frozenset(node.cols))

    def _flat(self, text: str, groups: tuple[Sequence[AxisName], Sequence[AxisName]]) -> str:
        if len(groups[0]) == 1:
            return self.writer.let(text)
        dims = ", ".join(str(self.space.volume(g)) for g in groups)
        return self.writer.let(f"tl.reshape({text}, [{dims}])")


__all__ = ["COMBINE", "ZERO_ONE", "Ordered"]
