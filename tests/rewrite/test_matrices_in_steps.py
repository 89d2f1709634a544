"""Steps that multiply their rows by matrices: laid out once, kept for the backward, summed by the library."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import tenfuse
from tenfuse.rewrite.single import single_products
from tenfuse.runtime import backward
from tenfuse.testing import assert_equivalent


def cell(x, wx, wh):
    """Four gates of the input's and the state's products with a matrix each."""
    h = torch.zeros(x.shape[0], wh.shape[0], dtype=x.dtype)
    c, outs = torch.zeros_like(h), []
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] @ wx + h @ wh).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outs.append(h)
    return torch.stack(outs, 1)


def network(x, w, u):
    """Two matrices in a step."""
    h, outs = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = x[:, t] + torch.tanh(h @ w) @ u
        outs.append(h)
    return torch.stack(outs, 1)


def transposed(x, w):
    """One matrix, read both ways."""
    h, outs = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] + h @ w + 0.5 * (h @ w.t()))
        outs.append(h)
    return torch.stack(outs, 1)


def given(model, batch, size, dtype=torch.float32, steps=5):
    torch.manual_seed(0)
    widths = {cell: [(size, 4 * size)] * 2, network: [(size, size + 24), (size + 24, size)]}
    matrices = [torch.randn(*w) / size**0.5 for w in widths.get(model, [(size, size)])]
    return [x.to(dtype) for x in (torch.randn(batch, steps, size), *matrices)]


@pytest.mark.parametrize("model", [cell, network, transposed])
@pytest.mark.parametrize("batch", [1, 6, 13, 40])
@pytest.mark.parametrize("size", [64, 72])
def test_any_number_of_rows(model, batch, size):
    """Whole tall tiles, halves of them and single rows; panels that are not full."""
    assert_equivalent(model, *given(model, batch, size))
    (loop,) = tenfuse.reports()[-1].loops
    assert loop.fused


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types(dtype):
    assert_equivalent(cell, *given(cell, 9, 64, dtype))


def test_a_batch_known_at_the_call():
    inputs = given(cell, 9, 64)
    torch._dynamo.mark_dynamic(inputs[0], 0)
    assert_equivalent(cell, *inputs)


def compiled(model):
    return torch.compile(model, backend="tenfuse", options={"strict": True, "inner": "eager"}, dynamic=False)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_lay_matrices_out_together(threads):
    before = torch.get_num_threads()
    inputs = [x.requires_grad_() for x in given(transposed, 70, 72, torch.float64)]
    want = torch.autograd.grad(transposed(*inputs).sin().sum(), inputs)
    try:
        torch.set_num_threads(threads)
        got = torch.autograd.grad(compiled(transposed)(*inputs).sin().sum(), inputs)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, want)
    (text,) = (text for name, _, text in tenfuse.reports()[-1].loops[0].kernels if "backward" in name)
    assert "pack(P, S, N, common);" in text and "square(" in text


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_of_matrices_in_pieces(dtype, monkeypatch):
    """Pieces that do not divide the steps add up, in the type that kernels compute in."""
    monkeypatch.setattr(backward, "PIECE", 1 << 17)
    monkeypatch.setattr(backward, "_OFTEN", 0)
    inputs = [x.requires_grad_() for x in given(network, 8, 192, dtype, steps=19)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    want = torch.autograd.grad(network(*exact).sin().sum(), exact)
    model = compiled(network)
    got = torch.autograd.grad(model(*inputs).sin().sum(), inputs)
    rtol = 1e-9 if dtype == torch.float64 else 3e-2
    for mine, theirs in zip(got, want, strict=True):
        assert float((mine.double() - theirs).norm()) <= rtol * float(theirs.norm())
    names = [name for name, _, _ in tenfuse.reports()[-1].loops[0].kernels]
    assert not any("product" in name for name in names)


def test_products_are_not_computed_again():
    """The walk back multiplies by the matrix's transpose alone."""

    def model(x, w):
        h, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] + h @ w)
            outs.append(h)
        return torch.stack(outs, 1)

    inputs = [x.requires_grad_() for x in given(model, 8, 64)]
    compiled(model)(*inputs).sum().backward()
    kernels = {name.rsplit("_", 1)[-1]: text for name, _, text in tenfuse.reports()[-1].loops[0].kernels}
    assert "common0 = " in kernels["backward"] and "common1 = " not in kernels["backward"]


@pytest.mark.parametrize("model", [cell, network, transposed])
def test_tasks_share_the_work(model):
    """No task repeats another's: the walk back has as many as there are runs of rows."""
    inputs = [x.requires_grad_() for x in given(model, 8, 64)]
    compiled(model)(*inputs).sum().backward()
    (text,) = (text for name, _, text in tenfuse.reports()[-1].loops[0].kernels if "backward" in name)
    assert "tasks *= N" not in text


def batched(x, w):
    return torch.vmap(lambda rows: rows @ w)(x.transpose(0, 1))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_one_product_for_all_steps(batch):
    x, w = torch.randn(batch, 7, 4), torch.randn(4, 5)
    traced = make_fx(batched, tracing_mode="fake")(x, w)
    single_products(traced.graph)
    traced.recompile()
    targets = [n.target for n in traced.graph.nodes]
    assert torch.ops.aten.mm.default in targets and torch.ops.aten.bmm.default not in targets
    torch.testing.assert_close(traced(x, w), batched(x, w))


def test_a_matrix_per_step_stays():
    x, w = torch.randn(3, 7, 4), torch.randn(3, 4, 5)
    traced = make_fx(torch.bmm, tracing_mode="fake")(x, w)
    single_products(traced.graph)
    assert torch.ops.aten.bmm.default in [n.target for n in traced.graph.nodes]
