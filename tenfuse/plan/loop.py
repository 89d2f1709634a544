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

import torch

from tenfuse.plan.canonical import canonical
from tenfuse.plan.keep import cheaper_kept, cheaper_sums, sum_axes
from tenfuse.plan.kernel import Kernel
from tenfuse.plan.operands import Operands, Places
from tenfuse.plan.product import gathered, products
from tenfuse.plan.tensors import Examples, Extent, Layout
from tenfuse.step.adjoint import Adjoint, Product, adjoint
from tenfuse.step.axes import hint
from tenfuse.step.program import AxisName, Ref, StepProgram, prune
from tenfuse.step.reader import Placed

FORMAT = 4
"""Raised whenever the outputs of the operator change for one and the same plan."""

CHUNK = 64
"""Steps between saved states unless they would not fit the cache, or the user says otherwise."""

_CACHE = 1 << 19
"""Bytes that the states of one chunk of one task may take: half of a common L2."""

_RUN, _SHORT_RUN = 64, 32
"""Entries of an axis of vectors that a task holds at least, and where there would be fewer than
``_TASKS`` tasks otherwise: such an axis is cut."""

_TASKS = 8


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

    ``products`` are the ``Product`` terms of the invariants' gradients, summed over time by a kernel
    or, where that is None, by the matrix library: (invariant, term, kernel).
    """

    kernel: Kernel
    adjoint: Adjoint
    covered: tuple[bool, ...]
    products: tuple[tuple[int, Product, Kernel | None], ...] = ()


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
    the ``kept`` carries, and sums, at every step."""
    backward: Backward | None
    wanted: Wanted
    dynamic: tuple[tuple[AxisName, tuple[str, int, int, int]], ...]
    kept: tuple[int, ...] = ()
    sums: tuple[tuple[AxisName, ...], ...] = ()
    """The axes of the sums that are kept at every step beside the carries."""

    def key(self) -> str:
        """A name for the plan: equal plans have equal names.

        Inductor keeps compiled graphs on disk by this name, so it also says which version
        of the operator's outputs they were compiled against.
        """
        return hashlib.sha256(f"{FORMAT}:{canonical(self)}".encode()).hexdigest()[:32]


def plan(
    program: StepProgram,
    places: Places,
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
    operands = Operands(program, places, examples, exports)
    forward = Kernel(program, operands.forward(False), compute, reverse)
    kept: tuple[int, ...] = ()
    sums: tuple[Ref, ...] = ()
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
            kernel = operands.backward_kept(back, kept, (), reverse)
            sums = cheaper_sums(program, back)
            reading = operands.backward_kept(back, kept, sums, reverse)
            # An axis that nothing sums over any more would be one to run tasks along, all of them alike.
            if reading.program.parallel_axes() <= kernel.program.parallel_axes():
                kernel = reading
            else:
                sums = ()
            saving = operands.keeping(kept, sums, reverse)
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
        _dynamic(program, carries, streams, invariants), kept, tuple(sum_axes(program, sums)),
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


__all__ = ["CHUNK", "FORMAT", "Backward", "LoopPlan", "Wanted", "plan"]
