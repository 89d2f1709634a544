"""Where a value is computed that may be batched over time or made in the kernel.

Takes numbers of entries of one step; says which is cheaper.  Splitting the step asks
(``step.fission``), and knows which of its values have the choice.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Placement:
    """The prices, in memory traffic."""

    reuse: int = 8
    """A contraction that uses every entry of the state more often belongs to a matmul library."""

    def contracts(self, made: int, inner: int, state: int) -> bool:
        """Whether the kernel makes ``made`` sums over ``inner`` entries of a state that it holds."""
        return made * inner <= self.reuse * state

    def takes(self, read: int, made: int, outer: bool) -> bool:
        """Whether the kernel reads ``read`` entries and makes ``made`` of them, or reads what was made.

        Batched, the value would be written and read again: worth it where a quarter is saved, but
        an outer product is made from vectors even where it is no larger than they are.
        """
        return read <= made if outer else read * 4 < made * 3


__all__ = ["Placement"]
