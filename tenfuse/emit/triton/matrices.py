"""Products of matrices in full precision, and inverses of unit triangular ones, in Triton.

Takes the names of tiles; leaves expressions, and ``MATRICES``, the functions that they call.
In single precision a product is six of matrix units: each factor is the sum of three numbers
of 8 bits, and what falls below the 24th is left out (Henry, Tang and Heinecke 2019,
"Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations",
section 3).  Measured against fp64 it is as near as a sum in fp32, at several times its speed,
and no thread holds rows of both factors, as it does where products are multiplied out.

A unit triangular matrix is inverted by substitution in blocks on the diagonal, which are then
joined two by two: the inverse of [[A, 0], [B, D]] is [[A', 0], [-D' B A', D']] with A', D' the
inverses of A and D.  Only blocks are multiplied, never the zeros around them.  Nothing
divides, and nothing is a power of the matrix.
"""

from __future__ import annotations

import re

from tenfuse.emit.triton.writer import Writer

_BLOCK = 16
"""Rows of a triangular matrix that are substituted one after the other."""

MATRICES = """

@triton.jit
def split_bf16(x):
    y = x.to(tl.bfloat16)
    return y, x - y.to(tl.float32)


@triton.jit
def dot_single(a, b):
    # Split here, not by tl.dot: what it splits it lays out as for multiplying out, in too many registers.
    if INTERPRETED:
        y = tl.dot(a, b, input_precision="ieee")
    else:
        a1, rest_a = split_bf16(a)
        a2, rest_a = split_bf16(rest_a)
        a3 = rest_a.to(tl.bfloat16)
        b1, rest_b = split_bf16(b)
        b2, rest_b = split_bf16(rest_b)
        b3 = rest_b.to(tl.bfloat16)
        y = tl.dot(a2, b2)
        y = tl.dot(a3, b1, y)
        y = tl.dot(a1, b3, y)
        y = tl.dot(a2, b1, y)
        y = tl.dot(a1, b2, y)
        # The rest of an infinity is none: what is not finite is so in the first product.
        y = tl.dot(a1, b1, tl.where(y == y, y, 0.0))
    return y


@triton.jit
def dot_double(a, b):
    return tl.dot(a, b, input_precision="ieee", out_dtype=tl.float64)


@triton.jit
def dot_full(a, b):
    if a.dtype == tl.float64:
        y = dot_double(a, b)
    else:
        y = dot_single(a, b)
    return y


@triton.jit
def diagonal_blocks(x, count: tl.constexpr, side: tl.constexpr):
    # Of count matrices: their two blocks on the diagonal, one matrix each, and those below it.
    half = tl.arange(0, 2)
    own = half[:, None, None, None] == half[None, None, :, None]
    parts = tl.reshape(x, [count, 2, side, 2, side])
    diagonal = tl.reshape(tl.sum(tl.where(own[None], parts, 0.0), axis=3), [2 * count, side, side])
    left, right = tl.split(tl.permute(parts, (0, 1, 2, 4, 3)))
    above, below = tl.split(tl.permute(left, (0, 2, 3, 1)))
    return diagonal, below


@triton.jit
def substituted(x, count: tl.constexpr, side: tl.constexpr):
    # (I + x)^-1 of count strictly lower triangular matrices, row by row; rows outermost, so that
    # those of one column lie in one thread as far as may be.
    i = tl.arange(0, side)
    y = (i[:, None] == i[None, :]).to(x.dtype)[:, None, :] + tl.zeros([side, count, side], x.dtype)
    columns = tl.permute(x, (2, 0, 1))
    for k in range(1, side):
        row = tl.sum(tl.where(i[None, None, :] == k, columns, 0.0), axis=2)
        update = tl.sum(row[:, :, None] * y, axis=0)
        y = tl.where(i[:, None, None] == k, y - update[None, :, :], y)
    return tl.permute(y, (1, 0, 2))


@triton.jit
def joined(x, below, count: tl.constexpr, side: tl.constexpr):
    # The inverses of count matrices from those of their blocks on the diagonal.
    half = tl.arange(0, 2)
    own = half[:, None, None, None] == half[None, None, :, None]
    under = (half[:, None, None, None] == 1) & (half[None, None, :, None] == 0)
    pairs = tl.reshape(x, [count, 2, side, side])
    a, d = tl.split(tl.permute(pairs, (0, 2, 3, 1)))
    if count == 1:
        a, b, d = tl.reshape(a, [side, side]), tl.reshape(below, [side, side]), tl.reshape(d, [side, side])
        corner = tl.reshape(dot_full(d, dot_full(b, a)), [1, side, side])
    else:
        corner = dot_full(d, dot_full(below, a))
    corner = tl.where(under[None], -corner[:, None, :, None, :], 0.0)
    return tl.reshape(tl.where(own[None], pairs[:, :, :, None, :], corner), [count, 2 * side, 2 * side])
"""


def multiplied(a: str, b: str, dots: str, compute: str) -> str:
    """The product of two matrices, or of two batches of them, whose entries are what ``dots`` says."""
    if compute == "f64":
        return f"dot_double({a}, {b})"
    if dots == "ieee":
        return f"dot_single({a}, {b})"
    precision = ', input_precision="tf32"' if dots == "tf32" else ""
    return f"tl.dot({a}, {b}{precision})"


def called(text: str) -> str:
    """``MATRICES`` if the text of a kernel calls them."""
    names = re.findall(r"^def (\w+)", MATRICES, re.MULTILINE)
    return MATRICES if any(f"{name}(" in text for name in names) else ""


def inverse(writer: Writer, matrix: str, size: int) -> str:
    """(I + matrix)^-1 of a strictly lower triangular [size, size] tile."""
    let = writer.let
    found, count, side, corners = let(f"tl.reshape({matrix}, [1, {size}, {size}])"), 1, size, list[str]()
    while side > _BLOCK:
        side //= 2
        both = let(f"diagonal_blocks({found}, {count}, {side})")
        found = let(f"{both}[0]")
        corners.append(let(f"{both}[1]"))
        count *= 2
    found = let(f"substituted({found}, {count}, {side})")
    for below in reversed(corners):
        count //= 2
        found = let(f"joined({found}, {below}, {count}, {side})")
        side *= 2
    return let(f"tl.reshape({found}, [{size}, {size}])")


__all__ = ["called", "inverse", "multiplied"]
