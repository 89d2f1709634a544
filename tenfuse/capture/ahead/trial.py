"""One step of a loop, traced once for all that follow it.

The step is traced with *symbolic* numbers in place of those it takes from its iterator, and with stand-ins
for the tensors that it takes and that steps hand on.  It stands for every later step if

- nothing was decided by a number: the tracer left no guard on it, over the range of all its values;
- it took from its iterator once, and did not change the list that it runs over;
- it left the tracer as it found it, but for local variables, attributes and dictionaries, which hold the
  same kinds of tensor as before (whatever the tracer knows of a tensor is equal), and lists, of which
  fixed ones hold the same kinds of tensor and growing ones were only appended to and read from their end.

Then tracing the next step would take the same course, with other numbers, and other tensors for the
stand-ins: by induction, all of them.  ``NotUniform`` says that this was not so; nothing is left behind then
that could be used, and the tracer has to start again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch.fx as fx
from torch._dynamo.bytecode_analysis import livevars_analysis
from torch._dynamo.variables import ConstantVariable, TensorVariable
from torch._dynamo.variables.dicts import ConstDictVariable
from torch._dynamo.variables.lists import ListVariable, TupleVariable

from tenfuse.capture.ahead import lists
from tenfuse.capture.ahead.copies import EXAMPLE, NotUniform
from tenfuse.capture.ahead.iterators import Item, Listed, Source
from tenfuse.capture.ahead.places import Places
from tenfuse.capture.ahead.taken import Taken
from tenfuse.capture.ahead.tracer import (
    as_written,
    decided,
    geometry,
    known,
    noted_by,
    recorded,
    surroundings,
    tracing,
)
from tenfuse.capture.ahead.watched import Held, StandIns, Table


@dataclasses.dataclass(frozen=True)
class Tried:
    """A step that stands for those after it, and what the tracer holds at its end."""

    source: Source
    steps: int
    """From this to the last but one."""
    nodes: tuple[fx.Node, ...]
    taken: dict[fx.Node, tuple[Any, ...]]
    """What stands for a number or a tensor that steps take -> the numbers or variables that they take."""
    original: dict[fx.Node, Any]
    """Stand-in -> the variable it stands for."""
    carried: dict[fx.Node, Any]
    """Stand-in -> the variable that the step hands on in its place."""
    lists: tuple[Held, ...]
    tables: tuple[Table, ...]
    names: frozenset[str]
    """Local variables that a step sets, and of these those read after it."""
    live: frozenset[str]
    places: Places
    made: tuple[Any, ...]
    """All variables that came into being with the step."""
    noted: tuple[Any, ...]
    """Variables that the tracer of a nested graph has noted, to return them from there."""


class Trial:
    """The step that starts at ``inst``; ``item`` is what it and those after it take from ``source``."""

    def __init__(self, tx: Any, inst: Any, source: Source, item: Item) -> None:
        self.tx, self.source, self.item, self.tracer = tx, source, item, tx.output.current_tracer
        self.steps = source.left() - 1
        self.graph: fx.Graph = self.tracer.graph
        self.head, self.end = tx.instructions.index(inst), tx.instructions.index(inst.target)
        stores = (i.argval for i in tx.instructions[self.head : self.end] if "STORE_FAST" in i.opname)
        self.stored = {n for names in stores for n in (names if isinstance(names, tuple) else (names,))}
        self.live = livevars_analysis(tx.instructions, inst)
        self.places = Places(tx)
        self.stored |= self.places.elsewhere.keys()
        self.live |= self.places.elsewhere.keys()
        self.stand_ins = StandIns(self.tracer)
        self.carried: dict[fx.Node, Any] = {}
        self.taken = Taken(tx, self.stand_ins, self.steps)

    def run(self, advance: Callable[[], None]) -> Tried:
        """Trace the step; ``advance`` takes one from the iterator.  Raises ``NotUniform``."""
        targets = self._targets()
        before = self._stand_in()
        item = self.taken.variable(self.item)
        start = next(iter(reversed(self.graph.nodes)))
        shapes = {node: geometry(node.meta.get(EXAMPLE)) for node in self.graph.nodes}
        around = surroundings(self.tx, self.graph)
        noted = set(noted_by(self.tracer))
        with recorded() as (made, changed):
            self._trace(advance, item)
        for held in self.stand_ins.lists:
            held.release()
        for table in self.stand_ins.tables:
            table.release()
        if around != surroundings(self.tx, self.graph):
            raise NotUniform("a step leaves more than nodes behind it")
        if decided(self.tx.output.shape_env, self.taken.bounds):
            raise NotUniform("something was decided by the number of the step")
        nodes = [node for node in _after(self.graph, start) if node not in self.taken.values]
        shapes |= self.taken.geometry
        for node in nodes:
            node.target = as_written(node)
        for read in {source for node in nodes for source in node.all_input_nodes} & shapes.keys():
            if shapes[read] != geometry(read.meta.get(EXAMPLE)):
                raise NotUniform(f"a step changes the shape of {read}")
        self._compare(before, targets, {id(v) for v in made}, changed)
        return Tried(
            self.source, self.steps, tuple(nodes), self.taken.values, self.stand_ins.original, self.carried,
            tuple(self.stand_ins.lists), tuple(self.stand_ins.tables), frozenset(self.stored),
            frozenset(self.stored & self.live), self.places, tuple(made),
            tuple(v for v in noted_by(self.tracer) if v not in noted),
        )  # fmt: skip

    def _stand_in(self) -> dict[str, Any]:
        """The local variables, with stand-ins for what a step may replace."""
        for name, variable in self.places.read().items():
            replaced = name in self.stored & self.live
            if replaced or isinstance(variable, (ListVariable, TupleVariable, ConstDictVariable)):
                self.places.write(name, self.stand_ins.of(variable, replaced))
        for variable in self.tx.stack:
            if type(variable) is ListVariable:
                self.stand_ins.of(variable, False)
        return self.places.read()

    def _targets(self) -> set[str]:
        """The local variables that a step takes from the iterator."""
        found: set[str] = set()
        waiting = 1
        for inst in self.tx.instructions[self.head + 1 :]:
            if inst.opname == "UNPACK_SEQUENCE":
                waiting += inst.argval - 1
            elif inst.opname == "STORE_FAST" or inst.argval in self.places.elsewhere:
                waiting -= 1
                found.add(inst.argval)
            elif inst.opname == "STORE_FAST_STORE_FAST":
                waiting -= 2
                found.update(inst.argval)
            elif inst.opname == "STORE_FAST_LOAD_FAST":
                waiting -= 1
                found.add(inst.argval[0])
            else:
                break
            if waiting <= 0:
                return found
        raise NotUniform("what a step takes are no local variables")

    def _trace(self, advance: Callable[[], None], item: Any) -> None:
        """Interpret until the loop comes round, with ``item`` in place of the iterator's next."""
        tx, depth = self.tx, len(self.tx.stack)
        left = [part.left() for part in self.source.parts()]
        advance()
        tx.stack[-1] = item
        with tracing(tx):
            while tx.instruction_pointer != self.head or len(tx.stack) != depth:
                going = lists.done(tx, self.taken) or tx.step()
                if not going or not self.head <= tx.instruction_pointer < self.end:
                    raise NotUniform("a step leaves the loop")
        if [part.left() + 1 for part in self.source.parts()] != left:
            raise NotUniform("a step takes more from its iterator")

    def _compare(self, before: dict[str, Any], targets: set[str], made: set[int], changed: list[Any]) -> None:
        """The variables before and after; those ``made`` by the step may be changed by it."""
        own = made | self.stand_ins.watched | self.places.owners
        own |= {id(part.variable) for part in self.source.parts()}
        over = {id(part.variable.items) for part in self.source.parts() if isinstance(part, Listed)}
        for variable in changed:
            if id(variable) not in own:
                raise NotUniform(f"a step changes a {type(variable).__name__}")
        if self.places.grown(made):
            raise NotUniform("a step writes another attribute")
        after = self.places.read()
        for name in (before.keys() | after.keys()) - targets:
            old, new = before.get(name), after.get(name)
            if old is new:
                continue
            if name not in self.stored:
                raise NotUniform(f"{name} is another variable")
            if name in self.live:
                self._match(old, new, made)
        for table in self.stand_ins.tables:
            self._match_tables(table.before, table.after, made)
        for held in self.stand_ins.lists:
            if (held.read or id(held.original) in over) and (held.changed or held.written):
                raise NotUniform("a step changes a list that it runs over or reads by its number")
            if held.written and (held.changed or held.seen or held.looked):
                raise NotUniform("a list is not only written to")
            if held.grown <= 0:
                self._match_all(held.before, held.after, made)
            elif held.seen or any(a is not b for a, b in zip(held.before, held.after, strict=False)):
                raise NotUniform("a growing list is not only appended to")

    def _match(self, old: Any, new: Any, made: set[int]) -> None:
        if old is new:
            return
        if type(old) is not type(new):
            raise NotUniform(f"a {type(old).__name__} becomes a {type(new).__name__}")
        if type(old) is TensorVariable:
            node = old.as_proxy().node
            if node not in self.stand_ins.original or known(old) != known(new):
                raise NotUniform("a tensor becomes another kind of tensor")
            if self.carried.setdefault(node, new) is not new:
                raise NotUniform("one tensor becomes two")
        elif type(old) is ConstantVariable:
            a, b = old.as_python_constant(), new.as_python_constant()
            if type(a) is not type(b) or a != b:
                raise NotUniform(f"{a!r} becomes {b!r}")
        elif type(old) in (TupleVariable, ListVariable) and id(new) in made:
            self._match_all(old.items, new.items, made)
        elif type(old) is ConstDictVariable and id(new) in made:
            self._match_tables(old.items, new.items, made)
        else:
            raise NotUniform(f"one {type(old).__name__} becomes another")

    def _match_tables(self, old: dict[Any, Any], new: dict[Any, Any], made: set[int]) -> None:
        if list(old) != list(new):
            raise NotUniform("a dictionary has other keys")
        self._match_all(list(old.values()), list(new.values()), made)

    def _match_all(self, old: list[Any], new: list[Any], made: set[int]) -> None:
        if len(old) != len(new):
            raise NotUniform(f"{len(old)} entries become {len(new)}")
        for a, b in zip(old, new, strict=True):
            self._match(a, b, made)


def _after(graph: fx.Graph, start: fx.Node) -> list[fx.Node]:
    """The nodes that follow ``start``, which the step made."""
    found: list[fx.Node] = []
    for node in reversed(graph.nodes):
        if node is start:
            return found[::-1]
        found.append(node)
    raise NotUniform("the graph is another")
