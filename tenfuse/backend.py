"""The pipeline: a Dynamo graph in, a compiled callable out.

Takes the FX graph that Dynamo captured; finds its loops, replaces those it can prove by
fused operators, and hands everything else to the inner compiler unchanged.  A graph
without a loop is handed over as it came.  Refusals are reported next to the loop; a
failure inside tenfuse itself falls back to the inner compiler, counted, unless ``strict``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch._dynamo.utils import _disable_saved_tensors_hooks_during_tracing as unhooked
from torch._dynamo.utils import counters

from tenfuse import account
from tenfuse.capture import door
from tenfuse.capture.ahead import fastforward
from tenfuse.capture.functional import functionalize
from tenfuse.capture.loop import Loop
from tenfuse.capture.roll import Kept, find_loops
from tenfuse.collector import paused
from tenfuse.config import OptionError, Options
from tenfuse.fuse import fuse, kernels
from tenfuse.reasons import INTERNAL, Refusal, Refused
from tenfuse.report.registry import record
from tenfuse.report.report import LoopReport, Report
from tenfuse.rewrite.lower import lower
from tenfuse.rewrite.splice import splice
from tenfuse.rewrite.tree import restore
from tenfuse.runtime.firstcall import checked
from tenfuse.runtime.op import launches

log = logging.getLogger("tenfuse")
door.install()


def _ahead(backend: Any) -> bool:
    """Whether the tracer of a compiler function may skip steps that are copies of one."""
    if not door.is_ours(backend):
        return False
    given = door.options_of(backend)
    try:
        return (given if isinstance(given, Options) else Options.of(given)).fast_forward
    except OptionError:  # the backend raises it, where it is seen
        return False


fastforward.install(_ahead)


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
        with paused(), unhooked():
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

    def backend(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        with unhooked():
            outcome = transform(gm, chosen, build=False)
        sink.extend(outcome.loops)
        if graphs is not None:
            graphs.append((_text(gm), _text(outcome.graph)))
        return restore(gm).forward

    return door.ours(backend, chosen)


def _text(gm: fx.GraphModule) -> str:
    return str(gm.print_readable(print_output=False))


def transform(gm: fx.GraphModule, options: Options, build: bool) -> Outcome:
    """Fuse what can be fused in ``gm`` and in the graphs nested in it.

    ``gm`` itself is not changed.  ``build`` compiles the kernels too, so that a loop whose
    kernel does not compile is kept.
    """
    copy = functionalize(gm)
    reports = [_replaced(found, copy, options, build) for found in find_loops(copy)]
    changed = any(report.status == "fused" for report in reports)
    return _nested(lower(copy) if changed else gm, gm, options, build, reports)


def _replaced(found: Loop | Kept, graph: fx.GraphModule, options: Options, build: bool) -> LoopReport:
    """What was done with one loop of ``graph``, which is edited where it was fused."""
    counters["tenfuse"]["seen"] += 1
    if isinstance(found, Kept):
        return account.kept(found.span, found.steps, found.refusal)
    try:
        made, known = fuse(found, graph, options, build)
        texts = kernels(made, build)
    except Refused as refused:
        return account.kept(found.span, account.steps(found), refused.refusal)
    except Exception as error:
        if options.strict:
            raise
        counters["tenfuse"]["fallback"] += 1
        log.warning("tenfuse failed on the loop at %s", found.span, exc_info=True)
        refusal = Refusal(INTERNAL.code, f"{INTERNAL.cause}: {error}", INTERNAL.remedy)
        return account.kept(found.span, account.steps(found), refusal)
    splice(graph, found, made.module)
    return account.fused(found, made, known, texts, prove=not build)


def _nested(
    graph: fx.GraphModule, original: fx.GraphModule, options: Options, build: bool, reports: list[LoopReport]
) -> Outcome:
    """Also transform the graphs that higher-order operators call."""
    changed: dict[str, fx.GraphModule] = {}
    for node in graph.graph.nodes:
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
