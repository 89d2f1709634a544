"""One text for equal plans: what kernels, proofs and compiled graphs are kept by."""

from __future__ import annotations

import dataclasses
from typing import Any


def canonical(value: Any) -> str:
    """A text that equal values share in every process."""
    if dataclasses.is_dataclass(value):
        inner = ",".join(f"{f.name}={canonical(getattr(value, f.name))}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({inner})"
    if isinstance(value, (frozenset, set)):
        return "{" + ",".join(sorted(map(canonical, value))) + "}"
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{canonical(k)}:{canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ",".join(map(canonical, value)) + ")"
    return repr(value)


__all__ = ["canonical"]
