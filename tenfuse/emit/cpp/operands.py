"""Where a kernel's tensors lie: strides, base pointers and those of one step.

Takes ``Settled``; leaves an ``Access`` per operand and set of axis names it is read under,
and the lines that define every pointer handed out: ``p3`` is where a task's part of a tensor
begins, ``q3`` its entries of time ``t``, ``a3`` those of the step after.
"""

from __future__ import annotations

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.preamble import STORAGE
from tenfuse.emit.cpp.settle import Settled
from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.step.program import AxisName

TIMED = ("stream", "save")


def timed(kernel: Kernel, operand: Operand) -> bool:
    """Whether the operand's first stride is that of time (or of chunks)."""
    if operand.role == "out":
        return not kernel.program.outs[operand.index].accumulate
    return operand.role in TIMED


def uses(text: str, name: str) -> bool:
    """Whether ``name`` occurs as a whole word."""
    at = text.find(name)
    while at >= 0:
        end = at + len(name)
        if not (end < len(text) and (text[end].isalnum() or text[end] == "_")) and not (
            at > 0 and (text[at - 1].isalnum() or text[at - 1] == "_")
        ):
            return True
        at = text.find(name, end)
    return False


class Operands:
    """Numbers a pointer per operand and set of names; names in the order of asking."""

    def __init__(self, settled: Settled) -> None:
        self.kernel, self.spaces = settled.kernel, settled.spaces
        self.pointers: dict[tuple[int, tuple[AxisName, ...]], int] = {}

    def place(self, role: str, index: int) -> int | None:
        """The position of an operand among the kernel's, if it has it."""
        for i, o in enumerate(self.kernel.operands):
            if o.role == role and o.index == index:
                return i
        return None

    def access(self, role: str, index: int, axes: tuple[AxisName, ...]) -> Access:
        """An operand, its dimensions read under the names ``axes``."""
        place = self.place(role, index)
        assert place is not None, f"the kernel has no operand for {role} {index}"
        operand = self.kernel.operands[place]
        assert len(axes) == len(operand.axes)
        number = self.pointers.setdefault((place, axes), len(self.pointers))
        letter = "q" if timed(self.kernel, operand) else "p"
        first = 1 if timed(self.kernel, operand) else 0
        dims = []
        for p, a in enumerate(axes):
            if self.spaces.axes[a].kind == "task":
                continue
            unit = operand.unit is not None and operand.axes[p] == operand.unit
            dims.append((a, "1" if unit else f"s{place}_{p + first}"))
        far = "far" if role == "out" and timed(self.kernel, operand) else ""
        return Access(f"{letter}{number}", tuple(dims), far=far)

    def ctype(self, operand: Operand) -> str:
        const = "const " if self._input(operand) else ""
        return const + STORAGE[operand.dtype]

    def _input(self, operand: Operand) -> bool:
        if operand.role == "save":
            return self.kernel.backward
        return operand.role in ("init", "stream", "constant")

    # -- text ---------------------------------------------------------------------------

    def strides(self) -> list[str]:
        lines, n = [], 0
        for i, o in enumerate(self.kernel.operands):
            for p in range(len(o.axes) + timed(self.kernel, o)):
                lines.append(f"const int64_t s{i}_{p} = S[{n}]; (void)s{i}_{p};")
                n += 1
        return lines

    def heads(self, names: str | None = None) -> list[str]:
        """Definitions of the pointers to where a task's part begins, of those that ``names`` uses."""
        lines = []
        for (place, axes), number in self.pointers.items():
            if names is not None and not uses(names, f"p{number}"):
                continue
            operand = self.kernel.operands[place]
            first = 1 if timed(self.kernel, operand) else 0
            kind = self.ctype(operand)
            terms = [f"({kind}*)P[{place}]"]
            for p, a in enumerate(axes):
                if self.spaces.axes[a].kind != "full":
                    terms.append(f"o{self.spaces.axes[a].id} * s{place}_{p + first}")
            lines.append(f"{kind}* const p{number} = {' + '.join(terms)};")
        return lines

    def of_step(self, text: str) -> tuple[list[str], list[str]]:
        """Definitions of the pointers that ``text`` uses at time ``t``, and at time ``b``."""
        lines, ahead = [], []
        for (place, _), number in self.pointers.items():
            operand = self.kernel.operands[place]
            if timed(self.kernel, operand) and operand.role != "save" and uses(text, f"q{number}"):
                lines.append(f"{self.ctype(operand)}* const q{number} = p{number} + t * s{place}_0;")
            if uses(text, f"a{number}"):
                ahead.append(f"{self.ctype(operand)}* const a{number} = p{number} + b * s{place}_0;")
        return lines, ahead


__all__ = ["Operands", "timed", "uses"]
