"""Factors of a sum that do not have its axis: multiplied once, wherever that is least."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from gradients import derived
from harness import forward

from tenfuse.emit.cpp.simplify import simplify
from tenfuse.step.program import Builder, CarrySpec, Contract, Input, OutSpec, Pointwise, StepProgram


def read(gate):
    """S <- S + k v^T; y_k = sum_v v (g S), with a gate over the axes ``gate``."""
    b, own = Builder(), ("k", "v")
    s, k, v = b.input("carry", 0, own), b.input("stream", 0, ("k",)), b.input("stream", 1, ("v",))
    g = b.input("stream", 2, gate)
    out = b.contract(b.call("mul", v, b.call("mul", g, s)), "v")
    new = b.call("add", s, b.call("mul", k, v))
    return StepProgram(
        tuple(b.nodes), {"k": 20, "v": 36}, (CarrySpec(own, new, own),), (OutSpec(out, ("k",)),)
    )


def inside(program):
    """Whether the gate is under a sum."""
    todo = [n.arg for n in program.nodes if isinstance(n, Contract)]
    while todo:
        node = program.nodes[todo.pop()]
        if node == Input("stream", 2, getattr(node, "axes", ())):
            return True
        todo += node.args if isinstance(node, Pointwise) else []
    return False


@pytest.mark.parametrize("gate", [(), ("k",)])
def test_a_number_or_a_factor_per_row_is_multiplied_to_the_row_s_sum(gate):
    assert not inside(simplify(read(gate)))


@pytest.mark.parametrize("gate", [("v",), ("k", "v")])
def test_one_that_is_multiplied_to_a_shorter_factor_or_varies_stays(gate):
    assert inside(simplify(read(gate)))


@pytest.mark.parametrize("gate", [(), ("k",), ("v",), ("k", "v")])
def test_values_and_gradients(gate):
    program = read(gate)
    (_, outs, _), want, _ = forward(program, 5, "f64", "f64")
    assert float((outs[0] - want[1][0]).abs().max()) <= 1e-12
    for name, mine, theirs in derived(program, 5, 2, "f64"):
        assert float((mine - theirs).abs().max()) <= 1e-11, name
