"""``tenfuse.explain``: what would be done with every loop of a model, and why.

Takes a model and its arguments, mirrors ``torch._dynamo.explain``: Dynamo runs with a
backend that analyses and emits but compiles nothing, and the model runs once, eagerly.
Leaves a ``Report``.  A loop whose body breaks the graph never reaches a backend; it is
found from where Dynamo gave up and is reported as kept.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

from tenfuse.report.broken import broken_loops
from tenfuse.report.report import LoopReport, Report


def explain(model: Callable[..., Any], *, graphs: bool = False, **options: Any) -> Callable[..., Report]:
    """``explain(model)(*args, **kwargs)``: a ``Report`` of every loop over time, fused or kept.

    The model runs once, eagerly; nothing is compiled.  ``graphs`` also keeps each graph before
    and after; ``options`` are those of ``torch.compile``.  Raises what the model raises, and
    ``OptionError`` for an unknown option.
    """

    def call(*args: Any, **kwargs: Any) -> Report:
        import torch
        from torch._dynamo.utils import counters, get_compilation_metrics

        from tenfuse.backend import explain_backend

        sink: list[LoopReport] = []
        pairs: list[tuple[str, str]] = []
        torch._dynamo.reset()
        earlier = {id(m) for m in get_compilation_metrics()}
        breaks = dict(counters["graph_break"])
        try:
            backend = explain_backend(sink, pairs if graphs else None, **options)
            torch.compile(model, backend=backend)(*args, **kwargs)
            traced = [m for m in get_compilation_metrics() if id(m) not in earlier]
            newly = counters["graph_break"] - collections.Counter(breaks)
            why = [text.split("\n")[0] for text in newly]
        finally:
            torch._dynamo.reset()
        seen = {(r.file, r.line) for r in sink}
        broken = [r for r in broken_loops(traced) if (r.file, r.line) not in seen]
        return Report.of([*sink, *broken], graphs=tuple(pairs), breaks=tuple(why), model=named(model))

    return call


def named(model: Callable[..., Any]) -> str:
    """A model's name for a headline."""
    return getattr(model, "__name__", None) or type(model).__name__
