"""``LoopReport`` and ``Report``: what was done with every loop that was seen, and why.

Takes what the pipeline found out; leaves frozen values with a text, a JSON and an HTML
form.  The user's source lines are read once, when a loop is reported, so that a report
still says the same after the file was edited.  Computes nothing else.

The JSON form (``Report.to_json``; ``docs/report.md`` lists every field) is stable:
fields are added, never renamed, and ``schema`` is raised when a meaning changes.
"""

from __future__ import annotations

import dataclasses
import json
import linecache
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfuse.capture.loop import Span
    from tenfuse.reasons import Refusal

SCHEMA = 1
STATUSES = ("fused", "kept")
FORMS = ("map", "elementwise", "block", "low-rank", "dense", "semiring", "nonlinear")
ALGORITHMS = ("batched", "scan", "chunked", "doubling", "sequential")

_CONTEXT = 1
_LONGEST = 40

Kernel = tuple[str, str, str]
"""``(name, language, source text)``."""


@dataclasses.dataclass(frozen=True)
class LoopReport:
    """One loop that was seen: fused with evidence, or kept with a reason."""

    status: str
    span: str
    steps: int
    form: str = ""
    formula: str = ""
    algorithm: str = ""
    code: str = ""
    reason: str = ""
    hint: str = ""
    kernels: tuple[Kernel, ...] = ()
    evidence: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    lines: tuple[int, ...] = ()
    """The lines of the loop's body, as far as operations were seen on them."""
    where: str = ""
    """Kept loops: "file.py:213", the user's line that prevents fusion."""
    launches: tuple[int, ...] = ()
    """How often each of ``kernels`` ran, when the report was asked for."""
    source: tuple[tuple[int, str], ...] = ()
    """``(line number, text)`` of the loop and its surroundings."""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"a loop is 'fused' or 'kept', not {self.status!r}")
        if self.status == "kept" and not self.code:
            raise ValueError(f"the loop at {self.span} is kept without a reason")
        if not self.source and self.file:
            object.__setattr__(self, "source", _excerpt(self))

    @classmethod
    def fused(cls, span: Span, steps: int, **fields: Any) -> LoopReport:
        return cls("fused", short(str(span)), steps, **_place(span), **fields)

    @classmethod
    def kept(cls, span: Span, steps: int, refusal: Refusal, **fields: Any) -> LoopReport:
        return cls(
            "kept", short(str(span)), steps,
            code=refusal.code, reason=refusal.reason, hint=refusal.hint, where=short(refusal.where),
            **_place(span), **fields,
        )  # fmt: skip

    @property
    def blocker(self) -> int:
        """The line number in ``where`` if it is in this loop's file, else 0."""
        name, _, number = self.where.rpartition(":")
        same = os.path.basename(name) == os.path.basename(self.file)
        return int(number) if same and number.isdigit() else 0


@dataclasses.dataclass(frozen=True)
class Report:
    """Every loop of one compilation or of one ``explain``, in source order."""

    loops: tuple[LoopReport, ...] = ()
    graphs: tuple[tuple[str, str], ...] = ()
    """``(before, after)`` of every graph, where they were asked for."""
    breaks: tuple[str, ...] = ()
    """Why the model fell into several graphs, one sentence each."""
    model: str = ""

    @staticmethod
    def of(loops: list[LoopReport] | tuple[LoopReport, ...], **fields: Any) -> Report:
        """A report with its loops put in source order."""
        return Report(tuple(sorted(loops, key=lambda r: (r.file, r.line))), **fields)

    @property
    def fused(self) -> tuple[LoopReport, ...]:
        return tuple(r for r in self.loops if r.status == "fused")

    @property
    def kept(self) -> tuple[LoopReport, ...]:
        return tuple(r for r in self.loops if r.status == "kept")

    def __str__(self) -> str:
        from tenfuse.report.text import to_text

        return to_text(self)

    def to_json(self) -> str:
        body = {"schema": SCHEMA, **dataclasses.asdict(self)}
        for loop in body["loops"]:
            loop["kernels"] = [
                dict(zip(("name", "language", "source"), k, strict=True)) for k in loop["kernels"]
            ]
            loop["source"] = [{"line": line, "text": text} for line, text in loop["source"]]
        body["graphs"] = [{"before": before, "after": after} for before, after in self.graphs]
        return json.dumps(body, indent=2, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Report:
        """The report that ``to_json`` wrote; ``ValueError`` for another schema."""
        body = json.loads(text)
        if body.get("schema") != SCHEMA:
            raise ValueError(f"this report has schema {body.get('schema')}, not {SCHEMA}")
        return Report(
            loops=tuple(_loop(entry) for entry in body["loops"]),
            graphs=tuple((g["before"], g["after"]) for g in body["graphs"]),
            breaks=tuple(body["breaks"]),
            model=body["model"],
        )

    def to_html(self) -> str:
        from tenfuse.report.html import to_html

        return to_html(self)


_PLACE = re.compile(r"(?P<file>.+?):(?P<line>\d+)(: .*)?", re.DOTALL)


def counted(count: int, one: str, several: str = "") -> str:
    """As in "1 loop" and "2 loops"; ``several`` where an s does not make it."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def short(place: str) -> str:
    """The place "/home/me/file.py:210: h = a / b" as "file.py:210"."""
    found = _PLACE.fullmatch(place)
    return f"{os.path.basename(found['file'])}:{found['line']}" if found else os.path.basename(place)


def _place(span: Span) -> dict[str, Any]:
    return {"file": span.file, "line": span.line, "lines": tuple(span.lines)}


def _loop(entry: dict[str, Any]) -> LoopReport:
    known = {f.name for f in dataclasses.fields(LoopReport)}
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k in known
    }
    fields["kernels"] = tuple((k["name"], k["language"], k["source"]) for k in entry["kernels"])
    fields["source"] = tuple((s["line"], s["text"]) for s in entry["source"])
    return LoopReport(**fields)


def _excerpt(loop: LoopReport) -> tuple[tuple[int, str], ...]:
    """The lines from the ``for`` to the end of its body, and a little context."""
    mine = [n for n in (loop.line, loop.blocker, *loop.lines) if n > 0]
    if not mine:
        return ()
    first = max(1, min(mine) - _CONTEXT)
    wanted = range(first, min(max(mine) + _CONTEXT, first + _LONGEST) + 1)
    every = linecache.getlines(loop.file)
    return tuple((n, every[n - 1].rstrip("\n")) for n in wanted if n <= len(every))
