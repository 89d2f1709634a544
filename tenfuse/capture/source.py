"""The user's source: which loop statement a run of graph nodes comes from.

Takes the stack traces Dynamo leaves on nodes; leaves ``Span``s and, for each node, the
index of the statement of the loop's body it comes from.  Without readable source there
is no statement and the caller goes by the algebra alone.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import linecache
from collections.abc import Sequence

import torch.fx as fx

from tenfuse.capture.loop import Span
from tenfuse.reasons import Frame, frames

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclasses.dataclass(frozen=True)
class Statement:
    """A ``for``, ``while`` or comprehension: its line and the lines of its body."""

    file: str
    line: int
    first: int
    last: int
    body: tuple[tuple[int, int], ...]

    def holds(self, line: int) -> bool:
        return self.first <= line <= self.last

    def place(self, line: int) -> int:
        """Which statement of the body ``line`` belongs to; -1 for the header."""
        for i, (lo, hi) in enumerate(self.body):
            if lo <= line <= hi:
                return i
        return -1


def frames_of(node: fx.Node) -> tuple[Frame, ...]:
    return frames(node.meta.get("stack_trace") or "")


@functools.lru_cache(maxsize=256)
def _parsed(file: str, text: str) -> tuple[Statement, ...]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.For, ast.While, ast.AsyncFor)):
            body = tuple((s.lineno, s.end_lineno or s.lineno) for s in node.body)
            found.append(Statement(file, node.lineno, node.lineno, body[-1][1], body))
        elif isinstance(node, _COMPREHENSIONS):
            last = node.end_lineno or node.lineno
            found.append(Statement(file, node.lineno, node.lineno, last, ((node.lineno, last),)))
    return tuple(sorted(found, key=lambda s: (s.first, -s.last)))


def statements(file: str) -> tuple[Statement, ...]:
    """Every loop of a source file, outer before inner."""
    return _parsed(file, "".join(linecache.getlines(file)))


@dataclasses.dataclass(frozen=True)
class Place:
    """A loop statement and the stack depth at which it stands."""

    statement: Statement
    depth: int
    above: tuple[Frame, ...]

    def holds(self, node: fx.Node) -> bool:
        own = frames_of(node)
        return (
            len(own) > self.depth
            and own[: self.depth] == self.above
            and own[self.depth][0] == self.statement.file
            and self.statement.holds(own[self.depth][1])
        )

    def position(self, node: fx.Node) -> int:
        own = frames_of(node)
        return self.statement.place(own[self.depth][1]) if self.holds(node) else -1


def loops_around(nodes: Sequence[fx.Node]) -> tuple[Place, ...]:
    """Loop statements that all ``nodes`` come from, outermost first."""
    stacks = list(dict.fromkeys(frames_of(n) for n in nodes if n.meta.get("stack_trace")))
    if not stacks or not stacks[0]:
        return ()
    found: list[Place] = []
    depth = 0
    while all(len(s) > depth for s in stacks):
        file, name = stacks[0][depth][0], stacks[0][depth][2]
        if any((s[depth][0], s[depth][2]) != (file, name) for s in stacks):
            break
        lines = {s[depth][1] for s in stacks}
        for statement in statements(file):
            if all(statement.holds(line) for line in lines):
                found.append(Place(statement, depth, stacks[0][:depth]))
        if len(lines) > 1:
            break
        depth += 1
    return tuple(found)


def has_source(nodes: Sequence[fx.Node]) -> bool:
    """Whether the text behind these nodes can be read at all."""
    return any(linecache.getlines(f[0]) for n in nodes[:1] for f in frames_of(n)[-1:])


def span_of(place: Place | None, nodes: Sequence[fx.Node]) -> Span:
    """The span to report: the loop statement, or the first line seen."""
    lines: set[int] = set()
    if place is None:
        seen = next((frames_of(n)[-1] for n in nodes if frames_of(n)), None)
        return Span(seen[0], seen[1]) if seen else Span("", 0)
    for node in nodes:
        own = frames_of(node)
        if place.holds(node):
            lines.add(own[place.depth][1])
    return Span(place.statement.file, place.statement.line, tuple(sorted(lines)))
