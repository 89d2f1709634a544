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
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx
from torch.fx.experimental.proxy_tensor import make_fx

from tenfuse.capture.loop import Loop
from tenfuse.plan.choose import Choice
from tenfuse.plan.loop import LoopPlan, Wanted
from tenfuse.plan.tensors import Examples
from tenfuse.plan.tiles.plan import TilePlan
from tenfuse.rewrite.evaluate import Runner, batched, example, stacked_example
from tenfuse.rewrite.launch import Planning, launched
from tenfuse.rewrite.single import single_products
from tenfuse.rewrite.wants import requires_grad
from tenfuse.step.fission import Fission, ancestors
from tenfuse.step.normalize import Aten, fake_mode
from tenfuse.step.reader import Placed, Step
from tenfuse.step.whole import whole_inputs


@dataclasses.dataclass(frozen=True)
class Fused:
    """``module`` replaces the loop; ``plans``, by key, are those of the kernels it launches.

    A loop without a carry has no kernels and no ``choice``.
    """

    module: fx.GraphModule
    plans: dict[str, LoopPlan | TilePlan]
    choice: Choice | None


def assemble(
    loop: Loop, step: Aten, parts: Fission, core: Step | None, grads: bool, planning: Planning
) -> Fused:
    """The graph that replaces ``loop``; ``grads`` says whether gradients may flow at all."""
    return _Assembly(loop, step, parts, core, grads, planning).trace()


class _Assembly:
    def __init__(
        self, loop: Loop, step: Aten, parts: Fission, core: Step | None, grads: bool, planning: Planning
    ) -> None:
        self.loop, self.step, self.parts, self.core, self.planning = loop, step, parts, core, planning
        self.runner = Runner(step.graph)
        self.plans: dict[str, LoopPlan | TilePlan] = {}
        self.choice: Choice | None = None
        holders = [n for n in loop.body.graph.nodes if n.op == "placeholder"]
        self.bodies = [example(h) for h in holders]
        n, m = len(loop.carries), len(loop.streams)
        inits = [example(c.init) for c in loop.carries if c.init is not None]
        streams = [stacked_example(s, v) for s, v in zip(loop.streams, self.bodies[n : n + m], strict=True)]
        invariants = [example(i) for i in loop.invariants]
        self.inputs = [*inits, *streams, *invariants]
        self.counts = (len(inits), m, len(invariants))
        self.grads = requires_grad(loop, step) if grads else {}

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
            single_products(traced.graph)
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
        given = dict(zip(self.step.streams, streams, strict=True))
        stacked = self._before(env, given)
        finals: dict[int, torch.Tensor] = {}
        if self.core is not None:
            finals, exports = self._kernel(env, stacked, inits, steps)
            stacked |= exports
            stacked |= self._after(env, stacked)
        env = env | self._once(env, given, finals, steps)
        last = [self._final(i, finals, env, stacked, steps) for i in range(len(self.loop.carries))]
        ys = [self._stack(y, env, stacked, steps) for y in self.step.ys]
        return [self._cut(n, v) for n, v in zip((*self.step.nexts, *self.step.ys), (*last, *ys), strict=True)]

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

        results = batched(one, streams.values())
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
        nexts = (n for i, n in enumerate(self.step.nexts) if i not in live and n not in self.parts.once)
        return [*self.step.ys, *nexts]

    def _once(
        self,
        static: dict[fx.Node, Any],
        streams: dict[fx.Node, torch.Tensor],
        finals: dict[int, torch.Tensor],
        steps: Any,
    ) -> dict[fx.Node, torch.Tensor]:
        """What the last step alone is asked for."""
        if not self.parts.once:
            return {}
        known = {n: operator.getitem(s, self._last(steps)) for n, s in streams.items()}
        known |= {self.step.nexts[i]: x for i, x in finals.items()}
        found = self.runner.run(self.parts.once, {**static, **known})
        return {n: found[n] for n in self.step.nexts if n in self.parts.once}

    def _last(self, steps: Any) -> Any:
        """The position of the last step in time."""
        return 0 if self.loop.reverse else steps - 1

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

        results = batched(one, (stacked[n] for n in inputs))
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
        whole = whole_inputs(core.program)
        entire = {p.source for i, p in enumerate(core.streams) if ("stream", i) in whole}
        entire |= {p.source for i, p in enumerate(core.invariants) if ("invariant", i) in whole}
        streams = [stacked[n] if n in entire else _loadable(stacked[n]) for n in stream_nodes]
        invariants = [static[n] if n in entire else _loadable(static[n]) for n in constant_nodes]
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
        given = Examples(inits, streams, invariants, exports, _wide(self.parts))
        made = launched(placed, given, wanted, steps, self.loop.reverse, self.planning)
        self.plans, self.choice = made.plans, made.choice
        return dict(zip(live, made.finals, strict=True)), dict(zip(export_nodes, made.exports, strict=True))

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
        return operator.getitem(stacked[node], self._last(steps))


def _wide(parts: Fission) -> bool:
    """Whether the kernel's part has values in double precision; a lone number makes none."""
    values = [n.meta.get("val") for n in parts.inside]
    values += [
        v for v in (n.meta.get("val") for n in parts.inputs) if isinstance(v, torch.Tensor) and v.dim()
    ]
    return any(isinstance(v, torch.Tensor) and v.dtype in (torch.float64, torch.complex128) for v in values)


def _loadable(tensor: torch.Tensor) -> torch.Tensor:
    """Integers that meet numbers only become floats before the kernel, as adding them to floats would do."""
    kind = tensor.dtype
    if kind.is_floating_point or kind.is_complex or kind is torch.bool:
        return tensor
    return tensor.to(torch.float64 if kind is torch.int64 else torch.float32)


def _positioned(places: tuple[Placed, ...], sources: list[Any]) -> tuple[Placed, ...]:
    return tuple(dataclasses.replace(p, source=sources.index(p.source)) for p in places)


__all__ = ["Fused", "assemble"]
