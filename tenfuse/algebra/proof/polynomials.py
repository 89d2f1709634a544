"""Laurent polynomials with rational coefficients, over unknowns that are numbered.

Takes and leaves numbers and monomials: equal polynomials are equal term by term.  A constant is
the shortest fraction that the float is the rounding of (0.9 is 9/10), so that products of
constants rounded elsewhere agree.  What the unknowns stand for, and arithmetic, is ``symbols``'s.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TypeAlias

Monomial = tuple[tuple[int, int], ...]
"""``((atom, exponent), ...)`` in the order of the atoms; exponents are not zero."""
Number: TypeAlias = int | Fraction


class Poly:
    """``sum of coefficient * monomial``; equal ones are equal term by term.  Not to be changed."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Monomial, Number]) -> None:
        self.terms = terms

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def number(self) -> Number | None:
        """Its value if it is a constant."""
        if not self.terms:
            return 0
        return self.terms.get(()) if len(self.terms) == 1 else None

    def atoms(self) -> set[int]:
        return {a for m in self.terms for a, _ in m}


ZERO = Poly({})
ONE = Poly({(): 1})


def constant(value: float) -> Number:
    """The fraction with the smallest denominator among those that round to ``value``."""
    exact = Fraction(value)
    for bound in (1, 100, 10**4, 10**6, 10**8):
        near = exact.limit_denominator(bound)
        if abs(near - exact) <= abs(exact) * Fraction(1, 1 << 50):
            return int(near) if near.denominator == 1 else near
    return exact


__all__ = ["ONE", "ZERO", "Monomial", "Number", "Poly", "constant"]
