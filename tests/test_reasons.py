"""The line a refusal names."""

import os

import torch
import torch.fx as fx

from tenfuse.reasons import where


def at(*files):
    node = fx.Graph().placeholder("x")
    lines = [f'  File "{file}", line {n}, in f\n    y = g(x)\n' for n, file in enumerate(files, 7)]
    node.meta["stack_trace"] = "".join(lines)
    return node


def test_the_innermost_line_that_is_not_of_torch():
    inside = os.path.join(os.path.dirname(torch.__file__), "functional.py")
    assert where(at("main.py", "model.py")) == "model.py:8"
    assert where(at("main.py", "model.py", inside)) == "model.py:8"
    assert where(at(os.path.dirname(inside) + "vision/ops.py")).endswith("torchvision/ops.py:7")


def test_torch_itself_where_there_is_nothing_else_and_nothing_without_a_trace():
    inside = os.path.join(os.path.dirname(torch.__file__), "functional.py")
    assert where(at(inside)) == f"{inside}:7"
    assert where(fx.Graph().placeholder("x")) == where(at()) == ""
