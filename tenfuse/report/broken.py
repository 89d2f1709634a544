"""Loops that broke the graph: found from the places where Dynamo gave up.

Takes Dynamo's own records of what it traced: where it failed (the reason, the user's line,
the function), or went on in the middle of a function.  Leaves one kept ``LoopReport`` per
``for`` or ``while`` at fault.  What lies outside any loop leaves nothing: that is a plain
graph break.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterable
from typing import Any

from tenfuse.reasons import GRAPH_BREAK
from tenfuse.report.report import LoopReport, short

LoopNode = ast.For | ast.While
_RESUMED = "torch_dynamo_resume_in_"
"""What Dynamo's functions for the rest of a function are called; Python 3.10 has them in loops."""


def broken_loops(records: Iterable[Any]) -> list[LoopReport]:
    """One report per loop; ``records`` are Dynamo's ``CompilationMetrics``."""
    found: dict[tuple[str, int], LoopReport] = {}
    for record in records:
        file, line, reason = _place(record)
        if not file or not line:
            continue
        home, loop = file, enclosing(file, line)
        if loop is None:
            home, loop = record.co_filename, _calling(record, file, line)
        if loop is not None:
            found.setdefault((home, loop.lineno), _kept(home, loop, f"{short(file)}:{line}", reason))
    return list(found.values())


def _place(record: Any) -> tuple[str | None, int | None, str]:
    """The file and line where the graph broke, and why; nothing for a function traced to its end."""
    if record.fail_reason:
        return record.fail_user_frame_filename, record.fail_user_frame_lineno, record.fail_reason
    if (record.co_name or "").startswith(_RESUMED):
        return record.co_filename, record.co_firstlineno, "Dynamo goes on after it"
    return None, None, ""


def enclosing(file: str, line: int) -> LoopNode | None:
    """The innermost ``for`` or ``while`` whose body holds ``line``."""
    around = [n for n in ast.walk(_parsed(file)) if isinstance(n, LoopNode) and _holds(n, line)]
    return max(around, key=lambda n: n.lineno, default=None)


def _calling(record: Any, file: str, line: int) -> LoopNode | None:
    """The loop of the traced function that called the function holding ``line``."""
    if "graph break in loop" not in (record.fail_reason or "") or not record.co_filename:
        return None
    outer = _function(record.co_filename, record.co_firstlineno or 0)
    inner = _function(file, line)
    if outer is None:
        return None
    loops = [n for n in ast.walk(outer) if isinstance(n, LoopNode)]
    calling = [n for n in loops if inner is not None and inner.name in _called(n)]
    return (calling or loops)[0] if calling or len(loops) == 1 else None


def _parsed(file: str) -> ast.AST:
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ast.Module([], [])


def _function(file: str, line: int) -> ast.FunctionDef | None:
    """The innermost function around ``line``, which may be that of a decorator."""
    around = [
        n for n in ast.walk(_parsed(file))
        if isinstance(n, ast.FunctionDef)
        and min([n.lineno, *(d.lineno for d in n.decorator_list)]) <= line <= (n.end_lineno or n.lineno)
    ]  # fmt: skip
    return max(around, key=lambda n: n.lineno, default=None)


def _called(loop: LoopNode) -> set[str]:
    calls = [n.func for n in ast.walk(loop) if isinstance(n, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}


def _holds(loop: LoopNode, line: int) -> bool:
    first = loop.lineno if isinstance(loop, ast.While) else loop.body[0].lineno
    return first <= line <= _last(loop)


def _last(loop: LoopNode) -> int:
    return loop.body[-1].end_lineno or loop.lineno


def _kept(file: str, loop: LoopNode, where: str, reason: str) -> LoopReport:
    why = reason.strip().split("\n")[0].rstrip(".")
    return LoopReport(
        "kept", f"{short(file)}:{loop.lineno}", 0,
        code=GRAPH_BREAK.code, reason=f"{GRAPH_BREAK.cause} ({why})", hint=GRAPH_BREAK.remedy,
        file=file, line=loop.lineno, lines=tuple(range(loop.body[0].lineno, _last(loop) + 1)), where=where,
    )  # fmt: skip
