"""One loop nest as C++ text.

Takes a ``Nest`` and, for every value it reads or stores, an ``Access``; leaves lines.
Unrolling is textual: a value has one variable per unrolled entry of its axes, so register
tiles do not depend on the compiler's own unrolling.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator

from tenfuse.emit.cpp.preamble import BOOLEAN, COMPARE, expression
from tenfuse.emit.cpp.schedule import Nest, Scheduler, Store
from tenfuse.step.program import AxisName, Const, Contract, Pointwise, Ref, arguments


@dataclasses.dataclass(frozen=True)
class Access:
    """Memory with one stride per local axis; ``padded`` memory may be read and written
    in whole vectors beyond an axis' last entry.

    With ``panel`` the entries of the vector axis lie in blocks, one block for all entries
    of the other axes, so that a register tile streams through contiguous memory: the
    first index of a block is then multiplied by ``panel``.
    """

    pointer: str
    dims: tuple[tuple[AxisName, str], ...]
    padded: bool = False
    panel: str = ""
    far: bool = False
    """Written once and not read here: large ones are written past the cache."""
    later: str = ""
    """Where not empty, the bytes from an entry to the one to ask for when it is read."""


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


Combo = dict[AxisName, int]
_FOLD = {"sum": "hsum", "max": "hmax", "min": "hmin"}
_IDENTITY = {"sum": "(T)0", "max": "-INF", "min": "INF"}


def literal(value: float, compute: str) -> str:
    if value != value:
        return "NOT"
    if value in (float("inf"), float("-inf")):
        return "INF" if value > 0 else "(-INF)"
    text = repr(float(value)) + ("" if compute == "f64" else "f")
    return f"({text})" if text.startswith("-") else text


class NestWriter:
    """Writes one nest; ``read(ref)`` and ``write(store)`` say where values lie."""

    def __init__(
        self,
        scheduler: Scheduler,
        nest: Nest,
        read: Callable[[Ref], Access],
        write: Callable[[Store], Access],
        adds: frozenset[tuple[str, int]] = frozenset(),
    ) -> None:
        self.s, self.nest = scheduler, nest
        self.nodes = scheduler.program.nodes
        self.read, self.write, self.adds = read, write, adds
        self.lines: list[str] = []
        self.bind: dict[AxisName, list[Entry]] = {}
        self.depth = 0
        self._classify()

    def _classify(self) -> None:
        """Sort the nest's nodes by level, before or after the loops inside that level."""
        depth = len(self.nest.order) + 1
        self.before: list[list[Ref]] = [[] for _ in range(depth)]
        self.after: list[list[Ref]] = [[] for _ in range(depth)]
        self.late = late = set[Ref]()
        for ref in sorted(self.s.computed(self.nest)):
            node = self.nodes[ref]
            if isinstance(node, Const):
                continue
            if ref in self.nest.reductions and ref not in self.nest.kept:
                late.add(ref)
                continue
            if (
                isinstance(node, Pointwise)
                and ref not in self.nest.kept
                and any(a in late for a in node.args)
            ):
                late.add(ref)
                self.after[self._level(ref)].append(ref)
            else:
                self.before[self._level(ref)].append(ref)
        for level in range(depth - 1):
            inside = self._used_inside(level)
            waiting = [r for r in self.before[level] if r not in inside]
            self.before[level] = [r for r in self.before[level] if r in inside]
            self.after[level] = sorted(waiting + self.after[level])

    def _used_inside(self, level: int) -> set[Ref]:
        """The values of a level that its inner loops, or sums taken before them, read: others
        would only take registers from the loops."""
        found = {self._argument(r) for r in self.nest.reductions}
        for deeper in range(level + 1, len(self.before)):
            for ref in (*self.before[deeper], *self.after[deeper]):
                if ref not in self.nest.kept:
                    found |= set(arguments(self.nodes[ref]))
        found |= {s.ref for s in self.nest.stores if self.s.level(self.nest, s.axes) > level}
        for ref in reversed(self.before[level]):
            if ref in found and ref not in self.nest.kept:
                found |= set(arguments(self.nodes[ref]))
        return found

    def _level(self, ref: Ref) -> int:
        return self.s.level(self.nest, self.s.axes[ref])

    # -- text ---------------------------------------------------------------------------

    def put(self, line: str) -> None:
        self.lines.append("  " * self.depth + line)

    def text(self) -> list[str]:
        self.put("{")
        self.depth += 1
        for ref in self.nest.reductions:
            if ref in self.nest.memory:
                self._clear(ref)
        self._scope(0)
        self.depth -= 1
        self.put("}")
        return self.lines

    def _clear(self, ref: Ref) -> None:
        """Fill the scratch of a contraction that is summed in memory."""
        access = self.write(Store(ref, self.s.axes[ref], ("scratch", ref)))
        node = self.nodes[ref]
        assert isinstance(node, Contract)
        self.put(
            f"for (int64_t z = 0; z < {access.pointer}_size; z++) {access.pointer}[z] = {_IDENTITY[node.op]};"
        )

    def _scope(self, level: int) -> None:
        """Everything at one level: values, inner loops, finished contractions, stores."""
        stores = [s for s in self.nest.stores if self.s.level(self.nest, s.axes) == level]
        waiting = [r for r in self.nest.reductions if self._open_at(r) == level]
        done = [r for r in self.nest.reductions if r not in self.nest.memory and self._level(r) == level]
        ready = [s for s in stores if level == len(self.nest.order) and s.ref not in self.late]
        self._positions(level, [r for r in done if r not in waiting], ready)
        for ref in waiting:
            self._declare(ref)
        if level < len(self.nest.order):
            self._loops(level)
        self._finish(done, waiting)
        for ref in self.after[level]:
            for at in self._combos(self.s.axes[ref]):
                self._define(ref, at)
        for store in stores:
            if store not in ready:
                for at in self._combos(store.axes):
                    self._store(store, at)

    def _positions(self, level: int, direct: list[Ref], ready: list[Store]) -> None:
        """Values, sums and stores of one level, as many unrolled positions together as have
        their values in registers: compilers keep much of the order they are given.
        """
        adding = [
            r
            for r in self.nest.reductions
            if r not in direct and r not in self.nest.memory and self._level(self._argument(r)) == level
        ]
        axes = frozenset(self.nest.order[:level])
        seen: set[tuple[str, int, tuple[int, ...]]] = set()
        order = [a for a in self.nest.order if a in axes and a != self.nest.x]
        order += [self.nest.x] if self.nest.x in axes else []  # type: ignore[list-item]

        def new(kind: str, ref: int, own: frozenset[AxisName], at: Combo) -> bool:
            key = (kind, ref, tuple(at[a] for a in order if a in own))
            fresh = key not in seen
            seen.add(key)
            return fresh

        positions = [
            dict(zip(order, places, strict=True))
            for places in itertools.product(*(range(self._count(a)) for a in order))
        ]
        many = max(1, self.s.isa.registers // max(1, len(self.before[level])))
        while positions:
            batch, positions = positions[:many], positions[many:]
            for ref, at in itertools.product(self.before[level], batch):
                if new("value", ref, self.s.axes[ref], at):
                    self._define(ref, at)
            for ref, at in itertools.product(adding, batch):
                if new("sum", ref, self.s.axes[self._argument(ref)], at):
                    self._add(ref, at)
            for ref, at in itertools.product(direct, batch):
                if new("sum", ref, self.s.axes[self._argument(ref)], at):
                    self._join_in(ref, at, new("entry", ref, self.s.axes[ref], at))
            for (n, store), at in itertools.product(enumerate(ready), batch):
                if new("store", n, store.axes, at):
                    self._store(store, at)
        for ref in self.nest.reductions:
            if ref in self.nest.memory and self._level(self._argument(ref)) == level:
                self._add_in_memory(ref)

    # -- loops --------------------------------------------------------------------------

    def _loops(self, level: int) -> None:
        axis = self.nest.order[level]
        role = self.s.spaces.axes[axis]
        lanes = self.s.lanes if axis == self.nest.x else 1
        many = self.nest.unroll.get(axis, 1)
        var, stride = f"i{role.id}", many * lanes
        if isinstance(role.extent, int):
            self._fixed(level, axis, role.extent, many, lanes)
            return
        self.put(f"int64_t {var} = 0;")
        entries = [Entry(var, u * lanes) for u in range(many)]
        if many > 1 or lanes > 1:
            self._block(level, axis, f"for (; {var} + {stride} <= {role.extent}; {var} += {stride})", entries)
        count = f"{role.extent} - {var}" if lanes > 1 else ""
        if many > 1 or lanes == 1:
            step = lanes
            if lanes > 1:
                self._block(
                    level, axis, f"for (; {var} + {lanes} <= {role.extent}; {var} += {lanes})", [Entry(var)]
                )
            else:
                self._block(level, axis, f"for (; {var} < {role.extent}; {var} += {step})", [Entry(var)])
        if lanes > 1:
            self._block(level, axis, f"if ({var} < {role.extent})", [Entry(var, 0, count)])

    def _fixed(self, level: int, axis: AxisName, extent: int, many: int, lanes: int) -> None:
        var, stride = f"i{self.s.spaces.axes[axis].id}", many * lanes
        whole, rest = divmod(extent, stride)
        if whole == 1:
            self._block(level, axis, "", [Entry("0", u * lanes) for u in range(many)])
        elif whole:
            entries = [Entry(var, u * lanes) for u in range(many)]
            self._block(
                level, axis, f"for (int64_t {var} = 0; {var} < {whole * stride}; {var} += {stride})", entries
            )
        if rest:
            base, last = whole * stride, -(-rest // lanes) - 1
            entries = [Entry(str(base), u * lanes) for u in range(last + 1)]
            if lanes > 1 and rest % lanes:
                entries[last] = Entry(str(base), last * lanes, str(rest % lanes))
            self._block(level, axis, "", entries)

    def _block(self, level: int, axis: AxisName, head: str, entries: list[Entry]) -> None:
        self.put(f"{head} {{".strip())
        self.depth += 1
        self.bind[axis] = entries
        self._scope(level + 1)
        del self.bind[axis]
        self.depth -= 1
        self.put("}")

    # -- values -------------------------------------------------------------------------

    def _combos(self, axes: frozenset[AxisName]) -> Iterator[Combo]:
        """Every unrolled position over ``axes``."""
        mine = [a for a in self.nest.order if a in axes]
        for places in itertools.product(*(range(self._count(a)) for a in mine)):
            yield dict(zip(mine, places, strict=True))

    def _count(self, axis: AxisName) -> int:
        return len(self.bind[axis]) if axis in self.bind else self.nest.unroll.get(axis, 1)

    def _name(self, ref: Ref, at: Combo, letter: str = "v") -> str:
        axes = self.s.axes[ref]
        marks = "".join(f"_{at[a]}" for a in self.nest.order if a in axes and self._unrolled(a))
        return f"{letter}{ref}{marks}"

    def _unrolled(self, axis: AxisName) -> bool:
        return self.nest.unroll.get(axis, 1) > 1

    def _vector(self, axes: frozenset[AxisName]) -> bool:
        return self.nest.x is not None and self.nest.x in axes

    def _is_mask(self, ref: Ref) -> bool:
        node = self.nodes[ref]
        return isinstance(node, Pointwise) and node.fn in BOOLEAN and ref not in self.nest.kept

    def _define(self, ref: Ref, at: Combo) -> None:
        node, axes = self.nodes[ref], self.s.axes[ref]
        if isinstance(node, Pointwise) and ref not in self.nest.kept:
            kind = ("M" if self._vector(axes) else "bool") if self._is_mask(ref) else self._type(axes)
            value = self._compute(ref, at)
        else:
            access = self.read(ref)
            kind, value = self._type(axes), self._load(access, axes, at)
            if access.later and kind == "V":
                self.put(f"soon({self._address(access, at)[0]}, {access.later});")
        self.put(f"const {kind} {self._name(ref, at)} = {value};")

    def _type(self, axes: frozenset[AxisName]) -> str:
        return "V" if self._vector(axes) else "T"

    def _number(self, ref: Ref, at: Combo, vector: bool) -> str:
        """The value of an argument; as a vector if the caller needs one."""
        node = self.nodes[ref]
        if isinstance(node, Const):
            text = literal(node.value, self.s.kernel.compute)
            return f"bc({text})" if vector else text
        name = self._name(ref, at)
        if self._is_mask(ref):
            name = f"num({name})"
        return f"bc({name})" if vector and not self._vector(self.s.axes[ref]) else name

    def _mask(self, ref: Ref, at: Combo, vector: bool) -> str:
        name = self._name(ref, at) if self._is_mask(ref) else f"truth({self._number(ref, at, False)})"
        return f"bcm({name})" if vector and not self._vector(self.s.axes[ref]) else name

    def _compute(self, ref: Ref, at: Combo) -> str:
        node = self.nodes[ref]
        assert isinstance(node, Pointwise)
        vector = self._vector(self.s.axes[ref])
        if node.fn == "where":
            chosen = [self._number(a, at, vector) for a in node.args[1:]]
            return f"sel({self._mask(node.args[0], at, False)}, {', '.join(chosen)})"
        if node.fn in ("logical_and", "logical_or"):
            sign = " & " if node.fn == "logical_and" else " | "
            return sign.join(self._mask(a, at, vector) for a in node.args)
        if node.fn == "logical_not":
            return f"flip({self._mask(node.args[0], at, vector)})"
        if node.fn in COMPARE:
            left, right = (self._number(a, at, vector) for a in node.args)
            return f"{left} {COMPARE[node.fn]} {right}"
        numbers = [self._number(a, at, vector) for a in node.args]
        if node.fn == "isnan":
            return f"is_nan({numbers[0]})"
        if node.fn == "pow":
            power = self.nodes[node.args[1]]
            if isinstance(power, Const) and power.value in (1.0, 2.0, 3.0):
                return " * ".join([numbers[0]] * int(power.value))
        return expression(node.fn, numbers)

    # -- memory -------------------------------------------------------------------------

    def _address(self, access: Access, at: Combo) -> tuple[str, str, str]:
        """The address of the entry, the stride along the vector axis and the lane count."""
        terms, stride, count = [access.pointer], "", ""
        for axis, step in access.dims:
            entry = self.bind[axis][at.get(axis, 0)]
            if axis == self.nest.x:
                stride, count = step, entry.count
            if axis == self.nest.x and access.panel:
                terms += [f"{entry.base} * {access.panel}"] if entry.base != "0" else []
                terms += [str(entry.offset)] if entry.offset else []
            elif entry.index != "0":
                wrapped = f"({entry.index})" if "+" in entry.index else entry.index
                terms.append(wrapped if step == "1" else f"{wrapped} * {step}")
        return " + ".join(terms), stride, count

    def _load(self, access: Access, axes: frozenset[AxisName], at: Combo) -> str:
        address, stride, count = self._address(access, at)
        if not self._vector(axes):
            return f"ld1({address})"
        if stride != "1":
            return f"lds({address}, {stride}, {count or 'W'})"
        return f"ldn({address}, {count})" if count and not access.padded else f"ld({address})"

    def _store(self, store: Store, at: Combo) -> None:
        value = self._number(store.ref, at, self._vector(store.axes))
        add = store.target[0] == "sum" or store.target in self.adds
        self._put_value(self.write(store), store.axes, at, value, add)

    def _put_value(self, access: Access, axes: frozenset[AxisName], at: Combo, value: str, add: bool) -> None:
        address, stride, count = self._address(access, at)
        if add:
            value = f"{self._load(access, axes, at)} + {value}"
        if not self._vector(axes):
            self.put(f"st1({address}, {value});")
        elif stride != "1":
            self.put(f"sts({address}, {stride}, {value}, {count or 'W'});")
        elif count and not access.padded:
            self.put(f"stn({address}, {value}, {count});")
        elif access.far:
            self.put(f"stf({address}, {value}, far);")
        else:
            self.put(f"st({address}, {value});")

    # -- contractions ---------------------------------------------------------------------

    def _argument(self, ref: Ref) -> Ref:
        node = self.nodes[ref]
        assert isinstance(node, Contract)
        return node.arg

    def _open_at(self, ref: Ref) -> int:
        """The level where a contraction's accumulators are declared, or -1 if it needs none."""
        if ref in self.nest.memory:
            return -1
        level = self._level(ref)
        return level if self._level(self._argument(ref)) > level else -1

    def _join(self, ref: Ref, left: str, right: str) -> str:
        node = self.nodes[ref]
        assert isinstance(node, Contract)
        return f"{left} + {right}" if node.op == "sum" else f"v{node.op}({left}, {right})"

    def _term(self, ref: Ref, at: Combo) -> str:
        """One entry of a contraction's argument, lanes past the end replaced by the identity."""
        arg = self._argument(ref)
        vector = self._vector(self.s.axes[arg])
        value = self._number(arg, at, vector)
        x = self.nest.x
        if x is not None and vector and x not in self.s.axes[ref]:
            count = self.bind[x][at[x]].count
            node = self.nodes[ref]
            assert isinstance(node, Contract)
            if count:
                return f"keep({value}, {count}, {_IDENTITY[node.op]})"
        return value

    def _sum_name(self, ref: Ref, at: Combo) -> str:
        """The accumulator of one unrolled position."""
        marks, left = "", self._chains(ref)
        for a in self.nest.order:
            if a not in self.s.axes[self._argument(ref)] or not self._unrolled(a):
                continue
            if a in self.s.axes[ref]:
                marks += f"_{at[a]}"
            elif left > 1:
                many = min(self.nest.unroll[a], left)
                marks += f"_{at[a] % many}"
                left //= many
        return f"r{ref}{marks}"

    def _chains(self, ref: Ref) -> int:
        """Accumulators per entry of a contraction: enough that its additions, each waiting
        for the last, take no longer than what else is computed; four at most."""
        level = self._level(self._argument(ref))
        busy = sum(isinstance(self.nodes[r], Pointwise) for r in self.before[level]) + len(
            self.nest.reductions
        )
        kept = math.prod(self.nest.unroll.get(a, 1) for a in self.s.axes[ref])
        return max(1, min(4, -(-16 // max(1, busy * kept))))

    def _declare(self, ref: Ref) -> None:
        arg = self._argument(ref)
        node = self.nodes[ref]
        assert isinstance(node, Contract)
        kind = self._type(self.s.axes[arg])
        start = f"bc({_IDENTITY[node.op]})" if kind == "V" else _IDENTITY[node.op]
        for name in dict.fromkeys(self._sum_name(ref, at) for at in self._combos(self.s.axes[arg])):
            self.put(f"{kind} {name} = {start};")

    def _add(self, ref: Ref, at: Combo) -> None:
        """Add one entry of the argument to its accumulator."""
        name = self._sum_name(ref, at)
        self.put(f"{name} = {self._join(ref, name, self._term(ref, at))};")

    def _join_in(self, ref: Ref, at: Combo, first: bool) -> None:
        """The same for a contraction that begins and ends at this level."""
        name, term = self._name(ref, at, "r"), self._term(ref, at)
        if first:
            self.put(f"{self._type(self.s.axes[self._argument(ref)])} {name} = {term};")
        else:
            self.put(f"{name} = {self._join(ref, name, term)};")

    def _add_in_memory(self, ref: Ref) -> None:
        access = self.write(Store(ref, self.s.axes[ref], ("scratch", ref)))
        for at in self._combos(self.s.axes[ref]):
            value = self._folded(ref, self._terms(ref, at))
            old = self._load(access, self.s.axes[ref], at)
            self._put_value(access, self.s.axes[ref], at, self._join(ref, old, value), False)

    def _terms(self, ref: Ref, kept: Combo) -> list[str]:
        gone = self.s.axes[self._argument(ref)] - self.s.axes[ref]
        return [self._term(ref, {**kept, **at}) for at in self._combos(gone)]

    def _joined(self, ref: Ref, values: list[str]) -> str:
        """Partial results joined pairwise, lane by lane."""
        while len(values) > 1:
            pairs = [values[i : i + 2] for i in range(0, len(values), 2)]
            values = [(f"({self._join(ref, *p)})" if len(p) == 2 else p[0]) for p in pairs]
        return values[0]

    def _crosses(self, ref: Ref) -> bool:
        """Whether the contraction also runs across the lanes of a vector."""
        return self._vector(self.s.axes[self._argument(ref)]) and not self._vector(self.s.axes[ref])

    def _folded(self, ref: Ref, values: list[str]) -> str:
        node = self.nodes[ref]
        assert isinstance(node, Contract)
        text = self._joined(ref, values)
        return f"{_FOLD[node.op]}({text})" if self._crosses(ref) else text

    def _finish(self, refs: list[Ref], waiting: list[Ref]) -> None:
        """Define finished contractions; sums across lanes are taken several at a time."""
        across: list[tuple[str, str]] = []
        for ref in refs:
            node, axes = self.nodes[ref], self.s.axes[ref]
            assert isinstance(node, Contract)
            for at in self._combos(axes):
                values = self._sums(ref, at) if ref in waiting else [self._name(ref, at, "r")]
                if self._crosses(ref) and node.op == "sum":
                    across.append((self._name(ref, at), self._joined(ref, values)))
                else:
                    self.put(f"const {self._type(axes)} {self._name(ref, at)} = {self._folded(ref, values)};")
        while across:
            many = min(len(across), self.s.lanes)
            many = 1 << (many.bit_length() - 1)
            self._fold(across[:many])
            across = across[many:]

    def _fold(self, sums: list[tuple[str, str]]) -> None:
        if len(sums) == 1:
            self.put(f"const T {sums[0][0]} = hsum({sums[0][1]});")
            return
        first = sums[0][0]
        self.put(f"const V x{first} = fold{len(sums)}({', '.join(v for _, v in sums)});")
        for lane, (name, _) in enumerate(sums):
            self.put(f"const T {name} = x{first}[{lane}];")

    def _sums(self, ref: Ref, kept: Combo) -> list[str]:
        """The accumulators that together hold one entry of a contraction."""
        gone = self.s.axes[self._argument(ref)] - self.s.axes[ref]
        return list(dict.fromkeys(self._sum_name(ref, {**kept, **more}) for more in self._combos(gone)))


__all__ = ["Access", "NestWriter", "arguments", "literal"]
