"""The ``scan`` and ``associative_scan`` operators of torch, as loops.

Takes the SSA copy of a graph; leaves a ``Loop`` for every such node, or ``Kept``.  The
operator brings its body along, so nothing is searched for, time may be dynamic and
there is nothing to unroll again.  Dimension and direction have been settled by torch's
own wrappers: the operators run over the first dimension, forwards.

``associative_scan(f, x)`` is the recurrence ``y[0] = x[0]``, ``y[t] = f(y[t-1], x[t])``: the carry
is y, the stream is x without its first entry.  Results that nothing reads are left out,
and with them the carries that only they need.
"""

from __future__ import annotations

import dataclasses
import operator
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.fx as fx

from tenfuse import reasons
from tenfuse.capture import door
from tenfuse.capture.functional import functionalize
from tenfuse.capture.loop import Carry, Final, Loop, Span, Stacked, Stream, ViewOp, Whole
from tenfuse.capture.record import plant, record
from tenfuse.capture.source import frames_of
from tenfuse.capture.views import is_tensor, pure, storage_of, value_of
from tenfuse.capture.writes import targets_written
from tenfuse.reasons import Refused, refuse

SCAN = torch.ops.higher_order.scan
ASSOCIATIVE = torch.ops.higher_order.associative_scan
_TORCH = os.path.dirname(torch.__file__)
_REST = ViewOp(operator.getitem, (slice(1, None),))


@dataclasses.dataclass(frozen=True)
class _Call:
    """One scan node, taken apart."""

    node: fx.Node
    associative: bool
    body: fx.Graph
    inits: tuple[fx.Node, ...]
    xs: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    results: dict[int, list[fx.Node]]
    """Result number -> the nodes that pick it and are read."""

    @property
    def length(self) -> Any:
        return value_of(self.xs[0]).shape[0]


def scan_nodes(gm: fx.GraphModule) -> tuple[fx.Node, ...]:
    """The scans of the graph, in its order; notes in ``Record.dead`` what nothing reads."""
    found = tuple(n for n in gm.graph.nodes if n.target in (SCAN, ASSOCIATIVE))
    if found:
        _note_dead(gm)
    return found


def span_of_scan(node: fx.Node) -> Span:
    """The user's line that calls the scan."""
    own = [f for f in frames_of(node) if not f[0].startswith(_TORCH) and f[0] != door.__file__]
    return Span(own[-1][0], own[-1][1], (own[-1][1],)) if own else Span("", 0)


def _place(node: fx.Node) -> str:
    return str(span_of_scan(node)) if frames_of(node) else ""


def scan_loop(gm: fx.GraphModule, node: fx.Node) -> Loop | Refused:
    """The loop that a scan stands for, or why it stays."""
    try:
        call = _taken_apart(gm, node)
        _check(gm, call)
        return _loop(gm, call)
    except Refused as refused:
        return refused


def _note_dead(gm: fx.GraphModule) -> None:
    rec = record(gm)
    live: set[fx.Node] = set()
    for node in reversed(list(gm.graph.nodes)):
        calls = pure(node) or node.target in (SCAN, ASSOCIATIVE, operator.getitem)
        effect = node.op == "output" or rec.origin.get(node) in rec.writers or not calls
        if effect or any(u in live for u in node.users):
            live.add(node)
    wanted = {rec.origin[n] for n in live if n in rec.origin}
    rec.dead |= {rec.origin[n] for n in gm.graph.nodes if n not in live and n in rec.origin} - wanted


def _nodes(args: Any, node: fx.Node) -> tuple[fx.Node, ...]:
    found = tuple(args)
    if not all(isinstance(a, fx.Node) for a in found):
        raise refuse(reasons.UNSUPPORTED_OP, "an input of the scan is not a value of the graph", _place(node))
    return found


def _taken_apart(gm: fx.GraphModule, node: fx.Node) -> _Call:
    associative = node.target is ASSOCIATIVE
    target, *groups = node.args
    named = isinstance(target, fx.Node) and target.op == "get_attr"
    body = getattr(gm, str(target.target), None) if named else None  # type: ignore[union-attr]
    if not isinstance(body, fx.GraphModule) or node.kwargs:
        raise refuse(reasons.UNSUPPORTED_OP, "the body of the scan is not a graph", _place(node))
    inits, xs, inputs = ((), *groups) if associative else groups
    results: dict[int, list[fx.Node]] = {}
    for user in node.users:
        if user.target is not operator.getitem or not isinstance(user.args[1], int):
            raise refuse(
                reasons.UNSUPPORTED_OP, "the results of the scan are not read one by one", _place(node)
            )
        if record(gm).origin[user] not in record(gm).dead:
            results.setdefault(user.args[1], []).append(user)
    inits, xs, inputs = (_nodes(group, node) for group in (inits, xs, inputs))
    return _Call(node, associative, _pure_body(body, node), inits, xs, inputs, results)


def _pure_body(body: fx.GraphModule, node: fx.Node) -> fx.Graph:
    """The body in SSA form; refuses one that changes what it was given."""
    ssa = functionalize(body)
    rec = record(ssa)
    if rec.opaque or any(root.op in ("placeholder", "get_attr") for root in rec.versions):
        raise refuse(
            reasons.SIDE_EFFECT, "the function given to the scan changes a tensor in place", _place(node)
        )
    return ssa.graph


def _check(gm: fx.GraphModule, call: _Call) -> None:
    """Refuse what the loop could not stand for."""
    place = _place(call.node)
    if not call.results or not call.xs:
        raise refuse(reasons.TOO_SHORT, "nothing reads the scan", place)
    if not all(bool(value_of(x).shape[0] == call.length) for x in call.xs):
        raise refuse(reasons.UNSUPPORTED_OP, "the inputs of the scan differ in length", place)
    if isinstance(call.length, int) and call.length <= int(call.associative):
        raise refuse(reasons.TOO_SHORT, "", place)
    rec = record(gm)
    ours = {rec.origin[n] for n in (call.node, *call.node.users)}
    places = [rec.order[n] for n in ours]
    between = [
        n for n in rec.graph.nodes if min(places) <= rec.order.get(n, -1) <= max(places) and n not in ours
    ]
    stores = {storage_of(v) for n in call.node.users if isinstance(v := value_of(n), torch.Tensor)}
    rewritten = (t for n in rec.writers for t in targets_written(n))
    if any(n in rec.writers or value_of(n) is None for n in between):
        raise refuse(reasons.ALIASED_WRITE, "", place)
    if any(storage_of(value_of(t)) in stores for t in rewritten):
        raise refuse(reasons.ALIASED_WRITE, "a result of the scan is written in place afterwards", place)


# the loop ------------------------------------------------------------------------------------


def _loop(gm: fx.GraphModule, call: _Call) -> Loop:
    body = call.body
    holders = [n for n in body.nodes if n.op == "placeholder"]
    outs = _outputs(body, call.node)
    states = len(call.xs) if call.associative else len(call.inits)
    if len(holders) != states + len(call.xs) + len(call.inputs) or len(outs) < states:
        raise refuse(
            reasons.UNSUPPORTED_OP, "the body of the scan does not fit its inputs", _place(call.node)
        )
    ahead = 0 if call.associative else states
    ys = sorted(i - ahead for i in call.results if i >= ahead)
    y_nodes = [outs[ahead + y] for y in ys]
    finals = [i for i in call.results if i < ahead]
    needed, carried = _needed(body, holders[:states], outs, y_nodes, finals)
    streams = [i for i in range(len(call.xs)) if holders[states + i] in needed]
    kept = [i for i in range(len(call.inputs)) if holders[states + len(call.xs) + i] in needed]
    order = [*carried, *(states + i for i in streams), *(states + len(call.xs) + i for i in kept)]
    if not streams:
        raise refuse(reasons.FIXED_POINT, "", _place(call.node))
    module = _body(body, needed, [holders[i] for i in order], [outs[i] for i in carried], y_nodes)
    inits = _first(gm, call, carried) if call.associative else {i: call.inits[i] for i in carried}
    uses: dict[fx.Node, Final | Stacked | Whole]
    uses = {n: _use(call, i, carried, ys, states) for i, picks in call.results.items() for n in picks}
    return Loop(
        body=module,
        carries=tuple(Carry(f"carry{i}", inits[i]) for i in carried),
        streams=tuple(Stream(f"x{i}", call.xs[i], (_REST,) if call.associative else ()) for i in streams),
        invariants=tuple(call.inputs[i] for i in kept),
        steps=call.length - int(call.associative),
        reverse=False,
        span=span_of_scan(call.node),
        nodes=(call.node, *call.node.users),
        uses=uses,
        proof=f"the body is the function given to {call.node.target.name()}: nothing was rolled",  # type: ignore[union-attr]
    )


def _first(gm: fx.GraphModule, call: _Call, carried: list[int]) -> dict[int, fx.Node]:
    """What an associative scan starts with: the first entries."""
    return {
        i: plant(gm, call.node, torch.select, (call.xs[i], 0, 0), value_of(call.xs[i])[0]) for i in carried
    }


def _use(call: _Call, i: int, carried: list[int], ys: list[int], states: int) -> Final | Whole:
    if call.associative:
        return Whole(ys.index(i), call.xs[i])
    return Final(carried.index(i)) if i < states else Whole(ys.index(i - states))


def _outputs(body: fx.Graph, node: fx.Node) -> list[fx.Node]:
    output = next(n for n in body.nodes if n.op == "output")
    found = list(output.args[0])  # type: ignore[arg-type]
    if not all(isinstance(n, fx.Node) and is_tensor(n) for n in found):
        raise refuse(
            reasons.UNSUPPORTED_OP, "the function given to the scan returns more than tensors", _place(node)
        )
    return found  # type: ignore[return-value]


def _needed(
    body: fx.Graph, states: list[fx.Node], outs: list[fx.Node], ys: Iterable[fx.Node], finals: Iterable[int]
) -> tuple[set[fx.Node], list[int]]:
    """The nodes of the body that the results depend on, through all steps; the carries among them.

    The carry of an associative scan is also what its result is made of.
    """
    effects = (n for n in body.nodes if value_of(n) is None and n.op != "output")
    stack = [*ys, *(outs[i] for i in finals), *effects]
    carried = {*finals, *(i for i, n in enumerate(outs[: len(states)]) if n in stack)}
    stack += [outs[i] for i in carried]
    needed: set[fx.Node] = set()
    while stack:
        node = stack.pop()
        if node in needed:
            continue
        needed.add(node)
        stack += node.all_input_nodes
        if node in states:
            carried.add(states.index(node))
            stack.append(outs[states.index(node)])
    return needed, sorted(carried)


def _body(
    body: fx.Graph, needed: set[fx.Node], holders: list[fx.Node], nexts: list[fx.Node], ys: list[fx.Node]
) -> fx.GraphModule:
    graph = fx.Graph()
    env = {h: graph.node_copy(h) for h in holders}
    for node in body.nodes:
        if node in needed and node not in env and node.op not in ("placeholder", "output"):
            env[node] = graph.node_copy(node, lambda n: env[n])
    graph.output((tuple(env[n] for n in nexts), tuple(env[n] for n in ys)))
    owner: Any = body.owning_module
    return fx.GraphModule(owner, graph)


__all__ = ["ASSOCIATIVE", "SCAN", "scan_loop", "scan_nodes", "span_of_scan"]
