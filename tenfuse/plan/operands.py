"""The operands of a loop's sequential kernels: which tensors they read and write, and along which axes.

Takes a step program, where its values lie in the loop's tensors, and its adjoint; leaves lists of
``Operand``, in the order in which the runtime passes them.  Refuses (DTYPE) as ``tensors`` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from tenfuse.plan.keep import keeping, reading_kept, sum_axes
from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.plan.tensors import Examples, Layout, dense_like, dtype_name, unit_axis
from tenfuse.step.adjoint import Adjoint
from tenfuse.step.program import AxisName, Ref, StepProgram, prune, trimmed
from tenfuse.step.reader import Placed
from tenfuse.step.whole import whole_inputs

Places = tuple[tuple[Placed, ...], tuple[Placed, ...], tuple[Placed, ...], tuple[Placed, ...]]
"""Of carries, streams, invariants and outputs; sources are positions in the ``Examples``."""


class Operands:
    """The operand lists of the kernels of one loop, whose outputs lie in ``exports``."""

    def __init__(
        self, program: StepProgram, places: Places, examples: Examples, exports: tuple[Layout, ...]
    ) -> None:
        self.program, self.examples, self.compute = program, examples, examples.compute
        self.carries, self.streams, self.invariants, self.outs = places
        self.exports, self.whole = exports, whole_inputs(program)

    def forward(self, save: bool) -> tuple[Operand, ...]:
        """``save`` also writes the states at chunk borders."""
        program = self.program
        return (
            *(self._initial(i, c.axes) for i, c in enumerate(program.carries)),
            *self._entering("stream", "stream", [program]),
            *self._entering("constant", "invariant", [program]),
            *(self._like_carry("final", i, c.axes) for i, c in enumerate(program.carries)),
            *(self._export("out", j, j, o.axes) for j, o in enumerate(program.outs)),
            *(self._saves() if save else ()),
        )

    def keeping(self, kept: tuple[int, ...], sums: tuple[Ref, ...], reverse: bool) -> Kernel:
        """The forward kernel that writes the ``kept`` carries as they are before every step, and ``sums``."""
        program = keeping(self.program, kept, sums)
        own = self._kept("out", len(self.program.outs), kept, sums)
        return Kernel(program, (*self.forward(False), *own), self.compute, reverse)

    def backward(self, back: Adjoint, reverse: bool, chunk: int) -> Kernel:
        """The adjoint kernel that computes the states of ``chunk`` steps again, if it needs any.

        Integers carry no gradient: what stands in its place is zero, and neither read nor written.
        """
        # An axis that only a cut gradient had would be one more to run tasks along, all of them alike.
        program, count = trimmed(back.program), len(self.streams)
        recompute = trimmed(prune(dataclasses.replace(self.program, outs=()))) if back.needs_states else None
        both = [p for p in (program, recompute) if p is not None]
        cotangents = {i: a for i, a in program.inputs("stream").items() if 0 <= i - count < len(self.outs)}
        carried = [(i, c) for i, c in enumerate(program.carries) if ("carry", i) not in self.whole]
        operands = (
            *(self._like_carry("init", i, c.axes) for i, c in carried),
            *self._entering("stream", "stream", both),
            *(self._export("stream", i, i - count, axes) for i, axes in cotangents.items()),
            *self._entering("constant", "invariant", both),
            *(self._saves() if recompute is not None else ()),
            *(self._like_carry("final", i, c.next_axes) for i, c in carried),
            *self._gradients(back),
        )
        if recompute is None:
            return Kernel(program, operands, self.compute, not reverse)
        return Kernel(program, operands, self.compute, reverse, chunk, recompute)

    def backward_kept(
        self, back: Adjoint, kept: tuple[int, ...], sums: tuple[Ref, ...], reverse: bool
    ) -> Kernel:
        """The adjoint kernel that reads the ``kept`` carries and the ``sums`` as streams."""
        first = len(self.streams) + len(self.outs)
        states = {i: first + n for n, i in enumerate(kept)}
        values = {r: first + len(kept) + n for n, r in enumerate(sums)}
        program = reading_kept(back.program, states, self.program, values)
        whole = self.backward(dataclasses.replace(back, program=program), reverse, 0)
        return dataclasses.replace(
            whole, operands=(*whole.operands, *self._kept("stream", first, kept, sums))
        )

    def _kept(self, role: str, first: int, kept: tuple[int, ...], sums: tuple[Ref, ...]) -> list[Operand]:
        states = [self._state(role, first + n, i) for n, i in enumerate(kept)]
        first += len(kept)
        return states + [
            self._own(role, first + n, axes) for n, axes in enumerate(sum_axes(self.program, sums))
        ]

    # -- single operands ----------------------------------------------------------------

    def _entering(self, role: str, kind: str, programs: Sequence[StepProgram]) -> list[Operand]:
        """The loop's own streams or invariants that any of the programs reads."""
        places = self.streams if kind == "stream" else self.invariants
        tensors = self.examples.streams if kind == "stream" else self.examples.invariants
        axes: dict[int, tuple[AxisName, ...]] = {}
        for one in programs:
            for i, names in one.inputs(kind).items():
                axes.setdefault(i, names)
        lead = 1 if kind == "stream" else 0
        return [
            _placed(role, i, tensors[places[i].source], places[i], names, lead)
            for i, names in sorted(axes.items()) if i < len(places)
        ]  # fmt: skip

    def _initial(self, i: int, axes: tuple[AxisName, ...]) -> Operand:
        """The carry as the user gives it."""
        place = self.carries[i]
        return _placed("init", i, self.examples.carries[place.source], place, axes, 0)

    def _like_carry(self, role: str, i: int, axes: tuple[AxisName, ...]) -> Operand:
        """A contiguous tensor shaped like carry ``i``."""
        place, tensor = self.carries[i], self.examples.carries[self.carries[i].source]
        found = [a for a, p in zip(axes, place.view.dims, strict=True) if p == (tensor.dim() - 1, 1)]
        unit = found[0] if found and place.view.part is None else None
        return Operand(role, i, dtype_name(tensor.dtype), axes, unit)

    def _export(self, role: str, index: int, j: int, axes: tuple[AxisName, ...]) -> Operand:
        """Output ``j`` or its cotangent; the last dimension is adjacent in memory unless time is."""
        place, layout = self.outs[j], self.exports[self.outs[j].source]
        last, unit = len(layout.shape) - 1, None
        if place.view.part is None and layout.lead <= last:
            unit = next((a for a, p in zip(axes, place.view.dims, strict=True) if p == (last, 1)), None)
        return Operand(role, index, dtype_name(layout.dtype), axes, unit)

    def _saves(self) -> list[Operand]:
        return [self._state("save", i, i) for i in range(len(self.program.carries))]

    def _state(self, role: str, index: int, carry: int) -> Operand:
        dtype = "i64" if ("carry", carry) in self.whole else self.compute
        return self._own(role, index, self.program.carries[carry].axes, dtype)

    def _own(self, role: str, index: int, axes: tuple[AxisName, ...], dtype: str = "") -> Operand:
        """A tensor that only kernels see."""
        return Operand(role, index, dtype or self.compute, axes, axes[-1] if axes else None)

    def _gradients(self, back: Adjoint) -> list[Operand]:
        source = {out: i for i, out in back.streams.items()}
        found = []
        for k, out in enumerate(back.program.outs):
            if k in source:
                place = self.streams[source[k]]
                tensor = dense_like(self.examples.streams[place.source])
                found.append(_placed("out", k, tensor, place, out.axes, 1))
            else:
                found.append(self._own("out", k, out.axes))
        return found


def _placed(
    role: str, index: int, tensor: torch.Tensor, place: Placed, axes: tuple[AxisName, ...], lead: int
) -> Operand:
    """An operand that lies in ``tensor`` as ``place`` says, its axes called ``axes``."""
    unit = unit_axis(tensor, place.view, lead)
    renamed = None if unit is None else axes[place.view.axes.index(unit)]
    return Operand(role, index, dtype_name(tensor.dtype), axes, renamed)


__all__ = ["Operands", "Places"]
