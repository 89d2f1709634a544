"""Nonlinear functions of the state as text.

Takes a node and the ``Letters`` of its recurrence; leaves an expression.  A part of the
state that occurs twice gets a letter of its own and a definition, ``z = a*h + b``; what is
too long even so is called phi of its carries.
"""

from __future__ import annotations

from collections import Counter

from tenfuse.algebra.letters import Letters, closed, joined
from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.program import Const, Contract, Input, Pointwise, Ref, arguments

_SHORT = 120


class Atoms:
    """Expressions of the state; ``defined`` are the letters given on the way, with their text."""

    def __init__(self, letters: Letters) -> None:
        self.letters, self.nodes = letters, letters.nodes
        self.texts: dict[Ref, str] = {}
        self.defined: dict[str, str] = {}
        self.twice: set[Ref] = set()

    def text(self, root: Ref) -> str:
        """The expression of one atom."""
        same = self.letters.same
        counts: Counter[Ref] = Counter()
        pending, seen = [root], {same[root]}
        while pending:
            at = pending.pop()
            norm = self._norm(at)
            for a in arguments(self.nodes[at]) if norm is None else (norm,):
                counts[same[a]] += 1
                if same[a] not in seen:
                    seen.add(same[a])
                    pending.append(a)
        moving = [r for r in counts if self.letters.moving[r] and not isinstance(self.nodes[r], Input)]
        self.twice |= {r for r in moving if counts[r] > 1}
        return self._value(root)

    def _value(self, ref: Ref) -> str:
        ref = self.letters.same[ref]
        if not self.letters.moving[ref]:
            return self.letters.text(ref, "b")
        if ref not in self.texts:
            text = self._written(ref)
            if len(text) > _SHORT:
                text = f"{self.letters.fresh('phi')}({', '.join(self._carries(ref))})"
            elif ref in self.twice and len(text) > 5:
                name = self.letters.fresh("z")
                self.defined[name] = text
                text = name
            self.texts[ref] = text
        return self.texts[ref]

    def _carries(self, ref: Ref) -> list[str]:
        seen: set[Ref] = set()
        pending, found = [ref], set()
        while pending:
            at = pending.pop()
            node = self.nodes[at]
            if isinstance(node, Input) and node.kind in ("carry", "next"):
                found.add(self.letters.carries[node.index])
            pending += [a for a in arguments(node) if a not in seen]
            seen.add(at)
        return sorted(found)

    def _norm(self, ref: Ref) -> Ref | None:
        """x where the node is the Euclidean norm of x."""
        node = self.nodes[ref]
        total = (
            self.nodes[node.args[0]] if isinstance(node, Pointwise) and node.fn in ("root", "sqrt") else None
        )
        square = self.nodes[total.arg] if isinstance(total, Contract) and total.op == "sum" else None
        if isinstance(square, Pointwise) and square.fn == "mul" and square.args[0] == square.args[1]:
            return square.args[0]
        return None

    def _written(self, ref: Ref) -> str:
        node = self.nodes[ref]
        if isinstance(node, Input):
            return self.letters.carries[node.index]
        if (inner := self._norm(ref)) is not None:
            return f"|{self._value(inner)}|"
        if isinstance(node, Contract):
            return self._contraction(node)
        texts = [self._value(a) for a in arguments(node)]
        if not isinstance(node, Pointwise):
            return f"{type(node).__name__.lower()}({', '.join(texts)})"
        symbol = FUNCTIONS[node.fn].symbol
        if symbol in ("+", "-") and len(texts) == 2:
            return joined(texts[0], closed(texts[1]) if symbol == "-" else texts[1], symbol == "-")
        if symbol in ("*", "/") and len(texts) == 2:
            number = isinstance(self.nodes[node.args[0]], Const)
            first = texts[0] if number else closed(texts[0])
            return f"{first}{symbol}{_divisor(texts[1]) if symbol == '/' else closed(texts[1])}"
        if node.fn == "neg":
            return f"-{closed(texts[0])}"
        return f"{node.fn}({', '.join(texts)})"

    def _contraction(self, node: Contract) -> str:
        below = self.nodes[node.arg]
        if node.op != "sum" or not isinstance(below, Pointwise) or below.fn != "mul":
            return f"{node.op}({self._value(node.arg)})"
        left, right = below.args
        if self.letters.moving[left]:
            return f"{_divisor(self._value(left))}.{_divisor(self._value(right))}"
        role = "R" if self.letters.axes[left] - self.letters.axes[right] else "w"
        return f"{_divisor(self.letters.text(left, role))}.{_divisor(self._value(right))}"


def _divisor(text: str) -> str:
    """In brackets if it is a sum, a product or a quotient."""
    return closed(text, " */.")
