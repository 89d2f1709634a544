"""What stands for the numbers and tensors that differ from step to step, in the step that is tried.

Takes what the steps take, from their iterator or from a list by a number of theirs; leaves one variable
for all of them, symbolic numbers and stand-ins, and remembers what it is in every step.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch.fx as fx
from torch._dynamo.source import ConstantSource
from torch._dynamo.utils import set_example_value
from torch._dynamo.variables.lists import TupleVariable
from torch._dynamo.variables.tensor import SymNodeVariable
from torch.fx.experimental.symbolic_shapes import DimDynamic
from torch.utils._sympy.value_ranges import ValueRanges

from tenfuse.capture.ahead.copies import EXAMPLE
from tenfuse.capture.ahead.iterators import Item, Numbers, Tensors, item
from tenfuse.capture.ahead.tracer import geometry
from tenfuse.capture.ahead.watched import StandIns

_names = itertools.count()


def number_of_step() -> int:
    """Stands for a number that the step takes, in the step that is tried only."""
    raise AssertionError("never in a finished graph")


class Taken:
    def __init__(self, tx: Any, stand_ins: StandIns, steps: int) -> None:
        self.tracer, self.shapes = tx.output.current_tracer, tx.output.shape_env
        self.stand_ins, self.steps = stand_ins, steps
        self.values: dict[fx.Node, tuple[Any, ...]] = {}
        """What stands for a number or a tensor -> the number or variable that it is in every step."""
        self.geometry: dict[fx.Node, tuple[Any, ...]] = {}
        self.numbers: dict[Any, tuple[int, ...]] = {}
        """The same for the symbols of numbers."""
        self.bounds: dict[Any, ValueRanges[Any]] = {}

    def variable(self, one: Item) -> Any:
        """What stands for ``one``."""
        return self._variable(one, {})

    def _variable(self, one: Item, known: dict[tuple[int, ...], Any]) -> Any:
        """``known`` are the tensors that stand for some already."""
        if isinstance(one, Numbers):
            return self._number(one.values)
        if not isinstance(one, Tensors):
            return TupleVariable([self._variable(each, known) for each in one.each])
        which = tuple(map(id, one.values))
        if which not in known:
            known[which] = self.stand_ins.make(one.values[0])
            node = known[which].as_proxy().node
            self.values[node], self.geometry[node] = one.values, geometry(node.meta[EXAMPLE])
        return known[which]

    def _number(self, values: tuple[int, ...]) -> Any:
        """A symbolic number between the least and the largest of ``values``."""
        first, bounds = values[0], ValueRanges(min(values), max(values))
        source = ConstantSource(f"__number_of_step_{next(_names)}")
        symbol = self.shapes.create_symbol(
            first, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None, positive=None,
            do_not_specialize_zero_one=True,
        )  # fmt: skip
        self.shapes.var_to_range[symbol] = bounds
        value = self.shapes.create_symintnode(symbol, hint=first, source=source)
        proxy = self.tracer.create_proxy("call_function", number_of_step, (), {})
        set_example_value(proxy.node, value)
        self.values[proxy.node], self.numbers[symbol], self.bounds[symbol] = values, values, bounds
        return SymNodeVariable(proxy, value)

    def places(self, number: Any, length: int) -> tuple[int, ...] | None:
        """Which entry of ``length`` a symbolic number is in every step; None where it is none in one."""
        expression = number.as_proxy().node.meta[EXAMPLE].node.expr
        if not expression.free_symbols <= self.numbers.keys():
            return None
        symbols = sorted(expression.free_symbols, key=str)
        rows = zip(*(self.numbers[s] for s in symbols), strict=True)
        found = tuple(int(expression.xreplace(dict(zip(symbols, row, strict=True)))) for row in rows)
        return found if all(-length <= at < length for at in found) else None

    def entry(self, entries: Sequence[Any], number: Any) -> Any | None:
        """What stands for the entry of that number; None where steps find entries of several kinds."""
        places = self.places(number, len(entries))
        one = item([entries[at].realize() for at in places]) if places else None
        return None if one is None else self.variable(one)


__all__ = ["Taken", "number_of_step"]
