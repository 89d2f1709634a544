"""What the report says of a loop, and the counters.

Takes what the stages left: a refusal, or what was fused, its study and its kernels; leaves a
``LoopReport``.  Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch._dynamo.utils import counters

from tenfuse.capture.loop import Loop, Span
from tenfuse.plan.choose import ALGORITHMS
from tenfuse.plan.tiles.plan import TilePlan
from tenfuse.reasons import Refusal
from tenfuse.report.report import LoopReport
from tenfuse.rewrite.assemble import Fused
from tenfuse.runtime import canary
from tenfuse.study import Study, told


def steps(loop: Loop) -> int:
    """The trip count; of a dynamic one, the count it was traced with."""
    return loop.steps if isinstance(loop.steps, int) else int(loop.steps.node.hint)


def kept(span: Span, count: int, refusal: Refusal) -> LoopReport:
    """The loop stays as the user wrote it."""
    counters["tenfuse"]["kept"] += 1
    return LoopReport.kept(span, count, refusal)


def fused(
    loop: Loop, made: Fused, known: Study | None, kernels: tuple[tuple[str, str, str], ...], prove: bool
) -> LoopReport:
    """``prove`` the normal form for the report even where the plan does not rest on it."""
    counters["tenfuse"]["fused"] += 1
    unrolled = (loop.proof,) if loop.proof else ()
    if known is None or made.choice is None:
        return LoopReport.fused(loop.span, steps(loop), form="map", algorithm="batched", evidence=unrolled)
    return LoopReport.fused(
        loop.span,
        steps(loop),
        form=known.form,
        formula=known.formula,
        algorithm=made.choice.algorithm,
        kernels=kernels,
        evidence=(*unrolled, *_evidence(made, known, prove), *_planned(made)),
    )


def _evidence(made: Fused, known: Study, prove: bool) -> Iterator[str]:
    assert made.choice is not None
    chunks, plans = made.choice.chunks, made.plans.values()
    chunked = chunks is not None and chunks.length > 1
    chunked = chunked or any(isinstance(p, TilePlan) and p.length > 1 for p in plans)
    if prove or chunked or chunks is not None:
        yield told(known.split)
    if chunked or (prove and known.form in ALGORITHMS):
        yield told(known.chunk)
    if chunked and any(p.backward for p in plans):
        yield told(known.adjoint)
    for key in made.plans:
        yield from canary.evidence(key)
    if known.ranges:
        yield f"ranges: {known.ranges}"
    program = known.program
    yield f"{len(program.nodes)} nodes over {len(program.sizes)} named axes depend on the state"


def _planned(made: Fused) -> tuple[str, ...]:
    """What the report says of the plan; predictions are for the CPU."""
    assert made.choice is not None
    tiles = [plan for plan in made.plans.values() if isinstance(plan, TilePlan)]
    if not tiles:
        return made.choice.lines
    (plan,) = tiles
    passes = len(plan.saving if plan.backward is not None else plan.forward)
    behind = f", {len(plan.backward.passes)} backward" if plan.backward is not None else ""
    return (f"{plan.length} steps per iteration; kernels: {passes} forward{behind}",)


__all__ = ["fused", "kept", "steps"]
