"""Values of a nest: read, computed and stored, scalar or as vectors.

Takes an open ``Frame`` and where values lie; leaves one line per value and position.
"""

from __future__ import annotations

from collections.abc import Callable

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.frame import Combo, Frame
from tenfuse.emit.cpp.integers import literal as integer
from tenfuse.emit.cpp.preamble import BOOLEAN, COMPARE, expression
from tenfuse.emit.cpp.shape import Store
from tenfuse.step.program import AxisName, Const, Pointwise, Ref, arguments

Read = Callable[[Ref], Access]
Write = Callable[[Store], Access]
_OFTEN = 3
"""Operations on one loaded vector from which on it gets a register."""


def literal(value: float, compute: str) -> str:
    if value != value:
        return "NOT"
    if value in (float("inf"), float("-inf")):
        return "INF" if value > 0 else "(-INF)"
    text = repr(float(value)) + ("" if compute == "f64" else "f")
    return f"({text})" if text.startswith("-") else text


class Values:
    """``read(ref)`` and ``write(store)`` say where values lie; ``adds`` are targets added to."""

    def __init__(self, frame: Frame, read: Read, write: Write, adds: frozenset[tuple[str, int]]) -> None:
        self.frame, self.nest, self.nodes, self.axes = frame, frame.nest, frame.nodes, frame.axes
        self.read, self.write, self.adds = read, write, adds
        self.whole = frame.scheduler.whole
        self.computed = frame.scheduler.computed(frame.nest) - frame.nest.kept
        self.ones: set[Ref] = set()
        """Numbers that are known to be one in the loops being written."""

    def define(self, ref: Ref, at: Combo) -> None:
        node, axes = self.nodes[ref], self.axes[ref]
        if isinstance(node, Pointwise) and ref not in self.nest.kept:
            mask = "M" if self.frame.vector(axes) else "bool"
            kind = mask if self._is_mask(ref) else self.frame.type(axes, ref in self.whole)
            value = self._compute(ref, at)
        else:
            access = self.read(ref)
            kind, value = self.frame.type(axes, ref in self.whole), self.load(access, axes, at)
            if access.later and kind == "V":
                self.frame.put(f"soon({self.frame.address(access, at)[0]}, {access.later});")
            if kind == "V" and self._often(ref):
                value = f"once({value})"
        self.frame.put(f"const {kind} {self.frame.name(ref, at)} = {value};")

    def _often(self, ref: Ref) -> bool:
        """Whether every entry that the nest passes is read by several operations: compilers load
        it again for each, which takes longer than the operations."""
        whole = frozenset(self.nest.order)
        if len(whole) < 2 or self.axes[ref] != whole:
            return False
        return sum(ref in arguments(self.nodes[r]) for r in self.computed) >= _OFTEN

    def number(self, ref: Ref, at: Combo, vector: bool) -> str:
        """The value of an argument; as a vector if the caller needs one."""
        node = self.nodes[ref]
        if isinstance(node, Const):
            compute = self.frame.scheduler.kernel.compute
            text = integer(node.value) if isinstance(node.value, int) else literal(node.value, compute)
            return f"bc({text})" if vector else text
        name = self.frame.name(ref, at)
        if self._is_mask(ref):
            name = f"num({name})"
        return f"bc({name})" if vector and not self.frame.vector(self.axes[ref]) else name

    def _mask(self, ref: Ref, at: Combo, vector: bool) -> str:
        name = self.frame.name(ref, at) if self._is_mask(ref) else f"truth({self.number(ref, at, False)})"
        return f"bcm({name})" if vector and not self.frame.vector(self.axes[ref]) else name

    def _is_mask(self, ref: Ref) -> bool:
        node = self.nodes[ref]
        return isinstance(node, Pointwise) and node.fn in BOOLEAN and ref not in self.nest.kept

    def _compute(self, ref: Ref, at: Combo) -> str:
        node = self.nodes[ref]
        assert isinstance(node, Pointwise)
        vector = self.frame.vector(self.axes[ref])
        if node.fn in ("where", "ichoose"):
            chosen = [self.number(a, at, vector) for a in node.args[1:]]
            return f"sel({self._mask(node.args[0], at, False)}, {', '.join(chosen)})"
        if node.fn in ("logical_and", "logical_or"):
            sign = " & " if node.fn == "logical_and" else " | "
            return sign.join(self._mask(a, at, vector) for a in node.args)
        if node.fn == "logical_not":
            return f"flip({self._mask(node.args[0], at, vector)})"
        if node.fn in COMPARE:
            left, right = (self.number(a, at, vector) for a in node.args)
            return f"{left} {COMPARE[node.fn]} {right}"
        numbers = [self.number(a, at, vector) for a in node.args]
        if self._skipped(ref):
            return numbers[node.args[0] in self.ones]
        if node.fn == "add" and vector and any(self._skipped(a) for a in node.args):
            # An addition beside a product takes other units of the processor than a multiply-add.
            numbers = [
                n if self._skipped(a) else f"once({n})" for a, n in zip(node.args, numbers, strict=True)
            ]
        if node.fn == "isnan":
            return f"is_nan({numbers[0]})"
        if node.fn == "pow":
            power = self.nodes[node.args[1]]
            if isinstance(power, Const) and power.value in (1.0, 2.0, 3.0):
                return " * ".join([numbers[0]] * int(power.value))
        return expression(node.fn, numbers)

    def _skipped(self, ref: Ref) -> bool:
        """Whether a product is by a number known to be one."""
        node = self.nodes[ref]
        return isinstance(node, Pointwise) and node.fn == "mul" and bool(self.ones & set(node.args))

    def load(self, access: Access, axes: frozenset[AxisName], at: Combo) -> str:
        address, stride, count = self.frame.address(access, at)
        if not self.frame.vector(axes):
            return f"ld1({address})"
        if stride != "1":
            return f"lds({address}, {stride}, {count or 'W'})"
        return f"ldn({address}, {count})" if count and not access.padded else f"ld({address})"

    def store(self, store: Store, at: Combo) -> None:
        value = self.number(store.ref, at, self.frame.vector(store.axes))
        add = store.target[0] == "sum" or store.target in self.adds
        self.put_value(self.write(store), store.axes, at, value, add)

    def put_value(self, access: Access, axes: frozenset[AxisName], at: Combo, value: str, add: bool) -> None:
        address, stride, count = self.frame.address(access, at)
        if add:
            value = f"{self.load(access, axes, at)} + {value}"
        if not self.frame.vector(axes):
            self.frame.put(f"st1({address}, {value});")
        elif stride != "1":
            self.frame.put(f"sts({address}, {stride}, {value}, {count or 'W'});")
        elif count and not access.padded:
            self.frame.put(f"stn({address}, {value}, {count});")
        elif access.far:
            self.frame.put(f"stf({address}, {value}, {access.far});")
        else:
            self.frame.put(f"st({address}, {value});")


__all__ = ["Read", "Values", "Write", "literal"]
