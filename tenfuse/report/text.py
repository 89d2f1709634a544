"""The text form of a ``Report``: the user's own source, loops marked in the margin.

Takes a ``Report``; leaves a rich renderable for terminals and a plain string for
everything else.
"""

from __future__ import annotations

import io
import os

from rich.console import Console, Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from tenfuse.report.report import LoopReport, Report, counted

_WIDTH = 100
_COLOUR = {"fused": "green", "kept": "yellow"}
_SIGN = {"fused": "✓", "kept": "✗"}


def to_text(report: Report, kernels: bool = False, graphs: bool = False, width: int = _WIDTH) -> str:
    """Plain text without escape codes."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False, legacy_windows=False).print(
        render(report, kernels, graphs)
    )
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def render(report: Report, kernels: bool = False, graphs: bool = False) -> RenderableType:
    """The same for a terminal."""
    parts: list[RenderableType] = [_headline(report)]
    for loop in report.loops:
        parts += [Text(), _title(loop), _source(loop), _facts(loop)]
        parts += [part for k in loop.kernels for part in _kernel(*k)] if kernels else []
    for why in report.breaks:
        parts += [Text(), Text.assemble(("graph break ", "yellow"), why)]
    if graphs:
        for number, (before, after) in enumerate(report.graphs):
            parts += [Text(), Text(f"graph {number}, before", "bold"), Text(before)]
            parts += [Text(), Text(f"graph {number}, after", "bold"), Text(after)]
    return Group(*parts)


def _headline(report: Report) -> Text:
    title = Text.assemble(("tenfuse", "bold"), f" {report.model}" if report.model else "", ": ")
    if not report.loops:
        return title.append("no loop over time was seen")
    title.append(counted(len(report.loops), "loop"))
    for status, group in (("fused", report.fused), ("kept", report.kept)):
        if group:
            title.append(", ").append(f"{len(group)} {status}", _COLOUR[status])
    return title


def _title(loop: LoopReport) -> Text:
    colour = _COLOUR[loop.status]
    state = f"{_SIGN[loop.status]} {loop.status}"
    title = Text.assemble((state, f"bold {colour}"), "  ", (_path(loop), "bold"))
    if loop.steps:
        title.append(f"  {counted(loop.steps, 'step')}", "dim")
    return title


def _path(loop: LoopReport) -> str:
    """The place as the shortest path an editor can open from here."""
    if not loop.file:
        return loop.span
    near = os.path.relpath(loop.file) if os.path.isabs(loop.file) else loop.file
    return f"{loop.file if near.startswith('..') else near}:{loop.line}"


def _source(loop: LoopReport) -> Group:
    """Number, margin, text: the margin is a bracket around the loop's own lines."""
    rows = []
    for number, text, mark in margin(loop):
        code = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(text)
        code.rstrip()
        row = Text.assemble((f"{number:>6} ", "dim"), (f"{mark} ", _COLOUR[loop.status]), code)
        row.no_wrap, row.overflow = True, "ellipsis"
        rows.append(row)
    return Group(*rows)


def margin(loop: LoopReport) -> list[tuple[int, str, str]]:
    """``(line number, text, mark)`` for every source line shown."""
    inside = [n for n, _ in loop.source if n == loop.line or n in loop.lines]
    first, last = (min(inside), max(inside)) if inside else (0, -1)
    rows = []
    for number, text in loop.source:
        if number == loop.blocker:
            mark = "▶"
        elif first == last == number:
            mark = "╶"
        elif number in (first, last):
            mark = "╭" if number == first else "╰"
        else:
            mark = "│" if first < number < last else " "
        rows.append((number, text, mark))
    return rows


def facts(loop: LoopReport) -> list[tuple[str, str]]:
    """What is known about a loop, in the order it is shown; empty entries left out."""
    if loop.status == "kept":
        every = [("because", f"{loop.code}: {loop.reason}"), ("line", loop.where), ("remedy", loop.hint)]
    else:
        every = [
            ("form", loop.form),
            ("formula", loop.formula),
            ("algorithm", loop.algorithm),
            ("kernels", _kernels(loop)),
            *(("evidence" if i == 0 else "", line) for i, line in enumerate(loop.evidence)),
        ]
    return [(name, value) for name, value in every if value]


def _kernels(loop: LoopReport) -> str:
    if not loop.kernels:
        return ""
    languages = sorted({language for _, language, _ in loop.kernels})
    text = f"{len(loop.kernels)} in {' and '.join(languages)}"
    return text + (f", {counted(sum(loop.launches), 'launch', 'launches')}" if loop.launches else "")


def _facts(loop: LoopReport) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="dim", min_width=11)
    grid.add_column(overflow="fold")
    for name, value in facts(loop):
        grid.add_row(name, Text(value))
    return grid


def _kernel(name: str, language: str, source: str) -> tuple[RenderableType, ...]:
    lexer = {"cpp": "cpp", "c++": "cpp", "triton": "python"}.get(language, "text")
    code = Syntax(source, lexer, theme="ansi_dark", background_color="default", word_wrap=False)
    return Text(), Text(f"{name} ({language})", "bold"), code
