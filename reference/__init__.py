"""Plain eager PyTorch loops: the meaning of everything tenfuse compiles.

Imports torch only, and tenfuse never imports it.  ``CASES`` lists every spelling of every
model with a builder, for the tests to run at any number of steps.
"""

from __future__ import annotations

from reference import (
    cells,
    delta,
    elementwise,
    filters,
    lam,
    linear_attention,
    returns,
    semiring,
    spectral,
    ssm,
    ten,
    ten_chunked,
    ten_heads,
    titans,
)
from reference.case import Case

_FAMILIES = (
    ten, ten_chunked, ten_heads, delta, linear_attention, elementwise, ssm,
    cells, semiring, returns, filters, spectral, lam, titans,
)  # fmt: skip

CASES: tuple[Case, ...] = tuple(case for family in _FAMILIES for case in family.CASES)

__all__ = ["CASES", "Case"]
