"""Give the last step back what nothing reads.

Dynamo removes dead code, so when the final state is not used the last step lacks the
nodes that would have computed it.  Takes a ``Sequence`` and its stretches; adds those nodes
to the SSA copy as dead code, which changes nothing, so that the last step has the shape of
the others.  Only pure functions are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.fx as fx

from tenfuse.capture.body import rebuild
from tenfuse.capture.families import apply
from tenfuse.capture.periods import Sequence, Stretch
from tenfuse.capture.record import written
from tenfuse.capture.source import loops_around
from tenfuse.capture.views import call, is_tensor, pure, storage_of, value_of


class _Tail:
    """The last, shortened run of one stretch."""

    def __init__(self, seq: Sequence, stretch: Stretch) -> None:
        self.seq, self.stretch = seq, stretch
        self.period, self.stop = stretch.period, stretch.stop
        self.virtual: list[fx.Node | int] = []
        """Per position of the run: the node there, or the template of one to add."""

    def align(self, boundary: int) -> bool:
        """Match what stands after the stretch with the run before; False if nothing is missing."""
        nodes, at = self.seq.nodes, self.stop
        for place in range(self.stop, boundary):
            template = nodes[place - self.period]
            if at < len(nodes) and self._alike(nodes[at], template):
                self.virtual.append(nodes[at])
                at += 1
            elif (pure(template) or _piece(template)) and template.target is not written:
                self.virtual.append(place - self.period)
            else:
                return False
        return any(isinstance(v, int) for v in self.virtual)

    def _alike(self, node: fx.Node, template: fx.Node) -> bool:
        position = self.seq.position
        same = self.seq.classes[position[node]] == self.seq.classes[position[template]]
        return bool(same) and _together(node, template)

    def possible(self) -> bool:
        """Whether the operands of every missing node can be named."""
        known = [v if isinstance(v, fx.Node) else self.seq.nodes[v] for v in self.virtual]
        entries, self.virtual = self.virtual, list(known)
        found = all(
            self._moved(t, i) is not None
            for t in entries if isinstance(t, int) for i in range(len(self.seq.shapes[t].nodes))
        )  # fmt: skip
        self.virtual = entries
        return found

    def add(self, graph: fx.Graph) -> list[tuple[fx.Node, fx.Node]]:
        """Create the missing nodes; (node, node it stands behind), in order."""
        made: list[tuple[fx.Node, fx.Node]] = []
        last = self.seq.nodes[self.stop - 1]
        for k, entry in enumerate(self.virtual):
            if isinstance(entry, int):
                try:
                    new = self._copy(graph, entry, max([last, *self._operands(entry)]))
                except (IndexError, RuntimeError):  # there is no such slice: the step does not exist
                    for node, _ in reversed(made):
                        graph.erase_node(node)
                    return []
                made.append((new, last))
                self.virtual[k] = entry = new
            last = entry
        return made

    def _operands(self, template: int) -> list[fx.Node]:
        moved = [self._moved(template, i) for i in range(len(self.seq.shapes[template].nodes))]
        return [m for m in moved if m is not None]

    def _moved(self, template: int, slot: int) -> fx.Node | None:
        """The operand one run later."""
        seq, period = self.seq, self.period
        operand = seq.shapes[template].nodes[slot]
        position = seq.position[operand]
        if position >= self.stop:
            return None
        if position + period >= self.stop and position >= self.stretch.start:
            k = position + period - self.stop
            found = self.virtual[k] if k < len(self.virtual) else None
            return found if isinstance(found, fx.Node) else None
        if position >= self.stretch.start:
            return seq.nodes[position + period]
        before = seq.position[seq.shapes[template - period].nodes[slot]]
        later = 2 * position - before
        if later == position:
            return operand
        if 0 <= later < self.stop and position >= 0 and seq.classes[later] == seq.classes[position]:
            return seq.nodes[later]
        return None

    def _copy(self, graph: fx.Graph, template: int, behind: fx.Node) -> fx.Node:
        node, shape = self.seq.nodes[template], self.seq.shapes[template]
        operands = [self._moved(template, i) for i in range(len(shape.nodes))]
        before = self.seq.shapes[template - self.period].numbers
        numbers: list[Any] = [
            2 * a - b if isinstance(a, int) else a for a, b in zip(shape.numbers, before, strict=True)
        ]
        filled = (iter(operands), iter(numbers))
        with graph.inserting_after(behind):
            new = graph.create_node(
                node.op, node.target, rebuild(node.args, *filled), rebuild(dict(node.kwargs), *filled)
            )
        new.meta = dict(node.meta)
        op = call(new) if is_tensor(new.args[0] if new.args else None) else None
        if op is not None and storage_of(value_of(node)) == storage_of(value_of(node.args[0])):
            try:
                new.meta["example_value"] = apply(value_of(new.args[0]), (op,))
            except (IndexError, RuntimeError):
                graph.erase_node(new)
                raise
        return new


def _piece(node: fx.Node) -> bool:
    """An operation with several results, or one of them, of a function without side effects."""
    value = value_of(node)
    return isinstance(value, (tuple, list)) and node.op in ("call_function", "call_method")


def _together(a: fx.Node, b: fx.Node) -> bool:
    """Whether two nodes come from one line, or at least from one loop statement."""
    return a.meta.get("stack_trace") == b.meta.get("stack_trace") or bool(loops_around([a, b]))


def _trimmed(seq: Sequence, stretch: Stretch) -> Stretch:
    """The stretch without what only looks alike behind it and comes from other lines."""
    stop, period = stretch.stop, stretch.period
    while stop > stretch.start + 2 * period and not _together(
        seq.nodes[stop - 1], seq.nodes[stop - 1 - period]
    ):
        stop -= 1
    return Stretch(stretch.period, stretch.start, stop)


def complete(
    graph: fx.Graph, seq: Sequence, found: list[Stretch], phase_of: Callable[[Stretch], int | None]
) -> Sequence | None:
    """A sequence with completed last steps, or None when none was short."""
    extra: dict[fx.Node, list[fx.Node]] = {}
    covered: list[Stretch] = []
    for stretch in sorted(found, key=lambda s: s.start - s.stop):
        if stretch.period < 2 or any(c.start < stretch.stop and stretch.start < c.stop for c in covered):
            continue
        covered.append(stretch)
        stretch = _trimmed(seq, stretch)
        phase = phase_of(stretch) if stretch.runs > 2 else None
        if phase is None or (stretch.stop - phase) % stretch.period == 0:
            continue
        boundary = stretch.stop + (phase - stretch.stop) % stretch.period
        tail = _Tail(seq, stretch)
        if tail.align(boundary) and tail.possible():
            for node, behind in tail.add(graph):
                extra.setdefault(behind, []).append(node)
    if not extra:
        return None
    order: list[fx.Node] = []
    for node in seq.nodes:
        stack = [node]
        while stack:
            current = stack.pop()
            order.append(current)
            stack += extra.get(current, [])
    return Sequence(graph, order)
