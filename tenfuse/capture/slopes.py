"""An ``autograd.Function`` that says what its slope is: surrogate gradients, straight-through estimators.

Takes an ``autograd_function_apply`` node of a Dynamo graph, whose forward and backward are
graphs of their own; leaves a ``Sloped``, one object for all nodes of equal graphs, that
computes the same values as ordinary operators followed by ``tenfuse::sloped(value, x, slope)``:
the value, of which the derivative by ``x`` is ``slope``.  The backward must be the
gradient of the one result times something, entry by entry: proved on its graph, where the
gradient may only meet products, quotients by what does not depend on it, sums of such, and
choices between them and zero.  Then the slope is the backward of ones.  Leaves None for any
other function, and for one that writes into its operands, holds constants, or changes shapes
or dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.record import KEY, Record
from tenfuse.capture.views import geometry, is_tensor, value_of
from tenfuse.capture.writes import name_of

_KEEPS = {"clone", "contiguous", "alias", "float", "double", "half", "bfloat16"}
_SUMS = {"add", "sub"}
_MODE = torch._C._set_grad_enabled


class Sloped:
    """``forward`` computes values and what is saved; ``backward`` the gradients from both."""

    __name__ = "sloped"

    def __init__(self, forward: fx.GraphModule, backward: fx.GraphModule, inputs: Sequence[int]) -> None:
        self.forward, self.backward, self.inputs = forward, backward, inputs
        """``inputs``: for each gradient, the argument it belongs to."""

    def __call__(self, *args: Any) -> tuple[Any, ...]:
        outs, saved = _Quiet(self.forward).run(*args)
        ones = [torch.ones_like(o) for o in outs]
        slopes = _Quiet(self.backward).run(*ones, *saved)
        value, *rest = [torch.ops.tenfuse.cut(o) if o.is_floating_point() else o for o in outs]
        for at, slope in zip(self.inputs, slopes, strict=True):
            if slope is not None:
                value = torch.ops.tenfuse.sloped(value, args[at], slope)
        return (value, *rest)


class _Quiet(fx.Interpreter):
    """Runs a graph, whatever it says of gradients: what they are is said of the result."""

    def run_node(self, n: fx.Node) -> Any:
        return None if n.target is _MODE else super().run_node(n)


class Slopes:
    """The functions of one graph; equal ones are one object."""

    def __init__(self, owner: Any, functional: Callable[[fx.GraphModule], fx.GraphModule]) -> None:
        self.owner, self.functional = owner, functional
        self.known: dict[Any, Sloped | None] = {}

    def of(self, node: fx.Node) -> tuple[Sloped, tuple[Any, ...]] | None:
        """The function that ``node`` applies, and its operands; None if it is no such node."""
        if node.op != "call_function" or name_of(node) != "autograd_function_apply" or len(node.args) < 3:
            return None
        forward, backward = (self._module(a) for a in node.args[:2])
        if forward is None or backward is None:
            return None
        key = (_text(forward.graph), _text(backward.graph), len(node.args))
        if None in key:
            return None
        if key not in self.known:
            self.known[key] = _sloped(forward, backward, node.args[2:])
        found = self.known[key]
        return None if found is None else (found, node.args[2:])

    def _module(self, node: Any) -> fx.GraphModule | None:
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        module = getattr(self.owner, str(node.target), None)
        if not isinstance(module, fx.GraphModule):
            return None
        made = self.functional(module)
        record: Record = made.meta[KEY]
        lasting = any(root.op == "placeholder" for root, seen in record.versions.items() if len(seen) > 1)
        return None if record.opaque or lasting else made


def _text(graph: fx.Graph) -> Any:
    """What a graph computes, comparable; None if it holds constants or modules."""
    number: dict[fx.Node, str] = {}
    lines: list[Any] = []
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module"):
            return None
        number[node] = f"%{len(number)}"
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: fx_name(number[n]))
        seen = geometry(value_of(node)) if is_tensor(node) else None
        target = node.op if node.op == "placeholder" else node.target
        lines.append((node.op, target, repr((args, kwargs)), seen))
    return tuple(lines)


class fx_name(str):
    """The number of a node inside printed arguments, unlike any string a program could hold."""

    def __repr__(self) -> str:
        return f"<{self}>"


def _sloped(forward: fx.GraphModule, backward: fx.GraphModule, args: Sequence[Any]) -> Sloped | None:
    made, gradients = _results(forward.graph), _results(backward.graph)
    if not (isinstance(made, (tuple, list)) and len(made) == 2 and isinstance(gradients, (tuple, list))):
        return None
    outs, saved = made
    holders = [n for n in backward.graph.nodes if n.op == "placeholder"]
    if not outs or not all(map(is_tensor, outs)) or len(holders) != len(outs) + len(saved):
        return None
    if any(h.users for h in holders[1 : len(outs)]):
        return None  # the gradient of a second result
    tensors = [i for i, a in enumerate(args) if is_tensor(a)]
    inputs = tensors if len(gradients) == len(tensors) else list(range(len(args)))
    if len(gradients) != len(inputs):
        return None
    like = geometry(value_of(outs[0]))
    linear = _linear(backward.graph, holders[0], like)
    for at, gradient in zip(inputs, gradients, strict=True):
        if gradient is None:
            continue
        if gradient not in linear or not is_tensor(args[at]) or geometry(value_of(args[at])) != like:
            return None
    return Sloped(forward, backward, tuple(inputs))


def _results(graph: fx.Graph) -> Any:
    return next(n for n in graph.nodes if n.op == "output").args[0]


def _linear(graph: fx.Graph, gradient: fx.Node, like: Any) -> set[fx.Node]:
    """The nodes that are ``gradient`` times something that does not depend on it, entry by entry."""
    linear: set[fx.Node] = {gradient}
    spoilt: set[fx.Node] = set()
    for node in graph.nodes:
        touched = [a for a in node.all_input_nodes if a in linear or a in spoilt]
        if not touched or node.op == "output":
            continue
        fits = not spoilt.intersection(touched) and is_tensor(node) and geometry(value_of(node)) == like
        (linear if fits and _multiplies(node, linear) else spoilt).add(node)
    return linear


def _multiplies(node: fx.Node, linear: set[fx.Node]) -> bool:
    """Whether ``node`` is a multiple of the gradient when the operands in ``linear`` are."""
    name, args = name_of(node), node.args
    own = [isinstance(a, fx.Node) and a in linear for a in args]
    if any(isinstance(v, fx.Node) and v in linear for v in node.kwargs.values()):
        return False
    if name in _KEEPS or name == "neg":
        return own[0]
    if name == "to":
        return own[0] and not any(own[1:])
    if name in ("mul", "multiply"):
        return sum(own) == 1 and len(args) == 2
    if name in ("truediv", "div", "true_divide"):
        return own[:2] == [True, False] and len(args) == 2 and not node.kwargs
    if name in _SUMS:
        return own == [True, True]
    if name == "where" and len(args) == 3:
        return not own[0] and all(o or _zero(a) for o, a in zip(own[1:], args[1:], strict=True))
    return name == "masked_fill" and own[:2] == [True, False] and len(args) == 3 and _zero(args[2])


def _zero(value: Any) -> bool:
    if isinstance(value, fx.Node):
        return value.target in _ZEROS
    return isinstance(value, (int, float)) and value == 0


_ZEROS: set[Callable[..., Any] | str] = {torch.zeros_like}

__all__ = ["Sloped", "Slopes"]
