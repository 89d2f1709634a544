"""Decide whether a fraction of polynomials is zero, in one of sympy's polynomial rings.

Takes a polynomial over a ``Field`` some of whose atoms are inverses or names of longer
sums; leaves whether it is zero once names are unfolded and denominators multiplied out.
Atoms made last go first: they may contain the others.  A denominator that a choice of
truth values makes zero is not multiplied by (see ``Field.never_zero``): the answer is then
no, whether or not the identity holds.
"""

from __future__ import annotations

from typing import Any

from tenfuse.algebra.proof.polynomials import ONE, Poly
from tenfuse.algebra.proof.symbols import LANES, UNFOLDED, Field, GaveUp

FOLDED = ("inverse", "named")


_SMALL = 24
"""Over so many atoms, names and denominators counted, a claim goes to sympy as it is."""


def unfolded_zero(field: Field, a: Poly, most: int) -> bool:
    """Whether ``a`` is zero; no, or ``GaveUp``, beyond ``most`` terms."""
    try:
        return _split(field, a, most)
    except _TooLong:
        if most < UNFOLDED:
            return False
        raise


def _split(field: Field, a: Poly, most: int) -> bool:
    """Divide and conquer on the newest name or inverse x: a = sum of x^k P_k.

    Where every P_k is zero at a random point, x is left alone and each is proved zero by
    itself; else x is needed and unfolded.
    """
    field.spend(len(a.terms))
    if not a.terms or any(field.value(a, i) for i in LANES):
        return not a.terms
    folded = [x for x in a.atoms() if field.table[x].kind in FOLDED]
    if not folded:
        return False
    if len(closure(field, a)) <= _SMALL:
        return _Unfolded(field, a, most).zero()
    x = max(folded)
    parts = _powers(a, x)
    apart = len(parts) > 1 and not any(field.value(p, i) for p in parts.values() for i in LANES)
    if apart and all(_split(field, p, most) for p in parts.values()):
        return True
    return _split(field, _without(field, parts, x, most), most)


def _powers(a: Poly, x: int) -> dict[int, Poly]:
    """``a`` by the powers of the atom ``x``."""
    parts: dict[int, Poly] = {}
    for m, c in a.terms.items():
        rest = tuple(p for p in m if p[0] != x)
        parts.setdefault(dict(m).get(x, 0), Poly({})).terms[rest] = c
    return parts


def _without(field: Field, parts: dict[int, Poly], x: int, most: int) -> Poly:
    """The sum with ``x`` unfolded, or times the denominator that ``x`` is the inverse of."""
    atom = field.table[x]
    inverse, inner, top = atom.kind == "inverse", atom.args[0], max(parts)
    if inverse and not field.never_zero(inner):
        return ONE
    found = Poly({})
    for k, part in parts.items():
        factor = field.power(inner, top - k if inverse else k)
        if len(part.terms) * len(factor.terms) > most:
            raise _TooLong("an entry has too many terms")
        found = field.add(found, field.expanded(part, factor))
    return found


def closure(field: Field, a: Poly) -> set[int]:
    """The atoms of ``a``, of every denominator and of every named sum in it."""
    found: set[int] = set()
    stack = [a]
    while stack:
        for x in stack.pop().atoms() - found:
            found.add(x)
            if field.table[x].kind in FOLDED:
                stack.append(field.table[x].args[0])
    return found


class _TooLong(GaveUp):
    pass


class _Unfolded:
    """The numerator of ``a`` as an element of a ring over all atoms that occur in it."""

    def __init__(self, field: Field, a: Poly, most: int) -> None:
        from sympy.polys.domains import QQ
        from sympy.polys.rings import ring

        self.field, self.rational, self.most = field, QQ, most
        self.atoms = sorted(closure(field, a))
        self.ring = ring([f"x{i}" for i in range(len(self.atoms))], QQ)[0]
        self.place = {x: i for i, x in enumerate(self.atoms)}
        self.truths = {self.place[x] for x in self.atoms if field.table[x].boolean}
        self.found = self._element(a)[0]

    def zero(self) -> bool:
        for x in reversed(self.atoms):
            atom = self.field.table[x]
            if atom.kind not in FOLDED or not self.found:
                continue
            if atom.kind == "inverse" and not self.field.never_zero(atom.args[0]):
                return False
            above, below = self._element(atom.args[0])
            if atom.kind == "inverse":
                above, below = below, above
            self.found = self._with(self.place[x], above, below)
        return not self.found

    def _element(self, a: Poly) -> tuple[Any, Any]:
        """``a`` as a polynomial over a monomial."""
        powers = [dict(m) for m in a.terms]
        lowest = [min(0, *(p.get(x, 0) for p in powers), 0) for x in self.atoms]
        terms = {
            tuple(p.get(x, 0) - low for x, low in zip(self.atoms, lowest, strict=True)): self.rational(
                c.numerator, c.denominator
            )
            for p, c in zip(powers, a.terms.values(), strict=True)
        }
        return self.ring.from_dict(terms), self.ring.from_dict(
            {tuple(-low for low in lowest): self.rational(1)}
        )

    def _with(self, i: int, above: Any, below: Any) -> Any:
        """``found`` with ``above / below`` for the unknown ``i``, times a power of ``below``."""
        parts: dict[int, dict[tuple[int, ...], Any]] = {}
        for m, c in self.found.items():
            parts.setdefault(m[i], {})[m[:i] + (0,) + m[i + 1 :]] = c  # noqa: RUF005
        top, total = max(parts), self.ring.zero
        for k, part in parts.items():
            total += self._times(self.ring.from_dict(part), self._times(above**k, below ** (top - k)))
        return self._multilinear(total)

    def _times(self, p: Any, q: Any) -> Any:
        if len(p) * len(q) > self.most:
            raise _TooLong("an entry has too many terms")
        self.field.spend(len(p) * len(q))
        return p * q

    def _multilinear(self, p: Any) -> Any:
        """t*t = t for truth values."""
        if all(m[i] < 2 for m in p for i in self.truths):
            return p
        terms: dict[tuple[int, ...], Any] = {}
        for m, c in p.items():
            low = tuple(min(e, 1) if i in self.truths else e for i, e in enumerate(m))
            terms[low] = terms.get(low, self.rational(0)) + c
        return self.ring.from_dict({m: c for m, c in terms.items() if c})


__all__ = ["unfolded_zero"]
