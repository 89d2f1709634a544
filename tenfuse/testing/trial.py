"""One model and one set of inputs, run again and again from the same start.

Takes a model and inputs; leaves a ``Run``: outputs, every gradient, and whatever was
written in place, by name.  The model and the inputs themselves are never touched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from tenfuse.testing.precision import COMPLEX, REAL, Copier, Precision


@dataclasses.dataclass(frozen=True)
class Run:
    """What one call left: values by name, and the shape of the result around them."""

    values: dict[str, Any]
    structure: str
    differentiable: tuple[bool, ...]
    """Which outputs require a gradient."""


class Trial:
    """One model and one set of inputs, run again and again from the same start."""

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: tuple[Any, ...],
        kwargs: dict[str, Any],
        grad: bool,
        seed: int,
    ) -> None:
        self.model, self.inputs, self.kwargs, self.seed = model, inputs, kwargs, seed
        self.grad = grad and torch.is_grad_enabled()
        self.own = self._own_dtype()
        self.mutated: set[int] = set()
        self.eager = self._first()

    def _first(self) -> Run:
        """The eager run; inputs it writes into in place are found first, and enter as copies."""
        leaves = [x for x in tree_flatten((self.inputs, self.kwargs))[0] if isinstance(x, torch.Tensor)]
        copier = Copier()
        model = copier.module(self.model)
        inputs, kwargs = tree_map(copier, (self.inputs, self.kwargs))
        versions = [copier(x)._version for x in leaves]
        with torch.no_grad():
            self._call(model, inputs, kwargs)
        self.mutated = {id(x) for x, v in zip(leaves, versions, strict=True) if copier(x)._version != v}
        return self.run()

    def _own_dtype(self) -> torch.dtype:
        """The narrowest real precision among the inputs and parameters."""
        every = [x for x in tree_flatten((self.inputs, self.kwargs))[0] if isinstance(x, torch.Tensor)]
        if isinstance(self.model, torch.nn.Module):
            every += [*self.model.parameters(), *self.model.buffers()]
        found = {COMPLEX.get(x.dtype, x.dtype) for x in every}
        return next((d for d in (torch.bfloat16, *REAL) if d in found), torch.get_default_dtype())

    def run(
        self,
        target: torch.dtype | None = None,
        noise: float = 0.0,
        seed: int = 0,
        compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> Run:
        copier = Copier(target, noise, seed)
        model = copier.module(self.model)
        leaves: dict[str, torch.Tensor] = {}
        inputs, kwargs = self._enter(copier, leaves)
        if isinstance(model, torch.nn.Module):
            leaves |= {n: p for n, p in model.named_parameters() if p.requires_grad}
        call = model if compiler is None else compiler(model)
        if target is None:
            found = self._call(call, inputs, kwargs)
            return self._collect(model, inputs, kwargs, found, leaves)
        default = torch.get_default_dtype()
        torch.set_default_dtype(target)
        try:
            with Precision(target, self.own):
                found = self._call(call, inputs, kwargs)
                return self._collect(model, inputs, kwargs, found, leaves)
        finally:
            torch.set_default_dtype(default)

    def _enter(self, copier: Copier, leaves: dict[str, torch.Tensor]) -> Any:
        """Copies of the inputs, floating ones as leaves whose gradient is asked for."""

        def one(x: Any) -> Any:
            new = copier(x)
            if not (self.grad and isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())):
                return new
            if id(x) in self.mutated and not new.is_contiguous():
                return new
            if not new.requires_grad:
                new.requires_grad_()
            leaves.setdefault(f"input {len(leaves)}", new)
            return new.clone() if id(x) in self.mutated else new

        done: dict[int, Any] = {}

        def once(x: Any) -> Any:
            if id(x) not in done:
                done[id(x)] = one(x)
            return done[id(x)]

        return tree_map(once, (self.inputs, self.kwargs))

    def _call(self, model: Callable[..., Any], inputs: Any, kwargs: Any) -> Any:
        torch.manual_seed(self.seed)
        return model(*inputs, **kwargs)

    def _collect(
        self, model: Any, inputs: Any, kwargs: Any, found: Any, leaves: dict[str, torch.Tensor]
    ) -> Run:
        flat, structure = tree_flatten(found)
        values = {f"output {i}" if len(flat) > 1 else "output": x for i, x in enumerate(flat)}
        values |= self._gradients(flat, leaves)
        entered = [x for x in tree_flatten((inputs, kwargs))[0]]
        given = tree_flatten((self.inputs, self.kwargs))[0]
        values |= {f"input {i} afterwards": x for i, x in enumerate(entered) if id(given[i]) in self.mutated}
        if isinstance(model, torch.nn.Module):
            values |= {f"{name} afterwards": b for name, b in model.named_buffers()}
        aliases = [
            (i, j) for i, out in enumerate(flat) for j, x in enumerate(entered)
            if isinstance(out, torch.Tensor) and isinstance(x, torch.Tensor) and _same_storage(out, x)
        ]  # fmt: skip
        kinds = [_kind(x) for x in flat]
        differentiable = tuple(isinstance(x, torch.Tensor) and x.requires_grad for x in flat)
        shared = f"outputs sharing memory with inputs: {aliases}"
        return Run(values, f"{structure}; {kinds}; {shared}", differentiable)

    def _gradients(self, flat: list[Any], leaves: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Of the weighted sum of all outputs; zero where nothing leads back to a leaf."""
        if not self.grad:
            return {}
        seeds = {i: x for i, x in enumerate(flat) if isinstance(x, torch.Tensor) and x.requires_grad}
        grads: tuple[torch.Tensor | None, ...] = (None,) * len(leaves)
        if seeds and leaves:
            weights = [_weights(x, i) for i, x in seeds.items()]
            grads = torch.autograd.grad(
                list(seeds.values()), list(leaves.values()), weights, allow_unused=True
            )
        return {
            f"grad of {name}": torch.zeros_like(x) if g is None else g
            for (name, x), g in zip(leaves.items(), grads, strict=True)
        }


def _kind(x: Any) -> str:
    if not isinstance(x, torch.Tensor):
        return type(x).__name__
    return f"{tuple(x.shape)} on {x.device}"


def _weights(x: torch.Tensor, i: int) -> torch.Tensor:
    """A cotangent that is the same in every precision: multiples of 1/8 are exact in all."""
    random = torch.Generator().manual_seed(1000 + i)
    values = torch.randint(-16, 17, x.shape, generator=random).double() / 8
    return values.to(device=x.device, dtype=x.dtype)


def _same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    mine, theirs = a.untyped_storage().data_ptr(), b.untyped_storage().data_ptr()
    return mine == theirs and mine != 0
