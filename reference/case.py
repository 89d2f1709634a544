"""``Case``: one spelling of one recurrence, ready to run at any number of steps.

Takes nothing; leaves a name, a builder and what is known about the loop.  A case is the
meaning of a model in plain eager PyTorch, and the list of cases is what the tests run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

Model = Callable[..., Any]
Built = tuple[Model, tuple[torch.Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class Case:
    """``build(steps)`` gives a module or function and its inputs; ``steps`` is the trip count.

    ``same_as`` names a case that computes the same function of the same parameters and
    inputs.  ``kind`` is "carry" (a recurrence), "map" (a loop whose steps are independent)
    or "none" (no loop over time in the source).  ``kept`` lists refusal codes that are the
    right answer for a loop beside the recurrence.
    """

    name: str
    build: Callable[[int], Built]
    same_as: str = ""
    kind: str = "carry"
    kept: tuple[str, ...] = ()

    def make(self, steps: int) -> Built:
        """The model in evaluation mode and its inputs, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(17)
            model, inputs = self.build(steps)
        return model, inputs


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Standard normal numbers times ``scale``."""
    return torch.randn(*shape) * scale


def unit(*shape: int) -> torch.Tensor:
    """Normal numbers whose last dimension has length one."""
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def gate(*shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Uniform numbers between ``low`` and ``high``."""
    return low + (high - low) * torch.rand(*shape)
