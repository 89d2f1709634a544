"""Axes and their refinement: what a tensor dimension is made of.

Takes sizes; leaves names.  Every dimension of a tensor is a product of *axes*, outer to
inner; a dimension of size 1 has none.  Reading a step discovers that an axis must be

* *split*: ``view(B, H, D)`` of a dimension H*D makes it the product of two axes;
* *cut*: ``chunk``, ``cat`` and slices make it a concatenation of shorter axes;
* *the same* as another: operands of pointwise functions and both sides of a contraction.

Splits and cuts are kept over restarts: ``record`` raises ``Restart`` and the reader
begins again with the finer axes, until nothing new is found.  Refuses (AXES) refinements
that have no common one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from tenfuse.reasons import AXES, refuse
from tenfuse.step.program import AxisName

Size = int | torch.SymInt
Dim = tuple[AxisName, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """The axis is the product of axes of these sizes, outer to inner."""

    sizes: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Cut:
    """The axis is the concatenation of the ranges between these points (0 and size included)."""

    points: tuple[int, ...]


class Restart(Exception):
    """A refinement was found; read the step again."""


def expr(size: Size) -> Any:
    """An int, or the symbolic expression of a dynamic size."""
    if isinstance(size, int):
        return size
    e = size.node.expr
    return int(e) if e.is_number else e


def hint(size: Size) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def same_size(a: Size, b: Size) -> bool:
    return bool(expr(a) == expr(b))


def quotient(a: Size, b: Size) -> Size | None:
    """``a / b`` where it is whole for certain, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if same_size(a, b):
        return 1
    if isinstance(b, int):
        part = a // b
        return part if bool(expr(a) == expr(part) * b) else None
    ratio = expr(a) / expr(b)
    return int(ratio) if getattr(ratio, "is_Integer", False) else None


class Axes:
    """The table of axes of one step."""

    def __init__(self) -> None:
        self.refinements: dict[AxisName, Split | Cut] = {}
        self.sizes: dict[AxisName, Size] = {}
        self._parent: dict[AxisName, AxisName] = {}
        self._together: list[tuple[frozenset[AxisName], ...]] = []

    def begin(self) -> None:
        """Forget which axes are the same; keep how they are refined."""
        self.sizes, self._parent, self._together = {}, {}, []

    def fresh(self, name: AxisName, size: Size) -> AxisName:
        self.sizes.setdefault(name, size)
        return name

    def find(self, axis: AxisName) -> AxisName:
        while axis in self._parent:
            axis = self._parent[axis]
        return axis

    def record(self, axis: AxisName, refinement: Split | Cut) -> None:
        """Refine ``axis`` and start again."""
        self.refinements[axis] = refinement
        if len(self.refinements) > 400:
            raise refuse(AXES, "the state's axes are cut into too many pieces")
        raise Restart

    def parts(self, axis: AxisName) -> tuple[AxisName, ...]:
        """The children of a refined axis."""
        refinement = self.refinements[axis]
        if isinstance(refinement, Split):
            return tuple(self.fresh(f"{axis}.{i}", s) for i, s in enumerate(refinement.sizes))
        ends = refinement.points
        return tuple(self.fresh(f"{axis}[{a}:{b}]", b - a) for a, b in itertools.pairwise(ends))

    def leaves(self, dim: Iterable[AxisName]) -> Dim:
        """The axes of a dimension with splits resolved; cut axes stay whole, size 1 vanishes."""
        found: list[AxisName] = []
        for axis in map(self.find, dim):
            if isinstance(self.sizes[axis], int) and self.sizes[axis] == 1:
                continue
            if isinstance(self.refinements.get(axis), Split):
                found.extend(self.leaves(self.parts(axis)))
            else:
                found.append(axis)
        return tuple(found)

    def is_cut(self, axis: AxisName) -> bool:
        return isinstance(self.refinements.get(axis), Cut)

    def cut_points(self, axis: AxisName) -> tuple[int, ...]:
        refinement = self.refinements[axis]
        assert isinstance(refinement, Cut)
        return refinement.points

    def family(self, axis: AxisName) -> frozenset[AxisName]:
        """An axis and every axis it is made of."""
        if axis not in self.refinements:
            return frozenset({axis})
        return frozenset({axis}).union(*(self.family(self.find(p)) for p in self.parts(axis)))

    def together(self, dims: Sequence[Dim]) -> None:
        """Note that the axes of one tensor are different axes."""
        leaves = [a for dim in dims for a in self.leaves(dim)]
        if len(leaves) > 1:
            self._together.append(tuple(self.family(a) for a in leaves))

    def apart(self, a: AxisName, b: AxisName) -> bool:
        """Whether some tensor has both, so that they can never be the same."""
        a, b = self.find(a), self.find(b)
        for families in self._together:
            mine = [{self.find(x) for x in family} for family in families]
            holds_a = [i for i, f in enumerate(mine) if a in f]
            holds_b = [i for i, f in enumerate(mine) if b in f]
            if any(i != j for i in holds_a for j in holds_b):
                return True
        return False

    def pairs(self, first: Sequence[AxisName], second: Sequence[AxisName]) -> list[tuple[AxisName, AxisName]]:
        """Axes of two dimensions of the same size, matched one to one; splits where needed."""
        a, b = list(self.leaves(first)), list(self.leaves(second))
        found: list[tuple[AxisName, AxisName]] = []
        while a and b:
            x, y = a.pop(0), b.pop(0)
            m, n = self.sizes[x], self.sizes[y]
            if same_size(m, n):
                found.append((x, y))
            elif (rest := quotient(m, n)) is not None:
                self.split(x, (n, rest))
            elif (rest := quotient(n, m)) is not None:
                self.split(y, (m, rest))
            else:
                raise refuse(AXES, f"a dimension of {m} does not line up with one of {n}")
        if a or b:
            raise refuse(AXES, "two dimensions of different sizes meet")
        return found

    def split(self, axis: AxisName, sizes: tuple[Size, ...]) -> None:
        """Split ``axis``; a cut axis is split where its cuts fall between the outer parts."""
        if self.is_cut(axis):
            points, inner = self.cut_points(axis), 1
            for s in sizes[1:]:
                inner *= s  # type: ignore[assignment]
            if not all(isinstance(inner, int) and p % inner == 0 for p in points):
                raise refuse(AXES, "a dimension is both cut and split at different places")
            self.refinements[f"{axis}.0"] = Cut(tuple(p // inner for p in points))
        self.record(axis, Split(sizes))

    def cut(self, axis: AxisName, points: Iterable[int]) -> None:
        """Add cuts to an axis; returns only if they were there already."""
        size = self.sizes[axis]
        if not isinstance(size, int):
            raise refuse(AXES, "a dimension of dynamic size is cut into pieces")
        old = self.cut_points(axis) if self.is_cut(axis) else (0, size)
        new = tuple(sorted({*old, *points}))
        if len(new) > 65:
            raise refuse(AXES, f"a dimension is cut into {len(new) - 1} pieces")
        if new != old or not self.is_cut(axis):
            self.record(axis, Cut(new))

    def match(self, x: AxisName, y: AxisName, join: Callable[[AxisName, AxisName], None]) -> None:
        """Give two axes of one size the same cuts, then ``join`` them and their parts."""
        if not self.is_cut(x) and not self.is_cut(y):
            join(x, y)
            return
        points = {
            *(self.cut_points(x) if self.is_cut(x) else ()),
            *(self.cut_points(y) if self.is_cut(y) else ()),
        }
        self.cut(x, points)
        self.cut(y, points)
        for p, q in zip(self.parts(x), self.parts(y), strict=True):
            for u, v in self.pairs((p,), (q,)):
                self.match(u, v, join)
        join(x, y)

    def unify(self, first: Sequence[AxisName], second: Sequence[AxisName]) -> bool:
        """Make two dimensions the same; False (and nothing done) where they must differ."""
        pairs = [(x, y) for x, y in self.pairs(first, second) if x != y]
        if any(self.apart(x, y) for x, y in pairs):
            return False
        for x, y in pairs:
            self.match(x, y, self._join)
        return True

    def _join(self, x: AxisName, y: AxisName) -> None:
        x, y = self.find(x), self.find(y)
        if x != y:
            self._parent[max(x, y)] = min(x, y)

    def mirror(self, first: Sequence[AxisName], second: Sequence[AxisName]) -> None:
        """Refine two dimensions alike without making them the same."""
        for x, y in self.pairs(first, second):
            self.match(x, y, lambda a, b: None)
