"""Where a value lies in memory, as far as a nest of loops needs to know.

Takes nothing; whoever places a value leaves an ``Access``, and the nest that reads or writes it
turns that into an address.
"""

from __future__ import annotations

import dataclasses

from tenfuse.step.program import AxisName


@dataclasses.dataclass(frozen=True)
class Access:
    """Memory with one stride per local axis; ``padded`` memory may be read and written
    in whole vectors beyond an axis' last entry.

    With ``panel`` the entries of the vector axis lie in blocks, one block for all entries
    of the other axes, so that a register tile streams through contiguous memory: the
    first index of a block is then multiplied by ``panel``.
    """

    pointer: str
    dims: tuple[tuple[AxisName, str], ...]
    padded: bool = False
    panel: str = ""
    far: str = ""
    """Written once and not read here: the condition under which it is written past the cache."""
    later: str = ""
    """Where not empty, the bytes from an entry to the one to ask for when it is read."""


__all__ = ["Access"]
