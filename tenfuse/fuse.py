"""One loop through step, algebra, plan and assembly, down to the text of its kernels.

Takes a ``Loop`` and the graph it was found in; leaves what replaces it and what is known of it.
Refuses whatever a stage refuses: the loop is then kept, with that reason.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx as fx

from tenfuse.capture.loop import Loop
from tenfuse.config import Options
from tenfuse.emit.cpp import emit
from tenfuse.plan.choose import ALGORITHMS, Choice, choose, sequential
from tenfuse.plan.loop import LoopPlan
from tenfuse.plan.placement import Placement
from tenfuse.plan.tensors import Examples
from tenfuse.plan.tiles.plan import Stepped, TilePlan
from tenfuse.plan.tiles.settle import Verdict
from tenfuse.plan.tiles.stepped import candidates
from tenfuse.reasons import NO_TILES, Refused, refuse
from tenfuse.rewrite.assemble import Fused, assemble
from tenfuse.rewrite.launch import Planning
from tenfuse.runtime import canary, tiled
from tenfuse.runtime.compile import compiler
from tenfuse.runtime.op import kernel_name, prepare, product_role
from tenfuse.step.fission import split
from tenfuse.step.normalize import normalize
from tenfuse.step.reader import read
from tenfuse.step.whole import whole_nodes
from tenfuse.study import Study, study
from tenfuse.surroundings import autocast, grads_on, target


def fuse(loop: Loop, gm: fx.GraphModule, options: Options, build: bool) -> tuple[Fused, Study | None]:
    """One loop through step, algebra, plan and assembly; raises ``Refused``.

    ``build`` tries kernels for a card there, and goes on to the next plan where they fail.
    """
    language, dots = target(loop, options)
    step = normalize(loop, autocast(loop, gm))
    parts = split(step, Placement())
    core = read(step, parts) if step.live else None
    whole = core is not None and bool(whole_nodes(core.program))
    if whole and language == "triton":
        raise refuse(NO_TILES, "the state has integers, which kernels on tiles do not hold")
    known = study(core, step.graph) if core is not None else None
    tiles = functools.partial(_tiles, known, dots, options.chunk) if language == "triton" else None
    length = None if options.chunk == "auto" else int(options.chunk)
    planning = Planning(functools.partial(_choose, known), functools.partial(_trial, build), tiles, length)
    fused = assemble(loop, step, parts, core, grads_on(loop, gm), planning)
    return fused, known


def _trial(build: bool, plan: TilePlan, given: Examples) -> Verdict:
    """Whether the kernels of ``plan`` may be used; those that have no text are to be planned otherwise."""
    without: dict[str, Refused] = {}
    for role, kernel in tiled.kernels(plan).items():
        try:
            tiled.prepare(kernel, plan.key(), role)
        except Refused as refused:
            without[kernel.key] = refused
    if without:
        return Verdict(dict.fromkeys(without, math.inf), next(iter(without.values())))
    return canary.trial(plan, given) if build else Verdict()


def _choose(known: Study | None, steps: int, gradients: bool) -> Choice:
    """The algorithm for ``steps`` steps; 0 where only the sequential kernel will do."""
    assert known is not None
    cores = torch.get_num_threads()
    normal = known.recurrence if steps and not whole_nodes(known.program) else None
    choice = choose(known.program, normal, steps, cores, known.steady)
    if choice.chunks is not None and not known.certified(choice.chunks.length, gradients):
        return choose(known.program, None, steps, cores)
    return choice


def _tiles(
    known: Study | None, dots: str, chunk: int | str, steps: Any, gradients: bool
) -> Iterator[tuple[Choice, Stepped, str]]:
    """What kernels on tiles may run, best first."""
    assert known is not None
    length = None if chunk == "auto" else int(chunk)
    count = steps if isinstance(steps, int) else None
    proved = known.form in ALGORITHMS and known.certified(2, gradients)
    recurrence = known.recurrence if proved else None
    cost = sequential(known.program, count or 1, torch.get_num_threads())
    for name, stepped in candidates(known.program, recurrence, count, known.steady, length):
        yield Choice(name, cost), stepped, dots


def kernels(fused: Fused, build: bool) -> tuple[tuple[str, str, str], ...]:
    """Name, language and source of every kernel; compiled if ``build``."""
    tiles = [(key, plan) for key, plan in fused.plans.items() if isinstance(plan, TilePlan)]
    if tiles:
        return tuple(
            (kernel_name(key, role), "triton", tiled.prepare(kernel, key, role).source)
            for key, plan in tiles for role, kernel in tiled.kernels(plan).items()
        )  # fmt: skip
    jobs = [
        (key, role, kernel)
        for key, plan in fused.plans.items()
        if isinstance(plan, LoopPlan)
        for role, kernel in _roles(plan).items()
    ]
    if not jobs:
        return ()
    if build:
        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
            sources = list(pool.map(lambda job: prepare(job[2], job[0], job[1]).source, jobs))
    else:
        sources = [emit(kernel, compiler().isa) for _, _, kernel in jobs]
    return tuple(
        (kernel_name(key, role), "cpp", text) for (key, role, _), text in zip(jobs, sources, strict=True)
    )


def _roles(plan: LoopPlan) -> dict[str, Any]:
    if plan.backward is None or plan.saving is None:
        return {"forward": plan.forward}
    found = {"forward": plan.saving, "backward": plan.backward.kernel}
    products = enumerate(kernel for _, _, kernel in plan.backward.products)
    return found | {product_role(n): kernel for n, kernel in products if kernel is not None}


__all__ = ["fuse", "kernels"]
