"""Letters for the values of a recurrence, and state-free expressions in them.

Takes the nodes of a ``Recurrence``; leaves text.  A value keeps the letter it first got; the
letter is chosen by the role in which it is first met, with a number when it is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tenfuse.algebra.names import original
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.step.program import AxisName, Const, Contract, Input, Pointwise, Ref, arguments, node_axes

_CARRIES = {"low-rank": "S", "semiring": "m"}
_OTHERS = "hgfrp"
_PLAIN = ("add", "sub", "mul", "neg")


class Letters:
    """Names of one recurrence; ``axes`` are those of its nodes.

    Nodes that differ only by fresh names of their axes are one value and share a letter:
    a key that is read with and written with is k both times.
    """

    def __init__(self, recurrence: Recurrence, known: Collection[AxisName]) -> None:
        self.nodes, self.known = recurrence.nodes, known
        self.axes: list[frozenset[AxisName]] = []
        for node in recurrence.nodes:
            self.axes.append(node_axes(node, self.axes))
        self.same = self._classes()
        self.used: set[str] = set()
        self.given: dict[Ref, str] = {}
        self.carries: dict[int, str] = {}
        for stage in recurrence.stages:
            for i in stage.carries:
                self.carries[i] = self.fresh(_CARRIES.get(stage.form, ""))
        self.moving = self._moving()
        self.defined: dict[Ref, str] = {}
        """Values of the state that got a letter, and their text."""

    def fresh(self, letter: str) -> str:
        """``letter``, or with a number, or the next of the letters for states."""
        choices = [letter] if letter else list(_OTHERS)
        names = [*choices, *(f"{choices[0]}{n}" for n in range(2, len(self.nodes) + 20))]
        name = next(n for n in names if n not in self.used)
        self.used.add(name)
        return name

    def _classes(self) -> list[Ref]:
        """For every node the first one that is the same up to fresh names."""
        first: dict[object, Ref] = {}
        found: list[Ref] = []

        def plain(axes: Iterable[AxisName]) -> tuple[AxisName, ...]:
            return tuple(original(a, self.known) for a in axes)

        for i, node in enumerate(self.nodes):
            below = tuple(found[a] for a in arguments(node))
            key: object = (type(node), below)
            if isinstance(node, Input):
                key = (node.kind, node.index, plain(node.axes))
            elif isinstance(node, Const):
                key = repr(node.value)
            elif isinstance(node, Contract):
                key = (node.op, plain(sorted(node.axes)), below)
            elif isinstance(node, Pointwise):
                key = (node.fn, below)
            else:
                key = (i,)
            found.append(first.setdefault(key, i))
        return found

    def _moving(self) -> list[bool]:
        """Whether a node depends on a state."""
        found: list[bool] = []
        for node in self.nodes:
            state = isinstance(node, Input) and node.kind in ("carry", "next")
            found.append(state or any(found[a] for a in arguments(node)))
        return found

    # -- state-free values ----------------------------------------------------------------

    def symbol(self, ref: Ref, role: str) -> str:
        node = self.nodes[ref]
        if isinstance(node, Const):
            return f"{node.value:g}"
        if isinstance(node, Input) and node.kind in ("carry", "next"):
            return self.state(node)
        ref = self.same[ref]
        if ref not in self.given:
            self.given[ref] = self.fresh(role)
        return self.given[ref]

    def state(self, node: Input) -> str:
        """A carry's own name is its value after the step; before the step it has a prime."""
        return self.carries[node.index] + ("'" if node.kind == "carry" else "")

    def factors(self, ref: Ref) -> tuple[str, list[Ref]]:
        """The sign and the factors of a product."""
        node = self.nodes[ref]
        if isinstance(node, Pointwise) and node.fn in ("mul", "neg"):
            sign = "-" if node.fn == "neg" else ""
            found: list[Ref] = []
            for a in node.args:
                more, refs = self.factors(a)
                sign = _times(sign, more)
                found += refs
            return sign, found
        if isinstance(node, Const) and node.value < 0:
            index = next((i for i, n in enumerate(self.nodes) if n == Const(-node.value)), None)
            if node.value == -1.0:
                return "-", []
            return ("", [ref]) if index is None else ("-", [index])
        return "", [ref]

    def text(self, ref: Ref, role: str) -> str:
        """A state-free value: a short sum or product of letters, or one letter."""
        node = self.nodes[ref]
        known = self.same[ref] in self.given or not isinstance(node, Pointwise) or node.fn not in _PLAIN
        if known or len(self._terms(ref)) > 3:
            return self.symbol(ref, role)
        assert isinstance(node, Pointwise)
        if node.fn in ("mul", "neg"):
            return self.product([ref], role)
        right, minus = self.text(node.args[1], role), node.fn == "sub"
        return joined(self.text(node.args[0], role), closed(right) if minus else right, minus)

    def _terms(self, ref: Ref) -> list[Ref]:
        """The letters that a sum of products would take."""
        node = self.nodes[ref]
        if self.same[ref] not in self.given and isinstance(node, Pointwise) and node.fn in _PLAIN:
            return [t for a in node.args for t in self._terms(a)]
        return [ref]

    def product(self, refs: Iterable[Ref], role: str) -> str:
        """Factors multiplied, the sign in front."""
        total, texts = "", []
        for sign, factors in (self.factors(r) for r in refs):
            total = _times(total, sign)
            for f in factors:
                text = self.text(f, role)
                if isinstance(self.nodes[f], Const) and text.startswith("-"):
                    total, text = _times(total, "-"), text[1:]
                texts.append(closed(text))
        return total + ("*".join(texts) or "1")


def _times(one: str, other: str) -> str:
    return "" if one == other else "-"


def closed(text: str, marks: str = " ") -> str:
    """In brackets if it has a sign, or one of ``marks`` outside of its own brackets."""
    depth, bars = 0, False
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        bars ^= letter == "|"
        if depth == 0 and not bars and letter in marks:
            return f"({text})"
    return f"({text})" if text.startswith("-") else text


def joined(total: str, text: str, minus: bool = False) -> str:
    """A sum with one more term."""
    negative = text.startswith("-")
    text = text[1:] if negative else text
    if not total:
        return f"-{text}" if negative != minus else text
    return f"{total} {'-' if negative != minus else '+'} {text}"
