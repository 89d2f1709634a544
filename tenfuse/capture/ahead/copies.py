"""Steps written into a graph as copies of one step, in place of being traced.

Takes the nodes of one traced step, in which symbolic integers stand for the numbers that differ from step
to step; leaves in the graph what tracing would have left, node for node, with their example values.
Refuses (``NotUniform``) a step in which the shape of a tensor depends on such a number.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import map_arg
from torch.multiprocessing.reductions import StorageWeakRef

EXAMPLE = "example_value"
SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
Value = Any
"""A node, or a number: what a node of the step is in one of its copies."""


class NotUniform(Exception):
    """Steps differ in more than the tensors they read and the number they count."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step to be copied."""

    nodes: tuple[fx.Node, ...]
    folded: frozenset[fx.Node]
    """Nodes that compute with the step's numbers only, and are numbers in a copy."""
    fresh: frozenset[fx.Node]
    """Nodes that make a tensor of its own memory: any tensor of that shape shows what they are."""
    views: dict[fx.Node, fx.Node]
    """Node that is another in place, or shows its memory, and that other."""


def step(nodes: Sequence[fx.Node], numbers: Iterable[fx.Node]) -> Step:
    """The step that ``nodes`` are; ``numbers`` are symbolic integers that differ from step to step."""
    symbols = {symbol for number in numbers for symbol in _symbols(number.meta[EXAMPLE])}
    folded: set[fx.Node] = set()
    for node in nodes:
        if node.op not in ("call_function", "call_method"):
            raise NotUniform(f"a step makes a {node.op}")
        example = node.meta.get(EXAMPLE)
        if symbols & _symbols(example):
            folded.add(node)
        elif symbols & {s for size in _sizes(example) for s in _symbols(size)}:
            raise NotUniform(f"the shape of {node} depends on the step")
    plain = [node for node in nodes if _plain(node.meta.get(EXAMPLE))]
    fresh = frozenset(node for node in plain if _own(node))
    return Step(tuple(nodes), frozenset(folded), fresh, {n: s for n in plain if (s := _viewed(n))})


def _symbols(value: Any) -> set[Any]:
    return set(value.node.expr.free_symbols) if isinstance(value, SYMBOLIC) else set()


def _sizes(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [size for part in value for size in _sizes(part)]
    return [*value.shape, *value.stride()] if isinstance(value, torch.Tensor) else [value]


def _storages(node: fx.Node) -> list[StorageWeakRef]:
    example = node.meta.get(EXAMPLE)
    every = example if isinstance(example, (tuple, list)) else (example,)
    return [StorageWeakRef(t.untyped_storage()) for t in every if isinstance(t, torch.Tensor)]


def _plain(example: Any) -> bool:
    """Whether a tensor is nothing but its sizes, strides, type and device."""
    return (
        type(example) is FakeTensor
        and example.layout is torch.strided
        and not example.is_conj()
        and not example.is_neg()
        and all(isinstance(size, int) for size in (*_sizes(example), example.storage_offset()))
    )


def _own(node: fx.Node) -> bool:
    """Whether a node's memory is none of its operands'."""
    theirs = {storage for source in node.all_input_nodes for storage in _storages(source)}
    return theirs.isdisjoint(_storages(node))


def _viewed(node: fx.Node) -> fx.Node | None:
    """The tensor that ``node`` is, or shows if it reads no other."""
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get(EXAMPLE), torch.Tensor)]
    same = next((n for n in tensors if n.meta[EXAMPLE] is node.meta[EXAMPLE]), None)
    if same is not None or len(tensors) != 1 or not _plain(tensors[0].meta[EXAMPLE]):
        return same
    return tensors[0] if _storages(tensors[0]) == _storages(node) else None


@dataclasses.dataclass(frozen=True)
class Copier:
    """Writes copies of ``step`` at the end of ``graph``; ``shown`` runs a node on example values."""

    step: Step
    graph: fx.Graph
    shown: Callable[[fx.Node], Any]

    def copy(self, entering: Mapping[fx.Node, Value], seen: Set[fx.Node]) -> dict[fx.Node, Value]:
        """One more step; ``entering``: what it finds for nodes that are none of its own.

        The nodes of ``seen`` are run, so that their example values have a history of gradients.
        """
        made: dict[fx.Node, Value] = dict(entering)

        def found(node: fx.Node) -> Value:
            return made.get(node, node)

        for node in self.step.nodes:
            args, kwargs = map_arg(node.args, found), map_arg(node.kwargs, found)
            if node in self.step.folded:
                made[node] = _number(node, args, kwargs)
                continue
            copy = self.graph.create_node(node.op, node.target, args, kwargs, type_expr=node.type)
            copy.meta = {key: value for key, value in node.meta.items() if key != EXAMPLE}
            if EXAMPLE in node.meta:
                run = node in seen and getattr(node.meta[EXAMPLE], "requires_grad", False)
                shown = None if run else self._shown(node, copy, found)
                copy.meta[EXAMPLE] = self.shown(copy) if shown is None else shown
            made[node] = copy
        return made

    def _shown(self, node: fx.Node, copy: fx.Node, found: Callable[[fx.Node], fx.Node]) -> Any:
        """The example value of a copy where it needs no running: None if it does."""
        example: Any = node.meta[EXAMPLE]
        if not isinstance(example, torch.Tensor):
            return None if isinstance(example, (tuple, list)) else example
        if node in self.step.fresh:
            sizes, kind = (example.shape, example.stride()), example.dtype
            return _fake(example, torch.empty_strided(*sizes, dtype=kind, device="meta"))
        source = self.step.views.get(node)
        if source is None:
            return None
        base = found(source).meta[EXAMPLE]
        if example is source.meta[EXAMPLE]:
            return base
        bare = [map_arg(part, lambda n: _bare(n.meta[EXAMPLE])) for part in (copy.args, copy.kwargs)]
        view = _called(copy, *bare)
        same = view.shape == example.shape and view.stride() == example.stride()
        held = view.untyped_storage()._cdata == base.untyped_storage()._cdata
        return _fake(example, view) if same and held else None


def _called(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """What the node of a function or method gives for these arguments."""
    if callable(node.target):
        return node.target(*args, **kwargs)
    return getattr(args[0], node.target)(*args[1:], **kwargs)


def _number(node: fx.Node, args: Any, kwargs: Any) -> bool | int | float:
    value = _called(node, args, kwargs)
    if not isinstance(value, (bool, int, float)):
        raise NotUniform(f"{node} is no constant of the step's number")
    return value


def _bare(fake: FakeTensor) -> torch.Tensor:
    """The memory of ``fake``, seen without its mode, which takes long."""
    bare = torch.empty(0, dtype=fake.dtype, device="meta")
    return bare.set_(fake.untyped_storage(), fake.storage_offset(), fake.shape, fake.stride())  # type: ignore[call-overload,no-any-return]


def _fake(like: Any, meta: torch.Tensor) -> FakeTensor:
    return FakeTensor(like.fake_mode, meta.detach().requires_grad_(like.requires_grad), like.fake_device)
