"""The steps that one step stands for, written into the tracer's graph and variables.

Takes a step that was tried; leaves the tracer as it would be if it had traced all steps of the loop but
the last, and nothing of the step that was tried.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Set
from typing import Any

import torch.fx as fx
from torch._dynamo.utils import _disable_saved_tensors_hooks_during_tracing as unhooked
from torch._dynamo.utils import counters, get_fake_value
from torch._dynamo.variables import ConstantVariable, TensorVariable
from torch._dynamo.variables.dicts import ConstDictVariable
from torch._dynamo.variables.lists import ListVariable, TupleVariable
from torch._dynamo.variables.tensor import SymNodeVariable

from tenfuse.capture.ahead.copies import Copier, NotUniform, step
from tenfuse.capture.ahead.taken import number_of_step
from tenfuse.capture.ahead.tracer import noted_by
from tenfuse.capture.ahead.trial import Tried
from tenfuse.capture.ahead.watched import is_stand_in, nodes_of


@unhooked()
def replay(tx: Any, tried: Tried) -> None:
    """Write the steps; the last is left to the iterator on top of the stack of ``tx``."""
    tracer, numbers = tx.output.current_tracer, [n for n in tried.taken if n.target is number_of_step]
    appended = {id(held): held.after[len(held.before) :] for held in tried.lists}
    written = [v for held in tried.lists for _, v in held.written]
    listed = {node for new in (*appended.values(), written) for v in new for node in nodes_of(v)}
    handed = {node for v in tried.carried.values() for node in nodes_of(v)}
    copier = Copier(
        step(tried.nodes, numbers), tracer.graph,
        lambda node: get_fake_value(node, tx, allow_non_graph_fake=False),
    )  # fmt: skip
    for held in tried.lists:
        held.variable.items = held.original
    noted = noted_by(tracer)
    noted -= set(tried.noted)
    own = {id(variable) for variable in tried.made}
    entering = dict(tried.original)
    for at in range(tried.steps):
        entering |= {node: values[at] for node, values in tried.taken.items()}
        nodes = {node: v if isinstance(v, int) else v.as_proxy().node for node, v in entering.items()}
        made = copier.copy(nodes, listed | handed if at == tried.steps - 1 else listed)
        copied = _Copied(tracer, made, entering, own)
        for held in tried.lists:
            held.variable.items.extend(copied.of(v) for v in appended[id(held)])
            for places, v in held.written:
                held.variable.items[places[at]] = copied.of(v)
        noted.update(v for v in map(copied.of, tried.noted) if type(v) is not ConstantVariable)
        entering = entering | {s: copied.of(v) for s, v in tried.carried.items()} | _from_the_end(tried)
    _leave(tried, copied)
    tried.source.skip(tried.steps - 1)
    for node in [*reversed(tried.nodes), *tried.taken, *tried.original]:
        tracer.graph.erase_node(node)
    counters["tenfuse"]["forwarded"] += tried.steps


def _from_the_end(tried: Tried) -> dict[fx.Node, Any]:
    """Stand-ins for entries of growing lists: steps read them counted from the end."""
    return {
        entry.as_proxy().node: held.variable.items[at - len(held.before)]
        for held in tried.lists if held.grown > 0
        for at, entry in enumerate(held.before) if is_stand_in(entry)
    }  # fmt: skip


def _leave(tried: Tried, copied: _Copied) -> None:
    """The variables as the last of the copies leaves them."""
    dead = []
    for name, variable in tried.places.read().items():
        if name not in tried.names:
            continue
        try:
            tried.places.write(name, copied.of(variable))
        except NotUniform:
            if name in tried.live:
                raise
            dead.append(name)
    tried.places.drop(dead)
    for table in tried.tables:
        table.variable.items.update({key: copied.of(v) for key, v in table.after.items()})
    for held in tried.lists:
        if held.grown == 0 and not held.written:
            held.variable.items[:] = [copied.of(v) for v in held.after]


@dataclasses.dataclass
class _Copied:
    """Variables of the step that was tried, as one of its copies has them."""

    tracer: Any
    made: dict[fx.Node, Any]
    entering: dict[fx.Node, Any]
    own: Set[int]
    """The variables that came into being with the step that was tried."""
    known: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)

    def of(self, variable: Any) -> Any:
        if id(variable) not in self.known:
            self.known[id(variable)] = variable, self._of(variable)
        return self.known[id(variable)][1]

    def _of(self, variable: Any) -> Any:
        held = any(node in self.made for node in nodes_of(variable))
        plain = type(variable) in (ConstantVariable, TensorVariable, SymNodeVariable)
        if not held and (plain or id(variable) not in self.own):
            return variable
        if type(variable) is TensorVariable:
            node = variable.as_proxy().node
            if node in self.entering:
                return self.entering[node]
            return variable.clone(proxy=self.tracer.proxy(self.made[node]))
        if type(variable) is SymNodeVariable:
            return ConstantVariable.create(self.made[variable.as_proxy().node])
        if type(variable) in (TupleVariable, ListVariable):
            return variable.clone(items=[self.of(entry) for entry in variable.items])
        if type(variable) is ConstDictVariable:
            return variable.clone(items={key: self.of(entry) for key, entry in variable.items.items()})
        raise NotUniform(f"a step makes a {type(variable).__name__}")
