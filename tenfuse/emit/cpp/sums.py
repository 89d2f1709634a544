"""Contractions of a nest: accumulators in registers, or in scratch.

Takes an open ``Frame`` and the ``Values`` of a nest; leaves the lines that declare
accumulators, add to them, and join them into values.  Additions are spread over several
accumulators where waiting for one would take longer than the rest of the work.
"""

from __future__ import annotations

import math

from tenfuse.emit.cpp import integers
from tenfuse.emit.cpp.frame import Combo, Frame
from tenfuse.emit.cpp.levels import Levels
from tenfuse.emit.cpp.shape import Store
from tenfuse.emit.cpp.values import Values
from tenfuse.step.program import Pointwise, Ref

_FOLD = {"sum": "hsum", "max": "hmax", "min": "hmin"}
_IDENTITY = {"sum": "(T)0", "max": "-INF", "min": "INF"}


class Sums:
    def __init__(self, frame: Frame, levels: Levels, values: Values) -> None:
        self.frame, self.levels, self.values = frame, levels, values
        self.nest, self.nodes, self.axes = frame.nest, frame.nodes, frame.axes
        self.whole = frame.scheduler.whole
        self.lanes: dict[str, tuple[str, int]] = {}
        """Where sums across lanes that were taken together lie: vector and lane, by name."""

    def _identity(self, ref: Ref) -> str:
        return (integers.IDENTITY if ref in self.whole else _IDENTITY)[self.frame.op(ref)]

    def open_at(self, ref: Ref) -> int:
        """The level where a contraction's accumulators are declared, or -1 if it needs none."""
        if ref in self.nest.memory:
            return -1
        level = self.frame.level(ref)
        return level if self.frame.level(self.frame.argument(ref)) > level else -1

    def clear(self, ref: Ref) -> None:
        """Fill the scratch of a contraction that is summed in memory."""
        pointer = self.values.write(Store(ref, self.axes[ref], ("scratch", ref))).pointer
        start = self._identity(ref)
        self.frame.put(f"for (int64_t z = 0; z < {pointer}_size; z++) {pointer}[z] = {start};")

    def declare(self, ref: Ref) -> None:
        """Accumulators that hold nothing yet."""
        axes, start = self.frame.argued(ref), self._identity(ref)
        kind = self.frame.type(axes, ref in self.whole)
        start = f"bc({start})" if self.frame.vector(axes) else start
        for name in dict.fromkeys(self._sum_name(ref, at) for at in self.frame.combos(axes)):
            self.frame.put(f"{kind} {name} = {start};")

    def add(self, ref: Ref, at: Combo) -> None:
        """Add one entry of the argument to its accumulator."""
        name = self._sum_name(ref, at)
        self.frame.put(f"{name} = {self._join(ref, name, self._term(ref, at))};")

    def join_in(self, ref: Ref, at: Combo, first: bool) -> None:
        """The same for a contraction that begins and ends at this level."""
        name, term = self.frame.name(ref, at, "r"), self._term(ref, at)
        if first:
            kind = self.frame.type(self.frame.argued(ref), ref in self.whole)
            self.frame.put(f"{kind} {name} = {term};")
        else:
            self.frame.put(f"{name} = {self._join(ref, name, term)};")

    def add_in_memory(self, ref: Ref) -> None:
        access = self.values.write(Store(ref, self.axes[ref], ("scratch", ref)))
        for at in self.frame.combos(self.axes[ref]):
            value = self._folded(ref, self._terms(ref, at))
            old = self.values.load(access, self.axes[ref], at)
            self.values.put_value(access, self.axes[ref], at, self._join(ref, old, value), False)

    def finish(self, refs: list[Ref], waiting: list[Ref]) -> None:
        """Define finished contractions; sums across lanes are taken several at a time."""
        across: list[tuple[str, str]] = []
        for ref in refs:
            axes = self.axes[ref]
            for at in self.frame.combos(axes):
                values = self._sums(ref, at) if ref in waiting else [self.frame.name(ref, at, "r")]
                if self._crosses(ref) and self.frame.op(ref) == "sum" and ref not in self.whole:
                    across.append((self.frame.name(ref, at), self._joined(ref, values)))
                else:
                    kind, name = self.frame.type(axes, ref in self.whole), self.frame.name(ref, at)
                    self.frame.put(f"const {kind} {name} = {self._folded(ref, values)};")
        while across:
            many = min(len(across), self.frame.scheduler.lanes)
            many = 1 << (many.bit_length() - 1)
            self._fold(across[:many])
            across = across[many:]

    def _fold(self, sums: list[tuple[str, str]]) -> None:
        if len(sums) == 1:
            self.frame.put(f"const T {sums[0][0]} = hsum({sums[0][1]});")
            return
        first = sums[0][0]
        self.frame.put(f"const V x{first} = fold{len(sums)}({', '.join(v for _, v in sums)});")
        self.lanes |= {name: (f"x{first}", lane) for lane, (name, _) in enumerate(sums)}
        for lane, (name, _) in enumerate(sums):
            self.frame.put(f"const T {name} = x{first}[{lane}];")

    def _sums(self, ref: Ref, kept: Combo) -> list[str]:
        """The accumulators that together hold one entry of a contraction."""
        gone = self.frame.argued(ref) - self.axes[ref]
        return list(dict.fromkeys(self._sum_name(ref, {**kept, **more}) for more in self.frame.combos(gone)))

    def _terms(self, ref: Ref, kept: Combo) -> list[str]:
        gone = self.frame.argued(ref) - self.axes[ref]
        return [self._term(ref, {**kept, **at}) for at in self.frame.combos(gone)]

    def _term(self, ref: Ref, at: Combo) -> str:
        """One entry of a contraction's argument, lanes past the end replaced by the identity."""
        arg = self.frame.argument(ref)
        vector = self.frame.vector(self.axes[arg])
        value = self.values.number(arg, at, vector)
        x = self.nest.x
        if x is not None and vector and x not in self.axes[ref]:
            count = self.frame.bind[x][at[x]].count
            if count:
                return f"keep({value}, {count}, {self._identity(ref)})"
        return value

    def _sum_name(self, ref: Ref, at: Combo) -> str:
        """The accumulator of one unrolled position."""
        marks, left = "", self._chains(ref)
        for a in self.nest.order:
            if a not in self.frame.argued(ref) or not self.frame.unrolled(a):
                continue
            if a in self.axes[ref]:
                marks += f"_{at[a]}"
            elif left > 1:
                many = min(self.nest.unroll[a], left)
                marks += f"_{at[a] % many}"
                left //= many
        return f"r{ref}{marks}"

    def _chains(self, ref: Ref) -> int:
        """Accumulators per entry of a contraction: enough that its additions, each waiting
        for the last, take no longer than what else is computed; four at most."""
        level = self.frame.level(self.frame.argument(ref))
        busy = sum(isinstance(self.nodes[r], Pointwise) for r in self.levels.before[level]) + len(
            self.nest.reductions
        )
        kept = math.prod(self.nest.unroll.get(a, 1) for a in self.axes[ref])
        return max(1, min(4, -(-16 // max(1, busy * kept))))

    def _joined(self, ref: Ref, values: list[str]) -> str:
        """Partial results joined pairwise, lane by lane."""
        while len(values) > 1:
            pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
            values = [(f"({self._join(ref, *p)})" if len(p) == 2 else p[0]) for p in pairs]
        return values[0]

    def _join(self, ref: Ref, left: str, right: str) -> str:
        op = self.frame.op(ref)
        if ref in self.whole:
            return f"{integers.JOIN[op]}({left}, {right})"
        return f"{left} + {right}" if op == "sum" else f"v{op}({left}, {right})"

    def _crosses(self, ref: Ref) -> bool:
        """Whether the contraction also runs across the lanes of a vector."""
        return self.frame.vector(self.frame.argued(ref)) and not self.frame.vector(self.axes[ref])

    def _folded(self, ref: Ref, values: list[str]) -> str:
        text = self._joined(ref, values)
        return f"{_FOLD[self.frame.op(ref)]}({text})" if self._crosses(ref) else text


__all__ = ["Sums"]
