"""The variables of a loop by name, wherever they are kept: local variables, cells, attributes of objects.

A variable that an inner function or a comprehension uses lives in a cell; a cell of the frame's own is read
and written here as the variable in it.  Cells of functions around the frame are left as they are.  So is an
attribute, unless it was written before, as one is that the steps write: the tracer keeps it then.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

from torch._dynamo.variables.base import AttributeMutationNew
from torch._dynamo.variables.misc import CellVariable

_CONTENTS = "cell_contents"


class Places:
    def __init__(self, tx: Any) -> None:
        self.local, self.effects = tx.symbolic_locals, tx.output.side_effects
        cells = {
            name: (variable, _CONTENTS) for name, variable in self.local.items()
            if type(variable) is CellVariable
            and isinstance(variable.mutation_type, AttributeMutationNew)
            and self.effects.has_pending_mutation_of_attr(variable, _CONTENTS)
        }  # fmt: skip
        attributes = {f"{id(owner)}.{name}": (owner, name) for owner, name in self._written()}
        self.elsewhere: dict[str, tuple[Any, str]] = cells | attributes
        """Per name, what keeps the variable, and as which attribute."""

    def _written(self) -> list[tuple[Any, str]]:
        found = self.effects.store_attr_mutations.items()
        return [(owner, n) for owner, names in found if type(owner) is not CellVariable for n in names]

    @property
    def owners(self) -> set[int]:
        return {id(owner) for owner, _ in self.elsewhere.values()}

    def grown(self, made: Container[int]) -> bool:
        """Whether attributes were written that had not been written before, of others than the ``made``."""
        written = [(owner, name) for owner, name in self._written() if id(owner) not in made]
        return any(f"{id(owner)}.{name}" not in self.elsewhere for owner, name in written)

    def read(self) -> dict[str, Any]:
        """Every variable, and of a cell what is in it."""
        found = self.local | {
            name: self.effects.load_attr(owner, attribute, deleted_ok=True)
            for name, (owner, attribute) in self.elsewhere.items()
        }
        return dict(found)

    def write(self, name: str, variable: Any) -> None:
        """Leaves alone what holds this variable already: writing shows outside."""
        if name not in self.elsewhere:
            self.local[name] = variable
            return
        owner, attribute = self.elsewhere[name]
        if self.effects.load_attr(owner, attribute, deleted_ok=True) is not variable:
            self.effects.store_attr(owner, attribute, variable)

    def drop(self, names: Iterable[str]) -> None:
        """Forget variables that nobody reads any more."""
        for name in names:
            del self.local[name]
