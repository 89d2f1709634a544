"""``tenfuse bench``: eager against compiled, alternating in one process, with the errors.

Takes a ``Target``; leaves one ``Timing`` per pass (forward, forward and backward) and the
errors against float64: a time alone says nothing.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from tenfuse.testing.equivalence import Equivalence, NotEquivalent, assert_equivalent
from tenfuse.tools.target import Target


@dataclasses.dataclass(frozen=True)
class Timing:
    """Median milliseconds, warm; ``first`` is the first call in seconds, compilation included."""

    what: str
    eager: float
    compiled: float
    first: float

    @property
    def ratio(self) -> float:
        return self.eager / self.compiled


def measure(
    target: Target, options: Mapping[str, Any], rounds: int, seconds: float, tell: Callable[[str], None]
) -> tuple[list[Timing], Equivalence]:
    tell("comparing with float64")
    try:
        errors = assert_equivalent(target.model, *target.args, kwargs=target.kwargs, options=options)
    except NotEquivalent as wrong:
        errors = wrong.result
    timings = []
    for backward in (False, True):
        torch._dynamo.reset()
        what = "forward + backward" if backward else "forward"
        tell(f"timing {what}")
        compiled = torch.compile(target.model, backend="tenfuse", options=dict(options))
        eager_call, call = _pass(target, target.model, backward), _pass(target, compiled, backward)
        if eager_call is None or call is None:
            continue
        first = _clock(call)
        timings.append(Timing(what, *_alternate(eager_call, call, rounds, seconds), first))
    return timings, errors


def _pass(target: Target, model: Callable[..., Any], backward: bool) -> Callable[[], Any] | None:
    """One forward, or forward and backward; None where nothing requires a gradient."""

    def fresh(x: Any) -> Any:
        floating = isinstance(x, torch.Tensor) and (x.is_floating_point() or x.is_complex())
        return x.detach().clone().requires_grad_(backward) if floating else x

    args, kwargs = tree_map(fresh, (target.args, dict(target.kwargs)))

    def forward() -> Any:
        with torch.no_grad():
            return model(*args, **kwargs)

    def both() -> Any:
        outs = [x for x in tree_flatten(model(*args, **kwargs))[0] if _differentiable(x)]
        torch.autograd.backward(outs, [torch.ones_like(x) for x in outs])

    if not backward:
        return forward
    with torch.enable_grad():
        results = tree_flatten(target.model(*args, **kwargs))[0]
    return both if any(_differentiable(x) for x in results) else None


def _differentiable(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.requires_grad


def _clock(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _alternate(
    eager: Callable[[], Any], compiled: Callable[[], Any], rounds: int, seconds: float
) -> tuple[float, float]:
    """Median milliseconds of both, taken in turns so that the machine's moods hit both."""
    times: tuple[list[float], list[float]] = ([], [])
    _clock(eager), _clock(compiled)
    end = time.perf_counter() + seconds
    while len(times[0]) < rounds and (not times[0] or time.perf_counter() < end):
        times[0].append(_clock(eager))
        times[1].append(_clock(compiled))
    return statistics.median(times[0]) * 1e3, statistics.median(times[1]) * 1e3
