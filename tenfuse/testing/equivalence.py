"""Is a compiled model the eager one?  Outputs, mutated inputs and every gradient.

Takes a model and inputs; leaves an ``Equivalence`` with one row of figures per tensor.
Refuses, with ``NotEquivalent`` (an ``AssertionError`` holding the table), when a value is
further from the eager model in float64 than the rule allows:

    RMSE(compiled)  <=  4 * RMSE(eager in the model's own dtype) + 4 ulps of the values
    largest error   <=  8 * the eager model's largest + 4 ulps of the largest value

NaN and infinity must stand where the eager model has them; integers must be equal.  For
a float64 model the eager error is that of a float32 run scaled by the ratio of the units.
The error of a few entries is luck, good or bad: below 64 entries the eager error is at
least what one rounding of every input and parameter would do to the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tenfuse.report.registry import recording
from tenfuse.report.report import LoopReport, Report
from tenfuse.testing.judge import Row, compare
from tenfuse.testing.trial import Trial


@dataclasses.dataclass(frozen=True)
class Equivalence:
    """What was compared, and the loops tenfuse saw while compiling."""

    rows: tuple[Row, ...]
    loops: tuple[LoopReport, ...]

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    def __str__(self) -> str:
        def figures(r: Row) -> list[str]:
            return [f"{x:.2e}" for x in (r.eager, r.compiled, r.limit)]

        head = ("", "tensor", "dtype", "eager error", "compiled", "limit", "")
        body = [
            ("ok" if r.ok else "NO", f"{r.name} {list(r.shape)}", r.dtype, *figures(r), r.problem)
            for r in self.rows
        ]
        table = [head, *body]
        widths = [max(len(line[i]) for line in table) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
        seen = [f"{loop.span} {loop.status} {loop.code}".rstrip() for loop in self.loops]
        return "\n".join([*lines, f"loops: {', '.join(seen) or 'none seen'}"])


class NotEquivalent(AssertionError):
    """A compiled value is too far from the eager one; ``result`` holds the figures."""

    def __init__(self, result: Equivalence) -> None:
        super().__init__(f"compiled and eager differ\n{result}")
        self.result = result


def assert_equivalent(
    model: Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    grad: bool = True,
    seed: int = 0,
    dynamic: bool | None = None,
    compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> Equivalence:
    """Compare ``model`` compiled by tenfuse with itself, by the rule above.

    ``options`` are tenfuse's; the default is strict with the inner compiler "eager", so
    that only the loops are under test.  Inductor is asked to draw random numbers as eager
    does (its option ``fallback_random``): others are no error.  ``grad`` asks for the
    gradients of every floating input and of every parameter that requires one.  The model
    and the inputs are left as they were.  ``compiler`` replaces
    ``torch.compile(..., backend="tenfuse")``.
    """
    __tracebackhide__ = True  # pytest then shows the test's line
    given: dict[str, Any] = {"strict": True, "inner": "eager"}
    if options is not None:
        given = {"inductor.fallback_random": True, **options}
    trial = Trial(model, inputs, dict(kwargs or {}), grad, seed)
    if compiler is None:

        def compiler(m: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(m, backend="tenfuse", options=given, dynamic=dynamic)

    torch._dynamo.reset()
    with recording() as heard:
        compiled = trial.run(compiler=compiler)
    result = Equivalence(compare(trial, compiled), Report.of([r for h in heard for r in h.loops]).loops)
    if not result.ok:
        raise NotEquivalent(result)
    return result


def check(model: Callable[..., Any], **options: Any) -> Callable[..., Equivalence]:
    """``check(model)(*args)``: the model as really compiled against eager float64; a table of errors.

    Outputs, changed inputs and all gradients are compared by the rule of ``assert_equivalent``.  Raises
    ``NotEquivalent``, which holds the table, where one is too far off.  ``options`` are those of
    ``torch.compile``.
    """

    def call(*args: Any, **kwargs: Any) -> Equivalence:
        return assert_equivalent(model, *args, kwargs=kwargs, options=options)

    return call
