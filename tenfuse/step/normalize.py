"""Normalise the body of one step to functional ATen.

Takes a ``Loop``; leaves an ``Aten`` graph with one placeholder per carry, stream and
invariant, whose nodes are functional ATen calls with ``meta["val"]``.  Nothing is decomposed
further than torch's own composites: what stays outside the kernel keeps operators that
have derivatives, and ``axes`` decomposes what it takes in.  Refuses bodies
that draw random numbers, mutate what they were given, or change the state's shape, dtype
or device.

Truncated back-propagation: ``detach`` in the body becomes the operator ``tenfuse::cut``,
the identity whose derivative is zero, so that tracing does not lose it.  Values made
while gradients are off are cut too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from tenfuse.capture.loop import Loop, detach_some
from tenfuse.reasons import CARRY_CHANGES, RANDOM, UNSUPPORTED_OP, Refused, refuse, where
from tenfuse.step.choice import inlined, unfold
from tenfuse.step.matrices import masked
from tenfuse.step.picks import spell_out
from tenfuse.step.purify import purify
from tenfuse.step.sloped import sloped
from tenfuse.step.windows import around, slid

aten = torch.ops.aten


@torch.library.custom_op("tenfuse::cut", mutates_args=())
def cut(x: torch.Tensor) -> torch.Tensor:
    """The identity, with derivative zero: ``Tensor.detach`` inside a loop body."""
    return x.clone()


@cut.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@dataclasses.dataclass(frozen=True)
class Aten:
    """The step in ATen: placeholders by role, and the nodes of its results."""

    graph: fx.Graph
    carries: tuple[fx.Node, ...]
    """The placeholder of every carry that is read, in the order of ``live``."""
    live: tuple[int, ...]
    """Which carries of the loop are read by the step."""
    streams: tuple[fx.Node, ...]
    invariants: tuple[fx.Node | None, ...]
    """Aligned with the loop's; None where the invariant is a number."""
    nexts: tuple[fx.Node, ...]
    """The next value of every carry of the loop, read or not."""
    ys: tuple[fx.Node, ...]


_CUTS = (cut, sloped)
"""Operators that a body calls by name; they are registered when this is imported."""

_ATTENTION = {torch._C._nn.scaled_dot_product_attention, torch.nn.functional.multi_head_attention_forward}
_DETACH = {"detach", torch.detach, "detach_"}
_FILLS = {torch.full: 0, "new_full": 1, torch.full_like: 0}
"""Calls that fill a tensor with a number -> which operand says its size."""

_SCALES = ("alpha", "value")
_BY: dict[str, Callable[..., torch.Tensor]] = {
    "add": lambda s, input, other: input + s * other,
    "sub": lambda s, input, other: input - s * other,
    "addcmul": lambda s, input, tensor1, tensor2: input + s * tensor1 * tensor2,
    "addcdiv": lambda s, input, tensor1, tensor2: input + s * tensor1 / tensor2,
}
_SCALED: dict[Any, Callable[..., torch.Tensor]] = {**_BY, **{getattr(torch, k): f for k, f in _BY.items()}}
"""Calls whose number by name scales, where that is an entry of a tensor."""


class _Body(fx.Interpreter):
    """Runs the body; cuts what is detached or made while gradients are off."""

    def __init__(self, module: fx.GraphModule, carries: int) -> None:
        super().__init__(module)
        self.recording = True
        self.dependent = set(list(module.graph.nodes)[:carries])
        for node in module.graph.nodes:
            if not self.dependent.isdisjoint(node.all_input_nodes):
                self.dependent.add(node)

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("call_function", "call_method") and n.target in _DETACH:
            return torch.ops.tenfuse.cut(self.fetch_args_kwargs_from_env(n)[0][0])
        if n.op == "call_function" and n.target is torch._C._set_grad_enabled:
            self.recording = bool(n.args[0])
            return None
        value = self._with_numbers(n) if n.op in ("call_function", "call_method") else None
        if value is None:
            with self._spelled(n):
                value = super().run_node(n)
        if self.recording or n.op in ("placeholder", "output", "get_attr"):
            return value
        is_float = isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
        return torch.ops.tenfuse.cut(value) if is_float else value

    def _spelled(self, n: fx.Node) -> contextlib.AbstractContextManager[Any]:
        """Attention of the state as products and a softmax: torch's kernels of it have no rule."""
        fused = n.target in _ATTENTION and n in self.dependent
        return sdpa_kernel(SDPBackend.MATH) if fused else contextlib.nullcontext()

    def _with_numbers(self, n: fx.Node) -> torch.Tensor | None:
        """Calls that torch reads Python numbers in, where the step has an entry of a tensor of them;
        and padding around a circle, which torch traces as writes."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        scale = kwargs.get("alpha", kwargs.get("value"))
        if n.target in _SCALED and isinstance(scale, torch.Tensor):
            return _SCALED[n.target](scale, *args, **{k: v for k, v in kwargs.items() if k not in _SCALES})
        if n.target is torch._C._nn.pad:
            return around(*args, **kwargs)
        if n.target is detach_some:
            if isinstance(args[1], int) and args[1]:
                return args[0]  # type: ignore[no-any-return]
            cut = torch.ops.tenfuse.cut(args[0])
            return torch.where(args[1] != 0, args[0], cut) if isinstance(args[1], torch.Tensor) else cut
        if n.target in _FILLS:
            filler = kwargs.get("fill_value", args[-1])
            size = args[_FILLS[n.target]]
            shape = size.shape if isinstance(size, torch.Tensor) else size
            return filler.expand(tuple(shape)).clone() if isinstance(filler, torch.Tensor) else None
        if n.target is torch.tensor:
            return _stacked(args[0], n.meta["example_value"]) if isinstance(args[0], list) else None
        if n.target is not operator.getitem or not isinstance(args[1], tuple):
            return None
        tensors = [i for i in args[1] if isinstance(i, torch.Tensor)]
        if len(tensors) < len(args[1]) or {t.dtype for t in tensors} - {torch.int64, torch.int32}:
            return None
        return args[0][tuple(torch.broadcast_tensors(*tensors))]  # type: ignore[no-any-return]


def _stacked(entries: Any, like: torch.Tensor) -> torch.Tensor:
    """``torch.tensor(entries)``, some of which are tensors."""
    if isinstance(entries, (list, tuple)):
        return torch.stack([_stacked(e, like) for e in entries])
    return entries if isinstance(entries, torch.Tensor) else torch.full((), entries, dtype=like.dtype)


def _example(node: fx.Node) -> Any:
    value = node.meta.get("example_value", node.meta.get("val"))
    return value.detach() if isinstance(value, torch.Tensor) else value


def fake_mode(tensors: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[Any]:
    """The mode the example tensors were made in (Dynamo's, not the one it made for backends)."""
    fakes = [t for t in tensors if isinstance(t, FakeTensor)]
    return fakes[0].fake_mode if fakes else contextlib.nullcontext()


def normalize(loop: Loop, autocast: contextlib.AbstractContextManager[Any] | None = None) -> Aten:
    """``loop.body`` as functional core ATen.

    ``autocast`` is the context the loop stands in, if any.  Raises ``Refused`` with
    RANDOM, SIDE_EFFECT, CARRY_CHANGES, or UNSUPPORTED_OP when tracing fails.
    """
    holders = [n for n in loop.body.graph.nodes if n.op == "placeholder"]
    examples = [_example(n) for n in holders]
    tensor_at = [i for i, e in enumerate(examples) if isinstance(e, torch.Tensor)]

    def run(*tensors: torch.Tensor) -> Any:
        values = list(examples)
        for i, tensor in zip(tensor_at, tensors, strict=True):
            values[i] = tensor
        nexts, ys = _Body(loop.body, len(loop.carries)).run(*values)
        return [*nexts, *ys]

    tensors = [examples[i] for i in tensor_at]
    mode = fake_mode(tensors)
    try:
        with torch.no_grad(), mode, autocast or contextlib.nullcontext(), fx.traceback.preserve_node_meta():
            traced = make_fx(run, _allow_non_fake_inputs=True)(*tensors)
    except Refused:
        raise
    except Exception as error:
        raise refuse(
            UNSUPPORTED_OP, f"the body could not be traced to ATen: {error}".splitlines()[0]
        ) from error
    return _roles(loop, traced, tensor_at)


def _roles(loop: Loop, traced: fx.GraphModule, tensor_at: list[int]) -> Aten:
    graph = traced.graph
    for node in graph.nodes:
        _check(node)
    purify(graph)
    graph.eliminate_dead_code()
    _materialise_constants(traced)
    found = dict(zip(tensor_at, [n for n in graph.nodes if n.op == "placeholder"], strict=True))
    carries, streams = len(loop.carries), len(loop.streams)
    output = next(n for n in graph.nodes if n.op == "output")
    read = [found[i] for i in range(carries) if i in found]
    unfold(graph, _feeding(output.args[0][:carries]))
    spell_out(graph, _feeding(output.args[0][:carries]), read)
    slid(graph, _feeding(output.args[0][:carries]), read)
    masked(graph, read)
    results = output.args[0]
    for i, carry in enumerate(loop.carries):
        if carry.init is not None:
            _same_kind(found.get(i), results[i], carry.name)
    live = tuple(i for i, c in enumerate(loop.carries) if c.init is not None)
    return Aten(
        graph,
        tuple(found[i] for i in live),
        live,
        tuple(found[carries + i] for i in range(streams)),
        tuple(found.get(carries + streams + i) for i in range(len(loop.invariants))),
        tuple(results[:carries]),
        tuple(results[carries:]),
    )


def _feeding(nexts: Sequence[Any]) -> set[fx.Node]:
    """What the next state is computed from."""
    found: set[fx.Node] = set()
    stack = [n for n in nexts if isinstance(n, fx.Node)]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += node.all_input_nodes
    return found


_CONSTANTS = 64
"""Entries of a constant of the body at most, such as a list that picks columns; more are a table."""


def _materialise_constants(traced: fx.GraphModule) -> None:
    """Small tensors that tracing lifted out of the body (torch.tensor(0.5), x[:, [2, 0]]) become calls."""
    given = [n for n in traced.graph.nodes if n.op == "placeholder"][:1]
    for node in list(traced.graph.nodes):
        if node.op != "get_attr":
            continue
        value = getattr(traced, node.target)
        if not isinstance(value, torch.Tensor) or not 0 < value.numel() <= _CONSTANTS:
            raise refuse(
                UNSUPPORTED_OP, "the body holds a tensor constant; pass it in as a buffer", where(node)
            )
        entries = value.flatten().tolist()
        made = inlined(node, given, _spelled_out, entries, value.shape, value.dtype, value.device)
        node.replace_all_uses_with(made)
        traced.graph.erase_node(node)


def _spelled_out(*given: Any) -> torch.Tensor:
    entries, shape, dtype, device = given[-4:]
    single = [torch.full((), e, dtype=dtype, device=device) for e in entries]
    return (torch.stack(single) if len(single) > 1 else single[0]).reshape(shape)


_BY_STRIDES = {aten.as_strided.default, aten.as_strided_.default, aten.as_strided_scatter.default}


def _check(node: fx.Node) -> None:
    """Refuse randomness, and reading memory by strides: a step is given values, laid out anew."""
    op = node.target
    if node.op != "call_function" or not isinstance(op, torch._ops.OpOverload):
        return
    if torch.Tag.nondeterministic_seeded in op.tags:
        raise refuse(RANDOM, where=where(node))
    if op in _BY_STRIDES:
        raise refuse(UNSUPPORTED_OP, "the body reads memory by strides (as_strided)", where(node))


def _same_kind(before: fx.Node | None, after: Any, name: str) -> None:
    if before is None or not isinstance(after, fx.Node):
        raise refuse(CARRY_CHANGES, f"carry {name} is not a tensor at every step")
    a, b = before.meta["val"], after.meta["val"]
    if (a.dtype, a.device, tuple(a.shape)) != (b.dtype, b.device, tuple(b.shape)):
        raise refuse(
            CARRY_CHANGES,
            f"carry {name} enters a step as {a.dtype} {tuple(a.shape)}"
            f" and leaves it as {b.dtype} {tuple(b.shape)}",
        )
