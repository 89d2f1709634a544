"""The plan of one fused loop: its kernels and where their operands lie.

Takes a ``Step`` (the kernel's part of the loop over named axes) and example tensors;
leaves a ``LoopPlan``, which the runtime registers and launches.  What is planned here, a
whole loop or the core of one in chunks, is one sequential kernel; the backward is the
adjoint step over the same time in the opposite order, with the states of a chunk
recomputed from the ones saved at its border, or kept at every step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch

from tenfuse.plan.keep import cheaper_kept, keeping, reading_kept
from tenfuse.plan.kernel import Kernel, Operand
from tenfuse.plan.product import gathered, products
from tenfuse.reasons import DTYPE, refuse
from tenfuse.step.adjoint import Adjoint, Product, Summed, adjoint
from tenfuse.step.axes import hint
from tenfuse.step.program import AxisName, StepProgram, prune
from tenfuse.step.reader import Placed, View

FORMAT = 3
"""Raised whenever the outputs of the operator change for one and the same plan."""

CHUNK = 64
"""Steps between saved states unless they would not fit the cache, or the user says otherwise."""

_CACHE = 1 << 19
"""Bytes that the states of one chunk of one task may take: half of a common L2."""

_RUN, _SHORT_RUN = 64, 32
"""Entries of an axis of vectors that a task holds at least, and where there would be fewer than
``_TASKS`` tasks otherwise: such an axis is cut."""

_TASKS = 8

NAMES = {
    torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16",
    torch.bool: "bool", torch.complex64: "f32", torch.complex128: "f64",
}  # fmt: skip

Extent = int | tuple[AxisName, int]
"""A static size, or a dynamic axis times a number."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A tensor the op allocates: ``[steps, *shape]``, time after ``lead`` dimensions in memory."""

    shape: tuple[Extent, ...]
    dtype: torch.dtype
    lead: int = 0


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which tensors want a gradient."""

    carries: tuple[bool, ...]
    streams: tuple[bool, ...]
    invariants: tuple[bool, ...]

    @property
    def any(self) -> bool:
        return any((*self.carries, *self.streams, *self.invariants))


@dataclasses.dataclass(frozen=True)
class Backward:
    """The backward kernel; ``covered`` streams have every entry of their gradient written.

    ``products`` are kernels that sum, over time, the ``Product`` terms of the invariants'
    gradients: (invariant, term, kernel).
    """

    kernel: Kernel
    adjoint: Adjoint
    covered: tuple[bool, ...]
    products: tuple[tuple[int, Product, Kernel], ...] = ()


@dataclasses.dataclass(frozen=True)
class LoopPlan:
    """One fused loop.

    The sources in ``carries``, ``streams`` and ``invariants`` count the tensors given to
    the op; those in ``outs`` count ``exports``.  ``dynamic`` says where to read the size of
    a dynamic axis: (group, tensor, dimension, divisor).
    """

    carries: tuple[Placed, ...]
    streams: tuple[Placed, ...]
    invariants: tuple[Placed, ...]
    outs: tuple[Placed, ...]
    exports: tuple[Layout, ...]
    forward: Kernel
    saving: Kernel | None
    """The forward kernel that also saves states, at chunk borders (its ``checkpoint``) or
    the ``kept`` carries at every step."""
    backward: Backward | None
    wanted: Wanted
    dynamic: tuple[tuple[AxisName, tuple[str, int, int, int]], ...]
    kept: tuple[int, ...] = ()

    def key(self) -> str:
        """A name for the plan: equal plans have equal names.

        Inductor keeps compiled graphs on disk by this name, so it also says which version
        of the operator's outputs they were compiled against.
        """
        return hashlib.sha256(f"{FORMAT}:{canonical(self)}".encode()).hexdigest()[:32]


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


def unit_axis(tensor: torch.Tensor, view: View, lead: int) -> AxisName | None:
    """The axis of ``view`` along which the tensor's entries are adjacent."""
    if view.part is not None:
        return None
    for axis, (dim, step) in zip(view.axes, view.dims, strict=True):
        stride = tensor.stride(dim + lead)
        if isinstance(stride, int) and stride * step == 1:
            return axis
    return None


def dtype_name(dtype: torch.dtype) -> str:
    if dtype not in NAMES:
        raise refuse(DTYPE, f"a tensor of the loop is {dtype}")
    return NAMES[dtype]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Example tensors (fake ones will do), in the order the op takes them.

    ``streams`` have time first; ``exports`` are the example values of one step.  ``wide``
    says that the step computes in double precision somewhere.
    """

    carries: Sequence[torch.Tensor]
    streams: Sequence[torch.Tensor]
    invariants: Sequence[torch.Tensor]
    exports: Sequence[torch.Tensor]
    wide: bool = False

    @property
    def compute(self) -> str:
        """The type that a kernel computes in."""
        doubles = (NAMES.get(t.dtype) == "f64" for t in (*self.carries, *self.exports))
        return "f64" if self.wide or any(doubles) else "f32"


def plan(
    program: StepProgram,
    places: tuple[tuple[Placed, ...], tuple[Placed, ...], tuple[Placed, ...], tuple[Placed, ...]],
    examples: Examples,
    wanted: Wanted,
    reverse: bool,
    chunk: int | None = None,
) -> LoopPlan:
    """Kernels and layouts for one loop.

    ``places`` are those of carries, streams, invariants and outputs, with sources already
    turned into positions in ``examples``.  ``chunk`` is derived from the sizes when None.
    """
    carries, streams, invariants, outs = places
    compute = examples.compute
    lead = _memory_lead(examples.streams)
    exports = tuple(
        Layout(_extents(t, [p for p in outs if p.source == i], program), t.dtype, min(lead, t.dim()))
        for i, t in enumerate(examples.exports)
    )
    operands = _Operands(program, places, examples, exports, compute)
    forward = Kernel(program, operands.forward(False), compute, reverse)
    kept: tuple[int, ...] = ()
    saving, backward = None, None
    if wanted.any:
        back = gathered(
            adjoint(
                program,
                [i for i, p in enumerate(streams) if wanted.streams[p.source]],
                [i for i, p in enumerate(invariants) if wanted.invariants[p.source]],
            )
        )
        saving = forward
        if chunk is None and cheaper_kept(program, back):
            kept = tuple(back.program.inputs("state"))
            saving = operands.keeping(kept, reverse)
            kernel = operands.backward_kept(back, kept, reverse)
        else:
            chunk = chunk or _chunk(program, back, 8 if compute == "f64" else 4)
            kernel = operands.backward(back, reverse, chunk)
            if back.needs_states:
                saving = Kernel(program, operands.forward(True), compute, reverse, chunk)
        covered = tuple(
            sum(_numel(program, p) for p in streams if p.source == i)
            >= _step_numel(t) * (2 if t.is_complex() else 1)
            for i, t in enumerate(examples.streams)
        )
        backward = Backward(kernel, back, covered, products(back, kernel))
    return LoopPlan(
        carries, streams, invariants, outs, exports, forward, saving, backward, wanted,
        _dynamic(program, carries, streams, invariants), kept,
    )  # fmt: skip


def _chunk(program: StepProgram, back: Adjoint, itemsize: int) -> int:
    """Steps whose states stay in the cache while the adjoint walks them, from 16 to 64.

    A task holds one entry of an axis that nothing sums over, and a run of entries of one that
    only gradients are summed over: of the largest alone, where such tasks are few.
    """
    alone = back.program.parallel_axes()
    summed = prune(dataclasses.replace(back.program, outs=())).parallel_axes() - alone
    held = {a: min(n, _RUN) if a in summed else n for a, n in program.sizes.items()}
    ours = sorted(a for a in summed if a in program.sizes)  # the adjoint has axes of its own
    if ours and math.prod(program.sizes[a] for a in alone if a in program.sizes) < _TASKS:
        largest = max(ours, key=lambda a: program.sizes[a])
        held = {**program.sizes, largest: min(program.sizes[largest], _SHORT_RUN)}
    state = sum(math.prod(held[a] for a in c.axes if a not in alone) for c in program.carries)
    fits = _CACHE // max(state * itemsize, 1)
    return min(CHUNK, max(16, 1 << (fits.bit_length() - 1) if fits else 16))


def _step_numel(stream: torch.Tensor) -> int:
    return math.prod(hint(s) for s in stream.shape[1:])


def _numel(program: StepProgram, place: Placed) -> int:
    return math.prod(program.sizes[a] for a in place.view.axes)


def _memory_lead(streams: Sequence[torch.Tensor]) -> int:
    """How many dimensions stand outside time in the largest stream's memory."""
    if not streams:
        return 0
    big = max(streams, key=lambda t: math.prod(hint(s) for s in t.shape))
    return sum(
        hint(s) > hint(big.stride(0))
        for s, n in zip(big.stride()[1:], big.shape[1:], strict=True)
        if hint(n) > 1
    )


def _extents(tensor: torch.Tensor, places: list[Placed], program: StepProgram) -> tuple[Extent, ...]:
    found: list[Extent] = []
    for d, size in enumerate(tensor.shape):
        if isinstance(size, int):
            found.append(size)
            continue
        view = places[0].view
        axis, (_, unit) = next(
            (a, p) for a, p in zip(view.axes, view.dims, strict=True) if p[0] == d and a in program.dynamic
        )
        found.append((axis, unit))
    return tuple(found)


def _dynamic(
    program: StepProgram, *groups: tuple[Placed, ...]
) -> tuple[tuple[AxisName, tuple[str, int, int, int]], ...]:
    found: dict[AxisName, tuple[str, int, int, int]] = {}
    for name, places in zip(("carries", "streams", "invariants"), groups, strict=True):
        for place in places:
            for axis, (dim, unit) in zip(place.view.axes, place.view.dims, strict=True):
                if axis in program.dynamic:
                    found.setdefault(axis, (name, place.source, dim, unit))
    return tuple(sorted(found.items()))


class _Operands:
    """The operand lists of the kernels of one loop."""

    def __init__(
        self, program: StepProgram, places: Any, examples: Examples, exports: tuple[Layout, ...], compute: str
    ) -> None:
        self.program, self.examples, self.compute = program, examples, compute
        self.carries, self.streams, self.invariants, self.outs = places
        self.exports = exports

    def _entering(self, role: str, kind: str, programs: Sequence[StepProgram], count: int) -> list[Operand]:
        """Streams or invariants that any of the programs reads, below ``count``."""
        places = self.streams if kind == "stream" else self.invariants
        tensors = self.examples.streams if kind == "stream" else self.examples.invariants
        axes: dict[int, tuple[AxisName, ...]] = {}
        for one in programs:
            for i, names in one.inputs(kind).items():
                axes.setdefault(i, names)
        lead = 1 if kind == "stream" else 0
        return [
            Operand(
                role,
                i,
                dtype_name(tensors[places[i].source].dtype),
                names,
                self._renamed(unit_axis(tensors[places[i].source], places[i].view, lead), places[i], names),
            )
            for i, names in sorted(axes.items())
            if i < count
        ]

    @staticmethod
    def _renamed(unit: AxisName | None, place: Placed, names: tuple[AxisName, ...]) -> AxisName | None:
        return None if unit is None else names[place.view.axes.index(unit)]

    def _export_unit(self, j: int) -> AxisName | None:
        """The last dimension is adjacent in memory unless time is."""
        place, layout = self.outs[j], self.exports[self.outs[j].source]
        if place.view.part is not None or layout.lead >= len(layout.shape):
            return None
        last = len(layout.shape) - 1
        return next(
            (a for a, p in zip(place.view.axes, place.view.dims, strict=True) if p == (last, 1)), None
        )

    def _carry_unit(self, i: int, axes: tuple[AxisName, ...]) -> AxisName | None:
        """Of a contiguous tensor shaped like carry ``i``."""
        place = self.carries[i]
        last = self.examples.carries[place.source].dim() - 1
        found = [a for a, p in zip(axes, place.view.dims, strict=True) if p == (last, 1)]
        return found[0] if found and place.view.part is None else None

    def forward(self, save: bool) -> tuple[Operand, ...]:
        program = self.program
        found: list[Operand] = []
        for i, carry in enumerate(program.carries):
            tensor = self.examples.carries[self.carries[i].source]
            unit = unit_axis(tensor, self.carries[i].view, 0)
            found.append(
                Operand(
                    "init",
                    i,
                    dtype_name(tensor.dtype),
                    carry.axes,
                    self._renamed(unit, self.carries[i], carry.axes),
                )
            )
        found += self._entering("stream", "stream", [program], len(self.streams))
        found += self._entering("constant", "invariant", [program], len(self.invariants))
        for i, carry in enumerate(program.carries):
            tensor = self.examples.carries[self.carries[i].source]
            found.append(
                Operand("final", i, dtype_name(tensor.dtype), carry.axes, self._carry_unit(i, carry.axes))
            )
        for j, out in enumerate(program.outs):
            layout = self.exports[self.outs[j].source]
            found.append(Operand("out", j, dtype_name(layout.dtype), out.axes, self._export_unit(j)))
        if save:
            found += self._saves()
        return tuple(found)

    def keeping(self, kept: tuple[int, ...], reverse: bool) -> Kernel:
        """The forward kernel that writes the ``kept`` carries as they are before every step."""
        program, count = keeping(self.program, kept), len(self.program.outs)
        states = [self._state("out", count + n, i) for n, i in enumerate(kept)]
        return Kernel(program, (*self.forward(False), *states), self.compute, reverse)

    def _state(self, role: str, index: int, carry: int) -> Operand:
        axes = self.program.carries[carry].axes
        return Operand(role, index, self.compute, axes, axes[-1] if axes else None)

    def backward_kept(self, back: Adjoint, kept: tuple[int, ...], reverse: bool) -> Kernel:
        """The adjoint kernel that reads the ``kept`` carries as streams."""
        first = len(self.streams) + len(self.outs)
        program = reading_kept(back.program, {i: first + n for n, i in enumerate(kept)})
        whole = self.backward(dataclasses.replace(back, program=program), reverse, 0)
        states = [self._state("stream", first + n, i) for n, i in enumerate(kept)]
        return dataclasses.replace(whole, operands=(*whole.operands, *states))

    def _saves(self) -> list[Operand]:
        return [
            Operand("save", i, self.compute, c.axes, c.axes[-1] if c.axes else None)
            for i, c in enumerate(self.program.carries)
        ]

    def backward(self, back: Adjoint, reverse: bool, chunk: int) -> Kernel:
        program = back.program
        recompute = prune(dataclasses.replace(self.program, outs=())) if back.needs_states else None
        both = [p for p in (program, recompute) if p is not None]
        count = len(self.streams)
        found: list[Operand] = []
        for i, carry in enumerate(program.carries):
            tensor = self.examples.carries[self.carries[i].source]
            found.append(
                Operand("init", i, dtype_name(tensor.dtype), carry.axes, self._carry_unit(i, carry.axes))
            )
        found += self._entering("stream", "stream", both, count)
        for i, names in program.inputs("stream").items():
            if count <= i < count + len(self.outs):
                layout = self.exports[self.outs[i - count].source]
                unit = self._renamed(self._export_unit(i - count), self.outs[i - count], names)
                found.append(Operand("stream", i, dtype_name(layout.dtype), names, unit))
        found += self._entering("constant", "invariant", both, len(self.invariants))
        if recompute is not None:
            found += self._saves()
        for i, carry in enumerate(program.carries):
            tensor = self.examples.carries[self.carries[i].source]
            found.append(
                Operand(
                    "final",
                    i,
                    dtype_name(tensor.dtype),
                    carry.next_axes,
                    self._carry_unit(i, carry.next_axes),
                )
            )
        found += self._gradients(back)
        if recompute is None:
            return Kernel(program, tuple(found), self.compute, not reverse)
        return Kernel(program, tuple(found), self.compute, reverse, chunk, recompute)

    def _gradients(self, back: Adjoint) -> list[Operand]:
        found = []
        source = {out: i for i, out in back.streams.items()}
        for k, out in enumerate(back.program.outs):
            if k in source:
                place = self.streams[source[k]]
                tensor = self.examples.streams[place.source]
                unit = self._renamed(unit_axis(dense_like(tensor), place.view, 1), place, out.axes)
                found.append(Operand("out", k, dtype_name(tensor.dtype), out.axes, unit))
            else:
                found.append(Operand("out", k, self.compute, out.axes, out.axes[-1] if out.axes else None))
        return found


def dense_like(tensor: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the same shape, its dimensions in the same order in memory."""
    return torch.empty_like(tensor, memory_format=torch.preserve_format)


__all__ = ["CHUNK", "Examples", "Layout", "LoopPlan", "Product", "Summed", "Wanted", "dense_like", "plan"]
