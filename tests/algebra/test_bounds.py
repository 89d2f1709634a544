"""Every computed value lies inside its interval; the gates people write get the words they should."""

import dataclasses
import math

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.chunks.chunk import chunk
from tenfuse.algebra.ranges.bounds import bounds
from tenfuse.algebra.ranges.bounds_aten import bounds_aten
from tenfuse.algebra.ranges.interval import ANY, TRANSFER, Interval
from tenfuse.step import interpret
from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.program import Builder, CarrySpec, OutSpec, StepProgram, arguments
from tenfuse.step.whole import NAMES
from tests.algebra.mutants import program

SLACK = 1e-9
NUMERIC = sorted(set(FUNCTIONS) - NAMES)
ends = st.one_of(
    st.floats(-3, 3), st.sampled_from([0.0, 1.0, -1.0, 2.0, math.inf, -math.inf, 30.0, -30.0, 0.5])
)


@st.composite
def intervals(draw):
    low, high = sorted((draw(ends) + 0.0, draw(ends) + 0.0))
    return Interval(low, high) if low != high or math.isfinite(low) else ANY


@st.composite
def inside(draw, interval):
    low, high = max(interval.low, -60.0), min(interval.high, 60.0)
    return draw(st.one_of(st.just(low), st.just(high), st.floats(low, high)))


def _agrees(interval, values):
    values = values[~values.isnan()]
    return all(interval.contains(v, SLACK) for v in values.flatten().tolist())


def test_every_function_has_a_rule():
    assert set(TRANSFER) == set(FUNCTIONS)


@settings(max_examples=800, deadline=None)
@given(st.data())
def test_a_function_maps_into_its_interval(data):
    name = data.draw(st.sampled_from(NUMERIC))
    args = [data.draw(intervals()) for _ in range(FUNCTIONS[name].arity)]
    points = [torch.tensor(data.draw(inside(a)) + 0.0, dtype=torch.float64) for a in args]
    value = FUNCTIONS[name].torch(*points)
    assert value.isinf() or _agrees(TRANSFER[name](*args), value)


# -- programs ---------------------------------------------------------------------------


@st.composite
def programs(draw):
    """A random DAG over two axes, with known intervals for its inputs."""
    b, sizes = Builder(), {"i": 2, "j": 3}
    known = {("stream", i): draw(intervals()) for i in range(3)}
    refs = [b.input("carry", 0, ("i", "j"))]
    refs += [b.input("stream", i, draw(st.sampled_from([("i", "j"), ("i",), ("j",)]))) for i in range(3)]
    refs.append(b.const(draw(st.sampled_from([0.0, 1.0, -2.0, 0.5, 1e-6]))))
    for _ in range(draw(st.integers(3, 14))):
        if draw(st.integers(0, 4)) == 0:
            arg = draw(st.sampled_from(refs))
            axes = sorted(b.axes[arg])
            if axes:
                chosen = draw(st.lists(st.sampled_from(axes), min_size=1, unique=True))
                refs.append(b.contract(arg, *chosen, op=draw(st.sampled_from(["sum", "sum", "max", "min"]))))
            continue
        name = draw(st.sampled_from([*NUMERIC, *["div", "mul", "sqrt", "add", "abs"] * 6]))
        args = [draw(st.sampled_from(refs)) for _ in range(FUNCTIONS[name].arity)]
        args = [args[0]] * len(args) if name == "mul" and draw(st.booleans()) else args
        refs.append(b.call(name, *args))
    outs = [OutSpec(r, tuple(sorted(b.axes[r]))) for r in range(len(b.nodes))]
    return StepProgram(tuple(b.nodes), sizes, (CarrySpec(("i", "j"), 0, ("i", "j")),), tuple(outs)), known


@settings(max_examples=250, deadline=None)
@given(programs(), st.data())
def test_every_node_of_a_program_lies_in_its_interval(drawn, data):
    program, known = drawn
    found = bounds(program, known)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    inputs = {}
    for node in program.nodes:
        if hasattr(node, "kind"):
            interval = known.get((node.kind, node.index), ANY)
            low, high = max(interval.low, -9.0), min(interval.high, 9.0)
            low, high = min(low, high), max(low, high)
            shape = [program.sizes[a] for a in node.axes]
            values = low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)
            inputs[node.kind, node.index] = values.clamp(interval.low, interval.high) + 0.0
    _, outs = interpret.step(program, inputs)
    outside: set[int] = set()
    """NaN is outside every statement, and so is what is computed from it: sign(NaN) is 0."""
    for i, (node, interval, value) in enumerate(zip(program.nodes, found, outs, strict=True)):
        if value.isnan().any() or outside & set(arguments(node)):
            outside.add(i)
            continue
        finite = value[value.isfinite()]
        assert _agrees(interval, finite), (node, interval, value)


def _normed(write):
    b = Builder()
    x, e = b.input("stream", 0, ("i", "j")), b.const(1e-6)
    square = b.contract(b.call("mul", x, x), "j")
    y = write(b, x, e, square)
    return bounds(StepProgram(tuple(b.nodes), {"i": 2, "j": 3}, (), (OutSpec(y, ("i", "j")),)))[y]


@pytest.mark.parametrize(
    "write",
    [
        lambda b, x, e, q: b.call("div", x, b.call("root", q)),
        lambda b, x, e, q: b.call("div", x, b.call("clamp_min", b.call("root", q), e)),
        lambda b, x, e, q: b.call("div", x, b.call("add", b.call("sqrt", q), e)),
        lambda b, x, e, q: b.call("mul", x, b.call("rsqrt", b.call("add", q, e))),
        lambda b, x, e, q: b.call("mul", b.call("div", b.const(1.0), b.call("sqrt", q)), x),
        lambda b, x, e, q: b.call("div", b.call("mul", x, x), b.call("add", e, q)),
    ],
)
def test_normalised_vectors_are_at_most_one(write):
    assert "at most 1 in absolute value" in _normed(write).words()


@pytest.mark.parametrize(
    "write",
    [
        lambda b, x, e, q: b.call("div", x, b.call("sub", b.call("root", q), e)),
        lambda b, x, e, q: b.call("div", b.call("add", x, e), b.call("root", q)),
        lambda b, x, e, q: b.call("div", x, q),
        lambda b, x, e, q: b.call("div", x, b.contract(x, "j")),
        lambda b, x, e, q: b.call("div", x, b.contract(b.call("abs", x), "j", op="min")),
        lambda b, x, e, q: b.call(
            "div", x, b.call("root", b.contract(b.call("mul", x, b.call("abs", x)), "j"))
        ),
        lambda b, x, e, q: b.call("div", x, b.call("clamp_max", b.call("root", q), e)),
    ],
)
def test_what_only_looks_normalised_is_not(write):
    assert "at most 1 in absolute value" not in _normed(write).words()


def test_softmax_written_out_is_a_probability():
    b = Builder()
    x = b.input("stream", 0, ("i", "j"))
    e = b.call("exp", b.call("sub", x, b.contract(x, "j", op="max")))
    y = b.call("div", e, b.contract(e, "j"))
    program = StepProgram(tuple(b.nodes), {"i": 2, "j": 3}, (), (OutSpec(y, ("i", "j")),), frozenset("j"))
    assert bounds(program)[y].words()[0] == "in [0, 1]"


def test_inputs_that_are_known_are_used():
    b = Builder()
    a, h = b.input("stream", 0, ("i",)), b.input("carry", 0, ("i",))
    rest = b.call("sub", b.const(1.0), a)
    program = StepProgram(tuple(b.nodes), {"i": 2}, (CarrySpec(("i",), h, ("i",)),), (OutSpec(rest, ("i",)),))
    assert bounds(program, {("stream", 0): Interval(0.0, 1.0)})[rest] == Interval(0.0, 1.0)
    assert bounds(program)[rest] == ANY


def test_numbers_whose_reciprocal_overflows_have_quotients():
    tiny = Interval(2.0**-1074, 2.0**-1070)
    assert TRANSFER["div"](tiny, tiny).contains(1.0)
    assert TRANSFER["div"](Interval(-1.0, 1.0), Interval(-(2.0**-1070), -(2.0**-1074))).contains(-1e300)


@pytest.mark.parametrize("name", ["delta", "merged-heads", "rotation", "stabilised"])
def test_every_node_of_a_chunk_program_lies_in_its_interval(name):
    step = program(name)
    made = chunk(step, analyse(step), 4, 2).program
    unit = {("stream", i): Interval(0.0, 1.0) for i in made.inputs("stream")}
    gen = torch.Generator().manual_seed(0)
    inputs = {
        (n.kind, n.index): torch.rand([made.sizes[a] for a in n.axes], generator=gen, dtype=torch.float64)
        for n in made.nodes
        if hasattr(n, "kind")
    }
    axes = made.axes_of()
    outs = tuple(OutSpec(i, tuple(sorted(own))) for i, own in enumerate(axes))
    _, values = interpret.step(dataclasses.replace(made, outs=outs), inputs)
    for node, interval, value in zip(made.nodes, bounds(made, unit), values, strict=True):
        assert _agrees(interval, value), (node, interval)


# -- ATen -------------------------------------------------------------------------------


def _graph(fn, *inputs):
    traced = make_fx(fn, tracing_mode="fake")(*inputs)
    return traced, [n for n in traced.graph.nodes if n.op in ("placeholder", "call_function")]


def _last(fn, *inputs):
    traced, nodes = _graph(fn, *inputs)
    output = next(n for n in traced.graph.nodes if n.op == "output").args[0]
    return bounds_aten(nodes)[output]


X, Y = torch.randn(4, 4), torch.randn(4, 4)
GATES = {
    "sigmoid": (lambda x: torch.sigmoid(x @ x), "in [0, 1]"),
    "complement": (lambda x: 1 - torch.sigmoid(x), "in [0, 1]"),
    "lower bounded": (lambda x: 0.1 + 0.9 * torch.sigmoid(x), "in [0, 1]"),
    "mamba": (lambda x: torch.exp(-torch.exp(x) * F.softplus(x + 1)), "in [0, 1]"),
    "negated softplus": (lambda x: torch.exp(-F.softplus(x)), "in [0, 1]"),
    "log sigmoid": (lambda x: torch.exp(F.logsigmoid(x) / 16), "in [0, 1]"),
    "rg-lru": (lambda x: torch.sigmoid(x) ** (8.0 * torch.sigmoid(x)), "in [0, 1]"),
    "written out": (lambda x: 1 / (1 + torch.exp(-x)), "in [0, 1]"),
    "clamped": (lambda x: torch.clamp(x, 0.01, 0.99), "in [0, 1]"),
    "softmax": (lambda x: torch.softmax(x, -1), "in [0, 1]"),
    "tanh": (lambda x: torch.tanh(x) * torch.sigmoid(x), "at most 1 in absolute value"),
    "rotation": (lambda x: torch.sigmoid(x) * torch.cos(x), "at most 1 in absolute value"),
    "normalize": (lambda x: F.normalize(x, dim=-1), "at most 1 in absolute value"),
    "by hand": (lambda x: x / (x.norm(dim=-1, keepdim=True) + 1e-8), "at most 1 in absolute value"),
    "rsqrt": (lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6), "at most 1 in absolute value"),
    "unsqueezed": (lambda x: x / (x.pow(2).sum(1) + 1e-6).sqrt().unsqueeze(1), "at most 1 in absolute value"),
    "chunked": (lambda x: torch.sigmoid(x).chunk(2, -1)[1].unsqueeze(-1).expand(4, 2, 3), "in [0, 1]"),
    "mixed": (lambda x: torch.where(x > 0, torch.sigmoid(x), torch.zeros_like(x)), "in [0, 1]"),
    "stacked": (lambda x: torch.stack([torch.sigmoid(x), torch.cos(x).abs()]), "in [0, 1]"),
    "relu": (lambda x: F.relu(x) ** 2, "non-negative"),
    "elu": (lambda x: F.elu(x) + 1, "non-negative"),
    "log gate": (lambda x: -torch.exp(x) * F.softplus(x), "non-positive"),
    "complex": (
        lambda x: torch.polar(torch.sigmoid(x), x) * torch.polar(torch.ones_like(x), x),
        "at most 1 in absolute value",
    ),
}
LOOK_ALIKES = {
    "exp": lambda x: torch.exp(-x * F.softplus(x)),
    "too large": lambda x: 0.2 + 0.9 * torch.sigmoid(x),
    "wrong dimension": lambda x: x / (x * x).sum(1).sqrt(),
    "wrong unsqueeze": lambda x: x / (x * x).sum(1).sqrt().unsqueeze(0),
    "other vector": lambda x: (x + 1) / (x.norm(dim=-1, keepdim=True) + 1e-8),
    "mean": lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6),
    "transposed": lambda x: x / x.norm(dim=-1, keepdim=True).t(),
    "indices": lambda x: torch.sigmoid(x).max(0)[1] * 1.0,
    "alpha": lambda x: torch.add(torch.sigmoid(x), torch.sigmoid(x), alpha=3),
}


@pytest.mark.parametrize("name", GATES)
def test_the_range_of_a_gate(name):
    gate, words = GATES[name]
    assert words in _last(gate, X).words()


@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_the_range_of_what_is_no_gate(name):
    assert not {"in [0, 1]", "at most 1 in absolute value"} & set(_last(LOOK_ALIKES[name], X).words())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("name", [*GATES, *LOOK_ALIKES])
def test_every_value_of_a_graph_lies_in_its_interval(name, scale):
    fn = GATES[name][0] if name in GATES else LOOK_ALIKES[name]
    torch.manual_seed(0)
    x = scale * torch.randn(4, 4, dtype=torch.float64)
    traced, nodes = _graph(fn, x)
    found = bounds_aten(nodes)
    values = {}

    class Record(fx.Interpreter):
        def run_node(self, n):
            values[n.name] = super().run_node(n)
            return values[n.name]

    Record(traced).run(x)
    for node in nodes:
        value = values[node.name]
        if isinstance(value, torch.Tensor):
            parts = torch.view_as_real(value) if value.is_complex() else value.double()
            assert _agrees(found[node], parts), (node, node.target, found[node])
