"""Compile with capture and rewrite alone: every loop runs its body step by step in Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.functional import functionalize
from tenfuse.capture.loop import Loop
from tenfuse.capture.roll import Kept, find_loops
from tenfuse.rewrite.lower import lower
from tenfuse.rewrite.splice import splice


class StepByStep(torch.nn.Module):
    """The meaning of a ``Loop``: its body, run once per step."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = loop

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loop = self.loop
        assert isinstance(loop.steps, int)
        given = [c.init is not None for c in loop.carries]
        inits, rest = args[: sum(given)], args[sum(given) :]
        streams, invariants = rest[: len(loop.streams)], rest[len(loop.streams) :]
        assert all(s.shape[0] == loop.steps for s in streams)
        source = iter(inits)
        carries: list[Any] = [next(source) if g else torch.zeros(()) for g in given]
        rows: list[tuple[torch.Tensor, ...]] = []
        for r in range(loop.steps):
            t = loop.steps - 1 - r if loop.reverse else r
            new, out = fx.Interpreter(loop.body).run(*carries, *(s[t] for s in streams), *invariants)
            carries = list(new)
            rows.append(out)
        ys = [torch.stack(list(y)[:: -1 if loop.reverse else 1]) for y in zip(*rows, strict=True)]
        return (*carries, *ys)


def fused_graph(loop: Loop) -> fx.GraphModule:
    """``(*inits, *streams, *invariants) -> (*finals, *ys)`` calling ``StepByStep`` once."""
    graph = fx.Graph()
    inits = [c for c in loop.carries if c.init is not None]
    args = [graph.placeholder(f"a{i}") for i in range(len(inits) + len(loop.streams) + len(loop.invariants))]
    call = graph.call_module("run", tuple(args))
    body_out = next(n for n in loop.body.graph.nodes if n.op == "output").args[0]
    count = len(loop.carries) + len(body_out[1])
    graph.output(tuple(graph.call_function(__import__("operator").getitem, (call, i)) for i in range(count)))
    return fx.GraphModule({"run": StepByStep(loop)}, graph)


class Harness:
    """A backend that fuses step by step; keeps what it saw."""

    def __init__(self) -> None:
        self.found: list[Loop | Kept] = []
        self.graphs: list[fx.GraphModule] = []

    def rewritten(self, gm: fx.GraphModule) -> fx.GraphModule:
        ssa = functionalize(gm)
        for entry in find_loops(ssa):
            self.found.append(entry)
            if isinstance(entry, Loop):
                splice(ssa, entry, fused_graph(entry))
        made = lower(ssa)
        self.graphs.append(made)
        for name, child in list(made.named_children()):
            if isinstance(child, fx.GraphModule) and not isinstance(child, StepByStep):
                setattr(made, name, self.rewritten(child))
        return made

    def __call__(self, gm: fx.GraphModule, example_inputs: Any) -> Callable[..., Any]:
        return self.rewritten(gm)

    @property
    def loops(self) -> list[Loop]:
        return [f for f in self.found if isinstance(f, Loop)]

    @property
    def kept(self) -> list[Kept]:
        return [f for f in self.found if isinstance(f, Kept)]


def _fresh(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)):
        return type(value)(_fresh(v) for v in value)
    return value


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in _tensors(v)]
    return []


def check(
    function: Callable[..., Any], *inputs: Any, grad: bool = True, dynamic: bool | None = False
) -> Harness:
    """Run ``function`` plainly and through the harness: outputs, gradients, mutated inputs."""
    torch._dynamo.reset()
    harness = Harness()
    plain, ours = _fresh(list(inputs)), _fresh(list(inputs))
    compiled = torch.compile(function, backend=harness, dynamic=dynamic, fullgraph=True)
    if not grad:
        with torch.no_grad():
            want, got = function(*plain), compiled(*ours)
    else:
        want, got = function(*plain), compiled(*ours)
    wants, gots = _tensors(want), _tensors(got)
    assert len(wants) == len(gots)
    for a, b in zip(wants, gots, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(b, a, equal_nan=True)
    for a, b in zip(_tensors(plain), _tensors(ours), strict=True):
        torch.testing.assert_close(b, a, equal_nan=True)
    leaves = [t for t in wants if t.requires_grad]
    if grad and leaves:
        torch.manual_seed(0)
        weights = [torch.randn_like(t) for t in leaves]
        torch.autograd.backward(leaves, weights)
        torch.autograd.backward([t for t in gots if t.requires_grad], weights)
        for a, b in zip(_tensors(plain), _tensors(ours), strict=True):
            if a.is_leaf and a.requires_grad:
                assert (a.grad is None) == (b.grad is None)
                if a.grad is not None:
                    torch.testing.assert_close(b.grad, a.grad, equal_nan=True)
    return harness
