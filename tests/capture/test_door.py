"""Scans called through torch's own functions, from the tracer to the kernel."""

from __future__ import annotations

import functools

import pytest
import torch
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.scan import scan as torch_scan
from torch.utils import _pytree as pytree

import tenfuse
from tenfuse.capture import door
from tenfuse.report.registry import recording
from tenfuse.rewrite.tree import restore
from tenfuse.testing import assert_equivalent

STRICT = {"strict": True, "inner": "eager"}


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def linear(left, right):
    return left[0] * right[0], right[0] * left[1] + right[1]


@functools.cache
def outputs_along_the_scanned_axis():
    """Whether outputs are stacked along ``dim``; torch 2.11 stacks them along the first axis."""
    return torch_scan(lambda h, x: (h + x, h * x), torch.zeros(3), torch.zeros(3, 2), dim=1)[1].shape[0] == 3


def scan(step, init, xs, dim=0, reverse=False):
    """``torch``'s scan where it is compiled, and what it means where it is not."""
    if torch.compiler.is_compiling():
        return torch_scan(step, init, xs, dim=dim, reverse=reverse)
    count = pytree.tree_leaves(xs)[0].shape[dim]
    state, rows = init, []
    for t in range(count):
        at = count - 1 - t if reverse else t
        state, y = step(state, pytree.tree_map(lambda x, at=at: x.select(dim, at), xs))
        rows.append(y)
    rows = rows[::-1] if reverse else rows
    along = dim if outputs_along_the_scanned_axis() else 0
    return state, pytree.tree_map(lambda *ys: torch.stack(ys, along if along <= ys[0].dim() else 0), *rows)


def fused(model, *inputs, steps=None, carries=None, **options):
    """Equivalent, forward and backward, and every loop fused; the loops."""
    found = assert_equivalent(model, *inputs, options={**STRICT, **options}).loops
    assert found and all(loop.status == "fused" for loop in found), [
        f"{x.span} {x.code} {x.reason}" for x in found
    ]
    if steps is not None:
        assert [loop.steps for loop in found] == [steps]
    return found


def kept(model, *inputs, code=None, **options):
    found = assert_equivalent(model, *inputs, options={**STRICT, **options}).loops
    assert not [loop for loop in found if loop.status == "fused"]
    if code is not None:
        assert [loop.code for loop in found] == [code]
    return found


# scan --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan(dim, reverse):
    def step(h, x):
        h = 0.5 * h + torch.sin(x)
        return h, h * x

    def f(h, x):
        return scan(step, h, x, dim=dim, reverse=reverse)

    shape = [2, 3]
    shape.insert(dim, 7)
    (loop,) = fused(f, normal(2, 3), normal(*shape), steps=7)
    assert loop.span.startswith("test_door.py:") and "nothing was rolled" in loop.evidence[0]


def test_scan_with_several_carries_and_results_in_a_tree():
    def step(state, now):
        h, c = state["h"], state["c"]
        c = torch.sigmoid(now[0]) * c + now[1]
        h = torch.tanh(c + 0.1 * h)
        return {"h": h, "c": c}, (h * now[0], [c - h])

    def f(h, c, a, b):
        return scan(step, {"h": h, "c": c}, (a, b))

    fused(f, normal(2, 3), normal(2, 3), normal(9, 2, 3), normal(9, 2, 3), steps=9)


def test_scan_with_weights_from_outside():
    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Linear(3, 3)

        def forward(self, h, x, scale):
            return scan(lambda h, x: ((n := torch.tanh(self.w(h) + x * scale)), n * 2), h, x)[1]

    torch.manual_seed(0)
    fused(Cell(), normal(2, 3), normal(8, 2, 3), normal(3), steps=8)


def test_scan_whose_last_state_alone_is_read():
    def f(h, x):
        return scan(lambda h, x: (0.9 * h + x, h * x), h, x)[0]

    fused(f, normal(2, 3), normal(8, 2, 3), steps=8)


def test_scan_of_one_entry():
    def f(h, x):
        return scan(lambda h, x: (0.9 * h + x, h * x), h, x)

    assert_equivalent(f, normal(2, 3), normal(1, 2, 3))


# associative_scan ---------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3, 8, 17])
@pytest.mark.parametrize(("dim", "reverse"), [(0, False), (1, False), (1, True), (-1, True)])
def test_associative_scan(steps, dim, reverse):
    def f(a, b):
        return associative_scan(linear, (a, b), dim=dim, reverse=reverse, combine_mode="generic")

    shape = [2, 3]
    shape.insert(dim % 3, steps)
    (loop,) = fused(f, normal(*shape).sigmoid(), normal(*shape), steps=steps - 1)
    assert loop.span.startswith("test_door.py:")


def test_associative_scan_carries_only_what_is_read():
    def f(a, b):
        return associative_scan(linear, (a, b), dim=1, combine_mode="generic")[1]

    (loop,) = fused(f, normal(2, 9, 3).sigmoid(), normal(2, 9, 3))
    assert loop.formula.count("<-") == 1


@pytest.mark.parametrize("combine", [torch.add, torch.maximum, torch.logaddexp])
def test_other_combinations(combine):
    def f(x):
        return associative_scan(combine, x, dim=1, combine_mode="generic")

    fused(f, normal(2, 9, 3))


def test_matrix_products():
    def f(x):
        return associative_scan(lambda a, b: b @ a, x, dim=0, combine_mode="generic")

    fused(f, normal(9, 3, 3))


def test_a_tree_of_leaves():
    def combine(left, right):
        return {"a": left["a"] * right["a"], "b": [right["a"] * left["b"][0] + right["b"][0]]}

    def f(a, b):
        return associative_scan(combine, {"a": a, "b": [b]}, dim=0, combine_mode="generic")

    fused(f, normal(9, 3).sigmoid(), normal(9, 3))


def test_a_value_from_outside():
    def f(x, w):
        return associative_scan(lambda a, b: a + b + w, x, dim=0, combine_mode="generic")[-1]

    found = assert_equivalent(f, normal(9, 3), normal(3), options=STRICT).loops
    assert [loop.status for loop in found] == ["fused"]


def test_loops_and_scans_in_one_graph():
    def f(a, b):
        h, before = a[0], []
        for t in range(5):
            h = 0.5 * h + a[t]
            before.append(h)
        x = torch.stack(before)
        x = associative_scan(linear, (x.sigmoid(), b), dim=0, combine_mode="generic")[1]
        return scan(lambda h, x: (h * 0.5 + x, h.sin()), a[0], x)[1]

    found = fused(f, normal(5, 3), normal(5, 3))
    assert sorted(loop.steps for loop in found) == [4, 5, 5]


def test_written_around():
    def f(a, b):
        x = b.clone()
        x[2] = 1.0
        y = associative_scan(linear, (a, x), dim=0, combine_mode="generic")[1]
        x.mul_(2)
        return y + x

    (loop,) = assert_equivalent(f, normal(7, 3).sigmoid(), normal(7, 3), grad=False).loops
    assert loop.status == "fused"


def test_a_result_written_in_place():
    def f(a, b):
        y = associative_scan(linear, (a, b), dim=0, combine_mode="generic")[1]
        y[0] = 0.0
        return y * 2

    assert_equivalent(f, normal(7, 3).sigmoid(), normal(7, 3), options=STRICT)


# time that changes --------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(6, 11, 40), (70, 300, 129)])
@pytest.mark.parametrize("kind", ["associative", "scan"])
def test_one_compilation_for_every_length(kind, lengths):
    def f(a, b):
        if kind == "scan":
            return scan(lambda h, x: (x[0] * h + x[1], h * x[1]), b[0], (a, b))[1]
        return associative_scan(linear, (a, b), dim=0, combine_mode="generic")[1]

    torch._dynamo.reset()
    with recording() as heard:
        compiled = torch.compile(f, backend="tenfuse", options=STRICT)
        for steps in lengths:
            a, b = normal(steps, 4).sigmoid().requires_grad_(), normal(steps, 4).requires_grad_()
            torch._dynamo.mark_dynamic(a, 0)
            torch._dynamo.mark_dynamic(b, 0)
            out, want = compiled(a, b), f(a, b)
            torch.testing.assert_close(out, want)
            grads = torch.autograd.grad(out.square().sum(), (a, b))
            torch.testing.assert_close(grads, torch.autograd.grad(want.square().sum(), (a, b)))
    assert [loop.status for report in heard for loop in report.loops] == ["fused"]


# what stays ---------------------------------------------------------------------------------


def larger(left, right):
    """The elementwise maximum, spelled with an operation that has no kernel."""
    return torch.sort(torch.stack([left, right], -1), -1).values[..., 1]


def graph_of(f, *inputs, mark=None):
    """The graph that Dynamo hands to a backend of its own, marked or not."""
    graphs = []

    def backend(gm, example_inputs):
        graphs.append(gm)
        return restore(gm).forward

    torch._dynamo.reset()
    out = torch.compile(f, backend=mark(backend) if mark else backend)(*inputs)
    return graphs[0], out


def targets(gm):
    return [n.target for n in gm.graph.nodes]


def test_the_door_is_open_for_tenfuse_alone():
    def f(a, b):
        return associative_scan(linear, (a, b), dim=0, combine_mode="generic")[1]

    a, b = normal(7, 3).sigmoid(), normal(7, 3)
    theirs, _ = graph_of(f, a, b)
    mine, out = graph_of(f, a, b, mark=door.ours)
    assert torch.ops.higher_order.associative_scan not in targets(theirs)
    assert torch.ops.higher_order.associative_scan in targets(mine)
    assert torch.equal(out, f(a, b))


@pytest.mark.parametrize(
    "combine", [lambda a, b: b, lambda a, b: (a + b).to(torch.float64), lambda a, b: (a + b)[0]]
)
def test_what_the_operator_cannot_take_is_inlined_as_ever(combine):
    """An input returned, another dtype, another shape: with tenfuse as without it."""

    def f(x):
        return associative_scan(combine, x.sin(), dim=0, combine_mode="generic").cos()

    def ran(call):
        try:
            return call()
        except Exception as error:
            return type(error)

    x = normal(7, 3)
    theirs, mine = ran(lambda: graph_of(f, x)), ran(lambda: graph_of(f, x, mark=door.ours))
    if isinstance(theirs, type):
        assert mine is theirs
        return
    assert targets(mine[0]) == targets(theirs[0])
    assert torch.equal(mine[1], theirs[1])


def test_wrong_arguments_raise_what_they_always_raised():
    def f(x, dim):
        return associative_scan(torch.add, x, dim=dim, combine_mode="generic")

    with pytest.raises(Exception) as theirs:
        graph_of(f, normal(7, 3), 5)
    with pytest.raises(type(theirs.value)):
        graph_of(f, normal(7, 3), 5, mark=door.ours)


def test_another_torch_is_left_alone(monkeypatch):
    from torch._dynamo.variables.functions import UserFunctionVariable

    plain = UserFunctionVariable.call_function.__wrapped__
    monkeypatch.setattr(UserFunctionVariable, "call_function", plain)
    monkeypatch.setattr(door, "_RELIED_ON", ((torch, "no such thing"),))
    door.install()
    assert UserFunctionVariable.call_function is plain


def test_under_vmap_torch_is_left_alone():
    def f(x):
        return torch.vmap(lambda x: associative_scan(torch.add, x, dim=0, combine_mode="generic"))(x)

    mine, out = graph_of(f, normal(2, 7, 3), mark=door.ours)
    assert torch.ops.higher_order.associative_scan not in targets(mine)
    torch.testing.assert_close(out, normal(2, 7, 3).cumsum(1))


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_an_unfused_scan_runs_as_torchs_tree(inner):
    def f(x):
        return associative_scan(larger, x, dim=1, combine_mode="generic")

    kept(f, normal(2, 7, 3), code="TF202", inner=inner)


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_an_unfused_scan_beside_a_fused_one(inner):
    def f(a, b):
        x = associative_scan(larger, b, dim=0, combine_mode="generic")
        return associative_scan(linear, (a, x), dim=0, combine_mode="generic")[1]

    found = assert_equivalent(
        f, normal(7, 3).sigmoid(), normal(7, 3), options={**STRICT, "inner": inner}
    ).loops
    assert [loop.status for loop in found] == ["kept", "fused"]


def test_a_whole_graph_left_alone_runs_the_tree_too(monkeypatch):
    def f(a, b):
        return associative_scan(linear, (a, b), dim=0, combine_mode="generic")[1]

    def broken(*args):
        raise RuntimeError("on purpose")

    monkeypatch.setattr("tenfuse.backend.find_loops", broken)
    assert_equivalent(f, normal(7, 3).sigmoid(), normal(7, 3), options={"inner": "eager"})


def test_explaining_runs_the_tree():
    def f(a, b):
        return associative_scan(linear, (a, b), dim=0, combine_mode="generic")[1]

    (loop,) = tenfuse.explain(f)(normal(7, 3).sigmoid(), normal(7, 3)).loops
    assert loop.status == "fused"


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("combine", [torch.add, larger])
def test_inside_a_checkpoint(combine, inner):
    def f(x):
        def part(x):
            return associative_scan(combine, x.sin(), dim=0, combine_mode="generic").cos()

        return torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)

    found = assert_equivalent(f, normal(7, 3), options={**STRICT, "inner": inner}).loops
    assert [loop.status for loop in found] == ["fused" if combine is torch.add else "kept"]


def test_a_scan_whose_body_draws_numbers_is_kept():
    def f(h, x):
        return scan(lambda h, x: (0.5 * h + x, h + torch.rand_like(h).clamp(0, 0)), h, x)[1]

    kept(f, normal(2, 3), normal(7, 2, 3), code="TF201")


def test_mixed_precision():
    def f(a, b):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = associative_scan(lambda p, q: q @ p, a, dim=0, combine_mode="generic")
        return x + b

    assert_equivalent(f, 0.5 * normal(5, 3, 3), normal(5, 3, 3), options=STRICT)
