"""The two plans of one loop, side by side: sequential, and chunk by chunk in matmuls.

    python -m benchmarks.plans

Delta rule and gated linear attention at B1 H1 T8192 d128, written with ``scan`` so that
tracing does not count, each plan forced; and LAM's chunk loop (D384, 12 heads, L4096,
chunks of 64) against eager.  Prints a table and writes ``results/cpu-plans.json``.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from torch import Tensor
from torch._higher_order_ops.scan import scan

import tenfuse.fuse
from benchmarks import measure
from benchmarks.cpu import plain_table, write
from reference.case import gate, normal, unit
from reference.lam import Lam
from tenfuse.plan.choose import ALGORITHMS, Choice, choose
from tenfuse.plan.chunked import ChunkPlan

CHUNK = 64
STRICT = {"strict": True}


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """q, k, v [T, B, H, D], beta [T, B, H]."""

    def step(s: Tensor, x: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        q, k, v, beta = x
        u = beta[..., None] * (v - torch.einsum("bhk,bhkv->bhv", k, s))
        s = s + k[..., None] * u[..., None, :]
        return s, torch.einsum("bhk,bhkv->bhv", q, s)

    outputs: Tensor = scan(step, _rest(q, v), (q, k, v, beta))[1]
    return outputs


def linear(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    """The same shapes, a [T, B, H, D]: the state decays by a, a vector over the keys."""

    def step(s: Tensor, x: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        q, k, v, a = x
        s = a[..., None] * s + k[..., None] * v[..., None, :]
        return s, torch.einsum("bhk,bhkv->bhv", q, s)

    outputs: Tensor = scan(step, _rest(q, v), (q, k, v, a))[1]
    return outputs


def _rest(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(*k.shape[1:], v.shape[-1])


def plans(rounds: int, steps: int = 8192, size: int = 128) -> list[dict[str, Any]]:
    """Milliseconds of forward, and forward with backward, of both plans, and their ratio."""
    torch.manual_seed(0)
    shape = (steps, 1, 1, size)
    shared = (normal(*shape), unit(*shape), normal(*shape))
    found = []
    for name, loop, last in (
        ("delta rule", delta, gate(*shape[:3])),
        ("linear attention", linear, gate(*shape)),
    ):
        inputs = (*shared, last)
        ways = {"sequential": _compiled(loop, 0), "chunked": _compiled(loop, CHUNK)}
        found += [_row(f"{name} B1 H1 T{steps} d{size}", ways, inputs, rounds)]
    return found


def _compiled(loop: Callable[..., Tensor], length: int) -> Callable[..., Tensor]:
    """The loop with its plan forced, compiled at its first call, forward and backward."""

    def chosen(program: Any, recurrence: Any, steps: int, cores: int, steady: bool = True) -> Choice:
        alone = choose(program, None, steps, cores)
        if not length or recurrence is None:
            return alone
        return Choice(ALGORITHMS[recurrence.form], alone.cost, ChunkPlan(program, recurrence, length))

    copy = types.FunctionType(loop.__code__.replace(), loop.__globals__, loop.__name__)
    run = torch.compile(copy, backend="tenfuse", options=STRICT, dynamic=False)

    def call(*inputs: Tensor) -> Tensor:
        with mock.patch.object(tenfuse.fuse, "choose", chosen):
            return run(*inputs)

    return call


def lam(rounds: int) -> list[dict[str, Any]]:
    """The loop over the chunks, given what every chunk computes from its own tokens."""
    torch.manual_seed(0)
    layer = Lam(384, 12, 64).eval()
    with torch.no_grad():
        chunks = layer.chunks(torch.randn(2, 4096, 384))
    names = tuple(vars(chunks))

    def loop(*tensors: Tensor) -> Tensor:
        given = types.SimpleNamespace(**dict(zip(names, tensors, strict=True)))
        bare = types.SimpleNamespace(chunks=lambda _: given, rest=layer.rest, training=False)
        outputs: Tensor = Lam.forward(bare, None)  # type: ignore[arg-type]
        return outputs

    ways = {"eager": loop, "tenfuse": torch.compile(loop, backend="tenfuse", options=STRICT, dynamic=False)}
    inputs = tuple(getattr(chunks, n).detach().clone() for n in names)
    return [_row("LAM's loop D384 H12 L4096 chunk 64", ways, inputs, rounds)]


def _row(
    name: str, ways: dict[str, Callable[..., Tensor]], inputs: tuple[Tensor, ...], rounds: int
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name}
    first, second = ways

    def alone(way: Callable[..., Tensor]) -> Callable[[], Any]:
        def call() -> Any:
            with torch.no_grad():
                return way(*inputs)

        return call

    leaves = measure.leaves_of(ways[first], inputs)
    for label, calls in (
        ("forward", {n: alone(w) for n, w in ways.items()}),
        ("both", {n: _gradients(w, inputs, leaves) for n, w in ways.items()}),
    ):
        seconds = measure.alternate(measure.warm(calls), rounds, 20.0)
        row |= {f"{label} {n} ms": measure.Spread.of([1e3 * s for s in seconds[n]]) for n in ways}
        row[f"{label} {first}/{second}"] = measure.ratio(seconds, first, second)
    return row


def _gradients(
    way: Callable[..., Tensor], inputs: tuple[Tensor, ...], leaves: list[Tensor]
) -> Callable[[], Any]:
    return lambda: measure.gradients(way, inputs, leaves)


def main() -> int:
    parser = argparse.ArgumentParser(description="Plans of one loop, side by side.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = [*plans(args.rounds), *lam(args.rounds)]
    for row in found:
        Console(width=None if sys.stdout.isatty() else 200).print(plain_table(row["name"], [row]))
    print(f"written to benchmarks/results/{write('cpu-plans', found).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
