"""The normal form as readable mathematics.

Takes a ``Recurrence`` and the program it was made from; leaves one line of text such as
``S <- S - b*k (k.S) + b*k v^T; y = q.S; per step b, k, q, v``.  State-free values get
letters by the part they play: a decay, w and u what a write reads and where it goes, k and
v the two sides of an outer product, q what an output reads with, R a matrix, b an offset.
``w.S`` is a contraction, ``*`` a product entry by entry; S' in an output is the state
before the step.  Equal programs have equal text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tenfuse.algebra.atoms import Atoms
from tenfuse.algebra.letters import Letters, closed, joined
from tenfuse.algebra.names import original
from tenfuse.algebra.outer import separated
from tenfuse.algebra.recurrence import Affine, Recurrence, Stage, Term
from tenfuse.step.program import AxisName, Const, Input, Pointwise, Ref, StepProgram, arguments

_LONGEST = 160
_JOIN = {"max-plus": "max", "min-plus": "min", "log-plus": "logsumexp"}


def formula(recurrence: Recurrence, program: StepProgram) -> str:
    """Every carry's update, every output, and which letters change from step to step."""
    return _written(recurrence, program)[0]


def letters(recurrence: Recurrence, program: StepProgram) -> dict[str, Ref]:
    """The state-free values that have a letter in ``formula``."""
    writer = _written(recurrence, program)[1]
    return {letter: ref for ref, letter in writer.letters.given.items()}


def _written(recurrence: Recurrence, program: StepProgram) -> tuple[str, _Writer]:
    writer = _Writer(recurrence, program)
    lines = [line for stage in recurrence.stages for line in writer.stage(stage)]
    writer.after = True
    for j, out in enumerate(recurrence.outs):
        name = "y" if len(recurrence.outs) == 1 else f"y{j + 1}"
        lines.append(writer.line(f"{name} = ", writer.sum(out, "q"), writer.letters.carries.values()))
    lines += [f"{name} = {text}" for name, text in writer.atoms.defined.items()]
    return "; ".join([*lines, *writer.legend(" ".join(lines))]), writer


class _Writer:
    def __init__(self, recurrence: Recurrence, program: StepProgram) -> None:
        self.recurrence = recurrence
        self.letters = Letters(recurrence, program.sizes)
        self.atoms = Atoms(self.letters)
        self.nodes, self.axes = recurrence.nodes, self.letters.axes
        self.after = False
        """Whether the lines written now are read after the step."""

    def line(self, left: str, text: str, carries: Iterable[str]) -> str:
        """``left`` and the text, or a name for what would be too long."""
        return left + (text if len(left) + len(text) <= _LONGEST else f"phi({', '.join(carries)})")

    def stage(self, stage: Stage) -> Iterable[str]:
        names = [self.letters.carries[i] for i in stage.carries]
        for name, update in zip(names, stage.updates, strict=True):
            if stage.semiring == "sum-product":
                text = self.sum(update, "b", matrix=stage.form == "low-rank")
            else:
                text = self._semiring(update, stage.semiring, stage.scale)
            yield self.line(f"{name} <- ", text, names)

    def sum(self, value: Affine, role: str, matrix: bool = False) -> str:
        """Terms, then the offset; decays and offsets name their letters first."""
        texts = {i: self._scaled(t) for i, t in enumerate(value.terms) if not t.contracted}
        offset = "" if value.offset is None else self._offset(value, value.offset, matrix)
        texts |= {i: self._contracted(t, role) for i, t in enumerate(value.terms) if t.contracted}
        total = ""
        for text in [texts[i] for i in sorted(texts)] + ([offset] if offset else []):
            total = joined(total, text)
        return total or "0"

    def _source(self, term: Term) -> str:
        node, cut = self.nodes[term.source], False
        if isinstance(node, Pointwise) and node.fn == "cut":
            node, cut = self.nodes[node.args[0]], True
        if not isinstance(node, Input):
            text = self.atoms.text(term.source)
            marks = " */." if term.contracted else " "
            return closed(text, marks) if term.factors or term.contracted else text
        name = self.letters.carries[node.index]
        name += "'" if node.kind == "carry" and self.after else ""
        return f"cut({name})" if cut else name

    def _scaled(self, term: Term) -> str:
        text = self.letters.product(term.factors, "a")
        if text in ("1", "-1"):
            return text[:-1] + self._source(term)
        return f"{text}*{self._source(term)}"

    def _contracted(self, term: Term, role: str) -> str:
        inside = [f for f in term.factors if self.axes[f] & term.contracted]
        outside = [f for f in term.factors if f not in inside]
        own = self.axes[term.source]
        matrices = [f for f in inside if self.axes[f] - own]
        vectors = [f for f in inside if f not in matrices]
        source = self._source(term)
        before = self.letters.product(outside, "u" if role == "b" else "a")
        sign, before = ("-", before[1:]) if before.startswith("-") else ("", before)
        before = "" if before == "1" else before
        if matrices:
            mixed = f"({self.letters.product(vectors, 'a')}*{source})" if vectors else source
            chain = [self._weight([m], "R" if role == "b" else "q") for m in matrices]
            text = ".".join([*chain, mixed])
            return f"{sign}{before}*{text}" if before else sign + text
        weight = self._weight(vectors, "w" if role == "b" else "q")
        text = f"{weight}.{source}" if vectors else f"sum({source})"
        if not before:
            return sign + text
        return f"{sign}{before}{' ' if role == 'b' else '*'}({text})"

    def _weight(self, refs: list[Ref], role: str) -> str:
        text = self.letters.product(refs, role)
        return closed(text, " *")

    def _offset(self, value: Affine, offset: Ref, matrix: bool) -> str:
        node = self.nodes[offset]
        if isinstance(node, Const) and node.value == 0:
            return ""
        pair = self._outer(value, offset) if matrix else ""
        return pair or self.letters.text(offset, "b")

    def _outer(self, value: Affine, offset: Ref) -> str:
        """``k v^T`` where the offset is one product of a K-part and a V-part."""
        sign, factors = self.letters.factors(offset)
        sides = separated([self.axes[f] for f in factors], self._keys(value))
        if sides is None:
            return ""
        scale, key, other = (
            "*".join(self.letters.text(factors[i], role) for i in side)
            for role, side in zip(("b", "k", "v"), sides, strict=True)
        )
        if any(" " in text for text in (scale, key, other)):
            return ""
        return f"{sign}{scale}*{key} {other}^T" if scale else f"{sign}{key} {other}^T"

    def _keys(self, value: Affine) -> frozenset[AxisName]:
        """The axes that this update, or else the outputs, contract the state over."""
        inside = [r for _, r in self.recurrence.reads]
        for sums in ([value], [*self.recurrence.outs, *inside]):
            bound = {a for s in sums for t in s.terms for a in t.contracted & self.axes[t.source]}
            if bound:
                return frozenset(original(a, self.letters.known) for a in bound)
        return frozenset()

    def _semiring(self, value: Affine, name: str, scale: float = 1.0) -> str:
        """``scale * sum of terms``, each of a source over ``scale``."""
        own, whole = {1.0: ("", ""), -1.0: ("-", "-")}.get(scale, (f"{1 / scale:.6g}*", f"{scale:.6g}*"))
        times, join = ("and", "or") if name == "or-and" else ("+", _JOIN[name])
        parts = []
        for term in value.terms:
            inside = [f for f in term.factors if self.axes[f] & term.contracted]
            text = self._applied(own + self._source(term), inside, times, "R")
            text = f"{join}_j({text})" if term.contracted else text
            parts.append(self._applied(text, [f for f in term.factors if f not in inside], times, "a"))
        if value.offset is not None:
            parts.append(self.letters.text(value.offset, "b"))
        if name == "or-and":
            return " or ".join(closed(p) if " and " in p else p for p in parts)
        if len(parts) > 1:
            return f"{whole}{join}({', '.join(parts)})"
        return whole + closed(parts[0]) if whole else parts[0]

    def _applied(self, text: str, factors: Iterable[Ref], times: str, role: str) -> str:
        for factor in factors:
            other = self.letters.text(factor, role)
            text = joined(text, other) if times == "+" else f"{text} {times} {other}"
        return text

    def legend(self, text: str) -> list[str]:
        """``per step a, k; fixed R``: of the letters that occur."""
        kinds: dict[str, list[str]] = {"per step": [], "fixed": []}
        words = set(re.findall(r"[A-Za-z]\w*", text))
        for ref, name in self.letters.given.items():
            if name in words:
                kinds["per step" if self._per_step(ref) else "fixed"].append(name)
        return [f"{kind} {', '.join(sorted(names))}" for kind, names in kinds.items() if names]

    def _per_step(self, ref: Ref) -> bool:
        pending, seen = [ref], set()
        while pending:
            at = pending.pop()
            node = self.nodes[at]
            if isinstance(node, Input) and node.kind != "invariant":
                return True
            pending += [a for a in arguments(node) if a not in seen]
            seen.add(at)
        return False
