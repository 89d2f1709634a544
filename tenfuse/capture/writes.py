"""Which tensors a node of a Dynamo graph writes in place.

Takes a node; leaves the nodes whose memory it changes.  What no rule here knows to be pure
counts as written, from every tensor that it is given.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.views import argument, is_tensor

OPERATORS: dict[Any, Callable[..., Any]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod, operator.ipow: operator.pow, operator.iand: operator.and_,
    operator.ior: operator.or_, operator.ixor: operator.xor,
}  # fmt: skip
SETS = {"copy_", "fill_", "zero_"}
METADATA = {
    "resize_", "set_", "t_", "transpose_", "unsqueeze_", "squeeze_", "swapaxes_", "swapdims_", "detach_",
    "as_strided_", "rename_", "requires_grad_", "resize_as_", "apply_", "map_", "share_memory_",
    "normal_", "uniform_", "bernoulli_", "exponential_", "random_", "geometric_", "cauchy_", "log_normal_",
    "retain_grad", "data_",
}  # fmt: skip
STATEFUL = {
    torch.nn.functional.batch_norm,
    torch.batch_norm,
    torch.nn.functional.instance_norm,
    torch.instance_norm,
}


def name_of(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def _mutable_schema(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return bool(schema is not None and getattr(schema, "is_mutable", False))


def targets_written(node: fx.Node) -> list[fx.Node]:
    """The tensors that ``node`` writes in place."""
    if node.op not in ("call_function", "call_method"):
        return []
    name = name_of(node)
    if (
        node.target is operator.setitem
        or node.target in OPERATORS
        or (_ends_in_place(node, name) and node.args)
    ):
        found = [node.args[0]]
    elif node.kwargs.get("out") is not None:
        out = node.kwargs["out"]
        found = list(out) if isinstance(out, (tuple, list)) else [out]
    elif node.target in STATEFUL:
        found = [] if frozen(node) else _statistics(node)
    elif inplace_flag(node):
        found = [argument(node, 0, "input")]
    elif _mutable_schema(node.target):
        found = list(node.all_input_nodes)
    else:
        return []
    return [n for n in found if isinstance(n, fx.Node) and is_tensor(n)]


def frozen(node: fx.Node) -> bool:
    """A normalisation that uses its running statistics, as in evaluation, and leaves them."""
    flag = "use_input_stats" if "instance" in name_of(node) else "training"
    return argument(node, 5, flag, node.target is not torch.nn.functional.batch_norm) is False


def _statistics(node: fx.Node) -> list[Any]:
    """The running mean and variance, which torch's own functions take behind the weights."""
    first = 3 if node.target in (torch.batch_norm, torch.instance_norm) else 1
    return [argument(node, first, "running_mean"), argument(node, first + 1, "running_var")]


def _ends_in_place(node: fx.Node, name: str) -> bool:
    """Torch's mark of an in-place operation; Python's ``operator.and_`` only avoids a keyword."""
    return (
        name.endswith("_")
        and not name.endswith("__")
        and getattr(node.target, "__module__", "") != "_operator"
    )


def inplace_flag(node: fx.Node) -> bool:
    if node.kwargs.get("inplace") is True:
        return True
    if node.op != "call_function" or getattr(node.target, "__module__", "") != "torch.nn.functional":
        return False
    try:
        names = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return (
        "inplace" in names
        and len(node.args) > names.index("inplace")
        and node.args[names.index("inplace")] is True
    )
