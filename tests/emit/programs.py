"""Step programs written by hand, with their adjoints where a test needs them."""

from __future__ import annotations

from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram, validate


def _done(b, sizes, carries, outs, dynamic=()):
    program = StepProgram(tuple(b.nodes), sizes, tuple(carries), tuple(outs), frozenset(dynamic))
    validate(program)
    return program


def ema(B=3, D=20, dynamic=()):
    b = Builder()
    h, a, x = (b.input(k, i, ("b", "d")) for k, i in (("carry", 0), ("stream", 0), ("stream", 1)))
    y = b.call("add", b.call("mul", a, h), x)
    return _done(b, dict(b=B, d=D), [CarrySpec(("b", "d"), y, ("b", "d"))], [OutSpec(y, ("b", "d"))], dynamic)


def ema_adjoint(B=3, D=20):
    """dh <- a (dh + dy); da = (dh + dy) h_prev; dx = dh + dy."""
    b = Builder()
    dh, a, dy = (
        b.input("carry", 0, ("b", "d")),
        b.input("stream", 0, ("b", "d")),
        b.input("stream", 2, ("b", "d")),
    )
    h = b.input("state", 0, ("b", "d"))
    g = b.call("add", dh, dy)
    outs = [OutSpec(b.call("mul", g, h), ("b", "d")), OutSpec(g, ("b", "d"))]
    return _done(b, dict(b=B, d=D), [CarrySpec(("b", "d"), b.call("mul", g, a), ("b", "d"))], outs)


def ten(B=5, K=24, read_after=False):
    """(re, im) <- R^T (lambda (re, im) + beta); y = re."""
    b = Builder()
    re, im = b.input("carry", 0, ("b", "k")), b.input("carry", 1, ("b", "k"))
    c, s = b.input("invariant", 0, ("k",)), b.input("invariant", 1, ("k",))
    x, r = b.input("stream", 0, ("b", "k")), b.input("invariant", 2, ("k", "j"))
    u = b.call("add", b.call("sub", b.call("mul", c, re), b.call("mul", s, im)), x)
    v = b.call("add", b.call("mul", s, re), b.call("mul", c, im))
    p = b.contract(b.call("mul", u, r), "k")
    q = b.contract(b.call("mul", v, r), "k")
    carries = [CarrySpec(("b", "k"), p, ("b", "j")), CarrySpec(("b", "k"), q, ("b", "j"))]
    return _done(b, dict(b=B, k=K, j=K), carries, [OutSpec(p, ("b", "j"))])


def ten_adjoint(B=5, K=24):
    b = Builder()
    dp, dq = b.input("carry", 0, ("b", "j")), b.input("carry", 1, ("b", "j"))
    c, s, r = (
        b.input("invariant", 0, ("k",)),
        b.input("invariant", 1, ("k",)),
        b.input("invariant", 2, ("k", "j")),
    )
    x, dy = b.input("stream", 0, ("b", "k")), b.input("stream", 1, ("b", "j"))
    re, im = b.input("state", 0, ("b", "k")), b.input("state", 1, ("b", "k"))
    u = b.call("add", b.call("sub", b.call("mul", c, re), b.call("mul", s, im)), x)
    v = b.call("add", b.call("mul", s, re), b.call("mul", c, im))
    g = b.call("add", dp, dy)
    du = b.contract(b.call("mul", g, r), "j")
    dv = b.contract(b.call("mul", dq, r), "j")
    dre = b.call("add", b.call("mul", c, du), b.call("mul", s, dv))
    dim = b.call("sub", b.call("mul", c, dv), b.call("mul", s, du))
    dc = b.call("add", b.call("mul", re, du), b.call("mul", im, dv))
    ds = b.call("sub", b.call("mul", re, dv), b.call("mul", im, du))
    dr = b.call("add", b.call("mul", u, g), b.call("mul", v, dq))
    carries = [CarrySpec(("b", "j"), dre, ("b", "k")), CarrySpec(("b", "j"), dim, ("b", "k"))]
    outs = [
        OutSpec(du, ("b", "k")),
        OutSpec(dc, ("b", "k"), True),
        OutSpec(ds, ("b", "k"), True),
        OutSpec(dr, ("b", "k", "j"), True),
    ]
    return _done(b, dict(b=B, k=K, j=K), carries, outs)


def attention(B=2, K=12, V=20):
    b = Builder()
    s = b.input("carry", 0, ("b", "k", "v"))
    q, k, v = (
        b.input("stream", 0, ("b", "k")),
        b.input("stream", 1, ("b", "k")),
        b.input("stream", 2, ("b", "v")),
    )
    n = b.call("add", s, b.call("mul", k, v))
    o = b.contract(b.call("mul", q, n), "k")
    return _done(
        b, dict(b=B, k=K, v=V), [CarrySpec(("b", "k", "v"), n, ("b", "k", "v"))], [OutSpec(o, ("b", "v"))]
    )


def delta(B=2, K=16, V=20):
    b = Builder()
    s = b.input("carry", 0, ("b", "k", "v"))
    q, k, v = (
        b.input("stream", 0, ("b", "k")),
        b.input("stream", 1, ("b", "k")),
        b.input("stream", 2, ("b", "v")),
    )
    beta, g = b.input("stream", 3, ("b",)), b.input("stream", 4, ("b",))
    held = b.call("mul", g, s)
    w = b.contract(b.call("mul", k, held), "k")
    u = b.call("mul", beta, b.call("sub", v, w))
    n = b.call("add", held, b.call("mul", k, u))
    o = b.contract(b.call("mul", q, n), "k")
    return _done(
        b, dict(b=B, k=K, v=V), [CarrySpec(("b", "k", "v"), n, ("b", "k", "v"))], [OutSpec(o, ("b", "v"))]
    )


def delta_adjoint(B=2, K=16, V=20):
    b = Builder()
    ds = b.input("carry", 0, ("b", "k", "v"))
    q, k, v = (
        b.input("stream", 0, ("b", "k")),
        b.input("stream", 1, ("b", "k")),
        b.input("stream", 2, ("b", "v")),
    )
    beta, g, do = b.input("stream", 3, ("b",)), b.input("stream", 4, ("b",)), b.input("stream", 5, ("b", "v"))
    s = b.input("state", 0, ("b", "k", "v"))
    held = b.call("mul", g, s)
    e = b.call("sub", v, b.contract(b.call("mul", k, held), "k"))
    u = b.call("mul", beta, e)
    n = b.call("add", held, b.call("mul", k, u))
    dn = b.call("add", ds, b.call("mul", q, do))
    dq = b.contract(b.call("mul", n, do), "v")
    du = b.contract(b.call("mul", k, dn), "k")
    dw = b.call("neg", b.call("mul", du, beta))
    dheld = b.call("add", dn, b.call("mul", k, dw))
    dk = b.contract(b.call("add", b.call("mul", dn, u), b.call("mul", held, dw)), "v")
    dbeta = b.contract(b.call("mul", du, e), "v")
    dg = b.contract(b.call("mul", dheld, s), "k", "v")
    outs = [
        OutSpec(dq, ("b", "k")),
        OutSpec(dk, ("b", "k")),
        OutSpec(b.call("neg", dw), ("b", "v")),
        OutSpec(dbeta, ("b",)),
        OutSpec(dg, ("b",)),
    ]
    return _done(
        b, dict(b=B, k=K, v=V), [CarrySpec(("b", "k", "v"), b.call("mul", g, dheld), ("b", "k", "v"))], outs
    )


def scan(B=2, D=9, N=16):
    b = Builder()
    h, a, x = (b.input(k, i, ("b", "d", "n")) for k, i in (("carry", 0), ("stream", 0), ("stream", 1)))
    c = b.input("stream", 2, ("b", "n"))
    n = b.call("add", b.call("mul", a, h), x)
    y = b.contract(b.call("mul", c, n), "n")
    axes = ("b", "d", "n")
    return _done(b, dict(b=B, d=D, n=N), [CarrySpec(axes, n, axes)], [OutSpec(y, ("b", "d"))])


def rnn(B=3, K=20):
    b = Builder()
    h, w, x = (
        b.input("carry", 0, ("b", "k")),
        b.input("invariant", 0, ("k", "j")),
        b.input("stream", 0, ("b", "j")),
    )
    y = b.call("tanh", b.call("add", b.contract(b.call("mul", h, w), "k"), x))
    return _done(b, dict(b=B, k=K, j=K), [CarrySpec(("b", "k"), y, ("b", "j"))], [OutSpec(y, ("b", "j"))])


def lstm(B=3, K=20):
    b = Builder()
    h, c = b.input("carry", 0, ("b", "k")), b.input("carry", 1, ("b", "j"))
    gates = []
    for i in range(4):
        w, x = b.input("invariant", i, ("j", "k")), b.input("stream", i, ("b", "j"))
        gates.append(b.call("add", b.contract(b.call("mul", h, w), "k"), x))
    i, f, o = (b.call("sigmoid", g) for g in gates[:3])
    n = b.call("add", b.call("mul", f, c), b.call("mul", i, b.call("tanh", gates[3])))
    y = b.call("mul", o, b.call("tanh", n))
    carries = [CarrySpec(("b", "k"), y, ("b", "j")), CarrySpec(("b", "j"), n, ("b", "j"))]
    return _done(b, dict(b=B, k=K, j=K), carries, [OutSpec(y, ("b", "j"))])


def viterbi(B=3, K=18):
    b = Builder()
    h, w, x = (
        b.input("carry", 0, ("b", "k")),
        b.input("invariant", 0, ("k", "j")),
        b.input("stream", 0, ("b", "j")),
    )
    y = b.call("add", b.contract(b.call("add", h, w), "k", op="max"), x)
    return _done(b, dict(b=B, k=K, j=K), [CarrySpec(("b", "k"), y, ("b", "j"))], [OutSpec(y, ("b", "j"))])


def masked(B=3, D=21):
    b = Builder()
    h, x, m = b.input("carry", 0, ("b", "d")), b.input("stream", 0, ("b", "d")), b.input("stream", 1, ("b",))
    new = b.call("add", b.call("mul", b.const(0.5), h), x)
    keep = b.call("logical_and", m, b.call("lt", x, b.const(1.5)))
    y = b.call("where", keep, new, h)
    return _done(b, dict(b=B, d=D), [CarrySpec(("b", "d"), y, ("b", "d"))], [OutSpec(y, ("b", "d"))])


def normalised(B=2, K=9, V=21):
    """S <- S a + k v; S / (|S| + eps): a full contraction, then the same axes again."""
    b = Builder()
    s, k, v = (
        b.input("carry", 0, ("b", "k", "v")),
        b.input("stream", 0, ("b", "k")),
        b.input("stream", 1, ("b", "v")),
    )
    n = b.call("add", b.call("mul", b.const(0.9), s), b.call("mul", k, v))
    norm = b.call("add", b.call("sqrt", b.contract(b.call("mul", n, n), "k", "v")), b.const(1e-8))
    y = b.call("div", n, norm)
    return _done(
        b, dict(b=B, k=K, v=V), [CarrySpec(("b", "k", "v"), y, ("b", "k", "v"))], [OutSpec(norm, ("b",))]
    )


def softmax(B=2, K=19):
    """A heavy value that two later sweeps need, and an output over fewer axes."""
    b = Builder()
    h, w, x = (
        b.input("carry", 0, ("b", "k")),
        b.input("invariant", 0, ("k", "j")),
        b.input("stream", 0, ("b", "k")),
    )
    z = b.call("add", h, x)
    e = b.call("exp", b.call("sub", z, b.contract(z, "k", op="max")))
    p = b.call("div", e, b.contract(e, "k"))
    y = b.call("tanh", b.contract(b.call("mul", p, w), "k"))
    outs = [OutSpec(p, ("b", "k")), OutSpec(b.contract(e, "k"), ("b",))]
    return _done(b, dict(b=B, k=K, j=K), [CarrySpec(("b", "k"), y, ("b", "j"))], outs)


def swap(B=2, D=18):
    """Two carries that change places, a third that is set to a number, an output that lacks an axis."""
    b = Builder()
    p, q, x = b.input("carry", 0, ("b", "d")), b.input("carry", 1, ("b", "d")), b.input("stream", 0, ("b",))
    r = b.input("carry", 2, ("b", "d"))
    s = b.call("add", p, b.call("mul", x, r))
    axes = ("b", "d")
    carries = [CarrySpec(axes, q, axes), CarrySpec(axes, s, axes), CarrySpec(axes, x, axes)]
    outs = [
        OutSpec(x, ("b", "d")),
        OutSpec(b.const(2.0), ("b",)),
        OutSpec(b.call("mul", q, q), ("b", "d"), True),
    ]
    return _done(b, dict(b=B, d=D), carries, outs)


def transposed(B=2, K=17):
    """Reads the state under two names: S[k,j] and S[j,k]."""
    b = Builder()
    s, t = b.input("carry", 0, ("b", "k", "j")), b.input("carry", 0, ("b", "j", "k"))
    x, x2 = b.input("stream", 0, ("b", "k")), b.input("stream", 0, ("b", "j"))
    n = b.call("add", b.call("mul", b.const(0.3), b.call("add", s, t)), b.call("mul", x, x2))
    y = b.contract(b.call("mul", n, x), "k")
    return _done(
        b, dict(b=B, k=K, j=K), [CarrySpec(("b", "k", "j"), n, ("b", "k", "j"))], [OutSpec(y, ("b", "j"))]
    )


def bilinear(B=2, K=17, V=33):
    """Both sides contracted: the two kept axes differ within one sweep."""
    b = Builder()
    s = b.input("carry", 0, ("b", "k", "v"))
    k, v = b.input("stream", 0, ("b", "k")), b.input("stream", 1, ("b", "v"))
    left, right = b.contract(b.call("mul", s, v), "v"), b.contract(b.call("mul", s, k), "k")
    n = b.call(
        "add", b.call("mul", b.const(0.5), s), b.call("mul", b.call("tanh", left), b.call("sin", right))
    )
    axes = ("b", "k", "v")
    return _done(
        b,
        dict(b=B, k=K, v=V),
        [CarrySpec(axes, n, axes)],
        [OutSpec(left, ("b", "k")), OutSpec(right, ("b", "v"))],
    )


FORWARD = {
    f.__name__: f
    for f in (
        ema,
        ten,
        attention,
        delta,
        scan,
        rnn,
        lstm,
        viterbi,
        masked,
        normalised,
        softmax,
        swap,
        transposed,
        bilinear,
    )
}
