"""Public helpers for testing models that rely on tenfuse; loaded on first use.

``assert_equivalent(model, *inputs)`` compares outputs and every gradient with the eager
loop in float64; the pytest fixture ``assert_fused`` (see ``plugin``) asserts which loops
were fused.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfuse.testing.equivalence import Equivalence as Equivalence
    from tenfuse.testing.equivalence import assert_equivalent as assert_equivalent
    from tenfuse.testing.fused import assert_fused as assert_fused

_HOME = {
    "assert_equivalent": "tenfuse.testing.equivalence",
    "Equivalence": "tenfuse.testing.equivalence",
    "assert_fused": "tenfuse.testing.fused",
}

__all__ = ["Equivalence", "assert_equivalent", "assert_fused"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tenfuse.testing' has no attribute {name!r}")
