"""Triton's interpreter with a NumPy that is newer than it.

Takes nothing; leaves the interpreter able to loop to a bound that is an argument.  Triton 3.6 reads
such a bound by ``int`` of an array of one entry, which NumPy 2.4 refuses; Triton 3.7 squeezes the
array first.  Where the bound can be read, nothing is changed.
"""

from __future__ import annotations

import functools
import operator
from types import SimpleNamespace
from typing import Any


@functools.cache
def mend() -> None:
    """Let a tensor of one entry be an index of Python's ``range``, as it is on a card."""
    import numpy
    from triton.runtime import interpreter

    class Bound:
        handle = SimpleNamespace(data=numpy.array([3]))

    patch: Any = getattr(interpreter, "_patch_lang_tensor", None)
    scope: Any = getattr(interpreter, "_LangPatchScope", None)
    if patch is None or scope is None:
        return
    patch(Bound, scope())
    bound: Any = Bound()
    try:
        operator.index(bound)
    except TypeError:

        def patched(tensor: Any, scope: Any) -> None:
            patch(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

        interpreter._patch_lang_tensor = patched


__all__ = ["mend"]
