"""The rule by which a compiled value is right, applied to one value after the other.

Takes the runs of one ``Trial``; leaves one ``Row`` of figures per tensor.  The rule is
stated in ``equivalence``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from tenfuse.testing.trial import Run, Trial

RATIO, LARGEST, FEW = 4.0, 8.0, 64
_SAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared tensor; errors are against float64, ``limit`` bounds ``compiled``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    eager: float
    compiled: float
    limit: float
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


def compare(trial: Trial, compiled: Run) -> tuple[Row, ...]:
    if compiled.structure != trial.eager.structure:
        problem = f"the result is {compiled.structure} instead of {trial.eager.structure}"
        return (Row("structure", "", (), 0.0, math.inf, 0.0, problem),)
    pairs = zip(trial.eager.differentiable, compiled.differentiable, strict=True)
    cut = [i for i, (wanted, found) in enumerate(pairs) if wanted and not found]
    if cut:
        return (Row("structure", "", (), 0.0, math.inf, 0.0, f"no gradient instead of one at outputs {cut}"),)
    oracle = trial.run(torch.float64)
    judge = Judge(trial, oracle)
    return tuple(
        judge.row(name, value, compiled.values[name])
        for name, value in trial.eager.values.items()
        if name in compiled.values
    ) + tuple(
        Row(name, "", (), 0.0, math.inf, 0.0, "missing in one of the two")
        for name in sorted(trial.eager.values.keys() ^ compiled.values.keys())
    )


class Judge:
    """Applies the rule to one value after the other."""

    def __init__(self, trial: Trial, oracle: Run) -> None:
        self.trial, self.oracle = trial, oracle
        self._narrow: Run | None = None
        self._shaken: list[Run] = []

    def row(self, name: str, eager: Any, compiled: Any) -> Row:
        if not isinstance(eager, torch.Tensor):
            return _plain(name, eager, compiled)
        dtype, shape = str(eager.dtype).removeprefix("torch."), tuple(eager.shape)
        if (compiled.dtype, tuple(compiled.shape)) != (eager.dtype, shape):
            problem = f"{compiled.dtype} {list(compiled.shape)} instead of {eager.dtype} {list(shape)}"
            return Row(name, dtype, shape, 0.0, math.inf, 0.0, problem)
        if not (eager.is_floating_point() or eager.is_complex()):
            wrong = int((eager != compiled).sum())
            return Row(name, dtype, shape, 0.0, float(wrong), 0.0, f"{wrong} entries differ" if wrong else "")
        e, c, r = _double(eager), _double(compiled), _double(self.oracle.values[name])
        misplaced = int((_odd(e) != _odd(c)).sum())
        if misplaced:
            return Row(name, dtype, shape, 0.0, math.inf, 0.0, f"{misplaced} NaN or infinity misplaced")
        return self._figures(name, eager, e, c, r)

    def _figures(
        self, name: str, like: torch.Tensor, e: torch.Tensor, c: torch.Tensor, r: torch.Tensor
    ) -> Row:
        dtype, shape = str(like.dtype).removeprefix("torch."), tuple(like.shape)
        finite = e.isfinite() & r.isfinite()
        e, c, r = e[finite], c[finite], r[finite]
        unit = torch.finfo(like.dtype).eps
        mine, worst = _rms(c - r), _max(c - r)
        theirs, largest = self._eager_error(name, e, r, finite, like.dtype)
        limit = RATIO * theirs + 4 * unit * _rms(r)
        bound = LARGEST * largest + 4 * unit * _max(r)
        if r.numel() < FEW and (mine > limit or worst > bound):
            luck = self._sensitivity(name, r, finite, unit)
            limit, bound = max(limit, RATIO * luck), max(bound, LARGEST * luck)
        problem = ""
        if mine > limit:
            problem = f"RMSE {mine / max(limit, 1e-300):.3g} times the limit"
        elif worst > bound:
            problem = f"one entry is off by {worst:.2e}, allowed {bound:.2e}"
        return Row(name, dtype, shape, theirs, mine, limit, problem)

    def _eager_error(
        self, name: str, e: torch.Tensor, r: torch.Tensor, finite: torch.Tensor, dtype: torch.dtype
    ) -> tuple[float, float]:
        own = _rms(e - r), _max(e - r)
        if self.trial.own != torch.float64 or dtype not in (torch.float64, torch.complex128):
            return own
        if self._narrow is None:
            self._narrow = self.trial.run(torch.float32)
        scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        n = _double(self._narrow.values[name])[finite]
        keep = n.isfinite()
        narrow = (n - r)[keep]
        return max(own[0], _rms(narrow) * scale), max(own[1], _max(narrow) * scale)

    def _sensitivity(self, name: str, r: torch.Tensor, finite: torch.Tensor, unit: float) -> float:
        """How far the value moves when every input and parameter moves by one unit."""
        if not self._shaken:
            noise = self._grain()
            self._shaken = [self.trial.run(torch.float64, noise, seed) for seed in range(_SAMPLES)]
        moved = [_double(run.values[name])[finite] - r for run in self._shaken]
        return math.sqrt(sum(_rms(m[m.isfinite()]) ** 2 for m in moved) / len(moved))

    def _grain(self) -> float:
        """The unit in which eager computes: float32's where a float64 model casts down inside."""
        unit, single = (torch.finfo(d).eps for d in (self.trial.own, torch.float32))
        pairs = ((e, self.oracle.values[name]) for name, e in self.trial.eager.values.items())
        errors = [
            _rms(_double(e) - _double(r)) / max(_rms(_double(r)), 1e-300) for e, r in pairs
            if isinstance(e, torch.Tensor) and (e.is_floating_point() or e.is_complex()) and e.numel()
        ]  # fmt: skip
        return max(unit, single) if max(errors, default=0.0) > single / 64 else unit


def _plain(name: str, eager: Any, compiled: Any) -> Row:
    if isinstance(eager, float) and isinstance(compiled, float):
        same = eager == compiled or math.isclose(eager, compiled, rel_tol=1e-5) or eager != eager != compiled
    else:
        same = type(eager) is type(compiled) and eager == compiled
    problem = "" if same else f"{compiled!r} instead of {eager!r}"
    return Row(name, type(eager).__name__, (), 0.0, 0.0 if same else math.inf, 0.0, problem)


def _double(x: torch.Tensor) -> torch.Tensor:
    x = x.detach()
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    return x.to("cpu", torch.float64).flatten()


def _odd(x: torch.Tensor) -> torch.Tensor:
    """0 for finite entries, and a different number each for NaN and the infinities."""
    return x.isnan() * 1 + x.isposinf() * 2 + x.isneginf() * 3


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


def _max(x: torch.Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0
