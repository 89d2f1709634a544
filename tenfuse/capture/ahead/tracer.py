"""Torch's tracer while it traces a step for all: what is patched, and what is compared."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
import torch.fx as fx
from torch._dynamo import utils
from torch._dynamo.side_effects import SideEffects
from torch._dynamo.variables import TensorVariable
from torch._dynamo.variables.base import VariableTracker
from torch.utils._sympy.value_ranges import ValueRanges, bound_sympy

from tenfuse.capture.ahead.copies import EXAMPLE, NotUniform

_KNOWN = (
    "dtype", "device", "layout", "ndim", "requires_grad", "is_quantized", "is_contiguous", "is_nested",
    "is_sparse", "class_type", "has_grad_fn", "_size", "stride",
)  # fmt: skip
"""What the tracer knows of a tensor, and may decide by."""
_NOTED = ("tracked_proxyable_vt", "tracked_tensor_or_symint_vt")
"""Its name, and that before torch 2.13."""
_SUBSCRIPTS = ("BINARY_SUBSCR", "BINARY_OP")


@contextlib.contextmanager
def tracing(tx: Any) -> Iterator[None]:
    """Trace a step with a symbolic number: no graph is compiled, and what indexes with it settles nothing.

    Torch settles a symbolic integer that is an index, of which only the tensor's memory depends; both ends
    of its range are tried here in its place.
    """
    original = utils.run_node

    def run_node(tracer: Any, node: fx.Node, args: Any, kwargs: Any, module: Any) -> Any:
        if node.target not in (operator.getitem, operator.setitem) or len(args) < 2:
            return original(tracer, node, args, kwargs, module)
        tensor, index, *rest = args
        ends = [_index(index, lambda r: r.upper), _index(index, lambda r: r.lower)]
        if all(end is index for end in ends):
            return original(tracer, node, args, kwargs, module)
        for end in ends:
            found = original(tracer, node, (tensor, end, *rest), kwargs, module)
        return found

    create = tx.output.create_proxy

    def create_proxy(kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> Any:
        # for `x[t]` torch writes `select` where t is symbolic, and `getitem` where it is not
        if target is torch.select and tx.output.current_tx.current_instruction.opname in _SUBSCRIPTS:
            target, args = operator.getitem, (args[0], args[2])
        return create(kind, target, args, kwargs, *more, **named)

    called = TensorVariable.call_method

    def call_method(self: Any, tx: Any, name: str, *more: Any) -> Any:
        if name == "storage_offset":  # where in memory it starts may differ from step to step
            raise NotUniform("a step asks where a tensor starts")
        return called(self, tx, name, *more)

    def compile_subgraph(*args: Any, **kwargs: Any) -> Any:
        raise NotUniform("the graph breaks")

    patch = mock.patch.object
    with (
        patch(tx.output, "compile_subgraph", compile_subgraph),
        patch(TensorVariable, "call_method", call_method),
        patch(utils, "run_node", run_node),
        patch(tx.output, "create_proxy", create_proxy),
    ):
        yield


def as_written(node: fx.Node) -> Any:
    """What ``node`` calls where the numbers of the step are known: for ``torch.tensor([t])`` torch writes its
    reference where t is symbolic, as it does for a tensor in the list."""
    examples = (source.meta.get(EXAMPLE) for source in node.all_input_nodes)
    refers = node.target is torch._refs.tensor and not any(isinstance(e, torch.Tensor) for e in examples)
    return torch.tensor if refers else node.target


def _index(index: Any, end: Callable[[Any], Any]) -> Any:
    """The index with one end of its range for each symbolic integer; itself where there is none."""
    if isinstance(index, tuple):
        found = tuple(_index(entry, end) for entry in index)
        return index if all(a is b for a, b in zip(found, index, strict=True)) else found
    if not isinstance(index, torch.SymInt):
        return index
    value = end(bound_sympy(index.node.expr, index.node.shape_env.var_to_range))
    return int(value) if value.is_integer else index


@contextlib.contextmanager
def recorded() -> Iterator[tuple[list[Any], list[Any]]]:
    """The variables that come into being meanwhile, and those that are changed."""
    made: list[Any] = []
    changed: list[Any] = []

    def noting(home: type, name: str, sink: list[Any], place: int) -> Any:
        original = getattr(home, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            sink.append(args[place])
            return original(*args, **kwargs)

        return mock.patch.object(home, name, wrapper)

    with contextlib.ExitStack() as stack:
        stack.enter_context(noting(VariableTracker, "__init__", made, 0))
        for name in ("mutation", "store_attr", "store_cell", "store_global"):
            stack.enter_context(noting(SideEffects, name, changed, 1))
        yield made, changed


def surroundings(tx: Any, graph: fx.Graph) -> Any:
    """What a step may not change of the tracer, beside variables."""
    return (
        [id(variable) for variable in tx.stack],
        len(tx.block_stack),
        id(tx.output.current_tracer),
        id(tx.output.side_effects),
        len(tx.output.random_calls),
        sum(node.op in ("placeholder", "get_attr") for node in graph.nodes),
        torch.is_grad_enabled(),
    )


def noted_by(tracer: Any) -> Any:
    """The set of variables that the tracer of a nested graph may have to return; of the graph itself none."""
    if tracer.parent is None:
        return set()
    return getattr(tracer, _NOTED[0]) if hasattr(tracer, _NOTED[0]) else getattr(tracer, _NOTED[1])


def decided(shapes: Any, bounds: Mapping[Any, ValueRanges[Any]]) -> bool:
    """Whether anything about the symbols was settled since they were made, with these ``bounds``."""
    settled = (*(guard.expr for guard in shapes.guards), *shapes.replacements, *shapes.replacements.values())
    narrowed = any(shapes.var_to_range[symbol] != between for symbol, between in bounds.items())
    return narrowed or any(symbol in each.free_symbols for each in settled for symbol in bounds)


def known(variable: Any) -> list[Any]:
    """What the tracer may decide by; symbolic sizes as expressions, since comparing those decides too."""
    example = variable.as_proxy().node.meta[EXAMPLE]
    sizes = [_plain(size) for size in (*example.shape, *example.stride())]
    return [*(_plain(getattr(variable, name, None)) for name in _KNOWN), *sizes]


def geometry(example: Any) -> tuple[Any, ...]:
    """What an operation in place can change of a tensor, beside its values."""
    if not isinstance(example, torch.Tensor) or example.layout is not torch.strided:
        return ()
    sizes = (*example.shape, *example.stride(), example.storage_offset())
    return (*map(_plain, sizes), example.ndim, example.dtype, example.requires_grad)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    return value.node.expr if isinstance(value, torch.SymInt) else value
