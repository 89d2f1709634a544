"""The kernels of one loop, planned and called.

Takes a ``Step`` whose places count the given tensors, the tensors, and how to plan; leaves final
carries and exports: of one sequential kernel, of kernels on tiles, or of a loop in chunks.
Refuses what every candidate for kernels on tiles is refused for, for the last one's reason, and
(DEVICE) a state or an output on another device than the rest.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tenfuse.plan.choose import Choice
from tenfuse.plan.loop import LoopPlan, Wanted, plan
from tenfuse.plan.tensors import Examples
from tenfuse.plan.tiles.plan import Stepped, TilePlan, tile_plan
from tenfuse.plan.tiles.settle import Replan, Verdict, faster_first, settled
from tenfuse.reasons import DEVICE, Refused, refuse
from tenfuse.rewrite.chunked import Chunked, whole_pieces
from tenfuse.runtime.op import register
from tenfuse.step.reader import Step

Chooser = Callable[[int, bool], Choice]
"""Given the number of steps, or 0 where only the sequential kernel will do, and whether
gradients are wanted."""


Tiles = Callable[[Any, bool], Iterator[tuple[Choice, Stepped, str]]]
"""The same for kernels on tiles: candidates, best first, and what their matrix products multiply.
The number of steps may be symbolic."""

Trial = Callable[[TilePlan, Examples], Verdict]
"""Whether a plan's kernels may be used where these tensors are, and what compilers said of them."""


@dataclasses.dataclass(frozen=True)
class Planning:
    """``choose`` picks the algorithm or, on a card, ``tiles`` those of kernels on tiles, of which the
    first that has a plan which passes its ``trial`` is taken.  ``chunk`` is the user's choice of a chunk."""

    choose: Chooser
    trial: Trial
    tiles: Tiles | None = None
    chunk: int | None = None


@dataclasses.dataclass(frozen=True)
class Launched:
    """``plans``, by key, are those of the kernels that the graph launches."""

    finals: list[torch.Tensor]
    exports: list[torch.Tensor]
    plans: dict[str, LoopPlan | TilePlan]
    choice: Choice


def launched(
    step: Step, given: Examples, wanted: Wanted, steps: Any, reverse: bool, planning: Planning
) -> Launched:
    """``steps`` steps, which may be symbolic, over the tensors ``given``."""
    given = on_one_device(given)
    call = _Call(step, given, wanted, steps, reverse)
    if planning.tiles is not None:
        return call.on_tiles(planning.tiles(steps, wanted.any), planning.trial)
    whole = isinstance(steps, int) and planning.chunk is None
    whole = whole and whole_pieces(step, given.exports, given.carries)
    choice = planning.choose(steps if whole else 0, wanted.any)
    if choice.chunks is None:
        return call.sequential(choice, planning.chunk)
    run = Chunked(step, choice.chunks, given, wanted, reverse)
    finals, exports = run.run(steps)
    return Launched(finals, exports, dict(run.plans), choice)


def on_one_device(given: Examples) -> Examples:
    """The tensors on the card that any of them is on.

    A number on the CPU may stand beside tensors of a card, but a kernel cannot read it there.  It
    is copied at every call, for the caller may have changed it.
    """
    tensors = (*given.carries, *given.exports, *given.streams, *given.invariants)
    device = next((t.device for t in tensors if t.device.type != "cpu"), None)
    if device is None:
        return given
    for t in (*given.carries, *given.exports):
        if t.device != device:
            raise refuse(DEVICE, f"a state or an output of the loop is on {t.device}, and others on {device}")
    streams, invariants = ([t.to(device) for t in group] for group in (given.streams, given.invariants))
    return dataclasses.replace(given, streams=streams, invariants=invariants)


@dataclasses.dataclass(frozen=True)
class _Call:
    step: Step
    given: Examples
    wanted: Wanted
    steps: Any
    reverse: bool

    def sequential(self, choice: Choice, chunk: int | None) -> Launched:
        """One kernel over all steps."""
        return self._op(self._base(chunk), choice)

    def on_tiles(self, candidates: Iterator[tuple[Choice, Stepped, str]], trial: Trial) -> Launched:
        """The first of the ``candidates`` that has kernels and passes its trial, faster chunks first."""
        refused = list[Refused]()
        for (choice, again), made in faster_first(self._planned(candidates, refused)):
            try:
                used = settled(made, again, lambda plan: trial(plan, self.given))
            except Refused as found:
                refused.append(found)
                continue
            return self._op(used, choice)
        raise refused[-1]

    def _planned(
        self, candidates: Iterator[tuple[Choice, Stepped, str]], refused: list[Refused]
    ) -> Iterator[tuple[tuple[Choice, Replan], TilePlan]]:
        base = self._base(None)
        for choice, stepped, dots in candidates:
            again = functools.partial(tile_plan, base, stepped, dots)
            try:
                made = again()
            except Refused as found:
                refused.append(found)
                continue
            yield (choice, again), made

    def _base(self, chunk: int | None) -> LoopPlan:
        step = self.step
        places = (step.carries, step.streams, step.invariants, step.outs)
        return plan(step.program, places, self.given, self.wanted, self.reverse, chunk)

    def _op(self, made: LoopPlan | TilePlan, choice: Choice) -> Launched:
        given, key = self.given, register(made)
        found = torch.ops.tenfuse.loop(
            list(given.carries), list(given.streams), list(given.invariants), self.steps, key, self.wanted.any
        )
        n, m = len(given.carries), len(given.exports)
        return Launched(list(found[:n]), list(found[n : n + m]), {key: made}, choice)


__all__ = ["Launched", "Planning", "launched", "on_one_device"]
