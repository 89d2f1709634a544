"""Tensors over named axes: what reading the step computes with.

A ``Value`` has dimensions (products of axes) and, for every choice of pieces of its cut
axes, a node of the program being built, or two for a complex value (real and imaginary
part).  ``Space`` holds the operations: broadcasting, reshaping, cutting, summing.  They
only name axes; the arithmetic goes to the ``Builder``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from tenfuse.reasons import AXES, refuse
from tenfuse.step.axes import Axes, Cut, Dim, Restart, Size, hint, quotient, same_size
from tenfuse.step.program import (
    ORDERED,
    AxisName,
    Builder,
    Const,
    Contract,
    Input,
    Node,
    Pointwise,
    Ref,
    Rename,
)
from tenfuse.step.whole import is_whole

Key = frozenset[tuple[AxisName, int]]
"""A choice of piece for each cut axis."""
Refs = tuple[Ref, ...]
"""One node, or two: the real and the imaginary part."""


@dataclasses.dataclass(frozen=True)
class Value:
    dims: tuple[Dim, ...]
    pieces: Mapping[Key, Refs]

    @property
    def is_complex(self) -> bool:
        return any(len(refs) == 2 for refs in self.pieces.values())


class Space:
    """Operations on values; ``site`` names the node being read, for decisions that last."""

    def __init__(self) -> None:
        self.axes = Axes()
        self.build = Builder()
        self.site = ""
        self.final = False
        self.place = ""
        """The operation under way: one node may take several, and what is decided for one
        of them, and the axes it makes, are not those of another."""
        self._places: Counter[str] = Counter()
        self._renamed: set[tuple[str, int, int]] = set()

    def begin(self, final: bool = False) -> None:
        """Start a pass; in the final one all axes are known and the nodes are kept."""
        self.build, self.final, self._places = Builder(), final, Counter()
        if not final:
            self.axes.begin()

    def _next_place(self) -> None:
        count = self._places[self.site]
        self._places[self.site] += 1
        self.place = f"{self.site}/{count}" if count else self.site

    # -- pieces ---------------------------------------------------------------------

    def keys(self, dims: Sequence[Dim]) -> list[Key]:
        """Every choice of pieces for the cut axes of ``dims``."""
        choices = [self._choices(a) for dim in dims for a in self.axes.leaves(dim)]
        return [frozenset().union(*combo) for combo in itertools.product(*choices)]

    def _choices(self, axis: AxisName) -> list[Key]:
        if not self.axes.is_cut(axis):
            return [frozenset()]
        found: list[Key] = []
        for i, part in enumerate(self.axes.parts(axis)):
            inner = [self._choices(a) for a in self.axes.leaves((part,))]
            found += [frozenset({(axis, i)}).union(*combo) for combo in itertools.product(*inner)]
        return found

    def real_axes(self, dims: Sequence[Dim], key: Key) -> tuple[AxisName, ...]:
        """The uncut axes of one piece, in the order of the dimensions."""
        chosen = dict(key)
        found: list[AxisName] = []
        for dim in dims:
            for axis in self.axes.leaves(dim):
                if self.axes.is_cut(axis):
                    found += self.real_axes([(self.axes.parts(axis)[chosen[axis]],)], key)
                else:
                    found.append(axis)
        return tuple(found)

    def own(self, dims: Sequence[Dim], key: Key) -> Key:
        """The part of ``key`` that speaks of the cut axes of ``dims``."""
        return next(k for k in self.keys(dims) if k <= key)

    def items(self, value: Value) -> dict[Key, Refs]:
        """The pieces of a value under the present names of its axes."""
        find = self.axes.find
        return {frozenset((find(a), i) for a, i in key): refs for key, refs in value.pieces.items()}

    def at(self, value: Value, key: Key) -> Refs:
        """The piece of ``value`` that ``key``, a choice for more axes, selects."""
        return next(refs for k, refs in self.items(value).items() if k <= key)

    def value(self, dims: Sequence[Dim], make: Callable[[Key], Refs]) -> Value:
        dims = tuple(self.axes.leaves(d) for d in dims)
        self.axes.together(dims)
        return Value(dims, {key: make(key) for key in self.keys(dims)})

    def shape(self, value: Value) -> list[Size]:
        return [self.length(dim) for dim in value.dims]

    def length(self, dim: Dim) -> Size:
        total: Size = 1
        for axis in self.axes.leaves(dim):
            total = total * self.axes.sizes[axis]
        return total

    def new_dims(self, shape: Sequence[Size], name: str) -> tuple[Dim, ...]:
        """Dimensions of a tensor that enters the step, or is broadcast anew."""
        return tuple(
            () if isinstance(s, int) and s == 1 else self.axes.leaves((self.axes.fresh(f"{name}.d{i}", s),))
            for i, s in enumerate(shape)
        )

    def number(self, value: complex) -> Value:
        parts = (value.real, value.imag) if isinstance(value, complex) else (value,)
        return Value((), {frozenset(): tuple(self.build.const(p) for p in parts)})

    # -- arithmetic -----------------------------------------------------------------

    def pointwise(self, fn: Callable[..., Refs], *args: Value) -> Value:
        """``fn(*refs)`` entry by entry, broadcasting as torch does."""
        self._next_place()
        operands = [self._as_renamed(a, i) for i, a in enumerate(args)]
        rank = max(len(a.dims) for a in operands)
        dims: list[Dim] = []
        for position in range(-rank, 0):
            dim: Dim = ()
            for i, arg in enumerate(operands):
                mine = self.axes.leaves(arg.dims[position]) if len(arg.dims) >= -position else ()
                if mine and not dim:
                    dim = mine
                elif mine and not self.axes.unify(dim, mine):
                    self._rename_later(i, arg)
            dims.append(self.axes.leaves(dim))
        self._keep_distinct(dims, operands)
        dims = [self.axes.leaves(d) for d in dims]

        def make(key: Key) -> Refs:
            return fn(*(self.at(a, key) for a in operands))

        return self.value(dims, make)

    def _keep_distinct(self, dims: Sequence[Dim], operands: Sequence[Value]) -> None:
        """An axis that fills two dimensions (an outer product with itself) needs two names."""
        seen: set[AxisName] = set()
        for position, dim in zip(range(-len(dims), 0), dims, strict=True):
            if seen & set(dim):
                for i, arg in enumerate(operands):
                    if len(arg.dims) >= -position and self.axes.leaves(arg.dims[position]):
                        self._rename_later(i, arg, position)
            seen |= set(dim)

    def _rename_later(self, operand: int, arg: Value, position: int | None = None) -> None:
        wanted = {
            (self.place, operand, p)
            for p in range(-len(arg.dims), 0)
            if arg.dims[p] and position in (None, p)
        }
        if wanted <= self._renamed:
            raise refuse(AXES, "one tensor meets itself along different dimensions")
        self._renamed |= wanted
        raise Restart

    def _as_renamed(self, arg: Value, operand: int) -> Value:
        positions = [p for p in range(-len(arg.dims), 0) if (self.place, operand, p) in self._renamed]
        if not positions:
            return arg
        mapping: dict[AxisName, AxisName] = {}
        cuts: dict[AxisName, AxisName] = {}
        for p in positions:
            for j, axis in enumerate(self.axes.leaves(arg.dims[p])):
                self._copy_axis(axis, f"{self.place}~{operand}.{p}.{j}", mapping, cuts)
        mapping = {a: self.axes.find(b) for a, b in mapping.items()}
        dims = tuple(tuple(cuts.get(a, mapping.get(a, a)) for a in self.axes.leaves(d)) for d in arg.dims)
        pieces = {
            frozenset((cuts.get(a, a), i) for a, i in key): tuple(
                rename(self.build, r, mapping) for r in refs
            )
            for key, refs in self.items(arg).items()
        }
        return Value(tuple(self.axes.leaves(d) for d in dims), pieces)

    def _copy_axis(
        self,
        axis: AxisName,
        name: AxisName,
        mapping: dict[AxisName, AxisName],
        cuts: dict[AxisName, AxisName],
    ) -> None:
        copy = self.axes.fresh(name, self.axes.sizes[axis])
        if not self.axes.is_cut(axis):
            mapping[axis] = copy
            return
        self.axes.refinements[copy] = Cut(self.axes.cut_points(axis))
        cuts[axis] = copy
        for old, new in zip(self.axes.parts(axis), self.axes.parts(copy), strict=True):
            for x, y in self.axes.pairs((old,), (new,)):
                if self.axes.is_cut(x) or self.axes.is_cut(y):
                    raise refuse(AXES, "a piece of a renamed dimension is cut again")
                mapping[x] = y

    def reduce(self, value: Value, positions: Sequence[int], keepdim: bool, op: str = "sum") -> Value:
        """Sum, maximum or minimum over some dimensions."""
        where = {p % max(len(value.dims), 1) for p in positions}
        gone = [value.dims[p] for p in sorted(where)]
        kept = [() if i in where else d for i, d in enumerate(value.dims) if keepdim or i not in where]

        def make(key: Key) -> Refs:
            total: Refs | None = None
            for full, refs in self.items(value).items():
                if self.own(kept, full) == key:
                    part = tuple(self._contract(r, self.real_axes(gone, full), op) for r in refs)
                    total = part if total is None else self._merge(op, total, part)
            assert total is not None
            return total

        return self.value(kept, make)

    def _merge(self, op: str, a: Refs, b: Refs) -> Refs:
        fn = {"sum": "add", "max": "maximum", "min": "minimum"}[op]
        if is_whole(self.build.nodes, a[0]):
            fn = {"sum": "iadd", "max": "imax", "min": "imin"}[op]
        return tuple(self.build.call(fn, x, y) for x, y in zip(a, b, strict=True))

    def _contract(self, ref: Ref, axes: Sequence[AxisName], op: str) -> Ref:
        """Over axes the node lacks, a sum multiplies by their size."""
        present = [a for a in axes if a in self.build.axes[ref]]
        missing = [a for a in axes if a not in present]
        if op == "sum" and missing:
            sizes = [self.axes.sizes[a] for a in missing]
            if self.final and not all(isinstance(s, int) for s in sizes):
                raise refuse(AXES, "a constant is summed over a dimension of dynamic size")
            count = math.prod(map(hint, sizes))
            if is_whole(self.build.nodes, ref):
                ref = self.build.call("imul", ref, self.build.add(Const(count)))
            else:
                ref = self.build.call("mul", ref, self.build.const(float(count)))
        return self.build.contract(ref, *present, op=op)

    # -- shape ----------------------------------------------------------------------

    def reshape(self, value: Value, shape: Sequence[Size]) -> Value:
        """``view``: regroup the axes into dimensions of the given sizes."""
        flat = list(self.axes.leaves([a for dim in value.dims for a in dim]))
        dims: list[Dim] = []
        for size in shape:
            dim: list[AxisName] = []
            left: Size | None = size
            while left is not None and not (isinstance(left, int) and left == 1):
                if not flat:
                    raise refuse(AXES, "a view does not fit its tensor")
                axis = flat.pop(0)
                length = self.axes.sizes[axis]
                if (rest := quotient(left, length)) is not None:
                    dim.append(axis)
                    left = rest
                elif (rest := quotient(length, left)) is not None:
                    self.axes.split(axis, (left, rest))
                else:
                    raise refuse(AXES, f"a view splits a dimension of {length} by {left}")
            dims.append(tuple(dim))
        if flat:
            raise refuse(AXES, "a view does not fit its tensor")
        return Value(tuple(dims), value.pieces)

    def permute(self, value: Value, order: Sequence[int]) -> Value:
        return Value(tuple(value.dims[i] for i in order), value.pieces)

    def unsqueeze(self, value: Value, position: int) -> Value:
        dims = list(value.dims)
        dims.insert(position % (len(dims) + 1), ())
        return Value(tuple(dims), value.pieces)

    def squeeze(self, value: Value, positions: Sequence[int]) -> Value:
        gone = {p % max(len(value.dims), 1) for p in positions}
        return Value(
            tuple(d for i, d in enumerate(value.dims) if i not in gone or self.axes.leaves(d)), value.pieces
        )

    def expand(self, value: Value, shape: Sequence[Size]) -> Value:
        lead = len(shape) - len(value.dims)
        old = ((),) * lead + value.dims
        self._next_place()
        fresh = self.new_dims(shape, f"{self.place}.e")
        dims = [
            d if self.axes.leaves(d) or same_size(self.length(d), s) else f
            for d, s, f in zip(old, shape, fresh, strict=True)
        ]
        return self.value(dims, lambda key: self.at(value, key))

    def slice(self, value: Value, position: int, low: int, high: int) -> Value:
        """Entries ``low`` to ``high`` of a dimension."""
        position %= len(value.dims)
        dim = self.axes.leaves(value.dims[position])
        size = self.length(dim)
        if isinstance(size, int) and (low, high) == (0, size):
            return value
        if not isinstance(size, int):
            raise refuse(AXES, "a dimension of dynamic size is sliced")
        axis, inner = dim[0], 1
        for a in dim[1:]:
            inner *= hint(self.axes.sizes[a])
        if low % inner or high % inner:
            raise refuse(AXES, "a slice cuts through the inner part of a dimension")
        low, high = low // inner, high // inner
        self.axes.cut(axis, (low, high))
        points = self.axes.cut_points(axis)
        first, last = points.index(low), points.index(high)
        new = self._subrange(axis, first, last)
        dims = list(value.dims)
        dims[position] = (*new, *dim[1:])

        def make(key: Key) -> Refs:
            piece, rest = first, key
            if last - first > 1:
                name = self.axes.find(new[0])
                piece = first + dict(key)[name]
                rest = key - {(name, piece - first)}
            return self.at(value, rest | {(self.axes.find(axis), piece)})

        return self.value(dims, make)

    def _subrange(self, axis: AxisName, first: int, last: int) -> Dim:
        """The axis made of pieces ``first`` to ``last`` of a cut axis."""
        parts = self.axes.parts(axis)[first:last]
        if len(parts) == 1:
            return self.axes.leaves(parts)
        points = self.axes.cut_points(axis)
        low, high = points[first], points[last]
        whole = self.axes.fresh(f"{axis}[{low}:{high}]", high - low)
        if whole not in self.axes.refinements or not set(p - low for p in points[first : last + 1]) <= set(
            self.axes.cut_points(whole)
        ):
            self.axes.cut(whole, [p - low for p in points[first : last + 1]])
        if len(self.axes.cut_points(whole)) != last - first + 1:
            self.axes.cut(axis, [p + low for p in self.axes.cut_points(whole)])
        for p, q in zip(self.axes.parts(whole), parts, strict=True):
            if not self.axes.unify((p,), (q,)):
                raise refuse(AXES, "a slice of a dimension meets the dimension itself")
        return (whole,)

    def cat(self, values: Sequence[Value], position: int) -> Value:
        """Concatenate along one dimension."""
        self._next_place()
        rank = len(values[0].dims)
        position %= rank
        sizes = [self.length(v.dims[position]) for v in values]
        if not all(isinstance(s, int) for s in sizes):
            raise refuse(AXES, "dimensions of dynamic size are concatenated")
        points = tuple(itertools.accumulate((hint(s) for s in sizes), initial=0))
        whole = self.axes.fresh(f"{self.place}.c", points[-1])
        self.axes.cut(whole, points)
        found = self.axes.cut_points(whole)
        operands = []
        for i, value in enumerate(values):
            inner = [p - points[i] for p in found if points[i] < p < points[i + 1]]
            if inner:
                dim = self.axes.leaves(value.dims[position])
                if len(dim) != 1:
                    raise refuse(AXES, "a concatenated dimension is cut inside a product")
                self.axes.cut(dim[0], inner)
                self.axes.cut(whole, [points[i] + p for p in self.axes.cut_points(dim[0])])
            operands.append(self._as_renamed(value, i))
        dims: list[Dim] = [()] * rank
        for i, value in enumerate(operands):
            for p in range(rank):
                mine = self.axes.leaves(value.dims[p])
                if p != position and mine:
                    dims[p] = dims[p] or mine
                    if not self.axes.unify(dims[p], mine):
                        self._rename_later(i, value)
        parts = self.axes.parts(whole)
        pieces: list[tuple[int, int | None]] = []
        for i, value in enumerate(operands):
            mine = self.axes.leaves(value.dims[position])
            inside = [j for j in range(len(parts)) if points[i] <= found[j] < points[i + 1]]
            if len(inside) == 1:
                if mine and not self.axes.unify((parts[inside[0]],), mine):
                    self._rename_later(i, value)
                pieces.append((i, None))
                continue
            for n, j in enumerate(inside):
                if not self.axes.unify((parts[j],), (self.axes.parts(mine[0])[n],)):
                    self._rename_later(i, value)
                pieces.append((i, n))
        dims[position] = (whole,)

        def make(key: Key) -> Refs:
            i, n = pieces[dict(key)[self.axes.find(whole)]]
            value = operands[i]
            extra = frozenset() if n is None else frozenset({(self.axes.leaves(value.dims[position])[0], n)})
            return self.at(value, key | extra)

        return self.value(dims, make)


def _primed(axis: AxisName, taken: Collection[AxisName]) -> AxisName:
    """A name for another copy of ``axis`` (its size is that of the name without primes)."""
    while axis in taken:
        axis += "'"
    return axis


def rename(build: Builder, ref: Ref, mapping: Mapping[AxisName, AxisName]) -> Ref:
    """The same expression over other free axes; bound axes that would clash move away."""
    done: dict[tuple[Ref, frozenset[tuple[AxisName, AxisName]]], Ref] = {}

    def visit(r: Ref, names: dict[AxisName, AxisName]) -> Ref:
        names = {a: b for a, b in names.items() if a in build.axes[r] and a != b}
        if not names:
            return r
        at = (r, frozenset(names.items()))
        if at not in done:
            done[at] = build.add(_moved(r, names))
        return done[at]

    def _moved(r: Ref, names: dict[AxisName, AxisName]) -> Node:
        node = build.nodes[r]
        if isinstance(node, Input):
            return Input(node.kind, node.index, tuple(names.get(a, a) for a in node.axes))
        if isinstance(node, Pointwise):
            return Pointwise(node.fn, tuple(visit(a, names) for a in node.args))
        if isinstance(node, Contract):
            taken = build.axes[node.arg] | set(names.values())
            clash = {a: _primed(a, taken) for a in node.axes if a in names.values()}
            bound = frozenset(clash.get(a, a) for a in node.axes)
            return Contract(bound, visit(node.arg, {**names, **clash}), node.op)
        return Rename(r, tuple(sorted(names.items()))) if isinstance(node, ORDERED) else node

    return visit(ref, dict(mapping))
