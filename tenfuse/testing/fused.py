"""``assert_fused``: which loops were fused, in a real compilation.

A test that only compares outputs passes just as well when nothing was fused; this one
does not.  Takes a model and inputs, leaves the ``Report``; raises ``AssertionError`` with
the report's text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tenfuse.report.registry import recording
from tenfuse.report.report import Report


def assert_fused(
    model: Callable[..., Any],
    *inputs: Any,
    loops: int | None = None,
    form: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Compile, call once, and require that every loop seen was fused.

    ``loops`` is the exact number expected (by default at least one), ``form`` the form
    all of them must have.
    """
    __tracebackhide__ = True  # pytest then shows the test's line
    torch._dynamo.reset()
    given: dict[str, Any] = {"strict": True, "inner": "eager"} if options is None else dict(options)
    with recording() as heard:
        torch.compile(model, backend="tenfuse", options=given)(*inputs, **(kwargs or {}))
    report = Report.of([loop for one in heard for loop in one.loops])
    if report.kept:
        raise AssertionError(f"{len(report.kept)} of {len(report.loops)} loops were kept\n{report}")
    if loops is not None and len(report.loops) != loops:
        raise AssertionError(f"{len(report.loops)} loops were fused, {loops} expected\n{report}")
    if not report.loops:
        raise AssertionError(
            "no loop over time was seen; tenfuse.explain also names those that break the graph"
        )
    others = [loop for loop in report.loops if form is not None and loop.form != form]
    if others:
        wrong = f"{others[0].span} has form {others[0].form!r}"
        raise AssertionError(f"{wrong}, {form!r} expected\n{report}")
    return report
