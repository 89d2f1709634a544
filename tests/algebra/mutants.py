"""Steps to certify, and everything that may be wrong with a node."""

from tenfuse.step.program import Const, Contract, Pointwise, with_arguments
from tests.algebra.cascades import CASCADES
from tests.step.steps import STEPS, analysed

LINEAR = ("delta", "ten", "selective", "complex", "merged-heads", "rotation", "swapped", "stabilised")


def program(name):
    step, *inputs = {**STEPS, **CASCADES}[name]
    return analysed(step, *inputs)[2].program


_OTHER = {
    "add": "sub", "sub": "add", "mul": "add", "div": "mul", "maximum": "minimum", "exp": "tanh", "neg": "cut",
    "lt": "le", "ge": "gt", "gt": "lt", "logaddexp": "maximum", "sigmoid": "tanh",
}  # fmt: skip


def node_mutants(nodes):
    """The nodes with one of them changed: another function, a sign, a constant, a sum left out."""
    for i, node in enumerate(nodes):
        if isinstance(node, Pointwise) and node.fn in _OTHER:
            yield i, Pointwise(_OTHER[node.fn], node.args)
        if isinstance(node, Pointwise) and node.fn in ("sub", "div", "where") and len(set(node.args)) > 1:
            yield i, with_arguments(node, (*node.args[:-2], node.args[-1], node.args[-2]))
        if isinstance(node, Const):
            yield i, Const(node.value + 1.0)
        if isinstance(node, Contract) and node.op == "sum":
            yield i, Contract(node.axes, node.arg, "max")
