"""Axes of a few entries that are no dimension of a tile: every entry is a tile of its own.

Takes a step program; leaves the axes that the matrices of its scans run along, where these
are small and nothing enters or leaves the kernel along them.  A scan whose decay is such a
matrix is then one scan of its entries and of the vector's (Blelloch 1990, section 1.4, for
matrices written out), and choosing one entry costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from tenfuse.emit.triton.scans import renamed_together
from tenfuse.step.program import (
    AxisName,
    Const,
    Input,
    Pointwise,
    Position,
    Ref,
    Rename,
    Scan,
    Shift,
    Solve,
    StepProgram,
)

MOST_ROWS = 3
"""Rows of a matrix whose entries are tiles of their own: there are as many as its square."""


def small(program: StepProgram) -> frozenset[AxisName]:
    """The axes of the matrices of scans, where all of a matrix can be written out."""
    fixed = {a for n in program.nodes if isinstance(n, (Input, Solve)) for a in _entered(n)}
    fixed |= {n.axis for n in program.nodes if isinstance(n, (Scan, Shift))}
    fixed |= {a for c in program.carries for a in (*c.axes, *c.next_axes)}
    fixed |= {a for o in program.outs for a in o.axes} | program.dynamic
    groups = [g for g in renamed_together(program) if not g & fixed]
    able = {a for g in groups for a in g}
    scans = [n for n in program.nodes if isinstance(n, Scan) and n.rows]
    found: set[AxisName] = set()
    for n in scans:
        rows = math.prod(program.sizes[a] for a in n.rows)
        if rows > MOST_ROWS or not {*n.rows, *n.cols} <= able:
            return frozenset()
        found |= {*n.rows, *n.cols}
    return frozenset(a for g in groups if g & found for a in g)


def _entered(node: Input | Solve) -> tuple[AxisName, ...]:
    return node.axes if isinstance(node, Input) else (*node.rows, *node.cols)


def known(program: StepProgram, ref: Ref, at: dict[AxisName, int]) -> bool | None:
    """The truth of a comparison of positions with numbers, where the positions are those of ``at``."""
    node = program.nodes[ref]
    if not isinstance(node, Pointwise):
        return None
    if node.fn in ("logical_and", "logical_or", "logical_not"):
        inner = [known(program, a, at) for a in node.args]
        if node.fn == "logical_not":
            return None if inner[0] is None else not inner[0]
        decisive = node.fn == "logical_or"
        return decisive if decisive in inner else None if None in inner else not decisive
    values = [_number(program, a, at) for a in node.args]
    if node.fn not in ("lt", "le", "gt", "ge", "eq", "ne") or None in values:
        return None
    a, b = values
    assert a is not None and b is not None
    return {"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "eq": a == b, "ne": a != b}[node.fn]


def _number(program: StepProgram, ref: Ref, at: dict[AxisName, int]) -> float | None:
    node = program.nodes[ref]
    if isinstance(node, Position) and node.axis in at:
        return float(at[node.axis])
    return node.value if isinstance(node, Const) else None


def powers(program: StepProgram, scan: Scan) -> tuple[AxisName, ...] | None:
    """The columns of a scan that only multiplies its matrices, None where it does more.

    Its argument is then the first matrix, with columns renamed, and zero behind.
    """
    arg = program.nodes[scan.arg]
    if scan.reverse or scan.transpose or not isinstance(arg, Pointwise) or arg.fn != "where":
        return None
    chosen, matrix, other = (program.nodes[a] for a in arg.args)
    first = [Position(scan.axis), Const(0.0)]
    if not isinstance(chosen, Pointwise) or chosen.fn != "eq" or other != Const(0.0):
        return None
    if [program.nodes[a] for a in chosen.args] != first or not isinstance(matrix, Rename):
        return None
    names = dict(matrix.names)
    if matrix.arg != scan.decay or set(names) != set(scan.cols):
        return None
    return tuple(names[a] for a in scan.cols)


def places(axes: Collection[AxisName], sizes: dict[AxisName, int]) -> list[dict[AxisName, int]]:
    """All entries along ``axes``, the last axis fastest."""
    found: list[dict[AxisName, int]] = [{}]
    for a in axes:
        found = [p | {a: i} for p in found for i in range(sizes[a])]
    return found


def combine(rows: int) -> str:
    """The function that joins two runs of a scan: (A, b) then (C, d) is (C A, C b + d)."""
    m = range(rows)
    left = [f"a{i}{j}" for i in m for j in m] + [f"b{i}" for i in m]
    right = [f"c{i}{j}" for i in m for j in m] + [f"d{i}" for i in m]
    both = [" + ".join(f"c{i}{k} * a{k}{j}" for k in m) for i in m for j in m]
    both += [" + ".join(f"c{i}{k} * b{k}" for k in m) + f" + d{i}" for i in m]
    arguments = ", ".join([*left, *right])
    return f"\n\n@triton.jit\ndef matrix_{rows}({arguments}):\n    return (\n        " + (
        ",\n        ".join(both) + ",\n    )\n"
    )


__all__ = ["MOST_ROWS", "combine", "known", "places", "powers", "small"]
