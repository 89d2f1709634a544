"""Steps with matrices that an instance has no room for: read in slices, at every step again."""

import pytest
import torch

import tenfuse
import tenfuse.testing
from tenfuse.plan.tiles import slices
from tenfuse.plan.tiles.kernel import Slice
from tenfuse.reasons import Refused
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram
from tests.emit.tiles.tileharness import Bench, agree, interpreted

pytestmark = interpreted
TILES = {"strict": True, "inner": "eager", "target": "triton"}


def cell(width, batch=None, gates=2):
    """h <- sum of tanh(h.w_i + x), with a batch or without."""
    b, lead = Builder(), ("b",) if batch else ()
    h = b.input("carry", 0, (*lead, "d"))
    x = b.input("stream", 0, (*lead, "e"))
    total = b.const(0.0)
    for i in range(gates):
        w = b.input("invariant", i, ("d", "e"))
        total = b.call("add", total, b.call("tanh", b.call("add", b.contract(b.call("mul", h, w), "d"), x)))
    sizes = {"d": width, "e": width} | ({"b": batch} if batch else {})
    carries = (CarrySpec((*lead, "d"), total, (*lead, "e")),)
    return StepProgram(tuple(b.nodes), sizes, carries, (OutSpec(total, (*lead, "e")),), frozenset())


def extents(program):
    return {a: max(16, 1 << (n - 1).bit_length()) for a, n in program.sizes.items()}


def test_matrices_with_room_are_held():
    program = cell(64, 16)
    assert slices.slices(program, extents(program), "bf16") == ()
    assert slices.only_in_slices(program, ()) == set()


def test_matrices_without_room_are_read_in_slices_along_what_is_summed():
    program = cell(256, 16)
    found = slices.slices(program, extents(program), "bf16")
    assert [(s.axis, s.width) for s in found] == [("d", 32)] * 2
    inputs = {i for i, n in enumerate(program.nodes) if getattr(n, "kind", "") == "invariant"}
    assert slices.only_in_slices(program, found) >= inputs


def test_a_matrix_that_is_also_read_whole_is_made_whole():
    program = cell(256, 16, 1)
    found = slices.slices(program, extents(program), "ieee")
    w = next(i for i, n in enumerate(program.nodes) if getattr(n, "kind", "") == "invariant")
    assert w in slices.only_in_slices(program, found)
    read = (*program.outs, OutSpec(w, ("d", "e")))
    whole = StepProgram(program.nodes, program.sizes, program.carries, read, frozenset())
    assert w not in slices.only_in_slices(whole, found)


def test_matrices_beyond_caches_are_refused_with_the_limit():
    program = cell(4096, 16, 1)
    with pytest.raises(Refused, match=f"16777216 entries of matrices, more than {slices.MOST}"):
        slices.slices(program, extents(program), "bf16")


def test_what_is_the_same_at_every_step_on_both_sides_is_not_read_again():
    b = Builder()
    w, v = b.input("invariant", 0, ("d", "e")), b.input("invariant", 1, ("e", "f"))
    h = b.input("carry", 0, ("d", "f"))
    new = b.call("add", h, b.contract(b.call("mul", w, v), "e"))
    program = StepProgram(
        tuple(b.nodes), dict.fromkeys("def", 256), (CarrySpec(("d", "f"), new, ("d", "f")),), (), frozenset()
    )
    assert slices.slices(program, extents(program), "ieee") == ()


@pytest.mark.parametrize("batch", [None, 3, 20])
@pytest.mark.parametrize("reverse", [False, True])
def test_values(batch, reverse, monkeypatch):
    """Of a width that fills no tile, for a product of matrices and of a matrix and a vector."""
    monkeypatch.setattr(slices, "ROOM", 0)
    monkeypatch.setattr(slices, "_AT_ONCE", 1 << 13)
    bench = Bench(cell(100, batch), 2)
    launcher, finals, outs = bench.run(reverse)
    found = launcher.kernel.slices
    assert len(found) == 2 and all(isinstance(s, Slice) and s.width < 128 for s in found)
    assert "tl.gather" in launcher.source and ("dot_single(" in launcher.source) == (batch is not None)
    want, ys = bench.want(reverse)
    for i, (mine, theirs) in enumerate(zip(finals + outs, want + ys, strict=True)):
        agree(mine, theirs, 2e-6, i)


def gated(x, w, wn):
    h, out = torch.zeros_like(x[:, 0, 0]), []
    for t in range(x.shape[1]):
        r, z = torch.sigmoid(x[:, t, 0] + h @ w[0]), torch.sigmoid(x[:, t, 1] + h @ w[1])
        h = (1 - z) * torch.tanh(x[:, t, 2] + (r * h) @ wn) + z * h
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore")
def test_a_loop_and_its_gradient(kind):
    """Hidden size 160: two of its three matrices multiply the state, one what a gate leaves of it."""
    gen = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=gen).to(kind)

    x, w, wn = normal(2, 4, 3, 160), normal(2, 160, 160) * 0.1, normal(160, 160) * 0.1
    result = tenfuse.testing.assert_equivalent(gated, x, w, wn, options=TILES)
    (loop,) = result.loops
    assert (loop.status, loop.algorithm) == ("fused", "sequential"), loop.reason
    assert all("tl.dot" in text or "dot_single(" in text for _, _, text in loop.kernels)
    assert any("tl.gather" in text for _, _, text in loop.kernels)
