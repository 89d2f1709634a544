"""Run a program as a kernel on tiles in Triton's interpreter, between red zones, on poisoned results.

Takes a step program with time implied, as ``harness.forward`` does, and the layouts of its
tensors; leaves the kernel's results and those of ``step/interpret`` in fp64 on the same inputs.
"""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton.language")

from tenfuse.plan.kernel import Operand
from tenfuse.plan.tiles.kernel import TileKernel
from tenfuse.plan.tiles.partial import partial, shareable
from tenfuse.plan.tiles.slices import slices
from tenfuse.plan.tiles.tiling import tiling
from tenfuse.runtime.launch import DTYPES
from tenfuse.runtime.tiles import TileLauncher, interpreting
from tenfuse.step import interpret
from tests.emit.harness import guarded, laid_out

interpreted = pytest.mark.skipif(not interpreting(), reason="TRITON_INTERPRET=1 runs kernels without a GPU")


class Bench:
    """One program with random inputs in the memory that ``style`` says."""

    def __init__(self, program, steps, dtype="f32", compute="f32", style="plain", seed=0):
        self.program, self.steps, self.style = program, steps, style
        self.dtype, self.compute = dtype, compute
        self.gen = torch.Generator().manual_seed(seed)
        self.inits = [self._filled(c.axes, compute) for c in program.carries]
        self.xs = {i: self._filled(a, dtype, [steps]) for i, a in program.inputs("stream").items()}
        self.invariants = {i: self._scaled(a) for i, a in program.inputs("invariant").items()}

    def _shape(self, axes):
        return [self.program.sizes[a] for a in axes]

    def _filled(self, axes, dtype, lead=()):
        return laid_out([*lead, *self._shape(axes)], DTYPES[dtype], self.style, self.gen)

    def _scaled(self, axes):
        value = self._filled(axes, self.dtype)
        return value * math.prod(self._shape(axes)[:1]) ** -0.5 if len(axes) > 1 else value

    def entering(self):
        """Operands and tensors of what a kernel reads."""
        found = [("init", i, c.axes, self.inits[i], self.compute) for i, c in enumerate(self.program.carries)]
        for i, axes in self.program.inputs("stream").items():
            found.append(("stream", i, axes, self.xs[i], self.dtype))
        for i, axes in self.program.inputs("invariant").items():
            found.append(("constant", i, axes, self.invariants[i], self.dtype))
        return [(_operand(role, i, axes, x, kind), x) for role, i, axes, x, kind in found]

    def leaving(self, parts):
        """The same for what it writes, all NaN; ``parts[j]`` are dimensions in front of output j."""
        found, checks = [], []
        for i, c in enumerate(self.program.carries):
            tensor, ok = guarded(self._shape(c.axes), DTYPES[self.compute])
            found.append((_operand("final", i, c.axes, tensor, self.compute), tensor))
            checks.append(ok)
        for j, o in enumerate(self.program.outs):
            kind = self.compute if o.accumulate or parts[j][1] else self.dtype
            lead = [] if o.accumulate else [self.steps]
            shape = [*lead, *parts[j][1], *self._shape(o.axes)]
            perm = list(range(len(shape)))[::-1] if self.style == "reversed" else None
            tensor, ok = guarded(shape, DTYPES[kind], perm)
            axes = (*parts[j][0], *o.axes)
            found.append((_operand("out", j, axes, tensor, kind), tensor))
            checks.append(ok)
        return found, checks

    def run(self, reverse=False, dots="ieee"):
        """``(launcher, final carries, outputs)``."""
        program = self.program
        before = [o for o, _ in self.entering()]
        lies = tiling(program, before, (), shareable(program), dots=dots)
        cut = set(lies.split) - program.parallel_axes()
        found = partial(program, cut)
        extent = dict(lies.blocks)
        parts = [(axes, [-(-program.sizes[a] // extent[a]) for a in axes]) for axes in found.outs]
        leaving, checks = self.leaving(parts)
        both = [*self.entering(), *leaving]
        shared = tuple((j, axes) for j, axes in enumerate(found.outs) if axes)
        operands = tuple(o for o, _ in both)
        kernel = TileKernel(
            found.program, operands, lies, self.compute, descending=reverse, shared=shared, dots=dots,
            slices=slices(found.program, extent, dots),
        )  # fmt: skip
        launcher = TileLauncher(kernel)
        launcher([x for _, x in both], self.steps)
        assert all(ok() for ok in checks), "a red zone was written"
        results = [x for _, x in leaving]
        count = len(program.carries)
        outs = [self._added(x, j, parts[j][1]) for j, x in enumerate(results[count:])]
        return launcher, results[:count], outs

    def _added(self, tensor, j, parts):
        lead = 0 if self.program.outs[j].accumulate else 1
        return tensor.sum(list(range(lead, lead + len(parts)))) if parts else tensor

    def want(self, reverse=False):
        return interpret.scan(self.program, self.inits, self.xs, self.invariants, self.steps, reverse)


def _operand(role, index, axes, tensor, kind):
    unit = axes[-1] if axes and tensor.stride(-1) == 1 else None
    return Operand(role, index, kind, tuple(axes), unit)


def agree(mine, theirs, tolerance, what):
    """Equal up to ``tolerance`` of the largest entry; NaN and infinities at the same places."""
    assert mine.shape == theirs.shape, what
    mine, theirs = mine.double(), theirs.double()
    odd = ~theirs.isfinite()
    torch.testing.assert_close(mine[odd], theirs[odd], rtol=0, atol=0, equal_nan=True, msg=str(what))
    if mine[~odd].numel():
        scale = max(1.0, float(theirs[~odd].abs().max()))
        error = float((mine[~odd] - theirs[~odd]).abs().max())
        assert error <= tolerance * scale, (what, error, scale)


__all__ = ["Bench", "agree", "interpreted"]
