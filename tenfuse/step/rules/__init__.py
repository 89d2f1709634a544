"""What each ATen operator means over named axes.

Takes a ``Space`` and the values of an ATen node's arguments; leaves the node's value.
Operators without a rule are decomposed by torch's own tables (``reader`` does that) and
are refused (UNSUPPORTED_OP) when nothing smaller has a rule either.
"""

from tenfuse.step.rules import arithmetic, complex, contraction, convolution, identity, shape, whole
from tenfuse.step.rules.base import RULES
from tenfuse.step.rules.identity import cast

__all__ = [
    "RULES",
    "arithmetic",
    "cast",
    "complex",
    "contraction",
    "convolution",
    "identity",
    "shape",
    "whole",
]
