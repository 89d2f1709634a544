"""What the text of a kernel on tiles is made of, and how far it reaches."""

import ast
import re

import pytest
import torch

from tenfuse.emit.triton import emit
from tenfuse.plan.kernel import Operand
from tenfuse.plan.tiles.kernel import TileKernel
from tenfuse.plan.tiles.tiling import tiling
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram
from tests.emit.tiles.tileharness import TileLauncher, interpreted

EVIL = ('");import os;os.system("x', "pid", "__class__")
"""Names of axes as nobody would write them."""


def weighted(names, sizes):
    """h <- a h + x, y = sum over the last axis of h w."""
    _, row, column = names
    b = Builder()
    h = b.input("carry", 0, (row, column))
    a, x = b.input("stream", 0, (row, column)), b.input("stream", 1, (column, row))
    n = b.call("add", b.call("mul", a, h), x)
    y = b.contract(b.call("mul", n, b.input("invariant", 0, (column,))), column)
    specs = (CarrySpec((row, column), n, (row, column)),)
    return StepProgram(tuple(b.nodes), dict(zip(names, sizes, strict=True)), specs, (OutSpec(y, (row,)),))


def kernel(names=EVIL, sizes=(1, 5, 6)):
    _, row, column = names
    operands = (
        Operand("init", 0, "f32", (row, column)), Operand("stream", 0, "f32", (row, column)),
        Operand("stream", 1, "f32", (column, row)), Operand("constant", 0, "f32", (column,)),
        Operand("final", 0, "f32", (row, column)), Operand("out", 0, "f32", (row,)),
    )  # fmt: skip
    program = weighted(names, sizes)
    return TileKernel(program, operands, tiling(program, operands))


def test_no_name_of_the_program_is_in_the_text():
    text = emit(kernel())
    ast.parse(text)
    body = text[text.index("def kernel(") :]
    assert not any(name in text for name in EVIL if name != "pid")
    named = {n.id for n in ast.walk(ast.parse(body)) if isinstance(n, ast.Name)}
    assert all(re.fullmatch(r"[a-z]\d*|[a-z]+\d+(_[t\d]+)?|tl|pid|range|count|steps|last", n) for n in named)


def test_names_make_no_difference():
    assert emit(kernel()) == emit(kernel(("b", "p", "q"))) == emit(kernel(("b", "p", "q")))


@interpreted
def test_offsets_beyond_32_bits():
    """A stream whose rows lie a gigabyte apart: memory that is never touched costs nothing."""
    sizes, steps, gap = (1, 2, 6), 1, 1 << 29
    try:
        wide = torch.empty(5 * gap + 64)
    except RuntimeError:
        pytest.skip("no address space for ten gigabytes")
    gen = torch.Generator().manual_seed(0)
    x = wide.as_strided((steps, 6, 2), (12, gap, 1))
    x.copy_(torch.randn(steps, 6, 2, generator=gen))
    a, h = torch.rand(steps, 2, 6, generator=gen), torch.randn(2, 6, generator=gen)
    w, final, out = torch.randn(6, generator=gen), torch.empty(2, 6), torch.empty(steps, 2)
    TileLauncher(kernel(sizes=sizes))([h, a, x, w, final, out], steps)
    want = a[0] * h + x[0].T
    torch.testing.assert_close(final, want)
    torch.testing.assert_close(out[0], want @ w)
