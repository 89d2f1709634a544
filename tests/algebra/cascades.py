"""Recurrences that read the states of an earlier one: as ``loops``, a gate's name starts with g."""

from __future__ import annotations

import torch

from tests.step.steps import sizes


def _written(k, v):
    return k[..., None] * v[..., None, :]


def _read(q, s):
    return torch.einsum("bhk,bhkv->bhv", q, s)


def chained(h, y, x, gh, gy):
    """An exponential average of one; both are read."""
    h = gh * h + x
    y = gy * y + (1 - gy) * h
    return (h, y), (y, h)


def before(h, y, x, g):
    """The second reads the first as it was before the step."""
    y = g * y + 3 * h
    return (g * h + x, y), (y - h,)


def thrice(h, y, z, x, gh, gy, gz):
    h = gh * h + x
    y = gy * y + h
    z = gz * z + y - 0.5 * h
    return (h, y, z), (z,)


def mixing(h, y, x, g, r):
    """Every entry of the second reads all entries of the first."""
    h = g * h + x
    y = 0.9 * y + h @ r
    return (h, y), (y,)


def selective(h, y, x, b, c, g):
    """A state space model, its output averaged."""
    h = g * h + x[..., None] * b[:, None, :]
    y = 0.9 * y + (h * c[:, None, :]).sum(-1)
    return (h, y), (y,)


def into_dense(h, z, x, g, r):
    h = g * h + x
    z = z @ r + h
    return (h, z), (z,)


def into_rotation(h, p, q, x, g, c, n):
    h = g * h + x
    p, q = c * p - n * q + h, n * p + c * q - 2 * h
    return (h, p, q), (p, q)


def from_rotation(p, q, h, x, c, n, g):
    p, q = c * p - n * q + x, n * p + c * q
    h = g * h + p * 0.5 - q
    return (p, q, h), (h,)


def values(a, s, q, k, x, ga, gs):
    """Linear attention over averaged values."""
    a = ga * a + x
    s = gs[..., None, None] * s + _written(k, a)
    return (a, s), (_read(q, s),)


def keys(a, s, q, x, v, ga):
    a = ga * a + x
    s = s + _written(a, v)
    return (a, s), (_read(q, s),)


def erased(a, s, q, k, x, ga, gb, g):
    """The delta rule over averaged values."""
    a = ga * a + x
    s = g[..., None, None] * s
    s = s + _written(gb[..., None] * k, a - _read(k, s))
    return (a, s), (_read(q, s),)


def averaged(s, y, q, k, v, gb, gy):
    """What the delta rule reads, averaged."""
    s = s + _written(gb[..., None] * k, v - _read(k, s))
    y = gy * y + _read(q, s)
    return (s, y), (y,)


def stacked(s, m, q, k, p, v, gb, gk):
    """The delta rule over what another one reads, after its update and before."""
    old = _read(q, s)
    s = gk[..., None] * s + _written(gb[..., None] * k, v - _read(k, s))
    m = m + _written(gb[..., None] * p, _read(q, s) + 0.5 * old - _read(p, m))
    return (s, m), (_read(k, m),)


def poured(s, m, q, k, v, gb, g, gm):
    """A matrix added to another one that erases."""
    s = g[..., None, None] * s + _written(k, v)
    m = gm[..., None] * m - _written(gb[..., None] * k, _read(k, m)) + s
    return (s, m), (_read(q, m),)


def pooled(s, m, q, k, v, gb, g, gm):
    """The same where every decay is one number."""
    s = g[..., None, None] * s + _written(k, v)
    m = gm[..., None, None] * m - _written(gb[..., None] * k, _read(k, m)) + s
    return (s, m), (_read(q, m),)


def weights(s, m, q, k, v, gb, g, gm):
    """An average of the delta rule's states; both are read."""
    s = g[..., None, None] * s
    s = s + _written(gb[..., None] * k, v - _read(k, s))
    m = gm[..., None, None] * m + (1 - gm)[..., None, None] * s
    return (s, m), (_read(q, m), _read(k, s))


def layered(s, m, n, q, k, v, g, gm):
    """Three matrices; the last takes one after its update and one before."""
    old = s
    s = g[..., None, None] * s + _written(k, v)
    m = gm[..., None, None] * m + s - 0.5 * _written(q, v)
    n = 0.9 * n + 0.5 * m - 0.2 * old
    return (s, m, n), (_read(q, n),)


def turned(s, m, q, k, v, g):
    """A square matrix, poured the other way round."""
    s = g[..., None, None] * s + _written(k, v)
    m = g[..., None, None] * m + s.transpose(-1, -2)
    return (s, m), (_read(q, m),)


def total(s, y, q, k, v, r, g):
    """A number read of a matrix on both sides."""
    s = g[..., None, None] * s + _written(k, v - _read(k, s))
    y = y + torch.einsum("bhk,bhkv,bhv->bh", q, s, r)
    return (s, y), (y,)


def squared(h, y, x, g):
    """Not linear in the first."""
    h = g * h + x
    y = g * y + h * h
    return (h, y), (y,)


def gated(h, y, x, g):
    """The first is the second's gate."""
    h = g * h + x
    y = torch.sigmoid(h) * y + x
    return (h, y), (y,)


def entangled(h, s, q, k, x, ga):
    """Both sides of the write are states."""
    h = ga * h + x
    s = s + _written(h, h * k)
    return (h, s), (_read(q, s),)


_S, _K, _V, _H, _Q = (2, 2, 3, 4), (2, 2, 3), (2, 2, 4), (2, 2), (2, 2, 3, 3)
_X = (2, 5)
CASCADES = {
    "chained": (chained, sizes(_X, _X), sizes(_X, _X, _X), []),
    "before": (before, sizes(_X, _X), sizes(_X, _X), []),
    "thrice": (thrice, sizes(_X, _X, _X), sizes(_X, _X, _X, (5,)), []),
    "mixing": (mixing, sizes(_X, (2, 3)), sizes(_X, _X), sizes((5, 3))),
    "selective": (selective, sizes((2, 5, 3), _X), sizes(_X, (2, 3), (2, 3), (2, 5, 3)), []),
    "into-dense": (into_dense, sizes(_X, _X), sizes(_X, _X), sizes((5, 5))),
    "into-rotation": (into_rotation, sizes(_X, _X, _X), sizes(_X, _X), sizes((5,), (5,))),
    "from-rotation": (from_rotation, sizes(_X, _X, _X), sizes(_X, (5,), (5,), _X), []),
    "values": (values, sizes(_V, _S), sizes(_K, _K, _V, _V, _H), []),
    "keys": (keys, sizes(_K, _S), sizes(_K, _K, _V, _K), []),
    "erased": (erased, sizes(_V, _S), sizes(_K, _K, _V, _V, _H, _H), []),
    "averaged": (averaged, sizes(_S, _V), sizes(_K, _K, _V, _H, _V), []),
    "stacked": (stacked, sizes(_S, _S), sizes(_K, _K, _K, _V, _H, _K), []),
    "poured": (poured, sizes(_S, _S), sizes(_K, _K, _V, _H, _H, _K), []),
    "pooled": (pooled, sizes(_S, _S), sizes(_K, _K, _V, _H, _H, _H), []),
    "weights": (weights, sizes(_S, _S), sizes(_K, _K, _V, _H, _H, _H), []),
    "layered": (layered, sizes(_S, _S, _S), sizes(_K, _K, _V, _H, _H), []),
    "turned": (turned, sizes(_Q, _Q), sizes(_K, _K, _K, _H), []),
    "total": (total, sizes(_S, _H), sizes(_K, _K, _V, _V, _H), []),
}  # fmt: skip
"""Those that are linear in the earlier states."""
CURVED = {
    "squared": (squared, sizes(_X, _X), sizes(_X, _X), []),
    "gated": (gated, sizes(_X, _X), sizes(_X, _X), []),
    "entangled": (entangled, sizes(_K, (2, 2, 3, 3)), sizes(_K, _K, _K, _K), []),
}
"""Those that are not: the later stage by itself still is linear."""
