"""Speed on the CPU: eager loop, tenfuse, and the hand-written loop, in one process.

    python -m benchmarks.cpu              the four recurrences that have a hand-written limit
    python -m benchmarks.cpu --quick      the same at a sixteenth of the length
    python -m benchmarks.cpu --lengths    eager against tenfuse at T = 16 ... 4096
    python -m benchmarks.cpu --first-call the first call at T = 256, tenfuse against Inductor

Prints a table and writes ``results/cpu*.json`` beside it: ratios as medians with their
quartiles, errors against float64, and the machine, versions and commit they belong to.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import limits, measure
from benchmarks.measure import Spread
from reference import delta, ssm
from reference.case import gate, normal

RESULTS = Path(__file__).parent / "results"
WAYS = {"tenfuse": {}, "tenfuse, inner eager": {"inner": "eager"}}
PROGRESS = Console(stderr=True)


def elementwise(a: Tensor, b: Tensor) -> Tensor:
    """h <- a h + b on [B, T, D]."""
    h = torch.zeros_like(b[:, 0])
    outputs = []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def ten(beta: Tensor, lr: Tensor, li: Tensor, r: Tensor) -> Tensor:
    """The TEN step on projected inputs [B, T, K]; the real part."""
    a = b = torch.zeros_like(beta[:, 0])
    outputs = []
    for t in range(beta.shape[1]):
        a, b = (lr * a - li * b + beta[:, t]) @ r, (lr * b + li * a) @ r
        outputs.append(a)
    return torch.stack(outputs, dim=1)


def ten_inputs(steps: int, batch: int = 16, states: int = 128) -> tuple[Tensor, ...]:
    m = 0.99 * torch.sigmoid(torch.linspace(-1.0, 3.0, states))
    omega = torch.linspace(0.0, 3.0, states)
    mix = normal(states, states)
    r = torch.eye(states) + 0.01 * mix / mix.norm()
    return normal(batch, steps, states), m * omega.cos(), m * omega.sin(), r


@dataclasses.dataclass(frozen=True)
class Bench:
    """A loop, its inputs at ``steps``, and the hand-written loop for the same."""

    name: str
    loop: Callable[..., Tensor]
    inputs: Callable[[int], tuple[Tensor, ...]]
    steps: int
    limit: Callable[..., Tensor]


def elementwise_inputs(steps: int) -> tuple[Tensor, ...]:
    return gate(16, steps, 1024), normal(16, steps, 1024)


def delta_inputs(steps: int) -> tuple[Tensor, ...]:
    return delta.gated_inputs(4, 4, steps, 64)


def selective_inputs(steps: int) -> tuple[Tensor, ...]:
    return ssm.products_inputs(2, 1536, 16, steps)


BENCHES = (
    Bench("elementwise", elementwise, elementwise_inputs, 512, limits.elementwise),
    Bench("TEN", ten, ten_inputs, 512, limits.ten),
    Bench("gated delta", delta.gated_delta, delta_inputs, 1024, limits.gated_delta),
    Bench("selective scan", ssm.scan_of_products, selective_inputs, 512, limits.selective_scan),
)


def compiled(loop: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``loop`` compiled by tenfuse as a function of its own, so that no cache is shared."""
    return torch.compile(_copy(loop), backend="tenfuse", options={"strict": True, **options}, dynamic=False)


def _copy(loop: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a code object of its own: Dynamo keeps compilations by code object."""
    return type(loop)(
        loop.__code__.replace(), loop.__globals__, loop.__name__, loop.__defaults__, loop.__closure__
    )


def speed(bench: Bench, steps: int, rounds: int) -> dict[str, Any]:
    """Forward, and forward with backward, of every way; ratios to eager and to the limit."""
    torch.manual_seed(0)
    inputs = bench.inputs(steps)
    oracle, outputs = measure.in_double(bench.loop, inputs)
    inputs = tuple(x.detach() for x in inputs)
    ways: dict[str, Callable[..., Any]] = {"eager": bench.loop}
    ways |= {name: compiled(bench.loop, **options) for name, options in WAYS.items()}
    ways["hand-written"] = bench.limit

    forward = {name: _without_grad(way, inputs) for name, way in ways.items()}
    errors = {name: measure.error([call()], oracle[:outputs]) for name, call in forward.items()}
    seconds = measure.alternate(forward, rounds, 20.0)
    leaves = measure.leaves_of(bench.loop, inputs)
    both = {name: _with_grad(way, inputs, leaves) for name, way in ways.items() if name != "hand-written"}
    grad_errors = {name: measure.error(call()[outputs:], oracle[outputs:]) for name, call in both.items()}
    both_seconds = measure.alternate(both, rounds, 30.0, least=2)
    # By themselves: eager's backward moves a thousand times the memory, and whoever comes next pays for it.
    calm = {name: call for name, call in both.items() if name != "eager"}
    calm["limit forward"] = forward["hand-written"]
    calm_seconds = measure.alternate(calm, 3 * rounds, 10.0)
    rows = {}
    for name in ways:
        row: dict[str, Any] = {
            "forward_ms": _ms(seconds[name]),
            "forward_over_eager": measure.ratio(seconds, "eager", name),
            "forward_of_limit": measure.ratio(seconds, "hand-written", name),
            "error": errors[name],
        }
        if name in both:
            row |= {
                "both_ms": _ms(both_seconds[name]),
                "both_over_eager": measure.ratio(both_seconds, "eager", name),
                "calm_ms": _ms(calm_seconds.get(name, both_seconds[name])),
                "both_per_limit_forward": (
                    measure.ratio(calm_seconds, name, "limit forward") if name in calm else ""
                ),
                "grad_error": grad_errors[name],
            }
        rows[name] = row
    return {"name": bench.name, "steps": steps, "ways": rows}


def _without_grad(way: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    def call() -> Any:
        with torch.no_grad():
            return way(*inputs)

    return call


def _with_grad(
    way: Callable[..., Any], inputs: tuple[Tensor, ...], leaves: list[Tensor]
) -> Callable[[], Any]:
    return lambda: measure.gradients(way, inputs, leaves)


def _ms(seconds: list[float]) -> Spread:
    return Spread.of([1e3 * s for s in seconds])


def lengths(rounds: int, longest: int) -> list[dict[str, Any]]:
    """Eager over tenfuse at growing T, at sizes small enough for overheads to show."""
    small = (
        ("elementwise", elementwise, lambda t: (gate(2, t, 64), normal(2, t, 64))),
        ("TEN", ten, lambda t: ten_inputs(t, 2, 32)),
        ("gated delta", delta.gated_delta, lambda t: delta.gated_inputs(1, 2, t, 32)),
        ("selective scan", ssm.scan_of_products, lambda t: ssm.products_inputs(1, 64, 16, t)),
    )
    found = []
    for name, loop, make in small:
        for steps in (t for t in (16, 64, 256, 1024, 4096) if t <= longest):
            torch.manual_seed(0)
            inputs = make(steps)
            ways = {"eager": loop, "tenfuse": compiled(loop)}
            forward = measure.warm({n: _without_grad(w, inputs) for n, w in ways.items()})
            forward_seconds = measure.alternate(forward, rounds, 10.0, least=1)
            leaves = measure.leaves_of(loop, inputs)
            both = measure.warm({n: _with_grad(w, inputs, leaves) for n, w in ways.items()})
            both_seconds = measure.alternate(both, rounds, 10.0, least=1)
            found.append({
                "name": name, "steps": steps,
                "forward": measure.ratio(forward_seconds, "eager", "tenfuse"),
                "both": measure.ratio(both_seconds, "eager", "tenfuse"),
            })  # fmt: skip
            PROGRESS.log(
                f"{name} T={steps}: forward {found[-1]['forward']}, with backward {found[-1]['both']}"
            )
    return found


def first_call(steps: int = 256, only: str = "") -> list[dict[str, Any]]:
    """Seconds of the first call, forward and backward, from a cold Dynamo.

    Both compilers have compiled something else before, so that what they import is not
    counted; their caches on disk are empty.
    """
    found = []
    for name in ("tenfuse", "inductor"):
        x = torch.ones(8, requires_grad=True)
        torch.compile(lambda x: x.sin() * 2, backend=name)(x).sum().backward()
    for bench in (b for b in BENCHES if only in b.name):
        torch.manual_seed(0)
        inputs = bench.inputs(steps)
        leaves = measure.leaves_of(bench.loop, inputs)
        seconds = {}
        for name in ("tenfuse", "inductor"):
            torch._dynamo.reset()
            way = torch.compile(_copy(bench.loop), backend=name, dynamic=False)
            with tempfile.TemporaryDirectory() as empty:
                folders = {"TORCHINDUCTOR_CACHE_DIR": f"{empty}/torch", "TENFUSE_CACHE_DIR": f"{empty}/own"}
                with mock.patch.dict(os.environ, folders):
                    before = time.perf_counter()
                    measure.gradients(way, inputs, leaves)
                    seconds[name] = time.perf_counter() - before
            PROGRESS.log(f"{bench.name}: first call of {name} {seconds[name]:.1f} s")
        found.append(
            {"name": bench.name, "steps": steps, **seconds, "ratio": seconds["inductor"] / seconds["tenfuse"]}
        )
    return found


def speed_table(found: list[dict[str, Any]]) -> Table:
    """One row per loop and way; "of the limit" is the hand-written time over this way's."""
    table = Table(title="Speed on the CPU (medians, quartiles in brackets)")
    for column in ("loop", "way", "forward ms", "x eager", "of the limit", "error"):
        table.add_column(column)
    for column in ("fwd+bwd ms", "x eager", "without eager ms", "limit's forwards", "grad error"):
        table.add_column(column)
    for bench in found:
        for name, row in bench["ways"].items():
            label = f"{bench['name']} T={bench['steps']}" if name == "eager" else ""
            table.add_row(label, name, *(_cell(row, column) for column in COLUMNS))
        table.add_section()
    return table


COLUMNS = (
    "forward_ms",
    "forward_over_eager",
    "forward_of_limit",
    "error",
    "both_ms",
    "both_over_eager",
    "calm_ms",
    "both_per_limit_forward",
    "grad_error",
)


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column, "")
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def plain_table(title: str, found: list[dict[str, Any]]) -> Table:
    table = Table(title=title)
    for column in found[0]:
        table.add_column(column)
    for row in found:
        table.add_row(*(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    return table


def write(name: str, found: list[dict[str, Any]]) -> Path:
    """The JSON file of one measurement."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps(
        {"environment": measure.environment(), "results": found}, indent=1, default=dataclasses.asdict
    )
    path.write_text(text + "\n")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Speed of tenfuse on the CPU, against eager and hand-written loops."
    )
    parser.add_argument("--quick", action="store_true", help="short sequences and few rounds")
    parser.add_argument("--lengths", action="store_true", help="eager against tenfuse at T = 16 ... 4096")
    parser.add_argument("--first-call", action="store_true", help="time of the first call against Inductor")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="loops whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 64
    rounds = 5 if args.quick else 15
    suffix = "-quick" if args.quick else ""
    if args.lengths:
        found = lengths(rounds, 256 if args.quick else 4096)
        table, name = plain_table("Eager over tenfuse, by length", found), f"cpu-lengths{suffix}"
    elif args.first_call:
        found = first_call(64 if args.quick else 256, args.only)
        table, name = (
            plain_table("First call, forward and backward, seconds", found),
            f"cpu-first-call{suffix}",
        )
    else:
        found = []
        for bench in (b for b in BENCHES if args.only in b.name):
            PROGRESS.log(f"{bench.name}")
            found.append(speed(bench, bench.steps // 16 if args.quick else bench.steps, rounds))
        table, name = speed_table(found), f"cpu{suffix}"
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    if not args.only:
        print(f"written to benchmarks/results/{write(name, found).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
