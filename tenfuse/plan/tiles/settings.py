"""How a kernel on tiles may be launched: warps an instance, and loads in flight.

Takes a ``TileKernel``; leaves a few settings, the one that its plan predicts first.  They
change nothing of what is computed, so whichever is fastest on a card may be used there.
"""

from __future__ import annotations

from tenfuse.plan.tiles.kernel import TileKernel, padded

Setting = tuple[int, int]
"""Warps and stages."""
_MOST_WARPS = 16


def settings(kernel: TileKernel) -> tuple[Setting, ...]:
    """At most five, without repetition."""
    warps, stages = kernel.tiling.warps, kernel.tiling.stages
    found = [
        (warps, stages),
        (2 * warps, stages),
        (warps // 2, stages),
        (warps, stages + 1),
        (warps, stages + 2),
    ]
    return tuple(s for s in dict.fromkeys(found) if 1 <= s[0] <= _MOST_WARPS)


def bucket(instances: int, steps: int) -> tuple[int, int]:
    """Sizes for which one setting is taken to be as good as for their neighbours."""
    return padded(instances), padded(steps)


__all__ = ["Setting", "bucket", "settings"]
