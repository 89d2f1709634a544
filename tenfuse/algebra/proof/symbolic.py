"""The functions of the IR on exact symbolic numbers.

Takes a ``Field`` and polynomials over it; leaves polynomials.  ``SYMBOLIC`` has an entry
for each function of ``FUNCTIONS``; those that are not listed by name are uninterpreted.
What is interpreted, and in which sense, is said in ``symbols``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from tenfuse.algebra.proof.polynomials import ONE, ZERO, Monomial, Number, Poly
from tenfuse.algebra.proof.symbols import Field
from tenfuse.step.functions import FUNCTIONS

Symbolic = Callable[..., Poly]
_EXPANDED = 8
"""Powers up to this are multiplied out."""
_SPELLED = 60
"""So many terms an exponent may have for a product with a name in it to be multiplied out."""


def number_of(value: Number) -> Poly:
    return Poly({(): value}) if value else ZERO


def _add(f: Field, a: Poly, b: Poly) -> Poly:
    found = f.add(a, b)
    kept = not f.unbounded or f.endless(a) | f.endless(b) <= found.terms.keys()
    return found if kept else f.undefined()


def _mul(f: Field, a: Poly, b: Poly) -> Poly:
    if f.unbounded and ((not a.terms and f.endless(b)) or (not b.terms and f.endless(a))):
        return f.undefined()
    return f.mul(a, b)


def _div(f: Field, a: Poly, b: Poly) -> Poly:
    return f.mul(a, f.inverse(b))


def _signed(f: Field, a: Poly) -> tuple[Poly, Number]:
    """``a`` with leading coefficient one, and that coefficient."""
    lead = a.terms[min(a.terms)]
    return f.scaled(a, Fraction(1) / lead), lead


def _abs(f: Field, a: Poly) -> Poly:
    number = a.number()
    if number is not None:
        return number_of(max(number, -number))
    if f.infinite(a):
        return f.const(math.inf)
    one, lead = _signed(f, a)
    return f.scaled(f.atom("abs", (one,)), max(lead, -lead))


def _sign(f: Field, a: Poly) -> Poly:
    number = a.number()
    if number is not None:
        return number_of((number > 0) - (number < 0))
    one, lead = _signed(f, a)
    return f.scaled(f.atom("sign", (one,)), 1 if lead > 0 else -1)


def _pow(f: Field, a: Poly, b: Poly) -> Poly:
    number = b.number()
    if number is not None and number == int(number) and -_EXPANDED <= number <= _EXPANDED:
        return f.power(a, int(number))
    return f.atom("pow", (a, b))


# -- exponentials: ordinary, and those of the idempotent sum -------------------------------


def _exponential(f: Field, a: Poly, kind: str, log: str) -> Poly:
    """The product over the terms n/q * m of (atom of m/q) ** n; exp(log q) is q."""
    found, a = ONE, _sums(f, a)
    if kind == "exp" and f.infinite(a) < 0:
        return ZERO
    for m, c in a.terms.items():
        n, q = c.numerator, c.denominator
        inner = f.table[m[0][0]] if len(m) == 1 and m[0][1] == 1 else None
        least = -_EXPANDED if kind == "exp" else 0
        if inner is not None and inner.kind == log and q == 1 and least <= n <= _EXPANDED:
            part = f.power(inner.args[0], n)
        else:
            part = _raised(f.atom(kind, (Poly({m: Fraction(1, q) if q != 1 else 1}),)), n)
        found = f.mul(found, part)
    return found if kind == "exp" else _idempotent(found)


def _sums(f: Field, a: Poly) -> Poly:
    """``a`` with named sums among its terms spelled out, so that exp(a + b) is seen."""
    while names := [m for m in a.terms if len(m) == 1 and m[0][1] == 1 and f.table[m[0][0]].kind == "named"]:
        m = names[0]
        inner = f.scaled(f.table[m[0][0]].args[0], a.terms[m])
        a = f.add(Poly({k: c for k, c in a.terms.items() if k != m}), inner)
    return f.spelled_out(a) if _length(f, a) <= _SPELLED else a


def _length(f: Field, a: Poly) -> int:
    """How many terms ``a`` has with the names in its products spelled out."""
    names = {x: len(f.table[x].args[0].terms) for x in a.atoms() if f.table[x].kind == "named"}
    return sum(math.prod(names[x] ** abs(e) for x, e in m if x in names) for m in a.terms)


def _raised(atom: Poly, n: int) -> Poly:
    ((x, _),) = next(iter(atom.terms))
    return Poly({((x, n),): 1})


def _idempotent(a: Poly) -> Poly:
    return Poly({m: 1 for m in a.terms})


def _logarithm(f: Field, a: Poly, kind: str, exp: str) -> Poly:
    """The exponents of what divides every term, plus the logarithm of the rest."""
    a = f.spelled_out(a)  # a name hides what divides it
    content = f.content(a, exp)
    rest = f.mul(a, Poly({tuple((x, -e) for x, e in content): 1}))
    found = _exponents(f, content)
    for x, e in f.content(rest, "inverse") if kind == "log" else ():
        if _positive(f, f.table[x].args[0]):
            rest = f.mul(rest, Poly({((x, -e),): 1}))
            found = f.sub(found, f.scaled(_log(f, f.table[x].args[0]), e))
    return found if f.equal(rest, ONE) else f.add(found, f.atom(kind, (rest,)))


def _positive(f: Field, a: Poly) -> bool:
    """Whether ``a`` is a sum of exponentials, or of quotients of such sums."""
    atoms = [f.table[x] for x in a.atoms()]
    return all(c > 0 for c in a.terms.values()) and all(
        t.kind == "exp" or (t.kind in ("inverse", "named") and _positive(f, t.args[0])) for t in atoms
    )


def _exponents(f: Field, content: Monomial) -> Poly:
    return f.total(f.scaled(f.table[x].args[0], e) for x, e in content)


def _exp(f: Field, a: Poly) -> Poly:
    return _exponential(f, a, "exp", "log")


def _log(f: Field, a: Poly) -> Poly:
    if not a.terms:
        return f.const(-math.inf)
    return _logarithm(f, a, "log", "exp")


def _maximum(f: Field, a: Poly, b: Poly) -> Poly:
    gap = f.gap(a, b)
    first = f.infinite(gap) or f.order(gap)
    if first is not None:
        return a if first >= 0 else b
    both = f.add(_exponential(f, a, "texp", "tlog"), _exponential(f, b, "texp", "tlog"))
    return _logarithm(f, _idempotent(both), "tlog", "texp")


def _minimum(f: Field, a: Poly, b: Poly) -> Poly:
    return f.neg(_maximum(f, f.neg(a), f.neg(b)))


def _logaddexp(f: Field, a: Poly, b: Poly) -> Poly:
    return _log(f, f.add(_exp(f, a), _exp(f, b)))


def same_exponentials(f: Field, a: Poly, b: Poly) -> bool:
    """Whether exp(a) is exp(b), which has only products for what are sums of logarithms."""
    logs = any(f.table[x].kind == "log" for x in a.atoms() | b.atoms())
    return logs and f.equal(_exp(f, a), _exp(f, b))


# -- truth values -------------------------------------------------------------------------


def truth(f: Field, a: Poly) -> Poly:
    """Whether ``a`` is not zero."""
    bits = all(f.table[x].boolean for x in a.atoms())
    return a if bits and f.mul(a, a) == a else _not(f, _equal(f, a, ZERO))


def _not(f: Field, a: Poly) -> Poly:
    return f.sub(ONE, a)


def _equal(f: Field, a: Poly, b: Poly) -> Poly:
    gap = f.gap(a, b)
    null = False if f.infinite(gap) or (gap.terms and _positive(f, gap)) else f.null(gap)
    if null is not None:
        return ONE if null else ZERO
    return f.atom("eq", (_signed(f, gap)[0],), boolean=True)


def _less(f: Field, a: Poly, b: Poly) -> Poly:
    gap = f.gap(b, a)
    sign = f.sign(gap)
    if sign is not None:
        return ONE if sign > 0 else ZERO
    one, lead = _signed(f, gap)
    return f.atom("positive", (f.scaled(one, 1 if lead > 0 else -1),), boolean=True)


def _where(f: Field, c: Poly, a: Poly, b: Poly) -> Poly:
    t = truth(f, c)
    if t.number() is not None:
        return a if t.terms else b
    return f.add(f.mul(t, a), f.mul(_not(f, t), b))


def _and(f: Field, a: Poly, b: Poly) -> Poly:
    return f.mul(truth(f, a), truth(f, b))


def _or(f: Field, a: Poly, b: Poly) -> Poly:
    return _not(f, f.mul(_not(f, truth(f, a)), _not(f, truth(f, b))))


# -- the identity that cuts the gradient ----------------------------------------------------


def _cut(f: Field, a: Poly) -> Poly:
    """``cut`` of a function is the function of what is cut; cut twice is cut once."""
    return f.total(f.scaled(_product(f, m), c) for m, c in a.terms.items())


def _product(f: Field, m: Monomial) -> Poly:
    found = ONE
    for x, e in m:
        if x not in f.cuts:
            f.cuts[x] = _cut_atom(f, x)
        found = f.mul(found, f.power(f.cuts[x], e))
    return found


def _cut_atom(f: Field, x: int) -> Poly:
    atom, own = f.table[x], Poly({((x, 1),): 1})
    if atom.kind == "cut" or (not atom.args and atom.kind != "symbol"):
        return own
    if atom.kind == "symbol":
        return f.atom("cut", (own,), atom.boolean)
    args = [_cut(f, a) for a in atom.args]
    if atom.kind == "inverse":
        return f.inverse(args[0])
    if atom.kind == "named":
        return f.named(args[0])  # x - cut(x) is long, and the cut of it nothing
    if atom.kind in ("exp", "log"):
        return (_exp if atom.kind == "exp" else _log)(f, args[0])
    if atom.kind == "texp":
        return _exponential(f, args[0], "texp", "tlog")
    if atom.kind == "tlog":
        return _logarithm(f, _idempotent(args[0]), "tlog", "texp")
    return f.atom(atom.kind, tuple(args), atom.boolean)


def _uninterpreted(name: str) -> Symbolic:
    boolean = FUNCTIONS[name].boolean
    return lambda f, *args: f.atom(name, args, boolean)


SYMBOLIC: dict[str, Symbolic] = {
    **{name: _uninterpreted(name) for name in FUNCTIONS},
    "add": _add,
    "sub": lambda f, a, b: _add(f, a, f.neg(b)),
    "mul": _mul,
    "neg": lambda f, a: f.neg(a),
    "div": _div,
    "abs": _abs,
    "sign": _sign,
    "pow": _pow,
    "exp": _exp,
    "expm1": lambda f, a: f.sub(_exp(f, a), ONE),
    "log": _log,
    "log1p": lambda f, a: _log(f, f.add(ONE, a)),
    "softplus": lambda f, a: _log(f, f.add(ONE, _exp(f, a))),
    "rsqrt": lambda f, a: f.inverse(f.atom("sqrt", (a,))),
    "maximum": _maximum,
    "minimum": _minimum,
    "clamp_min": _maximum,
    "clamp_max": _minimum,
    "relu": lambda f, a: _maximum(f, a, ZERO),
    "logaddexp": _logaddexp,
    "where": _where,
    "lt": _less,
    "gt": lambda f, a, b: _less(f, b, a),
    "le": lambda f, a, b: _not(f, _less(f, b, a)),
    "ge": lambda f, a, b: _not(f, _less(f, a, b)),
    "eq": _equal,
    "ne": lambda f, a, b: _not(f, _equal(f, a, b)),
    "logical_and": _and,
    "logical_or": _or,
    "logical_not": lambda f, a: _not(f, truth(f, a)),
    "cut": _cut,
}
