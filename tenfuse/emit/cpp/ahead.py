"""Asking for memory some steps before it is read.

Takes the lines of a step and the pointers they use; leaves lines that ask for the same
streams ``lead`` steps later, and for the checkpoint of the next chunk while one is walked
back.  They change no value, only when memory answers.
"""

from __future__ import annotations

import math

from tenfuse.emit.cpp.access import Access
from tenfuse.emit.cpp.operands import Operands, uses
from tenfuse.plan.kernel import Operand
from tenfuse.step.program import AxisName

AHEAD = 2048
"""Vector operations between asking for a stream's entries and reading them: about the time
that memory takes to answer."""
FURTHEST = 16
"""Steps that a stream is asked for ahead, at most."""
LINE, PAGE = 64, 4096
ITEM = {"f32": 4, "f64": 8, "bf16": 2, "f16": 2, "bool": 1, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "u8": 1}


def distance(work: int) -> int:
    """How many steps of ``work`` vector operations to ask ahead."""
    return min(FURTHEST, -(-AHEAD // max(work, 1)))


def soon(operands: Operands, names: list[str], work: int) -> list[str]:
    """Lines that ask for the streams used in ``names``, ``lead`` steps later than ``t``.

    A step's slice is short and its neighbours in memory belong to other steps or tasks,
    which the hardware does not see coming.  Nothing where the step does little work.
    """
    text = "\n".join(names)
    asked: dict[int, list[str]] = {}
    for (place, axes), number in operands.pointers.items():
        operand = operands.kernel.operands[place]
        used = uses(text, f"q{number}") or uses(text, f"a{number}")
        if operand.role == "stream" and place not in asked and used:
            start = f"(t + lead) * s{place}_0"
            asked[place] = [
                f"soon(p{number}, (int64_t)sizeof(*p{number}) * ({start}{offset}) + {byte});"
                for offset, byte in _cache_lines(operands, operand, place, axes)
            ]
    lines = [line for each in asked.values() for line in each]
    return ["if (lead) {", *lines, "}"] if 0 < 8 * len(lines) <= work else []


def lead(step: list[str], steps: int, within: str) -> list[str]:
    """The definition of ``lead`` if ``step`` uses it: 0 where there is no such step, for
    asking for memory that is not there takes longer than waiting for memory."""
    used = uses("\n".join(step), "lead")
    return [f"const int64_t lead = {within} ? {steps} : 0;"] if used else []


def checkpoint(operands: Operands, index: int, axes: tuple[AxisName, ...], steps: int) -> list[str]:
    """Lines that ask, in step ``k`` of ``steps``, for a share of the state saved before chunk ``z``.

    Nothing for less than a page, which is read before it could be asked for.
    """
    place, found = operands.place("save", index), operands.access("save", index, axes)
    assert place is not None
    if not paged(operands, found, place):
        return []
    rows, size, terms = 1, 0, list[str]()
    for axis, stride in reversed(found.dims):
        extent = operands.spaces.axes[axis].extent
        assert isinstance(extent, int)
        if stride == "1":
            size = extent * ITEM[operands.kernel.operands[place].dtype]
        else:
            terms.append(f"r / {rows} % {extent} * {stride}")
            rows *= extent
    share, name = -(-rows // steps), f"p{found.pointer[1:]}"
    return [
        f"for (int64_t r = k * {share}; r < k * {share} + {share} && r < {rows}; r++) {{",
        f"const int64_t row = {' + '.join([f'(z - 1) * s{place}_0', *terms])};",
        f"for (int64_t b = 0; b < {size}; b += {LINE}) soon({name}, (int64_t)sizeof(*{name}) * row + b);",
        "}",
    ]


def paged(operands: Operands, found: Access, place: int) -> bool:
    """Whether a task's part of an operand, in rows of whole cache lines, takes a page or more."""
    extents = [(stride, operands.spaces.axes[a].extent) for a, stride in found.dims]
    known = {stride: extent for stride, extent in extents if isinstance(extent, int)}
    if len(known) < len(extents) or "1" not in known:
        return False
    item = ITEM[operands.kernel.operands[place].dtype]
    return known["1"] * item % LINE == 0 and math.prod(known.values()) * item >= PAGE


def _cache_lines(
    operands: Operands, operand: Operand, place: int, axes: tuple[AxisName, ...]
) -> list[tuple[str, int]]:
    """The cache lines of one step's slice: offset in entries, and bytes beyond it; none if many."""
    found: list[tuple[str, int]] = [("", 0)]
    for p, a in enumerate(axes):
        axis = operands.spaces.axes[a]
        extent = axis.extent
        if axis.kind == "task":
            continue
        if not isinstance(extent, int) or extent * len(found) > 16 * LINE:
            return []
        if operand.axes[p] == operand.unit:
            found = [(o, b) for o, _ in found for b in range(0, extent * ITEM[operand.dtype], LINE)]
        else:
            found = [(f"{o} + {n} * s{place}_{p + 1}", b) for o, b in found for n in range(extent)]
    return found if len(found) <= 16 else []


__all__ = ["FURTHEST", "checkpoint", "distance", "lead", "paged", "soon"]
