"""Put a fused loop together: before, kernel, after, as one graph.

Takes a ``Loop``, its ``Aten`` step and ``Fission``, and what the reader made of the
kernel's part; leaves a ``Fused``: a graph ``(*inits, *streams, *invariants) -> (*finals,
*ys)`` in ATen, batched over time by ``torch.vmap``, with a ``tenfuse::loop`` in it if
the loop has a carry (two where the last chunk of a plan in chunks is shorter).  Refuses
(NOT_BATCHABLE) bodies whose state-free part ``vmap`` cannot batch.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch.fx.experimental.proxy_tensor import make_fx

from tenfuse.capture.loop import Loop, Stream
from tenfuse.plan.choose import Choice
from tenfuse.plan.loop import LoopPlan, Wanted, plan
from tenfuse.plan.tensors import Examples
from tenfuse.plan.tiled import Stepped, TilePlan, tile_plan
from tenfuse.reasons import NOT_BATCHABLE, Refused, refuse
from tenfuse.rewrite.chunked import Chunked, whole_pieces
from tenfuse.runtime.op import register
from tenfuse.step.fission import Fission, ancestors
from tenfuse.step.normalize import Aten, fake_mode
from tenfuse.step.reader import Placed, Step

aten = torch.ops.aten

Chooser = Callable[[int, bool], Choice]
"""Given the number of steps, or 0 where only the sequential kernel will do, and whether
gradients are wanted."""


Tiles = Callable[[Any, bool], Iterator[tuple[Choice, Stepped, str]]]
"""The same for kernels on tiles: candidates, best first, and what their matrix products multiply.
The number of steps may be symbolic."""

Trial = Callable[[TilePlan, Examples], None]
"""Raises ``Refused`` for a plan whose kernels may not be used where these tensors are."""


@dataclasses.dataclass(frozen=True)
class Fused:
    """``module`` replaces the loop; ``plans``, by key, are those of the kernels it launches.

    A loop without a carry has no kernels and no ``choice``.
    """

    module: fx.GraphModule
    plans: dict[str, LoopPlan | TilePlan]
    choice: Choice | None


def _value(x: Any) -> Any:
    """A node's example value; symbolic sizes inside arguments too."""
    return fx.map_arg(x, lambda n: n.meta.get("example_value", n.meta.get("val")))


def stacked_example(stream: Stream, body_value: torch.Tensor) -> torch.Tensor:
    """The stream with time first, as a fake tensor."""
    source = stream.source
    with fake_mode([body_value]):
        if isinstance(source, fx.Node):
            value = _value(source).detach()
        elif isinstance(source[0], fx.Node):
            value = torch.stack([_value(n).detach() for n in source])
        else:
            value = torch.empty(len(source), dtype=body_value.dtype, device=body_value.device)
        for view in stream.views:
            value = view.target(value, *_value(view.args), **dict(_value(view.kwargs)))
    return value


class _Runner:
    """Evaluates nodes of the step's graph, with whatever tensors it is given."""

    def __init__(self, graph: fx.Graph) -> None:
        self.order = [n for n in graph.nodes if n.op == "call_function"]

    def run(self, nodes: Iterable[fx.Node], env: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        chosen = set(nodes)
        env = dict(env)
        for node in self.order:
            if node in chosen and node not in env:
                args, kwargs = fx.map_arg(
                    (node.args, node.kwargs), lambda n: env[n] if n in env else n.meta["val"]
                )
                env[node] = _outside(node.target)(*args, **kwargs)
        return env


def _outside(target: Any) -> Callable[..., Any]:
    """The operator as it is called on batched tensors, which need not be contiguous."""
    if target in (aten.view.default, aten._unsafe_view.default):
        return aten.reshape.default
    if target is torch.ops.tenfuse.cut.default:
        return torch.Tensor.detach
    if target is aten.sym_size.int:
        return torch.Tensor.size  # the operator has no rule for batches
    return _select_scatter if target is aten.select_scatter.default else target  # type: ignore[no-any-return]


def _select_scatter(base: torch.Tensor, value: torch.Tensor, dim: int, index: int) -> torch.Tensor:
    """Batched, torch's own operator passes twice the gradient to ``value`` (2.11 and 2.13)."""
    at = index % base.shape[dim]
    found: torch.Tensor = torch.slice_scatter(base, value.unsqueeze(dim), dim, at, at + 1)
    return found


def requires_grad(step: Aten, leaves: dict[fx.Node, bool]) -> dict[fx.Node, bool]:
    """Which nodes of the step lie on a path from something that wants a gradient."""
    found: dict[fx.Node, bool] = {}
    for node in step.graph.nodes:
        value = node.meta.get("val")
        smooth = not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex()
        if node.op == "placeholder":
            found[node] = leaves.get(node, False) and smooth
        elif node.target in (torch.ops.tenfuse.cut.default, aten.detach.default):
            found[node] = False
        else:
            found[node] = smooth and any(found[a] for a in node.all_input_nodes)
    return found


def assemble(
    loop: Loop,
    step: Aten,
    parts: Fission,
    core: Step | None,
    grads: bool,
    chunk: int | str,
    chooser: Chooser,
    tiles: Tiles | None = None,
    trial: Trial | None = None,
) -> Fused:
    """The graph that replaces ``loop``.

    ``grads`` says whether gradients may flow at all; ``chooser`` picks the algorithm, or
    ``tiles`` those of kernels on tiles, of which the first that passes its ``trial`` is taken.
    """
    length = None if chunk == "auto" else int(chunk)
    return _Assembly(loop, step, parts, core, grads, length, chooser, tiles, trial).trace()


def _batched(one: Callable[..., tuple[torch.Tensor, ...]], stacked: Iterable[torch.Tensor]) -> Any:
    """``one`` for every step at once; refuses what ``vmap`` cannot batch."""
    try:
        return torch.vmap(one)(*stacked)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise refuse(NOT_BATCHABLE, f"batching the body over time failed: {said}") from error


class _Assembly:
    def __init__(
        self,
        loop: Loop,
        step: Aten,
        parts: Fission,
        core: Step | None,
        grads: bool,
        chunk: int | None,
        chooser: Chooser,
        tiles: Tiles | None,
        trial: Trial | None,
    ) -> None:
        self.loop, self.step, self.parts, self.core, self.chunk = loop, step, parts, core, chunk
        self.chooser, self.tiles, self.trial = chooser, tiles, trial
        self.runner = _Runner(step.graph)
        self.plans: dict[str, LoopPlan | TilePlan] = {}
        self.choice: Choice | None = None
        holders = [n for n in loop.body.graph.nodes if n.op == "placeholder"]
        self.bodies = [_value(h) for h in holders]
        n, m = len(loop.carries), len(loop.streams)
        inits = [_value(c.init) for c in loop.carries if c.init is not None]
        streams = [stacked_example(s, v) for s, v in zip(loop.streams, self.bodies[n : n + m], strict=True)]
        invariants = [_value(i) for i in loop.invariants]
        self.inputs = [*inits, *streams, *invariants]
        self.counts = (len(inits), m, len(invariants))
        self.grads = requires_grad(step, self._leaves()) if grads else {}

    def _leaves(self) -> dict[fx.Node, bool]:
        """Placeholders that want a gradient; a carry does when anything feeding it does."""
        found: dict[fx.Node, bool] = {}
        sources = [c.init for c in self.loop.carries if c.init is not None]
        for node, source in zip(self.step.carries, sources, strict=True):
            found[node] = _wants(source)
        for node, stream in zip(self.step.streams, self.loop.streams, strict=True):
            found[node] = _wants(stream.source)
        for holder, source in zip(self.step.invariants, self.loop.invariants, strict=True):
            if holder is not None:
                found[holder] = _wants(source)
        changed = True
        while changed:
            marks = requires_grad(self.step, found)
            fed = [
                n for i, n in zip(self.step.live, self.step.carries, strict=True) if marks[self.step.nexts[i]]
            ]
            changed = any(not found[n] for n in fed)
            found |= {n: True for n in fed}
        return found

    def trace(self) -> Fused:
        tensor_at = [i for i, x in enumerate(self.inputs) if isinstance(x, torch.Tensor)]
        tensors = [self.inputs[i].detach() for i in tensor_at]

        def run(*given: torch.Tensor) -> Any:
            values = list(self.inputs)
            for i, x in zip(tensor_at, given, strict=True):
                values[i] = x
            return self.call(values)

        with torch.no_grad(), fake_mode(tensors):
            traced = make_fx(run, _allow_non_fake_inputs=True)(*tensors)
        traced.graph.eliminate_dead_code()
        return Fused(self._with_all_inputs(traced, tensor_at), self.plans, self.choice)

    def _with_all_inputs(self, traced: fx.GraphModule, tensor_at: list[int]) -> fx.GraphModule:
        """The traced graph with a placeholder for numbers too, so that inputs line up."""
        graph = fx.Graph()
        holders = [graph.placeholder(f"in_{i}") for i in range(len(self.inputs))]
        env: dict[fx.Node, fx.Node] = {}
        tensors = iter(tensor_at)
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                env[node] = holders[next(tensors)]
            elif node.op == "output":
                graph.output(fx.map_arg(node.args[0], lambda n: env[n]))
            else:
                env[node] = graph.node_copy(node, lambda n: env[n])
                value = node.meta.get("val")
                env[node].meta = {"example_value": value, "val": value}
        return fx.GraphModule(traced, graph)

    # -- what is traced -------------------------------------------------------------

    def call(self, values: Sequence[Any]) -> list[torch.Tensor]:
        a, b, _ = self.counts
        inits, streams, invariants = values[:a], values[a : a + b], values[a + b :]
        steps = streams[0].shape[0] if streams else self.loop.steps
        env = {h: v for h, v in zip(self.step.invariants, invariants, strict=True) if h is not None}
        env = self.runner.run(self.parts.static, env)
        stacked = self._before(env, dict(zip(self.step.streams, streams, strict=True)))
        finals: dict[int, torch.Tensor] = {}
        if self.core is not None:
            finals, exports = self._kernel(env, stacked, inits, steps)
            stacked |= exports
            stacked |= self._after(env, stacked)
        last = [self._final(i, finals, env, stacked, steps) for i in range(len(self.loop.carries))]
        ys = [self._stack(y, env, stacked, steps) for y in self.step.ys]
        return [
            self._cut(n, v) for n, v in zip((*self.step.nexts, *self.step.ys), (*last, *ys), strict=True)
        ]

    def _cut(self, node: fx.Node, value: torch.Tensor) -> torch.Tensor:
        """A result no gradient leads through, beside some that have one: the kernel's outputs are alike."""
        smooth = value.is_floating_point() or value.is_complex()
        return value.detach() if smooth and self.grads and not self.grads.get(node, False) else value

    def _before(
        self, static: dict[fx.Node, Any], streams: dict[fx.Node, torch.Tensor]
    ) -> dict[fx.Node, torch.Tensor]:
        """State-free values at every step that something later needs."""
        graph, dependent = self.step.graph, self.parts.dependent
        roots = {
            *self.parts.inputs,
            *self._results(),
            *(a for n in self._after_nodes() for a in n.all_input_nodes),
        }
        roots = {n for n in roots if n not in dependent and n not in static and n not in streams}
        roots = {n for n in roots if isinstance(n.meta.get("val"), torch.Tensor)}
        if not roots:
            return dict(streams)
        order = [n for n in graph.nodes if n in roots]
        needed = ancestors(order, graph) - set(static)

        def one(*slices: torch.Tensor) -> tuple[torch.Tensor, ...]:
            env = self.runner.run(needed, {**static, **dict(zip(streams, slices, strict=True))})
            return tuple(env[n] for n in order)

        results = _batched(one, streams.values())
        return {**streams, **dict(zip(order, results, strict=True))}

    def _after_nodes(self) -> list[fx.Node]:
        """State-dependent nodes that are neither in the kernel nor carries."""
        known = {*self.parts.exports, *self.step.carries}
        reach = [n for n in self._results() if n in self.parts.dependent and n not in known]
        seen: set[fx.Node] = set()
        while reach:
            node = reach.pop()
            if node not in seen:
                seen.add(node)
                reach += [
                    a
                    for a in node.all_input_nodes
                    if a in self.parts.dependent and a not in self.parts.exports
                ]
        return [n for n in self.step.graph.nodes if n in seen]

    def _results(self) -> list[fx.Node]:
        live = set(self.step.live)
        return [*self.step.ys, *(n for i, n in enumerate(self.step.nexts) if i not in live)]

    def _after(
        self, static: dict[fx.Node, Any], stacked: dict[fx.Node, torch.Tensor]
    ) -> dict[fx.Node, torch.Tensor]:
        nodes = self._after_nodes()
        if not nodes:
            return {}
        inputs = [n for n in stacked if any(n in m.all_input_nodes for m in nodes)]
        order = [n for n in nodes if n in set(self._results())]

        def one(*slices: torch.Tensor) -> tuple[torch.Tensor, ...]:
            env = self.runner.run(nodes, {**static, **dict(zip(inputs, slices, strict=True))})
            return tuple(env[n] for n in order)

        results = _batched(one, (stacked[n] for n in inputs))
        return dict(zip(order, results, strict=True))

    def _kernel(
        self,
        static: dict[fx.Node, Any],
        stacked: dict[fx.Node, torch.Tensor],
        inits: Sequence[torch.Tensor],
        steps: Any,
    ) -> tuple[dict[int, torch.Tensor], dict[fx.Node, torch.Tensor]]:
        assert self.core is not None
        core, live = self.core, list(self.step.live)
        stream_nodes = list(dict.fromkeys(p.source for p in core.streams))
        constant_nodes = list(dict.fromkeys(p.source for p in core.invariants))
        export_nodes = list(self.parts.exports)
        streams = [_loadable(stacked[n]) for n in stream_nodes]
        invariants = [_loadable(static[n]) for n in constant_nodes]
        exports = [n.meta["val"] for n in export_nodes]
        wanted = Wanted(
            tuple(self.grads.get(n, False) for n in self.step.carries),
            tuple(self.grads.get(n, False) for n in stream_nodes),
            tuple(self.grads.get(n, False) for n in constant_nodes),
        )
        placed = Step(
            core.program,
            _positioned(core.carries, live),
            _positioned(core.streams, stream_nodes),
            _positioned(core.invariants, constant_nodes),
            _positioned(core.outs, export_nodes),
        )
        examples = Examples(inits, streams, invariants, exports, _wide(self.parts))
        if self.tiles is not None:
            last, outs = self._tiled(placed, examples, wanted, steps)
            return dict(zip(live, last, strict=True)), dict(zip(export_nodes, outs, strict=True))
        whole = isinstance(steps, int) and self.chunk is None and whole_pieces(placed, exports, inits)
        self.choice = self.chooser(steps if whole else 0, wanted.any)
        if self.choice.chunks is not None:
            run = Chunked(placed, self.choice.chunks, examples, wanted, self.loop.reverse)
            last, outs = run.run(steps)
            self.plans = dict(run.plans)
        else:
            last, outs = self._sequential(placed, examples, wanted, steps)
        return dict(zip(live, last, strict=True)), dict(zip(export_nodes, outs, strict=True))

    def _sequential(
        self, placed: Step, given: Examples, wanted: Wanted, steps: Any
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """One kernel over all steps."""
        places = (placed.carries, placed.streams, placed.invariants, placed.outs)
        made = plan(placed.program, places, given, wanted, self.loop.reverse, self.chunk)
        return self._launched(made, given, wanted, steps)

    def _tiled(
        self, placed: Step, given: Examples, wanted: Wanted, steps: Any
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Kernels on tiles: the first candidate that has them and passes its trial."""
        assert self.tiles is not None
        places = (placed.carries, placed.streams, placed.invariants, placed.outs)
        base = plan(placed.program, places, given, wanted, self.loop.reverse)
        last: Refused | None = None
        for choice, stepped, dots in self.tiles(steps, wanted.any):
            try:
                made = tile_plan(base, stepped, dots)
                if self.trial is not None:
                    self.trial(made, given)
            except Refused as refused:
                last = refused
                continue
            self.choice = choice
            return self._launched(made, given, wanted, steps)
        assert last is not None
        raise last

    def _launched(
        self, made: LoopPlan | TilePlan, given: Examples, wanted: Wanted, steps: Any
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        key = register(made)
        self.plans = {key: made}
        found = torch.ops.tenfuse.loop(
            list(given.carries), list(given.streams), list(given.invariants), steps, key, wanted.any
        )
        n, m = len(given.carries), len(given.exports)
        return list(found[:n]), list(found[n : n + m])

    def _stack(
        self, node: fx.Node, static: dict[fx.Node, Any], stacked: dict[fx.Node, torch.Tensor], steps: Any
    ) -> torch.Tensor:
        if node in stacked:
            return stacked[node]
        return static[node].expand([steps, *static[node].shape])  # type: ignore[no-any-return]

    def _final(
        self,
        i: int,
        finals: dict[int, torch.Tensor],
        static: dict[fx.Node, Any],
        stacked: dict[fx.Node, torch.Tensor],
        steps: Any,
    ) -> torch.Tensor:
        if i in finals:
            return finals[i]
        node = self.step.nexts[i]
        if node in static:
            return static[node]  # type: ignore[no-any-return]
        return operator.getitem(stacked[node], 0 if self.loop.reverse else steps - 1)


def _wants(source: Any) -> bool:
    if isinstance(source, fx.Node):
        value = _value(source)
        return isinstance(value, torch.Tensor) and value.requires_grad
    return isinstance(source, tuple) and any(_wants(s) for s in source if isinstance(s, fx.Node))


def _wide(parts: Fission) -> bool:
    """Whether the kernel's part has values in double precision; a lone number makes none."""
    values = [n.meta.get("val") for n in parts.inside]
    values += [
        v for v in (n.meta.get("val") for n in parts.inputs) if isinstance(v, torch.Tensor) and v.dim()
    ]
    return any(isinstance(v, torch.Tensor) and v.dtype in (torch.float64, torch.complex128) for v in values)


def _loadable(tensor: torch.Tensor) -> torch.Tensor:
    """Integers become floats before the kernel, as adding them to floats would do."""
    kind = tensor.dtype
    if kind.is_floating_point or kind.is_complex or kind is torch.bool:
        return tensor
    return tensor.to(torch.float64 if kind is torch.int64 else torch.float32)


def _positioned(places: tuple[Placed, ...], sources: list[Any]) -> tuple[Placed, ...]:
    return tuple(dataclasses.replace(p, source=sources.index(p.source)) for p in places)
