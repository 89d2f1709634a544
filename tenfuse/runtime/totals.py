"""Sums over the pieces of a backward: gradients of what every step shares.

Takes a plan and a ``Frame``; leaves room for the sums of every piece, and adds them to the
gradients.  The pieces' sums lie side by side and are added up together, a few at a time.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from tenfuse.plan.loop import LoopPlan
from tenfuse.runtime.bind import viewed
from tenfuse.runtime.frame import Frame
from tenfuse.runtime.launch import DTYPES
from tenfuse.runtime.parts import Added
from tenfuse.step.adjoint import Summed
from tenfuse.step.program import AxisName

SUMS = 1 << 20
"""Bytes of sums that wait to be added up."""

Key = tuple[str, int]
"""("out", k) for an output of the adjoint, ("product", n) for the n-th product."""


@dataclasses.dataclass(frozen=True)
class _Group:
    """Terms over the same axes: ``memory`` has one entry per slot and term."""

    memory: torch.Tensor
    rest: tuple[int, ...]
    """Dimensions that the gradient lacks."""
    target: torch.Tensor


class Totals:
    """The terms of all gradients of invariants, over ``pieces`` pieces."""

    def __init__(
        self, plan: LoopPlan, sizes: dict[AxisName, int], frame: Frame, invariants: list, pieces: int
    ) -> None:
        assert plan.backward is not None
        self.frame, self.pieces = frame, pieces
        back, dtype = plan.backward.adjoint, DTYPES[plan.backward.kernel.compute]
        terms: dict[tuple[int, tuple[AxisName, ...]], list[Key]] = {}
        for i, parts in back.invariants.items():
            for term in parts:
                if isinstance(term, Summed):
                    terms.setdefault((i, back.program.outs[term.out].axes), []).append(("out", term.out))
        for n, (i, _, kernel) in enumerate(plan.backward.products):
            if kernel is None:
                continue
            terms.setdefault((i, kernel.program.outs[0].axes), []).append(("product", n))
        self.groups: list[_Group] = []
        self.places: dict[Key, tuple[_Group, int]] = {}
        for (i, axes), keys in terms.items():
            shape = [sizes[a] for a in axes]
            size = max(1, math.prod(shape) * len(keys) * dtype.itemsize)
            slots = max(1, min(pieces, SUMS // size))
            rest = tuple(n + 2 for n, a in enumerate(axes) if a not in back.axes[i])
            place = plan.invariants[i]
            kept = [back.axes[i].index(a) for a in axes if a in back.axes[i]]
            target = viewed(invariants[place.source], place, sizes, 0).permute(kept)
            group = _Group(frame.scratch([slots, len(keys), *shape], dtype), rest, target)
            self.groups.append(group)
            self.places |= {key: (group, j) for j, key in enumerate(keys)}

    def of(self, kind: str, piece: int) -> dict[Key, torch.Tensor]:
        """Where the sums of one piece go."""
        return {
            key: group.memory[piece % len(group.memory), j]
            for key, (group, j) in self.places.items()
            if key[0] == kind
        }

    def add(self, piece: int) -> None:
        """After ``piece``: to the gradients, what has no room for another piece."""
        for group in self.groups:
            used = piece % len(group.memory) + 1
            if used == len(group.memory) or piece == self.pieces - 1:
                source, target = group.memory[:used], group.target
                self.frame.parts.append(
                    Added(self.frame.spot(source), (0, 1, *group.rest), self.frame.spot(target))
                )


__all__ = ["Totals"]
