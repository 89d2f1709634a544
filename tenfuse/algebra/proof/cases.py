"""Proofs by cases: which of two values is larger, or whether they are equal, told apart.

Takes a proof over symbols that needs to know how values compare; runs it once for every way in
which they can.  A case is a set of linear equations and strict inequalities
between input entries.  An equation is used up: one of its entries is replaced by what it equals,
everywhere and from the start, so that a tie is a tie in all that follows.  Inequalities decide
later comparisons, by Fourier-Motzkin elimination over the rational numbers (Schrijver, "Theory
of Linear and Integer Programming", 1986, section 12.2); cases that contradict themselves are
left out.  All cases together are all inputs, so what holds in each of them holds for every
input.  Comparisons of values that are not linear in input entries stay unknown in every case,
and so do those that a maximum makes where only masks are to be told apart (``orders`` false).

It refuses by ``Differs`` or ``GaveUp``, as the proof itself does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction

from tenfuse.algebra.proof.polynomials import Number, Poly
from tenfuse.algebra.proof.symbols import Field, GaveUp
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.step.program import Const, Pointwise, Ref

Form = Mapping[int, Number]
"""``sum of coefficient * entry``, entries by number; the constant has the number ``_ONE``."""
_ONE = -1
_CASE = 3_000
"""What running a proof once more costs beside its terms, in operations on them."""
_MOST = 200
"""Inequalities beyond which an elimination is given up."""
INFINITE = ("max-plus", "min-plus", "log-plus")
"""The semirings whose zero is an infinity, which no sum of symbols tells from a selection."""
TIED = ("max-plus", "min-plus")
"""The semirings whose sum is one of its terms, and whose derivative says which."""


def tied(recurrence: Recurrence) -> bool:
    """Whether the loop's derivative depends on how values compare, and no sum of paths is too long to
    be taken apart by cases."""
    return any(
        stage.semiring in TIED and not any(t.contracted for u in stage.updates for t in u.terms)
        for stage in recurrence.stages
    )


def masked(recurrence: Recurrence) -> bool:
    """Whether masks choose between values of another semiring and its zero, an infinity."""
    nodes = recurrence.nodes

    def nothing(ref: Ref) -> bool:
        node = nodes[ref]
        return isinstance(node, Const) and math.isinf(node.value)

    selected = (n.args[1:] for n in nodes if isinstance(n, Pointwise) and n.fn == "where")
    return any(s.semiring in INFINITE for s in recurrence.stages) and any(
        nothing(ref) for pair in selected for ref in pair
    )


def _plus(a: Form, b: Form, factor: Number = 1) -> Form:
    found = dict(a)
    for x, c in b.items():
        found[x] = found.get(x, 0) + c * factor
    return {x: c for x, c in found.items() if c}


def _replaced(a: Form, x: int, by: Form) -> Form:
    return _plus({y: c for y, c in a.items() if y != x}, by, a[x]) if x in a else a


def _line(a: Form) -> tuple[tuple[int, Number], ...]:
    """The same for all multiples of ``a``."""
    lead = a[min(a)]
    return tuple((x, Fraction(a[x]) / lead) for x in sorted(a))


@dataclasses.dataclass(frozen=True)
class Case:
    """Entries that are replaced, forms that are positive, lines that are not zero."""

    replaced: Mapping[int, Form] = dataclasses.field(default_factory=dict)
    positive: tuple[Form, ...] = ()
    apart: frozenset[tuple[tuple[int, Number], ...]] = frozenset()

    def where(self, form: Form, sign: int) -> Case:
        """The part of the case in which ``form`` has that sign."""
        if not sign:
            return self.where_zero(form)
        return dataclasses.replace(self, positive=(*self.positive, {x: sign * c for x, c in form.items()}))

    def where_not_zero(self, form: Form) -> Case:
        return dataclasses.replace(self, apart=self.apart | {_line(form)})

    def where_zero(self, form: Form) -> Case:
        """The last entry of ``form`` replaced by what it then equals."""
        x = max(form)
        value = {y: -Fraction(c) / form[x] for y, c in form.items() if y != x}
        replaced = {y: _replaced(old, x, value) for y, old in self.replaced.items()}
        positive = tuple(_replaced(p, x, value) for p in self.positive)
        apart = frozenset(_line(f) for line in self.apart if (f := _replaced(dict(line), x, value)))
        return Case({**replaced, x: value}, positive, apart)

    def signs(self, form: Form, spend: Callable[[int], None]) -> list[int]:
        """Those that ``form`` can have, zero last."""
        near = self._near(form)
        found = [s for s in (1, -1) if possible([*near, {x: s * c for x, c in form.items()}], spend)]
        zero = _line(form) not in self.apart and (
            len(found) == 2 or possible(self.where_zero(form).positive, spend)
        )
        return [*found, 0] if zero else found

    def _near(self, form: Form) -> list[Form]:
        """The inequalities that share entries with ``form``, with each other in between."""
        known, rest, found = set(form), list(self.positive), list[Form]()
        while more := [f for f in rest if known & (set(f) - {_ONE})]:
            known |= {x for f in more for x in f} - {_ONE}
            found += more
            rest = [f for f in rest if f not in more]
        return found


def possible(positive: Iterable[Form], spend: Callable[[int], None]) -> bool:
    """Whether some entries make every form positive."""
    forms = {_scaled(f) for f in positive}
    while True:
        if any(not f or (set(dict(f)) == {_ONE} and f[0][1] < 0) for f in forms):
            return False
        entries = {x for f in forms for x, _ in f} - {_ONE}
        if not entries:
            return True
        x = min(entries, key=lambda e: sum(e in dict(f) for f in forms))
        above = [dict(f) for f in forms if dict(f).get(x, 0) > 0]
        below = [dict(f) for f in forms if dict(f).get(x, 0) < 0]
        spend(sum(map(len, forms)) + len(above) * len(below))
        forms = {f for f in forms if x not in dict(f)}
        for a in above:
            forms |= {_scaled(_plus(a, b, -Fraction(a[x]) / b[x])) for b in below}
        if len(forms) > _MOST:
            raise GaveUp("there are too many inequalities in a case")


def _scaled(a: Form) -> tuple[tuple[int, Number], ...]:
    """The same for all positive multiples of ``a``."""
    if not a:
        return ()
    lead = abs(Fraction(a[min(a)]))
    return tuple((x, a[x] / lead) for x in sorted(a))


class Cases(Field):
    """The field of one case; where it has to choose, the other cases go to ``others``."""

    def __init__(self, case: Case, others: list[Case], work: int | None = None, orders: bool = True) -> None:
        super().__init__(work)
        self.case, self.others, self.orders = case, others, orders
        self._entries: list[Poly] = []
        self._numbers: dict[int, int] = {}
        self._count = 0
        self._signs: dict[tuple[tuple[int, Number], ...], int] = {}

    def symbol(self, boolean: bool = False) -> Poly:
        if boolean:
            return super().symbol(boolean)
        number, self._count = self._count, self._count + 1
        if number not in self.case.replaced:
            return self._entry(number)
        parts = (
            Poly({(): c}) if x == _ONE else self.scaled(self._entry(x), c)
            for x, c in self.case.replaced[number].items()
        )
        return self.total(parts)

    def _entry(self, number: int) -> Poly:
        while len(self._entries) <= number:
            found = super().symbol()
            ((x, _),) = next(iter(found.terms))
            self._numbers[x] = len(self._entries)
            self._entries.append(found)
        return self._entries[number]

    def sign(self, a: Poly) -> int | None:
        known, form = self._told(a)
        if form is None:
            return known
        line, side = _line(form), 1 if form[min(form)] > 0 else -1
        if line not in self._signs:
            options = self.case.signs(dict(line), self.spend)
            for other in options[1:]:
                self.others.append(self.case.where(dict(line), other))
            if len(options) > 1:
                self.case = self.case.where(dict(line), options[0])
            self._signs[line] = options[0]
        return side * self._signs[line]

    def order(self, a: Poly) -> int | None:
        return self.sign(a) if self.orders else super().sign(a)

    def null(self, a: Poly) -> bool | None:
        known, form = self._told(a)
        if form is None:
            return None if known is None else known == 0
        line = _line(form)
        if line in self._signs or line in self.case.apart:
            return not self._signs.get(line, 1)
        options = self.case.signs(dict(line), self.spend)
        if len(options) == 1:
            self._signs[line] = options[0]
        elif 0 in options:
            self.others.append(self.case.where(dict(line), 0))
            self.case = self.case.where_not_zero(dict(line))
        return options == [0]

    def _told(self, a: Poly) -> tuple[int | None, Form | None]:
        """The sign where it is the same in all cases, else ``a`` as a form where it is one."""
        a = self.spelled_out(a)
        number = a.number()
        if number is not None:
            return (number > 0) - (number < 0), None
        if infinite := self.infinite(a):
            return infinite, None
        form: dict[int, Number] = {}
        for m, c in a.terms.items():
            if m and (len(m) > 1 or m[0][1] != 1 or m[0][0] not in self._numbers):
                return None, None
            form[self._numbers[m[0][0]] if m else _ONE] = c
        return None, form


def by_cases(prove: Callable[[Field], None], field: Field, orders: bool = True) -> None:
    """``prove`` in every case; the work is counted in ``field``."""
    open_ = [Case()]
    while open_:
        left = None if field.work is None else field.work - field.spent
        one = Cases(open_.pop(), open_, left, orders)
        try:
            prove(one)
        finally:
            field.spent += one.spent
        field.spend(_CASE)


__all__ = ["Case", "Cases", "by_cases", "masked", "possible", "tied"]
