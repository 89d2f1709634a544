"""The pipeline: a Dynamo graph in, a compiled callable out.

Takes the FX graph that Dynamo captured; finds its loops, replaces those it can prove by
fused operators, and hands everything else to the inner compiler unchanged.  A graph
without a loop is handed over as it came.  Refusals are reported next to the loop; a
failure inside tenfuse itself falls back to the inner compiler, counted, unless ``strict``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.utils import counters

from tenfuse.capture import door
from tenfuse.capture.functional import functionalize
from tenfuse.capture.loop import Loop
from tenfuse.capture.roll import Kept, find_loops
from tenfuse.config import Options
from tenfuse.emit.cpp import emit
from tenfuse.plan.choose import ALGORITHMS, Choice, choose, sequential
from tenfuse.plan.loop import LoopPlan
from tenfuse.plan.placement import Placement
from tenfuse.plan.stepped import candidates
from tenfuse.plan.tensors import Examples
from tenfuse.plan.tiled import Stepped, TilePlan
from tenfuse.reasons import DEVICE, INTERNAL, Refusal, Refused, refuse
from tenfuse.report.registry import record
from tenfuse.report.report import LoopReport, Report
from tenfuse.rewrite.assemble import Fused, assemble
from tenfuse.rewrite.splice import lower, splice
from tenfuse.rewrite.tree import restore
from tenfuse.runtime import canary, tiled
from tenfuse.runtime.compile import compiler
from tenfuse.runtime.firstcall import checked
from tenfuse.runtime.op import kernel_name, launches, prepare, product_role
from tenfuse.runtime.tiles import interpreting
from tenfuse.step.fission import split
from tenfuse.step.normalize import normalize
from tenfuse.step.reader import read
from tenfuse.study import Study, study, told

log = logging.getLogger("tenfuse")
door.install()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The graph to compile and what was done with each of its loops."""

    graph: fx.GraphModule
    loops: tuple[LoopReport, ...]


@door.ours
def tenfuse(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Any = None,
    mode: str | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """The backend of ``torch.compile(model, backend="tenfuse", options={...})``, or ``mode=...``.

    Raises ``OptionError`` for an unknown option, and with ``strict`` whatever fails inside.
    """
    chosen = Options.of(options)
    try:
        outcome = transform(gm, chosen, build=True)
    except Exception as error:
        counters["tenfuse"]["fallback"] += 1
        if chosen.strict:
            raise
        log.warning("tenfuse failed inside and left the graph to %s: %s", chosen.inner, error, exc_info=True)
        outcome = Outcome(gm, ())
    record(Report.of(outcome.loops), launches)
    compiled = _inner(outcome.graph, example_inputs, chosen, mode)
    if chosen.validate == "off" or outcome.graph is gm:
        return compiled
    return checked(
        compiled, restore(gm), outcome.graph, lambda: _inner(gm, example_inputs, chosen, mode), chosen.strict
    )


def _inner(
    gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options, mode: str | None = None
) -> Callable[..., Any]:
    """The inner compiler's callable for ``gm``; ``mode`` is that of ``torch.compile``."""
    gm = restore(gm)
    if options.inner == "inductor":
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        inductor: Any = compile_fx
        patches = {**(list_mode_options(mode) if mode else {}), **dict(options.inductor)}
        return inductor(gm, list(example_inputs), config_patches=patches or None)  # type: ignore[no-any-return]
    from torch._dynamo.backends.registry import lookup_backend

    compiled: Any = lookup_backend(options.inner)(gm, list(example_inputs))
    return compiled  # type: ignore[no-any-return]


def explain_backend(
    sink: list[LoopReport], graphs: list[tuple[str, str]] | None = None, **options: Any
) -> Callable[..., Any]:
    """A backend that analyses and emits, compiles nothing, and runs the graph as it is.

    Each graph's loops are appended to ``sink``, and its text before and after to ``graphs``.
    """
    chosen = Options.of(options)

    @door.ours
    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        outcome = transform(gm, chosen, build=False)
        sink.extend(outcome.loops)
        if graphs is not None:
            graphs.append((_text(gm), _text(outcome.graph)))
        return restore(gm).forward

    return backend


def _text(gm: fx.GraphModule) -> str:
    return str(gm.print_readable(print_output=False))


def transform(gm: fx.GraphModule, options: Options, build: bool) -> Outcome:
    """Fuse what can be fused in ``gm`` and in the graphs nested in it.

    ``gm`` itself is not changed.  ``build`` compiles the kernels too, so that a loop whose
    kernel does not compile is kept.
    """
    reports: list[LoopReport] = []
    fused_here = 0
    copy = functionalize(gm)
    for found in find_loops(copy):
        counters["tenfuse"]["seen"] += 1
        if isinstance(found, Kept):
            reports.append(_kept(found.span, found.steps, found.refusal))
            continue
        try:
            fused, known = fuse(found, copy, options, build)
            kernels = _kernels(fused, build)
        except Refused as refused:
            reports.append(_kept(found.span, _steps(found), refused.refusal))
            continue
        except Exception as error:
            if options.strict:
                raise
            counters["tenfuse"]["fallback"] += 1
            log.warning("tenfuse failed on the loop at %s", found.span, exc_info=True)
            refusal = Refusal(INTERNAL.code, f"{INTERNAL.cause}: {error}", INTERNAL.remedy)
            reports.append(_kept(found.span, _steps(found), refusal))
            continue
        splice(copy, found, fused.module)
        reports.append(_fused(found, fused, known, kernels, prove=not build))
        fused_here += 1
    graph = lower(copy) if fused_here else gm
    return _nested(graph, gm, options, build, reports)


def _nested(
    graph: fx.GraphModule, original: fx.GraphModule, options: Options, build: bool, reports: list[LoopReport]
) -> Outcome:
    """Also transform the graphs that higher-order operators call."""
    changed: dict[str, fx.GraphModule] = {}
    for node in original.graph.nodes:
        inner = (
            getattr(original, node.target, None) if node.op == "get_attr" and "." not in node.target else None
        )
        if isinstance(inner, fx.GraphModule) and not _is_combine(node):
            outcome = transform(inner, options, build)
            reports.extend(outcome.loops)
            if outcome.graph is not inner:
                changed[node.target] = outcome.graph
    if not changed:
        return Outcome(graph, tuple(reports))
    copy = graph if graph is not original else fx.GraphModule(original, original.graph)
    for name, inner in changed.items():
        setattr(copy, name, inner)
    copy.meta = dict(original.meta)
    return Outcome(copy, tuple(reports))


def _is_combine(node: fx.Node) -> bool:
    """Whether a nested graph is the body of a scan, which is a loop of its own."""
    scans = (torch.ops.higher_order.scan, torch.ops.higher_order.associative_scan)
    return any(user.target in scans for user in node.users)


def fuse(loop: Loop, gm: fx.GraphModule, options: Options, build: bool) -> tuple[Fused, Study | None]:
    """One loop through step, algebra, plan and assembly; raises ``Refused``.

    ``build`` tries kernels for a card there, and goes on to the next plan where they fail.
    """
    language, dots = _target(loop, options)
    step = normalize(loop, _autocast(loop, gm))
    parts = split(step, Placement())
    core = read(step, parts) if step.live else None
    known = study(core, step.graph) if core is not None else None
    tiles = functools.partial(_tiles, known, dots, options.chunk) if language == "triton" else None
    choose = functools.partial(_choose, known)
    trial = functools.partial(_trial, build)
    fused = assemble(loop, step, parts, core, _grads_on(loop, gm), options.chunk, choose, tiles, trial)
    return fused, known


def _trial(build: bool, plan: TilePlan, given: Examples) -> None:
    """Raise ``Refused`` where a kernel of ``plan`` has no text, or may not be used."""
    for role, kernel in tiled.kernels(plan).items():
        tiled.prepare(kernel, plan.key(), role)
    if build:
        canary.trial(plan, given)


def _choose(known: Study | None, steps: int, gradients: bool) -> Choice:
    """The algorithm for ``steps`` steps; 0 where only the sequential kernel will do."""
    assert known is not None
    cores = torch.get_num_threads()
    choice = choose(known.program, known.recurrence if steps else None, steps, cores, known.steady)
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


def _target(loop: Loop, options: Options) -> tuple[str, str]:
    """The language of the kernels, and what their matrix products multiply; refuses other devices."""
    values = [n.meta.get("example_value") for n in loop.body.graph.nodes]
    tensors = [v for v in values if isinstance(v, torch.Tensor)]
    devices = sorted({str(v.device) for v in tensors if v.dim() or v.device.type != "cpu"})
    kinds = {v.device.type for v in tensors if v.dim() or v.device.type != "cpu"}
    if len(devices) > 1:
        raise refuse(DEVICE, f"the tensors of the loop are on {' and '.join(devices)}")
    if kinds - {"cpu", "cuda"}:
        raise refuse(DEVICE, f"a tensor of the loop is on {devices[0]}")
    card = kinds == {"cuda"}
    if options.target == "cpp" and card:
        raise refuse(DEVICE, f"target='cpp' and a tensor of the loop is on {devices[0]}; use target='auto'")
    if options.target == "triton" and not card and not interpreting():
        raise refuse(
            DEVICE, "target='triton' and the loop is on the CPU: set TRITON_INTERPRET=1, or use 'auto'"
        )
    if not card and options.target != "triton":
        return "cpp", "ieee"
    return "triton", _dots({v.dtype for v in tensors})


def _dots(dtypes: set[torch.dtype]) -> str:
    if torch.float32 in dtypes or torch.float64 in dtypes or not dtypes & {torch.bfloat16, torch.float16}:
        return "tf32" if torch.get_float32_matmul_precision() != "highest" else "ieee"
    return "bf16" if torch.bfloat16 in dtypes else "tf32"


def _nodes_before(loop: Loop, gm: fx.GraphModule) -> list[fx.Node]:
    first = loop.nodes[0] if loop.nodes else None
    found = []
    for node in gm.graph.nodes:
        if node is first:
            break
        found.append(node)
    return found


def _grads_on(loop: Loop, gm: fx.GraphModule) -> bool:
    """Whether gradients are recorded where the loop stands."""
    on = torch.is_grad_enabled()
    for node in _nodes_before(loop, gm):
        if node.target is torch._C._set_grad_enabled:
            on = bool(node.args[0])
    return on


def _autocast(loop: Loop, gm: fx.GraphModule) -> contextlib.AbstractContextManager[Any] | None:
    """The autocast region the loop stands in."""
    entered: list[fx.Node] = []
    for node in _nodes_before(loop, gm):
        if node.target is torch.amp.autocast_mode._enter_autocast:
            entered.append(node)
        elif node.target is torch.amp.autocast_mode._exit_autocast and entered:
            entered.pop()
    if not entered:
        return None
    device, dtype, enabled, cache = entered[-1].args
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cache)  # type: ignore[arg-type]


def _steps(loop: Loop) -> int:
    if isinstance(loop.steps, int):
        return loop.steps
    return int(loop.steps.node.hint)


def _kernels(fused: Fused, build: bool) -> tuple[tuple[str, str, str], ...]:
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
    return found | {product_role(n): kernel for n, (_, _, kernel) in enumerate(plan.backward.products)}


def _kept(span: Any, steps: int, refusal: Refusal) -> LoopReport:
    counters["tenfuse"]["kept"] += 1
    return LoopReport.kept(span, steps, refusal)


def _fused(
    loop: Loop, fused: Fused, known: Study | None, kernels: tuple[tuple[str, str, str], ...], prove: bool
) -> LoopReport:
    """``prove`` the normal form for the report even where the plan does not rest on it."""
    counters["tenfuse"]["fused"] += 1
    evidence = [loop.proof] if loop.proof else []
    if known is None or fused.choice is None:
        return LoopReport.fused(
            loop.span, _steps(loop), form="map", algorithm="batched", evidence=tuple(evidence)
        )
    chunked = fused.choice.chunks is not None and fused.choice.chunks.length > 1
    chunked = chunked or any(isinstance(p, TilePlan) and p.length > 1 for p in fused.plans.values())
    evidence += [told(known.split)] if prove or chunked or fused.choice.chunks is not None else []
    evidence += [told(known.chunk)] if chunked or (prove and known.form in ALGORITHMS) else []
    evidence += [told(known.adjoint)] if chunked and any(p.backward for p in fused.plans.values()) else []
    evidence += [line for key in fused.plans for line in canary.evidence(key)]
    evidence += [f"ranges: {known.ranges}"] if known.ranges else []
    program = known.program
    evidence.append(f"{len(program.nodes)} nodes over {len(program.sizes)} named axes depend on the state")
    return LoopReport.fused(
        loop.span,
        _steps(loop),
        form=known.form,
        formula=known.formula,
        algorithm=fused.choice.algorithm,
        kernels=kernels,
        evidence=(*evidence, *_planned(fused)),
    )


def _planned(fused: Fused) -> tuple[str, ...]:
    """What the report says of the plan; predictions are for the CPU."""
    assert fused.choice is not None
    tiles = [plan for plan in fused.plans.values() if isinstance(plan, TilePlan)]
    if not tiles:
        return fused.choice.lines
    (plan,) = tiles
    passes = len(plan.saving if plan.backward is not None else plan.forward)
    behind = f", {len(plan.backward.passes)} backward" if plan.backward is not None else ""
    return (f"{plan.length} steps per iteration; kernels: {passes} forward{behind}",)
