"""Running a model in another precision: the float64 oracle of a float32 model.

Takes tensors, modules and a call; leaves the same call carried out in ``target``
precision whatever casts and factory calls the model writes, with the same random numbers.
Refuses nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPLEX = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}
_WIDE = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def cast(dtype: torch.dtype, target: torch.dtype) -> torch.dtype:
    """``dtype`` with its precision replaced by ``target``; integers and bools stay."""
    if dtype in REAL:
        return target
    return _WIDE[target] if dtype in COMPLEX else dtype


class Copier:
    """Copies tensors into ``target`` precision (None: as they are), keeping who aliases whom."""

    def __init__(self, target: torch.dtype | None = None, noise: float = 0.0, seed: int = 0) -> None:
        self.target = target
        self.noise = noise
        self.random = torch.Generator().manual_seed(seed)
        self.flat: dict[tuple[int, torch.dtype], torch.Tensor] = {}
        self.done: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return copy.deepcopy(x)
        if id(x) not in self.done:
            self.done[id(x)] = (x, self._copy(x))
        return self.done[id(x)][1]

    def _copy(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            new = self._flat(x).as_strided(x.shape, x.stride(), x.storage_offset())
        return new.requires_grad_(x.requires_grad)

    def _flat(self, x: torch.Tensor) -> torch.Tensor:
        """The whole storage behind ``x``, copied once for all its views."""
        storage = x.untyped_storage()
        key = (storage.data_ptr() or id(x), x.dtype)
        if key not in self.flat:
            count = storage.nbytes() // x.element_size()
            whole = torch.empty(0, dtype=x.dtype, device=x.device).set_(storage, 0, (count,), (1,)).detach()
            new = whole.to(cast(x.dtype, self.target) if self.target else x.dtype, copy=True)
            if self.noise and (new.is_floating_point() or new.is_complex()):
                sign = torch.randint(0, 2, new.shape, generator=self.random) * 2 - 1
                new *= 1 + self.noise * sign.to(new.device)
            self.flat[key] = new
        return self.flat[key]

    def module(self, model: Any) -> Any:
        """A deep copy of a module with its parameters and buffers copied; functions stay."""
        if not isinstance(model, torch.nn.Module):
            return model
        memo: dict[int, Any] = {}
        for tensor in [*model.parameters(), *model.buffers()]:
            new = self(tensor)
            if isinstance(tensor, torch.nn.Parameter):
                new = torch.nn.Parameter(new.detach(), requires_grad=tensor.requires_grad)
            memo[id(tensor)] = new
            self.done[id(tensor)] = (tensor, new)
        return copy.deepcopy(model, memo)


class Precision(TorchDispatchMode):
    """Inside, every floating dtype that the model names means ``target``.

    Random numbers are drawn in the dtype the model asked for and then converted, so that
    the oracle sees the same noise and the same dropout masks.
    """

    def __init__(self, target: torch.dtype, own: torch.dtype) -> None:
        super().__init__()
        self.target, self.own = target, own

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded in func.tags and self.target != self.own:
            return self._draw(func, args, kwargs)
        return func(*tree_map(self._dtype, args), **tree_map(self._dtype, kwargs))

    def _dtype(self, value: Any) -> Any:
        return cast(value, self.target) if isinstance(value, torch.dtype) else value

    def _to(self, value: Any, target: torch.dtype) -> Any:
        return value.to(cast(value.dtype, target)) if isinstance(value, torch.Tensor) else value

    def _draw(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        down = tree_map(lambda v: self._to(v, self.own), args)
        found = func(*down, **tree_map(lambda v: self._to(v, self.own), kwargs))
        if func._schema.is_mutable:
            args[0].copy_(found)
            return args[0]
        return tree_map(lambda v: self._to(v, self.target), found)
