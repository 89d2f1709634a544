"""Exact symbolic numbers: polynomials over atoms, and what is known of the atoms.

Takes sums, products, quotients and functions of such numbers; leaves their normal form.
An atom is an input entry or a function applied to normal forms; equal arguments give the
same atom.  Functions are uninterpreted, but for what certificates need:

* comparisons and truth values are idempotent (t*t = t), and ``where`` selects by them;
* exp(a + b) = exp(a) exp(b) and exp(log q) = q, which makes logaddexp an ordinary sum;
* maximum likewise, as the logarithm of an idempotent sum: (max, +) is the limit of
  (logaddexp, +), and its polynomials those with every coefficient one (Litvinov, "Maslov
  dequantization", 2005), so equal normal forms are equal functions;
* 1/q is an atom, which ``zero`` multiplies out again.

Statements are about real numbers where every quotient and function is defined.  Infinity
is one more unknown, but that a maximum with minus infinity is the other side, exp of it 0, and
that it takes up what is added to it.  An infinity less itself, or times zero, is equal to nothing,
not even to itself: where one side would be NaN, the two are not proved to be the same.
Atoms are numbered, never named after anything in the user's program.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterable
from fractions import Fraction

from tenfuse.algebra.proof.polynomials import ONE, ZERO, Monomial, Number, Poly, constant

_PRIME = (1 << 61) - 1
_TRUTHS, _POWER = 6, 64
_SHORT, _NAMED = 6, 60
"""Products of more terms than ``_NAMED`` are taken of names, for sums longer than ``_SHORT``."""
LANES = range(3)
"""Random points; truth values are 0 or 1 at each, so one point alone says little of them."""
UNFOLDED = 100_000
"""More terms than this in one unfolded entry are given up."""
_MERGED, _NAMES = 5_000, 300
"""The same, where two arguments of a function, or what two names stand for, are compared."""


class GaveUp(Exception):
    """More work than allowed, or an expression has grown beyond what can be checked."""


@dataclasses.dataclass(frozen=True)
class Atom:
    """``kind`` is "symbol", "inverse", "named" (a sum), "pole" (1/0), "exp", "log", "texp", "tlog" or
    a function's name."""

    kind: str
    args: tuple[Poly, ...] = ()
    boolean: bool = False


class Field:
    """The atoms met so far, and arithmetic on polynomials over them.

    Work is counted in terms handled, not in seconds: what is given up does not depend on the
    machine, nor on what else runs on it.
    """

    def __init__(self, work: int | None = None) -> None:
        self.work, self.spent = work, 0
        self.table: list[Atom] = []
        self._values: tuple[list[int], ...] = tuple([] for _ in LANES)
        self._powers: tuple[dict[tuple[int, int], int], ...] = tuple({} for _ in LANES)
        self._exact: dict[tuple[str, tuple[Poly, ...]], Poly] = {}
        self._known: dict[tuple[object, ...], list[int]] = {}
        self.unbounded: set[int] = set()
        """Infinity, what is undefined, and functions of them but for truth values."""
        self.cuts: dict[int, Poly] = {}
        """Atoms as values that no gradient passes."""
        self._random = random.Random(1)

    def spend(self, terms: int) -> None:
        """Count ``terms`` handled; ``GaveUp`` beyond the work that is allowed."""
        self.spent += terms
        if self.work is not None and self.spent > self.work:
            raise GaveUp(f"it takes more than {self.work:,} operations on terms")

    # -- arithmetic ---------------------------------------------------------------------

    def const(self, value: float) -> Poly:
        if math.isnan(value) or math.isinf(value):
            size = self.atom("nan" if math.isnan(value) else "inf")
            return self.neg(size) if value < 0 else size
        number = constant(value)
        return Poly({(): number}) if number else ZERO

    def add(self, a: Poly, b: Poly) -> Poly:
        if not a.terms or not b.terms:
            return a if a.terms else b
        self.spend(len(b.terms))
        terms = dict(a.terms)
        for m, c in b.terms.items():
            total = terms.get(m, 0) + c
            if total:
                terms[m] = total
            else:
                del terms[m]
        return Poly(terms)

    def neg(self, a: Poly) -> Poly:
        return Poly({m: -c for m, c in a.terms.items()})

    def sub(self, a: Poly, b: Poly) -> Poly:
        return self.add(a, self.neg(b))

    def mul(self, a: Poly, b: Poly) -> Poly:
        if len(a.terms) * len(b.terms) > _NAMED:
            a, b = self.named(a), self.named(b)
        return self.expanded(a, b)

    def expanded(self, a: Poly, b: Poly) -> Poly:
        """The product, multiplied out without names."""
        if len(a.terms) * len(b.terms) > UNFOLDED:
            raise GaveUp("an entry has too many terms")
        self.spend(len(a.terms) * len(b.terms))
        terms: dict[Monomial, Number] = {}
        for m, c in a.terms.items():
            for n, d in b.terms.items():
                both = self.times(m, n)
                terms[both] = terms.get(both, 0) + c * d
        return Poly({m: c for m, c in terms.items() if c})

    def named(self, a: Poly, short: int = _SHORT) -> Poly:
        """A long sum as one atom: ``zero`` unfolds it where an identity needs what is inside."""
        if len(a.terms) <= short:
            return a
        return self.const(infinite * math.inf) if (infinite := self.infinite(a)) else self.atom("named", (a,))

    def times(self, m: Monomial, n: Monomial) -> Monomial:
        if not m or not n:
            return m or n
        powers = dict(m)
        for atom, e in n:
            powers[atom] = powers.get(atom, 0) + e
            if self.table[atom].boolean:
                powers[atom] = 1
        return tuple(sorted((a, e) for a, e in powers.items() if e))

    def scaled(self, a: Poly, factor: Number) -> Poly:
        return Poly({m: c * factor for m, c in a.terms.items()}) if factor else ZERO

    def power(self, a: Poly, n: int) -> Poly:
        if n < 0:
            return self.inverse(self.power(a, -n))
        if len(a.terms) == 1:
            ((m, c),) = a.terms.items()
            return Poly({tuple((x, 1 if self.table[x].boolean else e * n) for x, e in m if n): c**n})
        if n > _POWER:
            raise GaveUp("an entry has a power too large to multiply out")
        found = ONE
        for _ in range(n):
            found = self.expanded(found, a)
        return found

    def inverse(self, a: Poly) -> Poly:
        """1/a: a monomial's own inverse, else an atom for what is left without its content."""
        if self.zero(a):
            return self.atom("pole")
        content = self.content(a)
        rest = self.mul(a, self._flipped(content))
        lead = Fraction(1) / rest.terms[min(rest.terms)]
        rest = self.scaled(rest, lead)
        found = self.scaled(self._flipped(content), lead)
        return found if rest == ONE else self.mul(found, self.atom("inverse", (rest,)))

    def content(self, a: Poly, kind: str | None = None) -> Monomial:
        """The monomial that divides every term; with ``kind`` of such atoms only."""
        powers = [dict(m) for m in a.terms]
        lowest = {x: min(p.get(x, 0) for p in powers) for x in a.atoms()}
        kinds = {x: self.table[x] for x, e in lowest.items() if e}
        kinds = {x: atom for x, atom in kinds.items() if not atom.boolean and atom.kind != "named"}
        return tuple(sorted((x, lowest[x]) for x, atom in kinds.items() if kind in (None, atom.kind)))

    def _flipped(self, m: Monomial) -> Poly:
        """1/m; the inverse of an inverse is what it was the inverse of."""
        plain = tuple((x, -e) for x, e in m if self.table[x].kind != "inverse")
        found = Poly({plain: 1})
        for x, e in m:
            if self.table[x].kind == "inverse":
                found = self.mul(found, self.power(self.table[x].args[0], e))
        return found

    # -- atoms --------------------------------------------------------------------------

    def symbol(self, boolean: bool = False) -> Poly:
        """A new unknown."""
        return self._new(Atom("symbol", (), boolean))

    def atom(self, kind: str, args: tuple[Poly, ...] = (), boolean: bool = False) -> Poly:
        """A function of ``args``; the same one for arguments that are equal as fractions."""
        exact = (kind, args)
        if exact in self._exact:
            return self._exact[exact]
        key = (kind, *(self.value(a) for a in args))
        for known in self._known.get(key, ()):
            most = _NAMES if kind == "named" else _MERGED
            if all(self._merged(a, b, most) for a, b in zip(self.table[known].args, args, strict=True)):
                self._exact[exact] = Poly({((known, 1),): 1})
                return self._exact[exact]
        self._exact[exact] = self._new(Atom(kind, args, boolean))
        self._known.setdefault(key, []).append(len(self.table) - 1)
        return self._exact[exact]

    def _merged(self, a: Poly, b: Poly, most: int) -> bool:
        """Equal without much work; arguments that are not found equal make two atoms of one."""
        return a == b or self.zero(self.sub(a, b), most)

    def _new(self, atom: Atom) -> Poly:
        if atom.kind in ("inf", "nan") or (not atom.boolean and any(self.endless(a) for a in atom.args)):
            self.unbounded.add(len(self.table))
        self.table.append(atom)
        for lane, values in enumerate(self._values):
            value = self._random.randrange(1, _PRIME)
            if atom.kind == "inverse":
                below = self.value(atom.args[0], lane)
                value = pow(below, -1, _PRIME) if below else 1
            elif atom.kind == "named":
                value = self.value(atom.args[0], lane)
            values.append(value % 2 if atom.boolean else value)
        return Poly({((len(self.table) - 1, 1),): 1})

    def value(self, a: Poly, lane: int = 0) -> int:
        """``a`` at a random point of a prime field: different values, different fractions."""
        self.spend(len(a.terms))
        values, powers, total = self._values[lane], self._powers[lane], 0
        for m, c in a.terms.items():
            part = c.numerator % _PRIME
            if c.denominator != 1:
                part = part * pow(c.denominator, -1, _PRIME) % _PRIME
            for x, e in m:
                if e == 1:
                    part = part * values[x] % _PRIME
                    continue
                if (x, e) not in powers:
                    powers[x, e] = pow(values[x], e, _PRIME) if values[x] or e > 0 else 0
                part = part * powers[x, e] % _PRIME
            total += part
        return total % _PRIME

    # -- identities ---------------------------------------------------------------------

    def equal(self, a: Poly, b: Poly) -> bool:
        return a == b or self.zero(self.gap(a, b))

    def gap(self, a: Poly, b: Poly) -> Poly:
        """``a - b``; an infinity takes up what is added to it, so two of one sign are equal."""
        infinite = self.infinite(a)
        return ZERO if infinite and infinite == self.infinite(b) else self.sub(a, b)

    def zero(self, a: Poly, most: int = UNFOLDED) -> bool:
        """Whether ``a`` is zero as a fraction: sympy unfolds names and multiplies denominators out."""
        if not a.terms or not any(self.table[x].kind in ("inverse", "named") for x in a.atoms()):
            return not a.terms
        from tenfuse.algebra.proof.unfold import unfolded_zero

        return self.value(a) == 0 and unfolded_zero(self, a, most)

    def sign(self, a: Poly) -> int | None:
        """That of ``a``, where it is known."""
        number = a.number()
        return None if number is None else (number > 0) - (number < 0)

    def order(self, a: Poly) -> int | None:
        """That of the difference of two values whose maximum is taken."""
        return self.sign(a)

    def infinite(self, a: Poly) -> int:
        """The sign of infinity, where ``a`` is that and a real number; else 0."""
        if ("inf", ()) not in self._exact:
            return 0
        kinds = {x: self.table[x].kind for x in a.atoms()}
        found = [m for m in a.terms if any(kinds[x] in ("inf", "nan", "pole") for x, _ in m)]
        if len(found) != 1 or [(kinds[x], e) for x, e in found[0]] != [("inf", 1)]:
            return 0
        return 1 if a.terms[found[0]] > 0 else -1

    def undefined(self) -> Poly:
        """What an infinity less itself, or times zero, is: equal to nothing."""
        return self.atom("nan", (Poly({(): len(self.table)}),))

    def endless(self, a: Poly) -> set[Monomial]:
        """The terms of ``a`` that may be infinite or undefined."""
        return {m for m in a.terms if any(x in self.unbounded for x, _ in m)} if self.unbounded else set()

    def null(self, a: Poly) -> bool | None:
        """Whether ``a`` is zero, where it is known."""
        number = a.number()
        return None if number is None else not number

    def never_zero(self, a: Poly) -> bool:
        """Whether no choice of truth values makes ``a`` the zero polynomial.

        Else multiplying by it would forget what ``where`` selects when it is zero.
        """
        a = self.spelled_out(a)
        truths = sorted(x for x in a.atoms() if self.table[x].boolean)
        choices = itertools.product((0, 1), repeat=len(truths))
        return len(truths) <= _TRUTHS and all(
            self._given(a, dict(zip(truths, chosen, strict=True))).terms for chosen in choices
        )

    def spelled_out(self, a: Poly) -> Poly:
        """``a`` without names at its top level."""
        while names := [x for x in a.atoms() if self.table[x].kind == "named"]:
            x = max(names)
            parts = (
                self.expanded(
                    Poly({tuple(p for p in m if p[0] != x): c}), self.power(inner, dict(m).get(x, 0))
                )
                for inner in (self.table[x].args[0],)
                for m, c in a.terms.items()
            )
            a = self.total(parts)
        return a

    def _given(self, a: Poly, truths: dict[int, int]) -> Poly:
        """``a`` with some truth values filled in."""
        kept = (
            Poly({tuple(p for p in m if p[0] not in truths): c})
            for m, c in a.terms.items()
            if all(truths.get(x, 1) for x, _ in m)
        )
        return self.total(kept)

    def total(self, parts: Iterable[Poly]) -> Poly:
        found = ZERO
        for part in parts:
            found = self.add(found, part)
        return found
