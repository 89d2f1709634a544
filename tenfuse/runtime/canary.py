"""The first use of a plan on a device: is what its kernels compute right?

Takes a ``TilePlan`` and example tensors; leaves a ``Verdict``: whether its kernels, compiled
for the device at hand, agree with the interpreter (``sample``), and how much each puts away
for lack of registers.  Compilers for cards have turned right kernels into wrong ones at
single tile widths or numbers of warps, so no kernel is trusted for having been generated rightly.

A plan whose kernels are wrong or do not compile is refused (QUARANTINED) in its verdict, and one
that nobody has tried yet while a CUDA graph is recorded, when nothing can be.  The verdict is
kept, by the kernels' text, the device's architecture and Triton's version, so that no process
asks again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
from collections.abc import Iterator

import torch
from torch._dynamo.utils import counters

from tenfuse.plan.canonical import canonical
from tenfuse.plan.tensors import Examples
from tenfuse.plan.tiles.plan import TilePlan
from tenfuse.plan.tiles.settle import Verdict
from tenfuse.reasons import QUARANTINED, Refused, refuse
from tenfuse.runtime import notes, tiled
from tenfuse.runtime.bind import launches, register
from tenfuse.runtime.cache import key_of
from tenfuse.runtime.device import architecture, recording
from tenfuse.runtime.sample import Likes, Sample
from tenfuse.runtime.tiles import interpreting

log = logging.getLogger("tenfuse")
INTERPRETED = False
"""Whether kernels that Triton's interpreter runs are tried too: only tests want that."""
_SOUND, _UNKNOWN = "sound", "?"
_known: dict[str, str] = {}
_sound: dict[str, str] = {}
"""Where the plans with these keys were found sound."""


def trial(plan: TilePlan, given: Examples) -> Verdict:
    """Whether the kernels of ``plan`` may be used where ``given`` lie, and what compilers said of them."""
    device = (*given.carries, *given.streams)[0].device
    if interpreting() and not INTERPRETED:
        return Verdict()
    arch, key = architecture(device), plan.key()
    texts = [tiled.prepare(k, key, role).source for role, k in tiled.kernels(plan).items()]
    which = key_of("canary 2", arch, canonical(plan), *texts)
    note = _known.get(which) or notes.recall(which)
    if note is None:
        if recording():
            reason = f"{_name(plan)} was not tried before a CUDA graph was recorded"
            return Verdict(refused=refuse(QUARANTINED, reason))
        problem = _tried(plan, Likes.of(given), device)
        if problem is None:
            return Verdict()
        note = f"{_compiled(plan)}\n{problem}"
        notes.keep(which, note)
        if problem != _SOUND:
            log.warning("tenfuse: %s on %s, quarantined: %s", _name(plan), arch, problem)
    _known[which] = note
    numbers, _, problem = note.partition("\n")
    said = zip(tiled.kernels(plan).values(), numbers.split(), strict=True)
    known = {kernel.key: float(spilled) for kernel, spilled in said if spilled != _UNKNOWN}
    if problem != _SOUND:
        reason = f"{_name(plan)} failed its check on {arch}: {problem}"
        return Verdict(known, refuse(QUARANTINED, reason))
    _sound[key] = arch
    return Verdict(known)


def evidence(key: str) -> tuple[str, ...]:
    """What the report says of the plan with this key."""
    if key not in _sound:
        return ()
    return (f"on random inputs the kernels compute what the step means in fp64, on {_sound[key]}",)


def _compiled(plan: TilePlan) -> str:
    """What every kernel puts away."""
    made = [tiled.prepare(kernel, plan.key(), role) for role, kernel in tiled.kernels(plan).items()]
    return " ".join(_UNKNOWN if x.spilled is None else str(x.spilled) for x in made)


def _name(plan: TilePlan) -> str:
    return f"the kernel of loop {plan.key()[:12]} ({plan.length} steps at a time)"


def _tried(plan: TilePlan, likes: Likes, device: torch.device) -> str | None:
    """What is wrong with the kernels, "sound", or None where there was no memory to find out."""
    register(plan)
    # A thread of its own is in none of the modes (fake tensors, autocast, no_grad) of the compiler's.
    with _uncounted(), concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(_verdict, Sample(plan, likes, device)).result()


def _verdict(sample: Sample) -> str | None:
    try:
        drawn = sample.draw()
    except torch.OutOfMemoryError:
        return None
    try:
        found = sample.found(drawn)
    except torch.OutOfMemoryError:
        return None
    except Refused as refused:
        return refused.refusal.reason
    except Exception as error:  # whatever a compiler for the device raises: there is no kernel then
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return sample.problem(drawn, found) or _SOUND


@contextlib.contextmanager
def _uncounted() -> Iterator[None]:
    """Launches inside are not the user's."""
    before, total = launches.copy(), counters["tenfuse"]["launches"]
    try:
        yield
    finally:
        launches.clear()
        launches.update(before)
        counters["tenfuse"]["launches"] = total


__all__ = ["evidence", "trial"]
