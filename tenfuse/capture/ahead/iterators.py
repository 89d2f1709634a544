"""What a loop takes from its iterator: known in advance, and one variable that stands for all of it.

Takes the tracer's iterator over a ``range``, a list or tuple, a ``zip`` or an ``enumerate`` of these;
leaves what the next steps take from it, and moves it on.  Leaves alone (``None``) every other iterator:
what a generator or a dictionary yields is known only when it is asked.

An ``Item`` stands for what the steps take: a number for numbers, a tensor for tensors of which the tracer
knows the same, and a tuple for tuples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch._dynamo.polyfills import builtins as polyfills
from torch._dynamo.variables import ConstantVariable, TensorVariable
from torch._dynamo.variables.functions import LocalGeneratorObjectVariable
from torch._dynamo.variables.iter import ZipVariable
from torch._dynamo.variables.lists import ListIteratorVariable, RangeIteratorVariable, TupleVariable

from tenfuse.capture.ahead.tracer import known


@dataclasses.dataclass(frozen=True)
class Counted:
    """An iterator over a ``range``."""

    variable: Any

    def left(self) -> int:
        return int(self.variable.len)

    def next(self, count: int) -> list[Any]:
        first, step = self.variable.start, self.variable.step
        return [ConstantVariable.create(first + at * step) for at in range(count)]

    def skip(self, count: int) -> None:
        self.variable.start += count * self.variable.step
        self.variable.len -= count

    def parts(self) -> Iterator[Source]:
        yield self


@dataclasses.dataclass(frozen=True)
class Listed:
    """An iterator over a list or a tuple."""

    variable: Any

    def left(self) -> int:
        return len(self.variable.items) - int(self.variable.index)

    def next(self, count: int) -> list[Any]:
        at = self.variable.index
        return [variable.realize() for variable in self.variable.items[at : at + count]]

    def skip(self, count: int) -> None:
        self.variable.index += count

    def parts(self) -> Iterator[Source]:
        yield self


@dataclasses.dataclass(frozen=True)
class Zipped:
    variable: Any
    each: tuple[Source, ...]

    def left(self) -> int:
        return min(one.left() for one in self.each)

    def next(self, count: int) -> list[Any]:
        columns = [one.next(count) for one in self.each]
        return [TupleVariable(list(row)) for row in zip(*columns, strict=True)]

    def skip(self, count: int) -> None:
        for one in self.each:
            one.skip(count)

    def parts(self) -> Iterator[Source]:
        yield self
        for one in self.each:
            yield from one.parts()


@dataclasses.dataclass(frozen=True)
class Enumerated:
    """``enumerate``, which is a generator to the tracer: the number that it gave last, and what it counts."""

    variable: Any
    given: dict[str, Any]
    inner: Source

    def left(self) -> int:
        return self.inner.left()

    def next(self, count: int) -> list[Any]:
        first = self._last() + 1
        numbers = (ConstantVariable.create(first + at) for at in range(count))
        return [TupleVariable([n, v]) for n, v in zip(numbers, self.inner.next(count), strict=True)]

    def skip(self, count: int) -> None:
        self.given[_NUMBER] = ConstantVariable.create(self._last() + count)
        self.inner.skip(count)

    def parts(self) -> Iterator[Source]:
        yield self
        yield from self.inner.parts()

    def _last(self) -> int:
        return int(self.given[_NUMBER].as_python_constant())


Source = Counted | Listed | Zipped | Enumerated
_NUMBER = "start"
"""The local variable of torch's ``enumerate`` that counts."""


def source(iterator: Any) -> Source | None:
    """How the tracer's ``iterator`` is moved on; None where what it gives is not known in advance."""
    found = _source(iterator)
    if found is not None:
        every = [id(part.variable) for part in found.parts()]
        if len(set(every)) == len(every):
            return found
    return None


def _source(iterator: Any) -> Source | None:
    if type(iterator) is RangeIteratorVariable and type(iterator.len) is int:
        return Counted(iterator)
    if isinstance(iterator, ListIteratorVariable) and type(iterator.items) is list:
        return Listed(iterator)
    if type(iterator) is ZipVariable:
        each = getattr(iterator, "iterables", None) or iterator.iterable.items  # before torch 2.13, and since
        found = [one for one in map(_source, each) if one is not None]
        return Zipped(iterator, tuple(found)) if found and len(found) == len(each) else None
    if type(iterator) is LocalGeneratorObjectVariable and _enumerates(iterator):
        tracer = iterator.inline_tracer
        inner = _source(tracer.stack[0]) if tracer.stack else None
        counts = inner is not None and isinstance(tracer.symbolic_locals.get(_NUMBER), ConstantVariable)
        return Enumerated(iterator, tracer.symbolic_locals, inner) if inner is not None and counts else None
    return None


def _enumerates(generator: Any) -> bool:
    code = generator.get_code()
    return code.co_name == enumerate.__name__ and code.co_filename == polyfills.__file__


@dataclasses.dataclass(frozen=True)
class Numbers:
    values: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensors:
    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Tuples:
    each: tuple[Item, ...]


Item = Numbers | Tensors | Tuples
"""Of the steps to come, in order, what they take."""


def item(variables: list[Any]) -> Item | None:
    """What ``variables`` have in common; None where they are of several kinds."""
    first = variables[0]
    if any(type(v) is not type(first) for v in variables):
        return None
    if type(first) is ConstantVariable:
        values = tuple(v.as_python_constant() for v in variables)
        return Numbers(values) if all(type(v) is int for v in values) else None
    if type(first) is TensorVariable:
        like = known(first)
        same = all(v.source is None and known(v) == like for v in variables)
        return Tensors(tuple(variables)) if same else None
    if type(first) is TupleVariable and all(len(v.items) == len(first.items) for v in variables):
        found = [item(list(column)) for column in zip(*(v.items for v in variables), strict=True)]
        each = tuple(one for one in found if one is not None)
        return Tuples(each) if len(each) == len(found) else None
    return None


def columns(one: Item) -> Iterator[Numbers | Tensors]:
    """The numbers and tensors of an item, in the order in which they stand in it."""
    if isinstance(one, Tuples):
        for each in one.each:
            yield from columns(each)
    else:
        yield one


def apart(one: Item) -> bool:
    """Whether no step takes one tensor twice, for which different variables would stand."""
    found = {tuple(v.as_proxy().node for v in c.values) for c in columns(one) if isinstance(c, Tensors)}
    return all(len(set(row)) == len(row) for row in zip(*found, strict=True))


__all__ = ["Item", "Numbers", "Source", "Tensors", "Tuples", "apart", "columns", "item", "source"]
