"""The setting a kernel is launched with on this machine.

Takes a kernel and a way to launch it on the tensors of one call; leaves one of
``plan.settings``.  Where the environment says TENFUSE_TUNE=1, every setting is timed at the
first launch of a size, and what was fastest is kept beside the other notes: by the kernel's
text, the architecture, Triton's version and the size.  A later launch takes what was kept,
timing asked for or not; without either it takes the plan's.

A setting whose results differ from those of the plan's is passed over: compilers have got
single numbers of warps wrong.  Nothing is timed while a CUDA graph is recorded.
"""

from __future__ import annotations

import functools
import logging
import os
import statistics
from collections.abc import Callable, Sequence

import torch

from tenfuse.plan.tiles.kernel import TileKernel
from tenfuse.plan.tiles.settings import Setting, settings
from tenfuse.runtime import notes
from tenfuse.runtime.cache import key_of
from tenfuse.runtime.device import architecture

log = logging.getLogger("tenfuse")
_ROUNDS = 7
_ALIKE = 1e-2
"""Of their size: results may differ by the order of additions, not by more."""


def asked() -> bool:
    """Whether launches may be timed."""
    return os.environ.get("TENFUSE_TUNE") == "1"


def setting(
    kernel: TileKernel,
    source: str,
    size: tuple[int, ...],
    launch: Callable[[Setting], None],
    results: Sequence[torch.Tensor],
) -> Setting:
    """What to launch with at ``size``; ``launch`` fills ``results``, and may be called repeatedly."""
    choices = settings(kernel)
    device = results[0].device
    kinds = ",".join(o.dtype for o in kernel.operands)
    which = key_of("setting", architecture(device), source, kinds, repr(choices), repr(size))
    kept = {f"{warps} {stages}": (warps, stages) for warps, stages in choices}.get(notes.recall(which) or "")
    if kept is not None:
        return kept
    if not asked():
        return choices[0]
    best = _fastest(choices, launch, results)
    notes.keep(which, f"{best[0]} {best[1]}")
    return best


def _fastest(
    choices: Sequence[Setting], launch: Callable[[Setting], None], results: Sequence[torch.Tensor]
) -> Setting:
    launch(choices[0])
    right = [x.clone() for x in results]
    seconds = {choices[0]: _seconds(functools.partial(launch, choices[0]))}
    for other in choices[1:]:
        try:
            launch(other)
        except Exception as error:  # more than a card has, or a fault of its compiler: not this setting
            log.info("tenfuse: %d warps and %d stages do not run: %s", *other, error)
            continue
        if all(_alike(x, y) for x, y in zip(results, right, strict=True)):
            seconds[other] = _seconds(functools.partial(launch, other))
        else:
            log.warning("tenfuse: %d warps and %d stages compute something else; not used", *other)
    return min(seconds, key=lambda s: seconds[s])


def _alike(x: torch.Tensor, y: torch.Tensor) -> bool:
    known = y.isfinite()
    off = (x - y)[known].double().square().sum()
    return bool(off <= _ALIKE**2 * y[known].double().square().sum()) and bool((x.isfinite() == known).all())


def _seconds(call: Callable[[], None]) -> float:
    """The median of a few calls, by the card's clock."""
    found = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return statistics.median(found)


__all__ = ["asked", "setting"]
