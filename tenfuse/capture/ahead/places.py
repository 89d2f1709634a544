"""The local variables of a frame by name, wherever the frame keeps them.

A variable that an inner function or a comprehension uses lives in a cell; a cell of the frame's own is read
and written here as the variable in it.  Cells of functions around the frame are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch._dynamo.variables.base import AttributeMutationNew
from torch._dynamo.variables.misc import CellVariable

_CONTENTS = "cell_contents"


class Places:
    def __init__(self, tx: Any) -> None:
        self.local, self.effects = tx.symbolic_locals, tx.output.side_effects
        self.cells = {
            name: variable for name, variable in self.local.items()
            if type(variable) is CellVariable
            and isinstance(variable.mutation_type, AttributeMutationNew)
            and self.effects.has_pending_mutation_of_attr(variable, _CONTENTS)
        }  # fmt: skip

    def read(self) -> dict[str, Any]:
        """Every local variable, and of a cell what is in it."""
        return {
            name: self.effects.load_cell(variable) if name in self.cells else variable
            for name, variable in self.local.items()
        }

    def write(self, name: str, variable: Any) -> None:
        if name in self.cells:
            self.effects.store_cell(self.cells[name], variable)
        else:
            self.local[name] = variable

    def drop(self, names: Iterable[str]) -> None:
        """Forget variables that nobody reads any more."""
        for name in names:
            del self.local[name]
