"""What a step may hand on: tensors, for which something stands in, in variables, lists and dictionaries.

Takes variables of the tracer; leaves in their place what shows afterwards whether a step did to them
only what every step may do: replaced a tensor, replaced entries of a list of fixed length or of a
dictionary with the same keys, or appended to a list and read from its end.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.utils import set_example_value
from torch._dynamo.variables import ConstantVariable, TensorVariable
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.dicts import ConstDictVariable
from torch._dynamo.variables.lists import ListVariable, TupleVariable
from torch._dynamo.variables.tensor import SymNodeVariable

from tenfuse.capture.ahead.copies import EXAMPLE, NotUniform

_HELD = 64
"""Lists and dictionaries longer than this are nobody's state."""


def _handed_on(tensor: torch.Tensor) -> torch.Tensor:
    """Stands for what the step before left, in the step that is tried only."""
    raise AssertionError("never in a finished graph")


def is_stand_in(variable: Any) -> bool:
    return type(variable) is TensorVariable and variable.as_proxy().node.target is _handed_on


class Watched(ListVariable):  # type: ignore[misc]
    """A list while a step is tried; what the step does to it is written down in its ``Held``."""

    @property
    def held(self) -> Held:
        return self.__dict__["_held"]  # type: ignore[no-any-return]

    @property
    def items(self) -> list[Any]:  # type: ignore[override]
        self.held.seen = True
        return self.held.after

    def append(self, tx: Any, entry: Any) -> None:
        tx.output.side_effects.mutation(self)
        self.held.after.append(entry)

    def length(self) -> int:
        """How many entries it had before the step."""
        return len(self.held.before)

    def read(self) -> list[Any]:
        """The entries as they were, of which the step takes one by its number."""
        self.held.read = True
        return self.held.original

    def write(self, tx: Any, places: tuple[int, ...], entry: Any) -> None:
        """Put ``entry`` in a place that is another in every step."""
        tx.output.side_effects.mutation(self)
        self.held.written.append((places, entry))

    def call_method(self, tx: Any, name: str, args: Any, kwargs: Any) -> Any:
        known = len(args) == 1 and not kwargs and self.is_mutable()
        if known and name == "append":
            self.append(tx, args[0])
            return ConstantVariable.create(None)
        if known and name == "extend" and type(args[0]) in (ListVariable, TupleVariable):
            for entry in args[0].items:
                self.append(tx, entry)
            return ConstantVariable.create(None)
        return super().call_method(tx, name, args, kwargs)

    def getitem_const(self, tx: Any, arg: Any) -> Any:
        entries, old = self.held.after, self.length()
        at: Any = arg.as_python_constant() if isinstance(arg, ConstantVariable) else None
        counted = type(at) is int and -len(entries) <= at < 0
        if counted and (len(entries) + at >= old or is_stand_in(entries[at])):
            self.held.looked = True
            return entries[at]
        return super().getitem_const(tx, arg)

    def modified(self, items: list[Any], **kwargs: Any) -> Any:
        return ListVariable(items, **kwargs)

    def clone(self, **kwargs: Any) -> Any:
        raise NotUniform("a list is copied")


@dataclasses.dataclass
class Held:
    """A list of the loop's, before and after the step."""

    variable: Any
    original: list[Any]
    before: list[Any]
    """Its entries, with stand-ins for tensors."""
    after: list[Any]
    """The same, as the step changes them."""
    seen: bool = False
    """Someone looked at more of it than stand-ins, and entries of this step, counted from its end."""
    looked: bool = False
    """Someone looked at these."""
    read: bool = False
    """An entry was read by the number of the step."""
    written: list[tuple[tuple[int, ...], Any]] = dataclasses.field(default_factory=list)
    """Entries put in by the number of the step, and where in every step."""

    @staticmethod
    def watch(variable: Any, entries: list[Any]) -> Held:
        held = Held(variable, variable.__dict__.pop("items"), entries, list(entries))
        variable.__class__ = Watched
        # The tracer finds what a variable holds by walking the lists in its ``__dict__``.
        variable.__dict__.update(_held=held, _entries=held.after)
        return held

    def release(self) -> None:
        del self.variable.__dict__["_held"], self.variable.__dict__["_entries"]
        self.variable.__class__ = ListVariable
        self.variable.items = self.after

    @property
    def grown(self) -> int:
        return len(self.after) - len(self.before)

    @property
    def changed(self) -> bool:
        return self.grown != 0 or any(a is not b for a, b in zip(self.before, self.after, strict=True))


@dataclasses.dataclass
class Table:
    """A dictionary of the loop's, before and after the step."""

    variable: Any
    before: dict[Any, Any]
    """Its entries, with stand-ins for tensors."""
    after: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def release(self) -> None:
        self.after = dict(self.variable.items)


class StandIns:
    """Stand-ins for the tensors of variables, and what holds them; the same variable, the same stand-in."""

    def __init__(self, tracer: Any) -> None:
        self.tracer = tracer
        self.original: dict[fx.Node, Any] = {}
        """Stand-in -> the variable it stands for."""
        self.lists: list[Held] = []
        self.tables: list[Table] = []
        self._known: dict[int, tuple[Any, Any]] = {}

    @property
    def watched(self) -> set[int]:
        """The lists and dictionaries that a step may change."""
        return {id(held.variable) for held in self.lists} | {id(table.variable) for table in self.tables}

    def of(self, variable: Any, tensors: bool) -> Any:
        """``variable`` with stand-ins, where ``tensors``, and with its lists watched."""
        variable = variable.realize()
        if id(variable) not in self._known:
            self._known[id(variable)] = variable, self._of(variable, tensors)
        return self._known[id(variable)][1]

    def make(self, variable: Any) -> Any:
        """Another tensor of which the tracer knows what it knows of ``variable``."""
        proxy = self.tracer.create_proxy("call_function", _handed_on, (variable.as_proxy(),), {})
        set_example_value(proxy.node, variable.as_proxy().node.meta[EXAMPLE])
        return variable.clone(proxy=proxy)

    def _of(self, variable: Any, tensors: bool) -> Any:
        if type(variable) is TensorVariable and tensors:
            stand_in = self.make(variable)
            self.original[stand_in.as_proxy().node] = variable
            return stand_in
        if type(variable) is ListVariable and variable.is_mutable():
            entries = list(variable.items)
            if len(entries) <= _HELD:
                entries = [self.of(entry, True) for entry in entries]
            self.lists.append(Held.watch(variable, entries))
        elif type(variable) is ConstDictVariable and variable.is_mutable() and len(variable.items) <= _HELD:
            variable.items.update({key: self.of(entry, True) for key, entry in variable.items.items()})
            self.tables.append(Table(variable, dict(variable.items)))
        elif type(variable) is TupleVariable:
            items = [self.of(entry, tensors) for entry in variable.items]
            if any(a is not b for a, b in zip(items, variable.items, strict=True)):
                return variable.clone(items=items)
        return variable


def nodes_of(variable: Any) -> list[fx.Node]:
    """The nodes of all tensors and symbolic numbers in a variable."""
    found: list[fx.Node] = []

    def note(each: Any) -> None:
        if isinstance(each, (TensorVariable, SymNodeVariable)):
            found.append(each.as_proxy().node)

    VariableTracker.visit(note, variable)
    return found
