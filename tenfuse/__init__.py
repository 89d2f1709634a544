"""tenfuse: a ``torch.compile`` backend that fuses Python loops over time.

``torch.compile(model, backend="tenfuse")`` needs no import of this package; what is here
is for reading what happened.  Everything is loaded on first use: importing tenfuse
imports neither torch nor anything else that costs time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tenfuse import config as config
    from tenfuse.report.explain import explain as explain
    from tenfuse.report.registry import reports as reports
    from tenfuse.testing.equivalence import check as check

_HOME = {
    "explain": "tenfuse.report.explain",
    "check": "tenfuse.testing.equivalence",
    "reports": "tenfuse.report.registry",
}

__all__ = ["__version__", "check", "config", "explain", "reports"]


def __getattr__(name: str) -> Any:
    if name == "config":
        return importlib.import_module("tenfuse.config")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'tenfuse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
