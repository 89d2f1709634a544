"""Entries along an axis of known length: put together, and taken out again.

Takes nodes of a builder; leaves nodes that tell entries by their position, so that nothing
needs an index.
"""

from __future__ import annotations

from collections.abc import Sequence

from tenfuse.step.program import AxisName, Builder, Position, Ref


def stacked(build: Builder, refs: Sequence[Ref], axis: AxisName) -> Ref:
    """``refs`` as the entries along ``axis``; one alone needs none."""
    found = refs[-1]
    for i, ref in reversed(list(enumerate(refs[:-1]))):
        here = build.call("le", build.add(Position(axis)), build.const(i))
        found = build.call("where", here, ref, found)
    return found


def picked(build: Builder, ref: Ref, axis: AxisName, index: int) -> Ref:
    """The entry ``index`` along ``axis``; what lacks the axis is the same at all of them."""
    if axis not in build.axes[ref]:
        return ref
    here = build.call("eq", build.add(Position(axis)), build.const(index))
    return build.contract(build.call("where", here, ref, build.const(0.0)), axis)


__all__ = ["picked", "stacked"]
