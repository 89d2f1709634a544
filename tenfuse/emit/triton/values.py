"""The nodes of a step program as tiles.

Takes nodes in order with the tiles of their inputs; leaves a ``Tile`` for each.  A product
that is only summed over is never made by itself: its factors go to the sum.
"""

from __future__ import annotations

from collections.abc import Callable

from tenfuse.emit.triton.functions import COMPARE, DTYPES, LOGIC, TRUTHS, numeric
from tenfuse.emit.triton.ordered import Ordered
from tenfuse.emit.triton.products import Products
from tenfuse.emit.triton.scans import is_product, together
from tenfuse.emit.triton.tile import Space, Tile, is_literal, literal, seen
from tenfuse.emit.triton.writer import Writer
from tenfuse.step.program import (
    AxisName,
    Const,
    Contract,
    Input,
    Pointwise,
    Position,
    Ref,
    Rename,
    Scan,
    Shift,
    Solve,
    StepProgram,
    arguments,
    mixed,
    only_summed,
)

SLICED, SLICE = 1 << 13, 16
"""Entries of a product from which a sum is taken in slices, and entries along an axis in one."""


class Values:
    """``entering`` gives the tile of an input."""

    def __init__(
        self,
        program: StepProgram,
        space: Space,
        writer: Writer,
        compute: str,
        dots: str,
        entering: Callable[[Input], Tile],
    ) -> None:
        self.program, self.space, self.writer, self.compute = program, space, writer, compute
        self.entering = entering
        self.products = Products(space, writer, compute, dots)
        self.ordered = Ordered(space, writer, self.products, compute)
        self.inner, self.axes = only_summed(program), program.axes_of()
        self.together = together(program)
        self.found: dict[Ref, Tile] = {}

    def tile(self, ref: Ref) -> Tile:
        """The value of a node; made when it is first asked for."""
        if ref not in self.found:
            self.found[ref] = self._made(ref)
        return self.found[ref]

    def number(self, ref: Ref) -> Tile:
        """The value with truth values as 0 and 1."""
        return self.as_number(self.tile(ref))

    def as_number(self, tile: Tile) -> Tile:
        if not tile.truth:
            return tile
        return Tile(self.writer.let(f"{tile.text}.to({DTYPES[self.compute]})"), tile.axes)

    def full(self, ref: Ref, axes: tuple[AxisName, ...]) -> str:
        """The value with every dimension of ``axes``, as it is carried or stored."""
        tile = self.number(ref)
        if not axes:
            return self._tensor(tile.text) if is_literal(tile.text) else tile.text
        text = seen(tile.text, tile.axes, axes)
        return text if tile.axes == axes else self.spread(text, axes)

    def _tensor(self, number: str) -> str:
        return self.writer.let(f"tl.full([], {number}, {DTYPES[self.compute]})")

    def spread(self, text: str, axes: tuple[AxisName, ...]) -> str:
        shape = self.space.shape(axes)
        return self.writer.let(f"{text} + tl.zeros({shape}, {DTYPES[self.compute]})")

    def _made(self, ref: Ref) -> Tile:
        node = self.program.nodes[ref]
        if isinstance(node, Input):
            return self.entering(node)
        if isinstance(node, Const):
            return Tile(literal(node.value))
        if isinstance(node, Pointwise):
            return self._pointwise(node)
        if isinstance(node, Contract):
            return self._contract(node)
        if isinstance(node, Position):
            return self.ordered.position(node)
        if isinstance(node, Rename):
            return self.ordered.rename(node, self.tile(node.arg))
        if isinstance(node, Shift):
            return self.ordered.shift(node, self.number(node.arg))
        if isinstance(node, Scan):
            return self._scan(ref, node)
        assert isinstance(node, Solve)
        return self.ordered.solve(node, self.number(node.lower), self.number(node.arg))

    def _scan(self, ref: Ref, node: Scan) -> Tile:
        """With all that run together with it."""
        if node.rows:
            return self.ordered.scan(node, self.number(node.decay), self.number(node.arg))
        group, args = self.together[ref], list[Tile | None]()
        for i in group:
            one = self.program.nodes[i]
            assert isinstance(one, Scan)
            args.append(None if is_product(self.program, one) else self.number(one.arg))
        for i, tile in zip(group, self.ordered.scans(node, self.number(node.decay), args), strict=True):
            self.found[i] = tile
        return self.found[ref]

    # -- entry by entry -----------------------------------------------------------------

    def _pointwise(self, node: Pointwise) -> Tile:
        if node.fn == "where":
            return self._where(node)
        if node.fn in LOGIC or node.fn == "logical_not":
            truths = [self._truth(a) for a in node.args]
            axes, args = self._aligned(truths)
            text = f"~{args[0]}" if node.fn == "logical_not" else f" {LOGIC[node.fn]} ".join(args)
            return Tile(self.writer.let(text), axes, True)
        axes, args = self._aligned([self.number(a) for a in node.args])
        if not axes and node.fn not in COMPARE and all(map(is_literal, args)):
            args = [self._tensor(a) for a in args]
        text = numeric(node.fn, args, self.compute)
        return Tile(self.writer.let(text), axes, node.fn in TRUTHS)

    def _where(self, node: Pointwise) -> Tile:
        chosen = self._truth(node.args[0])
        axes, args = self._aligned([chosen, *(self.number(a) for a in node.args[1:])])
        if all(map(is_literal, args[1:])):
            args[1] = self._tensor(args[1])
        return Tile(self.writer.let(f"tl.where({', '.join(args)})"), axes)

    def _truth(self, ref: Ref) -> Tile:
        tile = self.tile(ref)
        return tile if tile.truth else Tile(self.writer.let(f"({tile.text} != 0.0)"), tile.axes, True)

    def _aligned(self, tiles: list[Tile]) -> tuple[tuple[AxisName, ...], list[str]]:
        axes = self.space.ordered(a for t in tiles for a in t.axes)
        self.products.fits(axes)
        return axes, [seen(t.text, t.axes, axes) for t in tiles]

    # -- sums ---------------------------------------------------------------------------

    def _contract(self, node: Contract) -> Tile:
        if node.op != "sum":
            return self.products.total(self._over(node), node.axes, node.op)
        factors = self._factors(node.arg)
        axis = self._sliced(factors, node.axes)
        if axis:
            return self._in_slices(factors, node.axes, axis)
        return self.products.summed([self.number(f) for f in factors], node.axes)

    def _sliced(self, factors: list[Ref], over: frozenset[AxisName]) -> AxisName:
        """The axis along which a sum is taken slice by slice: its product would be a tile too large
        to hold, and all that it is made of along that axis is read from memory."""
        union = self.space.ordered(a for f in factors for a in self.axes[f])
        if self.space.volume(union) <= SLICED or self.products.matrices(
            [self.axes[f] for f in factors], over
        ):
            return ""
        found = [
            a
            for a in self.space.ordered(over)
            if self.space.extent[a] > SLICE and self._read_only(factors, a)
        ]
        return max(found, key=self.space.extent.__getitem__, default="")

    def _read_only(self, refs: list[Ref], axis: AxisName) -> bool:
        """Whether no carry reaches the nodes along ``axis``, and none of them mixes it."""
        for ref in self._along(refs, axis):
            node = self.program.nodes[ref]
            if isinstance(node, Input) and node.kind == "carry":
                return False
            if axis in mixed(node):
                return False
        return True

    def _along(self, refs: list[Ref], axis: AxisName) -> list[Ref]:
        """The nodes with ``axis`` that the nodes are made of."""
        found, stack = set[Ref](), list(refs)
        while stack:
            ref = stack.pop()
            if axis in self.axes[ref] and ref not in found:
                found.add(ref)
                stack += arguments(self.program.nodes[ref])
        return sorted(found)

    def _in_slices(self, factors: list[Ref], over: frozenset[AxisName], axis: AxisName) -> Tile:
        inside = self._along(factors, axis)
        for ref in inside:
            for a in arguments(self.program.nodes[ref]):
                if axis not in self.axes[a] and a not in self.inner:
                    self.tile(a)
        for f in factors:
            if axis not in self.axes[f]:
                self.tile(f)
        space, writer, before = self.space, self.writer, dict(self.found)
        rest = space.ordered({a for f in factors for a in self.axes[f]} - over)
        total = writer.variable(f"tl.zeros({space.shape(rest)}, {DTYPES[self.compute]})")
        extent, index = space.extent[axis], space.index[axis]
        count = writer.counter()
        writer.open(f"for {count} in range({extent // SLICE}):")
        space.extent[axis] = SLICE
        space.index[axis] = writer.let(f"tl.arange(0, {SLICE}) + {count} * {SLICE}")
        self.found = {r: t for r, t in before.items() if r not in inside}
        part = self.products.summed([self.number(f) for f in factors], over)
        writer.line(f"{total} += {seen(part.text, part.axes, rest)}")
        writer.close()
        space.extent[axis], space.index[axis], self.found = extent, index, before
        return Tile(total, rest)

    def _over(self, node: Contract) -> Tile:
        """The argument with every axis it is reduced over that a tile has."""
        return self.number(node.arg)

    def _factors(self, ref: Ref) -> list[Ref]:
        node = self.program.nodes[ref]
        if ref in self.inner and isinstance(node, Pointwise):
            return [f for a in node.args for f in self._factors(a)]
        return [ref]


__all__ = ["Values"]
