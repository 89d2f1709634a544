"""The text of one kernel on tiles.

Takes a ``TileKernel``; leaves Triton source: a program instance per entry of the grid, a
loop over iterations with the carries on chip, loads, the step's values, stores.  Pure: the
same kernel gives the same text, in which no name comes from the user's program.
Refuses (NO_TILES) steps that have no form on tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenfuse.emit.triton.functions import DTYPES, PREAMBLE, stored
from tenfuse.emit.triton.matrices import called
from tenfuse.emit.triton.scans import mirrored
from tenfuse.emit.triton.small import MOST_ROWS, combine
from tenfuse.emit.triton.tile import Space, Tile, permuted, seen
from tenfuse.emit.triton.values import Values
from tenfuse.emit.triton.writer import Writer
from tenfuse.plan.kernel import Operand
from tenfuse.plan.tiles.kernel import TileKernel, timed
from tenfuse.step.program import AxisName, Input, arguments

HEADER = "import triton\nimport triton.language as tl\n"
JIT = '@triton.jit(do_not_specialize=["steps", "count"])'
"""One compilation for every length."""
LOOP = "for c in range(0, count):"
ANEW = "for c in tl.range(0, count, disable_licm=True):"
"""Where matrices are multiplied: addresses kept from one iteration to the next take up to half of a
thread's registers."""


def emit(kernel: TileKernel, far: bool = False) -> str:
    """The source of a module with the kernel as ``kernel``; ``far`` memory has 64-bit offsets."""
    matrices = "".join(combine(rows) for rows in range(2, MOST_ROWS + 1))
    text = "\n".join(_Emitter(kernel, far).run())
    return f"{HEADER}\n{PREAMBLE}{matrices}{called(text)}\n\n{text}\n"


class _Emitter:
    def __init__(self, kernel: TileKernel, far: bool = False) -> None:
        self.far = ".to(tl.int64)" if far else ""
        self.kernel, self.program = kernel, kernel.program
        sizes = dict(kernel.program.sizes)
        self.space = Space(kernel.tiling, sizes, kernel.program.dynamic)
        whole = frozenset(
            a for a, _ in kernel.tiling.blocks if a not in kernel.tiling.split and not self.space.ragged(a)
        )
        self.space.mirrored = mirrored(kernel.program, whole)
        self.writer = Writer()
        self.dtype = DTYPES[kernel.compute]
        self.place = {(o.role, o.index): i for i, o in enumerate(kernel.operands)}
        self.carried: dict[int, str] = {}
        self.values = Values(
            kernel.program, self.space, self.writer, kernel.compute, kernel.dots, kernel.slices,
            kernel.lightest, self._entering,
        )  # fmt: skip
        self.parts_of = dict(kernel.shared)
        self.ragged = kernel.within >= 0
        self.shared = sorted({a for _, axes in kernel.shared for a in axes})
        self.with_rows = {
            ("stream", n.index) for n in kernel.program.nodes
            if isinstance(n, Input) and n.kind == "stream" and n.index != kernel.within
            and len(n.axes) > len(kernel.operands[self.place["stream", n.index]].axes)
        }  # fmt: skip
        self.with_rows |= {
            ("out", j) for j, o in enumerate(kernel.program.outs)
            if set(kernel.rows) & set(o.axes) - set(kernel.operands[self.place["out", j]].axes)
        }  # fmt: skip

    def run(self) -> list[str]:
        writer, program = self.writer, self.program
        self._indices()
        for i, carry in enumerate(program.carries):
            self.carried[i] = writer.variable(self._load(self.place["init", i], carry.axes))
        sums = {
            j: writer.variable(f"tl.zeros({self.space.shape(self.space.ordered(o.axes))}, {self.dtype})")
            for j, o in enumerate(program.outs) if o.accumulate
        }  # fmt: skip
        if self.kernel.parallel:
            writer.line("c = pid")
        else:
            self._once()
            # A step alone keeps its matrices as they are multiplied, and nothing else takes much room.
            keeps = not (self.kernel.rows or self.kernel.slices)
            writer.open(ANEW if self.values.multiplies and not keeps else LOOP)
        self._time()
        self._step(sums)
        if not self.kernel.parallel:
            writer.close()
        for i, carry in enumerate(program.carries):
            if ("final", i) in self.place:
                self._store(self.place["final", i], carry.axes, self.carried[i])
        for j, name in sums.items():
            self._store(self.place["out", j], program.outs[j].axes, name)
        return [JIT, f"def kernel({', '.join(self._parameters())}):", *writer.lines]

    def _once(self) -> None:
        """What is the same in every iteration is computed before the first."""
        program, varying = self.program, set[int]()
        for i, node in enumerate(program.nodes):
            entering = isinstance(node, Input) and node.kind not in ("invariant", "first")
            if entering or any(a in varying for a in arguments(node)):
                varying.add(i)
        needed = set(program.roots()) | {a for i in varying for a in arguments(program.nodes[i])}
        for i in sorted(needed - varying - self.values.places - self.values.again):
            if i not in self.values.inner and not self.values.axes[i] & self.values.small:
                self.values.tile(i)

    def _parameters(self) -> list[str]:
        """Pointers, strides (time first), sizes of dynamic axes, steps and iterations."""
        found = [f"p{i}" for i in range(len(self.kernel.operands))]
        for i, o in enumerate(self.kernel.operands):
            found += [f"s{i}_t"] if timed(self.kernel, o) else []
            found += [f"s{i}_{d}" for d in range(len(o.axes))]
        return [*found, *(self.space.count[a] for a in self.kernel.axes()), "steps", "count"]

    # -- where an instance is -----------------------------------------------------------

    def _indices(self) -> None:
        writer, space = self.writer, self.space
        writer.line("pid = tl.program_id(0).to(tl.int64)")
        for axis in reversed(self.kernel.tiling.grid):
            writer.line(f"{space.index[axis]} = pid % {space.size(axis)}")
            writer.line(f"pid = pid // {space.size(axis)}")
        for axis, extent in self.kernel.tiling.blocks:
            start = ""
            if axis in self.kernel.tiling.split:
                blocks = f"(({space.size(axis)} + {extent - 1}) // {extent})"
                writer.line(f"b{space.order[axis]} = pid % {blocks}")
                writer.line(f"pid = pid // {blocks}")
                start = f" + b{space.order[axis]} * {extent}"
            turned = f"{extent - 1} - " if axis in space.mirrored else ""
            writer.line(f"{space.index[axis]} = {turned}tl.arange(0, {extent}){start}")

    def _time(self) -> None:
        """Which iteration this is."""
        kernel, writer = self.kernel, self.writer
        writer.line("n = count - 1 - c" if kernel.descending else "n = c")
        self.space.moment = "" if kernel.parallel else "c"

    def _offset(self, axes: Sequence[AxisName], own: Sequence[AxisName], held: bool = False) -> str:
        """Positions counted from the iteration's first, over ``own``; ``held`` is never behind the end."""
        order = self.space.ordered(axes)
        unit, text = 1, ""
        for axis in reversed(axes):
            text = f"{self.space.along(axis, order)} * {unit}" + (f" + {text}" if text else "")
            unit *= self.space.sizes[axis]
        found = self.writer.let(text)
        if held and self.ragged:
            found = self.writer.let(f"tl.minimum({found}, steps - 1 - n * {self.kernel.length})")
        return seen(found, order, own)

    def _before_end(self, axes: Sequence[AxisName], own: Sequence[AxisName]) -> list[str]:
        if not self.ragged:
            return []
        return [f"({self._offset(axes, own)} < steps - n * {self.kernel.length})"]

    def _moment(self, place: int, at: Sequence[AxisName], own: Sequence[AxisName], held: bool) -> list[str]:
        """What is added to an operand's pointer for time: a number, and a tile of what fits 32 bits."""
        first = f"n.to(tl.int64) * {self.kernel.length}"
        offset = f"{self._offset(at, own, held)}{self.far}"
        if self.kernel.flipped:
            return [f"(steps - 1 - {first}) * s{place}_t", f"-{offset} * s{place}_t"]
        return [f"{first} * s{place}_t", f"{offset} * s{place}_t"]

    # -- memory -------------------------------------------------------------------------

    def _entering(self, node: Input) -> Tile:
        if node.kind == "carry":
            own = self.program.carries[node.index].axes
            text, axes = self.carried[node.index], self.space.ordered(own)
            if node.axes == own:
                return Tile(text, axes)
            names = dict(zip(own, node.axes, strict=True))
            renamed = tuple(names[a] for a in axes)
            order = self.space.ordered(renamed)
            return Tile(self.writer.let(permuted(text, renamed, order)), order)
        if node.kind == "stream" and node.index == self.kernel.within:
            order = self.space.ordered(node.axes)
            return Tile(self.writer.let(self._before_end(node.axes, order)[0]), order, True)
        if node.kind == "first":
            return Tile(self.writer.let(" & ".join(f"({self._part(a)} == 0)" for a in self.shared)), (), True)
        role = "constant" if node.kind == "invariant" else node.kind
        operand = self.place[role, node.index]
        return Tile(self.writer.let(self._load(operand, node.axes)), self.space.ordered(node.axes))

    def _load(self, place: int, axes: Sequence[AxisName]) -> str:
        """The expression of a tile over those of ``axes`` that have a dimension."""
        pointer, masks = self._address(place, axes)
        own = self.space.ordered(axes)
        operand = self.kernel.operands[place]
        at = self._positions_of(operand, axes)
        if at and operand.index in self.kernel.zero:
            masks += self._before_end(at, own)
        guard = f", mask={' & '.join(masks)}, other=0" if masks else ""
        text = f"tl.load({pointer}{guard}).to({self.dtype})"
        if own and operand.role == "init":
            return f"{text} + tl.zeros({self.space.shape(own)}, {self.dtype})"
        return text

    def _positions_of(self, operand: Operand, axes: Sequence[AxisName]) -> tuple[AxisName, ...]:
        """Those of ``axes`` that are positions of an operand over time."""
        if operand.role == "stream" and ("stream", operand.index) in self.with_rows:
            return tuple(axes[: len(self.kernel.rows)])
        if operand.role == "out" and ("out", operand.index) in self.with_rows:
            return self.kernel.rows
        return ()

    def _store(self, place: int, axes: Sequence[AxisName], value: str) -> None:
        pointer, masks = self._address(place, axes, storing=True)
        operand = self.kernel.operands[place]
        at = self._positions_of(operand, axes)
        masks += self._before_end(at, self.space.ordered(axes)) if at else []
        guard = f", mask={' & '.join(masks)}" if masks else ""
        value = stored(value, operand.dtype, self.kernel.compute)
        self.writer.line(f"tl.store({pointer}, {value}{guard})")

    def _address(self, place: int, axes: Sequence[AxisName], storing: bool = False) -> tuple[str, list[str]]:
        operand, own = self.kernel.operands[place], self.space.ordered(axes)
        kernel, parts, lead = self.kernel, [f"p{place}"], 0
        at = self._positions_of(operand, axes)
        if timed(kernel, operand):
            if at:
                held = not storing and operand.index not in kernel.zero
                parts += self._moment(place, at, own, held)
            else:
                parts.append(f"n.to(tl.int64) * s{place}_t")
        if operand.role == "out" and operand.index in self.parts_of:
            for axis in self.parts_of[operand.index]:
                parts.append(f"{self._part(axis)} * s{place}_{lead}")
                lead += 1
        rest = [a for a in axes if a not in at]
        for d, axis in enumerate(rest, lead):
            parts.append(f"{self.space.along(axis, own)}{self.far} * s{place}_{d}")
        inside = self.space.inside(rest, own)
        return " + ".join(parts), [inside] if inside else []

    def _part(self, axis: AxisName) -> str:
        """Which part of a shared axis an instance holds."""
        return f"b{self.space.order[axis]}" if axis in self.space.order else self.space.index[axis]

    # -- the step -----------------------------------------------------------------------

    def _leave(self, j: int, sums: dict[int, str]) -> None:
        """An output goes to memory, or to its sum."""
        out = self.program.outs[j]
        axes = self.space.ordered(out.axes)
        if out.accumulate:
            tile = self.values.number(out.ref)
            self.writer.line(f"{sums[j]} += {seen(tile.text, tile.axes, axes)}")
        elif ("out", j) in self.place:
            self._store(self.place["out", j], out.axes, self.values.full(out.ref, axes))

    def _step(self, sums: dict[int, str]) -> None:
        program, writer, space = self.program, self.writer, self.space
        self.values.inverses()
        left = list(range(len(program.outs)))
        for ref in self.values.order():
            self.values.tile(ref)
            for j in [j for j in left if program.outs[j].ref == ref]:
                self._leave(j, sums)
                left.remove(j)
        for j in left:
            self._leave(j, sums)
        nexts = []
        for carry in program.carries:
            axes = space.ordered(carry.next_axes)
            text = self.values.full(carry.next, axes)
            names = dict(zip(carry.next_axes, carry.axes, strict=True))
            back = tuple(names[a] for a in axes)
            text = writer.let(permuted(text, back, space.ordered(carry.axes)))
            nexts.append(writer.variable(text) if text in self.carried.values() else text)
        for i, text in enumerate(nexts):
            writer.line(f"{self.carried[i]} = {text}")


__all__ = ["emit", "timed"]
