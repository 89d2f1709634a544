"""The nodes of a step program as tiles.

Takes nodes in order with the tiles of their inputs; leaves a ``Tile`` for each.  A product
that is only summed over is never made by itself: its factors go to the sum.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator

from tenfuse.emit.triton.functions import COMPARE, DTYPES, LOGIC, TENSORS, TRUTHS, numeric
from tenfuse.emit.triton.ordered import Ordered
from tenfuse.emit.triton.products import Products
from tenfuse.emit.triton.scans import is_product, together
from tenfuse.emit.triton.small import known, places, powers, small
from tenfuse.emit.triton.tile import Space, Tile, is_literal, literal, seen
from tenfuse.emit.triton.writer import Writer
from tenfuse.plan.tiles.kernel import Slice
from tenfuse.plan.tiles.schedule import schedule
from tenfuse.step.program import (
    AxisName,
    Const,
    Contract,
    Input,
    Node,
    Pointwise,
    Position,
    Ref,
    Rename,
    Scan,
    Shift,
    Solve,
    StepProgram,
    arguments,
    factors,
    mixed,
    only_summed,
)

SLICED, SLICE = 1 << 13, 16
"""Entries of a product from which a sum is taken in slices, and entries along an axis in one."""

Cut = tuple[AxisName, int]
"""An axis in slices of so many entries."""
Entry = tuple[tuple[AxisName, int], ...]
"""Where along small axes."""


class Values:
    """``entering`` gives the tile of an input."""

    def __init__(
        self,
        program: StepProgram,
        space: Space,
        writer: Writer,
        compute: str,
        dots: str,
        slices: Collection[Slice],
        lightest: bool,
        entering: Callable[[Input], Tile],
    ) -> None:
        self.program, self.space, self.writer, self.compute = program, space, writer, compute
        self.entering, self.lightest = entering, lightest
        self.products = Products(space, writer, compute, dots)
        self.ordered = Ordered(space, writer, self.products, compute)
        self.inner, self.axes = only_summed(program), program.axes_of()
        self.together = together(program)
        self.found: dict[Ref, Tile] = {}
        self.small = small(program)
        self.at: dict[AxisName, int] = {}
        """The entry along small axes whose tiles are being made."""
        self.entries: dict[tuple[Ref, Entry], Tile] = {}
        self.slices = {s.ref: (s.axis, s.width) for s in slices}
        self.within: frozenset[Ref] | None = None
        """In a slice of an axis, what is made again for every slice."""
        self.again = self._again()
        """Nodes that are made anew for every slice."""
        self.places = _places_only(program)
        """Nodes that tell of positions in a chunk, and of nothing else."""
        self.multiplies = any(self._multiplies(n) for n in program.nodes)
        """Whether matrices are multiplied."""

    def tile(self, ref: Ref) -> Tile:
        """The value of a node; made when it is first asked for."""
        if self.axes[ref] & self.small:
            entry = self._entry(ref)
            if entry not in self.entries:
                self.entries[entry] = self._made(ref)
            return self.entries[entry]
        if ref not in self.found:
            self.found[ref] = self._made(ref)
        return self.found[ref]

    def _entry(self, ref: Ref) -> tuple[Ref, Entry]:
        return ref, tuple((a, self.at[a]) for a in sorted(self.axes[ref] & self.small))

    @contextlib.contextmanager
    def _among(self, entry: dict[AxisName, int]) -> Iterator[None]:
        """Within, small axes stand at ``entry``."""
        before, self.at = self.at, entry
        try:
            yield
        finally:
            self.at = before

    def number(self, ref: Ref) -> Tile:
        """The value with truth values as 0 and 1."""
        return self.as_number(self.tile(ref))

    def factor(self, ref: Ref) -> Tile:
        """The value as a factor; which positions a mask leaves out stays a truth."""
        tile = self.tile(ref)
        return tile if ref in self.places else self.as_number(tile)

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

    def _filled(self, number: str, axes: tuple[AxisName, ...]) -> str:
        """A tile of a number; without axes Triton adds no zeros to it."""
        return self.spread(number, axes) if axes else self._tensor(number)

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
            true = known(self.program, ref, self.at)
            return self._pointwise(node) if true is None else Tile(literal(float(true)))
        if isinstance(node, Contract):
            return self._contract(node, self.slices.get(ref))
        if isinstance(node, Position):
            if node.axis in self.at:
                return Tile(literal(self.at[node.axis]))
            return self.ordered.position(node)
        if isinstance(node, Rename):
            old = {a: b for a, b in node.names if b in self.at}
            with self._among(self.at | {a: self.at[b] for a, b in old.items()}):
                return self.ordered.rename(node, self.tile(node.arg))
        if isinstance(node, Shift):
            return self.ordered.shift(node, self.number(node.arg))
        if isinstance(node, Scan):
            return self._scan(ref, node)
        assert isinstance(node, Solve)
        found = self.ordered.inverse(node, self.number(node.lower))
        return self.ordered.solve(node, found, self.number(node.arg))

    def inverses(self) -> None:
        """Those of all systems, made while little else is held: they take the most registers."""
        for ref, node in enumerate(self.program.nodes):
            if isinstance(node, Solve) and ref not in self.found and not self.axes[node.lower] & self.small:
                self.ordered.inverse(node, self.number(node.lower))

    def order(self) -> list[Ref]:
        """Which values to make one after the other where matrices are multiplied; else as they are asked.

        What a scan holds while it runs, the sizes of its values do not tell.
        """
        if (self.small and not self.lightest) or not self.multiplies:
            return []
        found = schedule(self.program, self.space.extent, self._read, self.found, self.lightest)
        return [ref for ref in found if not self.axes[ref] & self.small]

    def _multiplies(self, node: Node) -> bool:
        if not isinstance(node, Contract) or node.op != "sum":
            return False
        return self.products.matrices([self.axes[f] for f in self._factors(node.arg)], node.axes)

    def _read(self, ref: Ref) -> list[Ref]:
        """The values that are made before a node is; none but these."""
        node = self.program.nodes[ref]
        if isinstance(node, Scan) and not node.rows:
            group = self.together[ref]
            return [a for i in group for a in self._scanned(self._scan_at(i))]
        if not isinstance(node, Contract) or node.op != "sum":
            return list(arguments(node))
        factors = self._factors(node.arg)
        cut = self.slices.get(ref) or self._sliced(factors, node.axes)
        return self._outside(factors, cut[0]) if cut else factors

    def _scanned(self, node: Scan) -> list[Ref]:
        return [node.decay] if is_product(self.program, node) else [node.decay, node.arg]

    def _scan(self, ref: Ref, node: Scan) -> Tile:
        """With all that run together with it."""
        if node.rows and not {*node.rows} <= self.small:
            return self.ordered.scan(node, self.number(node.decay), self.number(node.arg))
        if node.rows:
            return self._written_out(ref, node)
        if self.axes[ref] & self.small:
            return self.ordered.scans(node, self.number(node.decay), [self.number(node.arg)])[0]
        # In a slice of an axis, what is not made of it again is held whole.
        group = [i for i in self.together[ref] if self.within is None or i in self.within]
        args = list[Tile | None]()
        for i in group:
            one = self._scan_at(i)
            args.append(None if is_product(self.program, one) else self.number(one.arg))
        for i, tile in zip(group, self.ordered.scans(node, self.number(node.decay), args), strict=True):
            self.found[i] = tile
        return self.found[ref]

    def _written_out(self, ref: Ref, node: Scan) -> Tile:
        """A scan of matrices by their entries, and the products of the matrices as well."""
        sizes, here = self.program.sizes, dict(self.at)
        if powers(self.program, node) is not None:
            for other in self._like(ref):
                if other < ref and not powers(self.program, self._scan_at(other)):
                    self.tile(other)
            if self._entry(ref) in self.entries:
                return self.entries[self._entry(ref)]
        rows, cols = places(node.rows, sizes), places(node.cols, sizes)
        turned = [dict(zip(node.rows, c.values(), strict=True)) for c in cols]
        entries = []
        for i in rows:
            for j, r in zip(cols, turned, strict=True):
                line = dict(zip(node.cols, i.values(), strict=True))
                with self._among(here | (r | line if node.transpose else i | j)):
                    entries.append(self.number(node.decay))
        parts = []
        for i in rows:
            with self._among(here | i):
                parts.append(self.number(node.arg))
        found = self.ordered.matrices(node, entries, parts)
        for n, i in enumerate(rows):
            with self._among(here | i):
                self.entries[self._entry(ref)] = found[len(entries) + n]
        self._multiplied(ref, found)
        return self.entries[self._entry(ref)]

    def _scan_at(self, ref: Ref) -> Scan:
        node = self.program.nodes[ref]
        assert isinstance(node, Scan)
        return node

    def _multiplied(self, scan: Ref, found: list[Tile]) -> None:
        """The scans that are the products of the same matrices are there as well."""
        for ref in self._like(scan):
            other = self._scan_at(ref)
            names, tiles = powers(self.program, other), iter(found)
            if names is None:
                continue
            for i in places(other.rows, self.program.sizes):
                for j in places(names, self.program.sizes):
                    with self._among(self.at | i | j):
                        self.entries.setdefault(self._entry(ref), next(tiles))

    def _like(self, ref: Ref) -> list[Ref]:
        """The scans with the matrices of scan ``ref``, in the same order and over the same tiles."""
        node, own = self._scan_at(ref), self._dimensions(ref)
        return [
            i for i, other in enumerate(self.program.nodes)
            if isinstance(other, Scan) and other.rows and self._dimensions(i) == own
            and dataclasses.replace(other, arg=node.arg) == node
        ]  # fmt: skip

    def _dimensions(self, ref: Ref) -> tuple[AxisName, ...]:
        return self.space.ordered(self.axes[ref] - self.small)

    # -- entry by entry -----------------------------------------------------------------

    def _pointwise(self, node: Pointwise) -> Tile:
        if node.fn == "where":
            return self._where(node)
        if node.fn in LOGIC or node.fn == "logical_not":
            truths = [self._truth(a) for a in node.args]
            axes, args = self._aligned(truths)
            text = f"~{args[0]}" if node.fn == "logical_not" else f" {LOGIC[node.fn]} ".join(args)
            return Tile(self.writer.let(text), axes, True)
        if node.fn == "mul" and any(a in self.places for a in node.args):
            return self.products.product([self.factor(a) for a in node.args])
        if node.fn in COMPARE and self.space.moment and all(self._placed(a) for a in node.args):
            return self._compared(node)
        axes, args = self._aligned([self.number(a) for a in node.args])
        if not axes and node.fn not in COMPARE and all(map(is_literal, args)):
            args = [self._tensor(a) for a in args]
        if node.fn in TENSORS:
            args = [self._filled(a, axes) if is_literal(a) else a for a in args]
        text = numeric(node.fn, args, self.compute)
        return Tile(self.writer.let(text), axes, node.fn in TRUTHS)

    def _placed(self, ref: Ref) -> bool:
        node = self.program.nodes[ref]
        return isinstance(node, Position) and node.axis in self.space.order and node.axis not in self.at

    def _compared(self, node: Pointwise) -> Tile:
        """Positions compared anew in every iteration, at the moment, since a mask that is kept from the
        first to the last takes as many registers as what it masks."""
        names = [n.axis for n in (self.program.nodes[a] for a in node.args) if isinstance(n, Position)]
        axes = self.space.ordered(names)
        left, right = (f"({self.space.along(a, axes)} + {self.space.moment})" for a in names)
        return Tile(self.writer.let(f"{left} {COMPARE[node.fn]} {right}"), axes, True)

    def _where(self, node: Pointwise) -> Tile:
        true = known(self.program, node.args[0], self.at)
        if true is not None:
            return self.number(node.args[1 if true else 2])
        chosen = self._truth(node.args[0])
        axes, args = self._aligned([chosen, *(self.number(a) for a in node.args[1:])])
        if all(map(is_literal, args[1:])):
            args[1] = self._tensor(args[1])
        return Tile(self.writer.let(f"tl.where({', '.join(args)})"), axes)

    def _truth(self, ref: Ref) -> Tile:
        true = known(self.program, ref, self.at)
        if true is not None:
            return Tile(self.writer.let(f"tl.full([], {int(true)}, tl.int1)"), (), True)
        tile = self.tile(ref)
        return tile if tile.truth else Tile(self.writer.let(f"({tile.text} != 0.0)"), tile.axes, True)

    def _aligned(self, tiles: list[Tile]) -> tuple[tuple[AxisName, ...], list[str]]:
        axes = self.space.ordered(a for t in tiles for a in t.axes)
        self.products.fits(axes)
        return axes, [seen(t.text, t.axes, axes) for t in tiles]

    # -- sums ---------------------------------------------------------------------------

    def _contract(self, node: Contract, planned: Cut | None = None) -> Tile:
        if node.axes & self.small:
            return self._over_entries(node)
        if node.op != "sum":
            return self.products.total(self.number(node.arg), node.axes, node.op)
        factors = self._factors(node.arg)
        cut = planned or self._sliced(factors, node.axes)
        if cut:
            return self._in_slices(factors, node.axes, *cut)
        return self.products.summed([self.factor(f) for f in factors], node.axes)

    def _over_entries(self, node: Contract) -> Tile:
        """The sum, or the largest or smallest, of what the entries of small axes are."""
        rest = dataclasses.replace(node, axes=node.axes - self.small)
        terms = []
        for entry in places(sorted(node.axes & self.small), self.program.sizes):
            with self._among(self.at | entry):
                terms.append(self._contract(rest) if rest.axes else self._alone(node))
        if node.op == "sum":
            terms = [t for t in terms if t.text != "0.0"] or terms[:1]
        found = terms[0]
        for term in terms[1:]:
            axes, texts = self._aligned([found, term])
            names = {"max": "highest", "min": "lowest"}
            text = " + ".join(texts) if node.op == "sum" else f"{names[node.op]}({', '.join(texts)})"
            found = Tile(self.writer.let(text), axes)
        return found

    def _alone(self, node: Contract) -> Tile:
        if node.op != "sum":
            return self.number(node.arg)
        return self.products.product([self.factor(f) for f in self._factors(node.arg)])

    def _sliced(self, factors: list[Ref], over: frozenset[AxisName]) -> Cut | None:
        """The axis along which a sum is taken slice by slice: its product would be a tile too large
        to hold, and all that it is made of along that axis is read from memory."""
        union = self.space.ordered(a for f in factors for a in self.axes[f])
        if (
            self.small
            or self.space.volume(union) <= SLICED
            or self.products.matrices([self.axes[f] for f in factors], over)
        ):
            return None
        found = [
            a
            for a in self.space.ordered(over)
            if self.space.extent[a] > SLICE and self._read_only(factors, a)
        ]
        return (max(found, key=self.space.extent.__getitem__), SLICE) if found else None

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

    def _within(self, factors: list[Ref], axis: AxisName) -> list[Ref]:
        """The nodes that are made for every slice along ``axis``: what is read from memory along it."""
        return self._along([f for f in factors if self._read_only([f], axis)], axis)

    def _again(self) -> set[Ref]:
        found = set[Ref]()
        for ref, (axis, _) in self.slices.items():
            node = self.program.nodes[ref]
            assert isinstance(node, Contract)
            found |= {*self._within(self._factors(node.arg), axis)}
        return found

    def _outside(self, factors: list[Ref], axis: AxisName) -> list[Ref]:
        """What the factors of a sum in slices along ``axis`` are made of beside what every slice makes."""
        within = self._within(factors, axis)
        read = [a for ref in within for a in arguments(self.program.nodes[ref])]
        return [a for a in (*read, *factors) if a not in within and a not in self.inner]

    def _in_slices(self, factors: list[Ref], over: frozenset[AxisName], axis: AxisName, width: int) -> Tile:
        within = self._within(factors, axis)
        for ref in self._outside(factors, axis):
            self.tile(ref)
        space, writer, before = self.space, self.writer, dict(self.found)
        rest = space.ordered({a for f in factors for a in self.axes[f]} - over)
        total = writer.variable(f"tl.zeros({space.shape(rest)}, {DTYPES[self.compute]})")
        extent, index = space.extent[axis], space.index[axis]
        count = writer.counter()
        # Behind the last slice there is nothing; whether it is full tells its own width.
        writer.open(f"for {count} in range({-(-space.sizes[axis] // width)}):")
        space.extent[axis] = width
        space.index[axis] = writer.let(f"tl.arange(0, {width}) + {count} * {width}")
        self.found, outer = {r: t for r, t in before.items() if r not in within}, self.within
        self.within = frozenset(within)
        for f in factors:
            if axis in self.axes[f] and f not in within:
                self.found[f] = self._picked(before[f], axis)
        part = self.products.summed([self.factor(f) for f in factors], over)
        writer.line(f"{total} += {seen(part.text, part.axes, rest)}")
        writer.close()
        space.extent[axis], space.index[axis], self.found, self.within = extent, index, before, outer
        return Tile(total, rest)

    def _picked(self, tile: Tile, axis: AxisName) -> Tile:
        """The slice of a tile that is held whole."""
        tile, space = self.as_number(tile), self.space
        index = f"{space.along(axis, tile.axes)} + tl.zeros({space.shape(tile.axes)}, tl.int32)"
        text = f"tl.gather({tile.text}, {self.writer.let(index)}, {tile.axes.index(axis)})"
        return Tile(self.writer.let(text), tile.axes)

    def _factors(self, ref: Ref) -> list[Ref]:
        return factors(self.program, ref, self.inner)


def _places_only(program: StepProgram) -> set[Ref]:
    """Comparisons of positions, what is joined of these, and numbers chosen by them."""
    found = set[Ref]()
    for i, node in enumerate(program.nodes):
        if not isinstance(node, Pointwise):
            continue
        joins = node.fn in LOGIC or node.fn == "logical_not"
        if joins and all(a in found for a in node.args):
            found.add(i)
        numbers = all(isinstance(program.nodes[a], Const) for a in node.args[1:])
        if node.fn == "where" and node.args[0] in found and numbers:
            found.add(i)
        if node.fn in COMPARE and all(_counts(program.nodes[a]) for a in node.args):
            found.add(i)
    return found


def _counts(node: Node) -> bool:
    return isinstance(node, (Position, Const))


__all__ = ["Values"]
