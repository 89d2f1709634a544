"""Gradients of large matrices: sums of outer products over a piece of time, left to the library.

Takes a plan, a ``Frame`` and the factors that the adjoint kernel wrote in a piece; leaves their
products added to the gradients, in the type that kernels compute in.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import torch

from tenfuse.plan.loop import LoopPlan
from tenfuse.runtime.bind import Bound, viewed
from tenfuse.runtime.frame import Frame
from tenfuse.runtime.launch import DTYPES
from tenfuse.runtime.parts import Added, Multiplied
from tenfuse.step.program import AxisName


class Matrices:
    """The products of a backward that have no kernel of their own."""

    def __init__(
        self,
        plan: LoopPlan,
        sizes: dict[AxisName, int],
        frame: Frame,
        invariants: Sequence[torch.Tensor | None],
    ) -> None:
        assert plan.backward is not None
        self.frame, self.back, self.products = frame, plan.backward.adjoint, plan.backward.products
        self.totals: dict[int, torch.Tensor] = {}
        self.targets: dict[int, torch.Tensor] = {}
        compute = DTYPES[plan.backward.kernel.compute]
        for i in dict.fromkeys(i for i, _, kernel in self.products if kernel is None):
            place = plan.invariants[i]
            gradient = invariants[place.source]
            assert gradient is not None
            self.targets[i] = self.totals[i] = viewed(gradient, place, sizes, 0)
            if gradient.dtype != compute:
                self.totals[i] = frame.scratch([sizes[a] for a in self.back.axes[i]], compute)
                frame.clear(self.totals[i])

    def add(self, m: int, piece: Bound) -> None:
        """The ``m``-th product of a piece."""
        i, term, _ = self.products[m]
        axes = [self.back.program.outs[k].axes for k in (term.left, term.right)]
        left, right, total = (
            self.frame.spot(x) for x in (piece["out", term.left], piece["out", term.right], self.totals[i])
        )
        self.frame.parts.append(Multiplied(_equation(axes, self.back.axes[i]), left, right, total))

    def finish(self) -> None:
        """After the last piece: sums that had a type of their own, to the gradients."""
        for i, total in self.totals.items():
            if total is not self.targets[i]:
                self.frame.parts.append(Added(self.frame.spot(total), (), self.frame.spot(self.targets[i])))


def _equation(factors: Sequence[tuple[AxisName, ...]], own: tuple[AxisName, ...]) -> str:
    """Time first in both factors, and summed over with every axis that the matrix lacks."""
    names = dict.fromkeys(a for axes in (*factors, own) for a in axes)
    letters = dict(zip(names, string.ascii_letters[1:], strict=False))
    left, right, total = ("".join(letters[a] for a in axes) for axes in (*factors, own))
    return f"a{left},a{right}->{total}"


__all__ = ["Matrices"]
