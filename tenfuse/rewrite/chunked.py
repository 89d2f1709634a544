"""Run a loop chunk by chunk: matmuls over all chunks at once around a small recurrence.

Takes a ``ChunkPlan`` and the tensors that the sequential kernel would have taken; leaves
the same results.  What does not reach the state is computed for all chunks at once, the
core runs as one ``tenfuse::loop`` over the chunks, and what only reads the state follows
for all chunks at once; a last, shorter chunk runs by itself.  All of it is traced into the
graph, where autograd derives its gradient and the inner compiler its code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tenfuse.plan.chunked import ChunkPlan
from tenfuse.plan.core import Core
from tenfuse.plan.loop import LoopPlan, Wanted, plan
from tenfuse.plan.tensors import Examples
from tenfuse.runtime.op import register
from tenfuse.step.batched import Evaluator
from tenfuse.step.program import AxisName, Input, StepProgram, arguments
from tenfuse.step.reader import Placed, Step, View

CHUNKS = "chunks"
"""The axis over which everything state-free is batched; no program has it."""

Named = tuple[torch.Tensor, tuple[AxisName, ...]]


class Chunked:
    """One loop run in chunks; ``plans`` are those of its cores, the whole chunks' first.

    ``given`` are the loop's tensors, placed as ``step`` says; time leads in its streams.
    """

    def __init__(self, step: Step, chosen: ChunkPlan, given: Examples, wanted: Wanted, reverse: bool) -> None:
        self.step, self.chosen, self.given, self.wanted, self.reverse = step, chosen, given, wanted, reverse
        self.plans: dict[str, LoopPlan] = {}
        self.sizes = step.program.sizes
        self.dtype = torch.float64 if given.compute == "f64" else torch.float32

    def run(self, steps: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Final carries and stacked exports, shaped as the loop's own."""
        carries = [self._named(self.given.carries[p.source], p, 0) for p in self.step.carries]
        streams = {
            i: self._named(self.given.streams[p.source], p, 1) for i, p in enumerate(self.step.streams)
        }
        if self.reverse:
            streams = {i: x.flip(0) for i, x in streams.items()}
        rows: list[list[torch.Tensor]] = [[] for _ in self.step.outs]
        main = steps - steps % self.chosen.length
        for first, stop in ((0, main), (main, steps)):
            if first < stop:
                part = {i: x[first:stop] for i, x in streams.items()}
                carries, outs = self._part(carries, part, stop - first)
                for row, out in zip(rows, outs, strict=True):
                    row.append(out)
        found = [torch.cat(row) if len(row) > 1 else row[0] for row in rows]
        if self.reverse:
            found = [x.flip(0) for x in found]
        return self._finals(carries), self._exports(found, steps)

    def _part(
        self, carries: list[torch.Tensor], streams: dict[int, torch.Tensor], steps: int
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Equal chunks, one after the other."""
        length = min(self.chosen.length, steps)
        chunk, core = self.chosen.core(length)
        count = steps // length
        whole, rows = core.whole, [chunk.program.sizes[a] for a in chunk.rows]
        inputs: dict[tuple[str, int], Named] = {}
        for i, x in streams.items():
            axes = (CHUNKS, *chunk.rows, *self.step.streams[i].view.axes)
            inputs["stream", i] = (x.unflatten(0, (count, *rows)), axes)
        for i, p in enumerate(self.step.invariants):
            inputs["invariant", i] = (self._named(self.given.invariants[p.source], p, 0), p.view.axes)
        values = Evaluator(whole, inputs, {CHUNKS: count}, self.dtype, carries[0].device)
        finals, written = self._core(core, values, carries, count)
        for ref, axes, export in zip(core.outs, (o.axes for o in core.program.outs), written, strict=True):
            values.give(ref, (export, (CHUNKS, *axes)))
        outs = [values.tensor(o.ref, (CHUNKS, *o.axes)).flatten(0, len(rows)) for o in whole.outs]
        return finals, outs

    def _core(
        self, core: Core, values: Evaluator, carries: list[torch.Tensor], count: int
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        program, axes = core.program, core.whole.axes_of()
        streams = [values.tensor(r, (CHUNKS, *sorted(axes[r]))).contiguous() for r in core.streams]
        invariants = [values.tensor(r, sorted(axes[r])).contiguous() for r in core.invariants]
        carries = [c.to(self.dtype).contiguous() for c in carries]
        wants = self._wants(core.whole)
        wanted = Wanted(
            tuple(self.wanted.any for _ in carries),
            tuple(wants[r] for r in core.streams),
            tuple(wants[r] for r in core.invariants),
        )
        places = (
            tuple(_own(i, c.axes) for i, c in enumerate(program.carries)),
            tuple(_own(i, tuple(sorted(axes[r]))) for i, r in enumerate(core.streams)),
            tuple(_own(i, tuple(sorted(axes[r]))) for i, r in enumerate(core.invariants)),
            tuple(_own(i, o.axes) for i, o in enumerate(program.outs)),
        )
        exports = [carries[0].new_empty([program.sizes[a] for a in o.axes]) for o in program.outs]
        made = plan(program, places, Examples(carries, streams, invariants, exports), wanted, False)
        key = register(made)
        self.plans[key] = made
        found = torch.ops.tenfuse.loop(carries, streams, invariants, count, key, wanted.any)
        n = len(carries)
        return list(found[:n]), list(found[n : n + len(exports)])

    def _wants(self, program: StepProgram) -> list[bool]:
        """Which nodes lie on a path from an input that wants a gradient."""
        marks = {"stream": self.wanted.streams, "invariant": self.wanted.invariants}
        places = {"stream": self.step.streams, "invariant": self.step.invariants}
        found: list[bool] = []
        for node in program.nodes:
            if isinstance(node, Input) and node.kind in marks:
                found.append(marks[node.kind][places[node.kind][node.index].source])
            elif isinstance(node, Input):
                found.append(self.wanted.any)
            else:
                found.append(any(found[a] for a in arguments(node)))
        return found

    # -- between the loop's tensors and named axes ------------------------------------

    def _named(self, tensor: torch.Tensor, place: Placed, lead: int) -> torch.Tensor:
        """The tensor with the axes of ``place`` as dimensions, after ``lead`` of its own.

        What ``runtime.bind.viewed`` does by strides; this is differentiated, and its tensors may be
        laid out otherwise by the inner compiler, so it narrows, splits and permutes dimensions.
        """
        view = place.view
        if view.part is not None:
            tensor = torch.view_as_real(tensor.resolve_conj())[..., view.part]
        offset = dict(view.offset)
        order: list[AxisName] = []
        shape = list(tensor.shape[:lead])
        for d in range(tensor.dim() - lead):
            axes = _axes_of(view, d)
            length = math.prod(self.sizes[a] for a in axes)
            tensor = tensor.narrow(lead + d, offset.get(d, 0), length)
            shape += [self.sizes[a] for a in axes]
            order += axes
        tensor = tensor.reshape(shape)
        return tensor.permute([*range(lead), *(lead + order.index(a) for a in view.axes)])

    def _finals(self, carries: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found: list[Any] = list(self.given.carries)
        for x, place in zip(carries, self.step.carries, strict=True):
            like = self.given.carries[place.source]
            found[place.source] = _restored(x, place.view, 0, like).to(like.dtype)
        return found

    def _exports(self, outs: Sequence[torch.Tensor], steps: int) -> list[torch.Tensor]:
        found: list[Any] = list(self.given.exports)
        for x, place in zip(outs, self.step.outs, strict=True):
            like = self.given.exports[place.source]
            found[place.source] = _restored(x, place.view, 1, like).to(like.dtype)
        return found


def whole_pieces(step: Step, exports: Sequence[torch.Tensor], carries: Sequence[torch.Tensor]) -> bool:
    """Whether ``Chunked`` can run the loop: every carry and export is one whole real tensor, and
    what the loop reads is a contiguous range of each dimension."""
    groups = ((step.carries, carries), (step.outs, exports))
    return all(_ranges(p.view, step.program.sizes) for p in (*step.streams, *step.invariants)) and all(
        sorted(p.source for p in places) == list(range(len(tensors)))
        and all(p.view.part is None and not p.view.offset for p in places)
        for places, tensors in groups
    )


def _ranges(view: View, sizes: Mapping[AxisName, int]) -> bool:
    """Whether the axes along every dimension lie within each other without gaps."""
    units = dict(zip(view.axes, (unit for _, unit in view.dims), strict=True))
    for dim in {d for d, _ in view.dims}:
        whole = 1
        for axis in reversed(_axes_of(view, dim)):
            if units[axis] != whole:
                return False
            whole *= sizes[axis]
    return True


def _restored(x: torch.Tensor, view: View, lead: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor over ``view.axes`` (after ``lead``) in the shape of ``like``."""
    order = [a for d in range(like.dim()) for a in _axes_of(view, d)]
    x = x.permute([*range(lead), *(lead + view.axes.index(a) for a in order)])
    return x.reshape([*x.shape[:lead], *like.shape])


def _axes_of(view: View, dim: int) -> list[AxisName]:
    """The axes along one dimension, outermost first."""
    found = [(unit, a) for a, (d, unit) in zip(view.axes, view.dims, strict=True) if d == dim]
    return [a for _, a in sorted(found, key=lambda pair: -pair[0])]


def _own(source: int, axes: tuple[AxisName, ...]) -> Placed:
    """A tensor whose dimensions are its axes."""
    return Placed(source, View(axes, tuple((d, 1) for d in range(len(axes)))))


__all__ = ["CHUNKS", "Chunked", "whole_pieces"]
