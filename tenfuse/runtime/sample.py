"""A loop's kernels held against the meaning of its step, on random tensors.

Takes a ``TilePlan`` and what the tensors of its loop look like; leaves the results of one
call of a few iterations, forward and backward, next to those of ``step.interpret`` and of
its derivative in fp64 on the CPU.  Axes that instances are spread over keep their size, so
that the kernels are the ones that will be used, but only their last entry is looked at:
elsewhere the cotangents are zero, and sums over such an axis are those of that entry.

How far the two may differ is what a relative change of every input by ``unit`` does to the
interpreter's results, and the same part of their size; times ``_ROOM``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch

from tenfuse.plan.tensors import Examples
from tenfuse.plan.tiles.plan import TilePlan
from tenfuse.runtime import tiled
from tenfuse.runtime.bind import Groups, all_sizes, grouped, sizes_of, viewed
from tenfuse.step import interpret
from tenfuse.step.axes import hint
from tenfuse.step.program import AxisName
from tenfuse.step.reader import Placed

Named = dict[tuple[str, int], torch.Tensor]
_UNITS = {"ieee": 2.0**-19, "tf32": 2.0**-10, "f16": 2.0**-10, "bf16": 2.0**-8}
"""The unit to which ``tl.dot`` rounds its operands; "ieee" is also the accuracy of functions."""
_DOUBLE = 2.0**-45
_ROOM = 2.0
_SINGLE = 16.0
"""How much further off than the root mean square a single entry may be."""
_STEADY = 64.0
"""Inputs are drawn again, from other numbers, where results move by more than so many units."""
LEADS = {"carries": 0, "streams": 1, "invariants": 0}


@dataclasses.dataclass(frozen=True)
class Like:
    """A tensor's shape, its dimensions from the outermost in memory, and its dtype."""

    shape: tuple[int, ...]
    order: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: torch.Tensor) -> Like:
        shape, strides = ([hint(n) for n in each] for each in (tensor.shape, tensor.stride()))
        order = sorted(range(len(shape)), key=lambda d: -strides[d])
        return Like(tuple(shape), tuple(order), tensor.dtype)

    def empty(self, device: torch.device, steps: int | None) -> torch.Tensor:
        shape = list(self.shape) if steps is None else [steps, *self.shape[1:]]
        packed = torch.empty([shape[d] for d in self.order], dtype=self.dtype, device=device)
        return packed.permute([self.order.index(d) for d in range(len(shape))])


@dataclasses.dataclass(frozen=True)
class Likes:
    carries: tuple[Like, ...]
    streams: tuple[Like, ...]
    invariants: tuple[Like, ...]

    @staticmethod
    def of(given: Examples) -> Likes:
        groups = (given.carries, given.streams, given.invariants)
        return Likes(*(tuple(Like.of(t) for t in group) for group in groups))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Inputs and cotangents; ``want`` is right, and ``moved`` on inputs moved a little."""

    groups: Groups
    sizes: dict[AxisName, int]
    cotangents: list[torch.Tensor]
    want: Named
    moved: Named


class Sample:
    """One plan on one device."""

    def __init__(self, plan: TilePlan, likes: Likes, device: torch.device) -> None:
        self.plan, self.base, self.likes, self.device = plan, plan.base, likes, device
        kernels = tiled.kernels(plan)
        ragged = plan.length == 1 or any(k.within >= 0 for k in kernels.values())
        self.steps = 2 * plan.length + (3 if ragged else 0)
        self.unit = self._unit()
        program = self.base.forward.program
        self.mixed = frozenset(program.sizes) - program.parallel_axes()
        tiles = {a.rstrip("'") for k in kernels.values() for a, _ in k.tiling.blocks}
        self.spread = program.parallel_axes() - tiles

    def _unit(self) -> float:
        if self.base.forward.compute == "f64":
            return _DOUBLE
        kernels, key = tiled.kernels(self.plan), self.plan.key()
        dots = [k.dots for role, k in kernels.items() if "tl.dot(" in tiled.prepare(k, key, role).source]
        return max(_UNITS[d] for d in ("ieee", *dots))

    def draw(self) -> Drawn:
        """The first inputs that the interpreter's results are steady on, or else the steadiest."""
        tried = []
        for fill in _FILLS:
            random = torch.Generator(self.device).manual_seed(7)
            groups = self._groups(functools.partial(fill, random))
            sizes = all_sizes(self.base, sizes_of(self.base, groups))
            last = self._cotangents(groups, sizes, random)
            want, moved = (self._reference(groups, sizes, last, noise) for noise in (0.0, self.unit))
            shake = max(_size(moved[k] - x) / max(_size(x), 1e-30) for k, x in want.items())
            finite = all(bool(x.isfinite().all()) for x in want.values())
            tried.append((not finite, shake, Drawn(groups, sizes, last, want, moved)))
            if finite and shake <= _STEADY * self.unit:
                break
        return min(tried, key=lambda t: t[:2])[2]

    def found(self, drawn: Drawn) -> Named:
        """What the kernels compute."""
        plan, base, key = self.plan, self.base, self.plan.key()
        groups, sizes = drawn.groups, drawn.sizes
        flat = tiled.run_forward(plan, key, groups, self.steps, base.backward is not None)
        n, m = len(groups["carries"]), len(base.exports)
        finals, exports, saves = flat[:n], flat[n : n + m], flat[n + m :]
        found = {("final", i): self._entry(finals[p.source], p, sizes, 0) for i, p in enumerate(base.carries)}
        found |= {("out", j): self._entry(exports[p.source], p, sizes, 1) for j, p in enumerate(base.outs)}
        if base.backward is not None:
            rest = iter(tiled.run_backward(plan, key, drawn.cotangents, groups, saves, self.steps))
            for name, i, place, gradient in self._gradients(lambda name, n: next(rest)):
                found[f"gradient of {name}", i] = self._entry(gradient, place, sizes, LEADS[name])
        return {k: x.cpu() for k, x in found.items()}

    def problem(self, drawn: Drawn, found: Named) -> str:
        """Where the kernels are further off than they may be, or ""."""
        floor = self.unit * max(map(_size, drawn.want.values()), default=0.0)
        for (role, index), want in drawn.want.items():
            mine, known = found[role, index], want.isfinite()
            if not mine[known].isfinite().all():
                return f"{role} {index} is not finite"
            coarse = torch.finfo(mine.dtype).eps
            limit = _ROOM * _size(drawn.moved[role, index] - want)
            limit += (_ROOM * self.unit + 2 * coarse) * _size(want) + floor
            wrong = mine[known].double() - want[known]
            off = max(_size(wrong), float(wrong.abs().amax()) / _SINGLE) if wrong.numel() else 0.0
            if off > limit:
                return f"{role} {index} is off by {off:.2g}, where {limit:.2g} is allowed"
        return ""

    # -- tensors ------------------------------------------------------------------------

    def _groups(self, fill: Callable[[torch.Tensor, int], None]) -> Groups:
        found = {}
        for name, lead in LEADS.items():
            found[name] = [like.empty(self.device, self.steps if lead else None) for like in self._like(name)]
            for n, tensor in enumerate(found[name]):
                own = {a for p in self._places(name) if p.source == n for a in p.view.axes} & self.mixed
                fill(tensor, max((self.base.forward.program.sizes[a] for a in own), default=1))
        return grouped(**found)

    def _like(self, name: str) -> tuple[Like, ...]:
        return getattr(self.likes, name)  # type: ignore[no-any-return]

    def _places(self, name: str) -> tuple[Placed, ...]:
        return getattr(self.base, name)  # type: ignore[no-any-return]

    def _entry(
        self, tensor: torch.Tensor, place: Placed, sizes: dict[AxisName, int], lead: int
    ) -> torch.Tensor:
        """The view of ``place``, at the last entry of the axes that instances are spread over."""
        found = viewed(tensor, place, sizes, lead)
        for d, axis in enumerate(place.view.axes, lead):
            if axis in self.spread:
                found = found.narrow(d, found.shape[d] - 1, 1)
        return found

    def _cotangents(
        self, groups: Groups, sizes: dict[AxisName, int], random: torch.Generator
    ) -> list[torch.Tensor]:
        """Of the final states and of the outputs."""
        if self.base.backward is None:
            return []
        finals, exports, _ = tiled.results(self.plan, groups, self.steps, False)
        for tensors, places, lead in ((finals, self.base.carries, 0), (exports, self.base.outs, 1)):
            for tensor in tensors:
                tensor.zero_()
            for place in places:
                self._entry(tensors[place.source], place, sizes, lead).normal_(generator=random)
        return [*finals, *exports]

    def _gradients(
        self, make: Callable[[str, int], torch.Tensor]
    ) -> list[tuple[str, int, Placed, torch.Tensor]]:
        """Every input that wants a gradient, with the tensor it lies in."""
        found = []
        for name in LEADS:
            wanted = getattr(self.base.wanted, name) if name != "carries" else None
            tensors = {
                n: make(name, n) for n in range(len(self._like(name))) if wanted is None or wanted[n]
            }  # fmt: skip
            for i, place in enumerate(self._places(name)):
                if place.source in tensors:
                    found.append((name, i, place, tensors[place.source]))
        return found

    # -- what is right ------------------------------------------------------------------

    def _reference(
        self, groups: Groups, sizes: dict[AxisName, int], last: Sequence[torch.Tensor], noise: float
    ) -> Named:
        base = self.base
        program = dataclasses.replace(
            base.forward.program,
            sizes={a: 1 if a in self.spread else sizes[a] for a in base.forward.program.sizes},
        )
        signs = torch.Generator().manual_seed(11)

        def leaf(name: str, place: Placed) -> torch.Tensor:
            value = self._entry(groups[name][place.source], place, sizes, LEADS[name]).cpu().double()
            sign = torch.randint(0, 2, value.shape, generator=signs) * 2 - 1
            if groups[name][place.source].dtype is not torch.bool:
                value = value * (1 + noise * sign)
            return value.requires_grad_(base.backward is not None)

        leaves = {(name, i): leaf(name, p) for name in LEADS for i, p in enumerate(self._places(name))}
        carries, outs = interpret.scan(
            program,
            [leaves["carries", i] for i in range(len(base.carries))],
            {i: leaves["streams", i] for i in range(len(base.streams))},
            {i: leaves["invariants", i] for i in range(len(base.invariants))},
            self.steps,
            base.forward.reverse,
        )
        found = {("final", i): x.detach() for i, x in enumerate(carries)}
        found |= {("out", j): x.detach() for j, x in enumerate(outs)}
        if base.backward is None:
            return found
        n = len(groups["carries"])
        weights = [self._entry(last[p.source], p, sizes, 0) for p in base.carries]
        weights += [self._entry(last[n + p.source], p, sizes, 1) for p in base.outs]
        pairs = [(x, w.cpu().double()) for x, w in zip((*carries, *outs), weights, strict=True)]
        pairs = [(x, w) for x, w in pairs if x.requires_grad]
        values, towards = [x for x, _ in pairs], [w for _, w in pairs]
        grads = torch.autograd.grad(values, list(leaves.values()), towards, materialize_grads=True)
        return found | self._gathered(dict(zip(leaves, grads, strict=True)), groups, sizes)

    def _gathered(self, grads: Named, groups: Groups, sizes: dict[AxisName, int]) -> Named:
        """Gradients as tensors hold them: a tensor that is read twice holds the sum."""

        def blank(name: str, n: int) -> torch.Tensor:
            like = groups[name][n]
            kind = torch.complex128 if like.is_complex() else torch.float64
            return torch.zeros(like.shape, dtype=kind)

        places = self._gradients(blank)
        for name, i, place, tensor in places:
            self._entry(tensor, place, sizes, LEADS[name]).add_(grads[name, i])
        return {
            (f"gradient of {name}", i): self._entry(tensor, place, sizes, LEADS[name])
            for name, i, place, tensor in places
        }


def _size(x: torch.Tensor) -> float:
    """The root mean square."""
    known = x[x.isfinite()]
    return float(known.double().square().mean().sqrt()) if known.numel() else 0.0


# -- what inputs are drawn from ---------------------------------------------------------------


def _numbers(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _filled(random: torch.Generator, tensor: torch.Tensor, fill: Callable[[torch.Tensor], object]) -> None:
    if tensor.dtype is torch.bool:
        tensor.copy_(torch.rand(tensor.shape, generator=random, device=tensor.device) < 0.5)
    else:
        fill(_numbers(tensor))


def _gated(random: torch.Generator, tensor: torch.Tensor, width: int) -> None:
    """Numbers like decays where nothing mixes, and vectors of about length one elsewhere."""
    if width == 1:
        _filled(random, tensor, lambda x: x.uniform_(0.5, 1.0, generator=random))
    else:
        _filled(random, tensor, lambda x: x.normal_(0.0, width**-0.5, generator=random))


def _positive(random: torch.Generator, tensor: torch.Tensor, width: int) -> None:
    _filled(random, tensor, lambda x: x.uniform_(0.1 / width, 0.9 / width, generator=random))


def _small(random: torch.Generator, tensor: torch.Tensor, width: int) -> None:
    _filled(random, tensor, lambda x: x.normal_(0.0, 0.1 / width, generator=random))


_FILLS = (_gated, _positive, _small)
__all__ = ["Drawn", "Likes", "Sample"]
