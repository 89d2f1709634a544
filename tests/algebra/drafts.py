"""Recurrences in normal form, written by hand."""

from __future__ import annotations

from tenfuse.algebra.recurrence import Affine, Stage, Term
from tenfuse.step.program import Builder
from tests.algebra.chunks import Draft

S = ("b", "k", "v")


def _low(b, sizes, terms, offset, outs, gates=(), axes=S, nexts=None, form="low-rank"):
    stage = Stage((0,), (Affine(tuple(terms), offset),), form)
    return Draft(b, sizes, ((axes, nexts or axes),), (stage,), tuple(outs), frozenset(gates))


def _stream(b):
    count = iter(range(99))
    return lambda *axes: b.input("stream", next(count), axes)


def _base(K=5, V=6, B=2, **more):
    b = Builder()
    return b, dict(b=B, k=K, v=V, i=K, **more), _stream(b)


def attention(gate=()):
    """``S <- a S + k v^T; o = q S``, the gate over any axes (None: no gate)."""
    b, sizes, x = _base()
    q, k, v = x("b", "k"), x("b", "k"), x("b", "v")
    terms = [Term(b.input("carry", 0, S), (x(*gate),) if gate is not None else ())]
    read = Term(b.input("next", 0, S), (q,), frozenset({"k"}))
    outs = [(Affine((read,)), ("b", "v"))]
    return _low(b, sizes, terms, b.call("mul", k, v), outs, {3} if gate is not None else ())


def delta(gate=("b",), before=False, signs=1.0, normal=True):
    """The gated delta rule, read before or after the update."""
    b, sizes, x = _base()
    q, k, v, beta = x("b", "k"), x("b", "k"), x("b", "v"), x("b")
    terms = [
        Term(
            b.input("carry", 0, S), (a,) if (a := x(*gate) if gate is not None else None) is not None else ()
        )
    ]
    w = b.rename(k, {"k": "i"})
    u = (b.const(-1.0), beta, k, w)
    if gate is not None:
        u = (*u, b.rename(a, {"k": "i"}))
    terms.append(Term(b.input("carry", 0, ("b", "i", "v")), u, frozenset({"i"})))
    read = Term(
        b.input("carry" if before else "next", 0, ("b", "i", "v")),
        (b.rename(q, {"k": "i"}),),
        frozenset({"i"}),
    )
    extra = b.call("mul", v, b.const(0.25))
    outs = [(Affine((read,), extra), ("b", "v"))]
    return _low(
        b, sizes, terms, b.call("mul", b.call("mul", beta, k), v), outs, {4} if gate is not None else ()
    )


DRAFTS = {
    "attention": lambda: attention(None),
    "attention-scalar": lambda: attention(("b",)),
    "attention-step": lambda: attention(()),
    "attention-vector": lambda: attention(("b", "k")),
    "attention-values": lambda: attention(("b", "v")),
    "delta": lambda: delta(None),
    "delta-scalar": lambda: delta(),
    "delta-vector": lambda: delta(("b", "k")),
    "delta-before": lambda: delta(before=True),
    "delta-values": lambda: delta(("b", "v")),
}
