"""Recurrent cells with large matrices: eager loops against tenfuse, on the CPU.

    python -m benchmarks.recurrent            a few minutes
    python -m benchmarks.recurrent --threads 1

Takes the cells of ``reference.cells`` in sizes of use, for short sequences, where what is done once
counts most; prints and writes to ``results/recurrent.json`` eager's time over tenfuse's (inner compiler
"eager": the loop alone), forward and with backward, and errors against float64.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks import cpu, measure
from reference import cells
from reference.case import normal

Made = tuple[Callable[..., Tensor], tuple[Tensor, ...]]


def network(x: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """h <- x + tanh(h W) U: two matrices in a step."""
    h, outputs = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = x[:, t] + torch.tanh(h @ w) @ u
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def _cell(kind: Callable[[int, int], nn.Module], batch: int, dim: int, steps: int) -> Made:
    return kind(dim, dim), (normal(batch, steps, dim),)


def _network(batch: int, dim: int, steps: int) -> Made:
    matrices = normal(dim, 2 * dim) / dim**0.5, normal(2 * dim, dim) / (2 * dim) ** 0.5
    return network, (normal(batch, steps, dim), *matrices)


KINDS: dict[str, Callable[[int, int, int], Made]] = {
    "tanh RNN": lambda *size: _cell(cells.TanhRnn, *size),
    "GRU": lambda *size: _cell(cells.Gru, *size),
    "LSTM": lambda *size: _cell(cells.Lstm, *size),
    "nn.LSTMCell": lambda *size: _cell(cells.LstmCell, *size),
    "two matrices": _network,
}
SIZES = ((1, 1024, 16), (16, 256, 16), (16, 256, 128), (64, 128, 64), (64, 512, 16), (64, 1024, 16))
"""Batch, entries of the state, steps."""


def compare(name: str, size: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Medians, and eager's time over tenfuse's, of one cell."""
    torch.manual_seed(0)
    model, inputs = KINDS[name](*size)
    oracle, outputs = measure.in_double(model, inputs)
    leaves = measure.leaves_of(model, inputs)
    compiled = torch.compile(
        model, backend="tenfuse", options={"strict": True, "inner": "eager"}, dynamic=False
    )
    ways = {"eager": model, "tenfuse": compiled}
    row: dict[str, Any] = {"cell": name, "B, D, T": ", ".join(map(str, size))}
    for kind in ("forward", "both"):

        def call(way: Callable[..., Any], grads: bool = kind == "both") -> Callable[[], Any]:
            if grads:
                return lambda: measure.gradients(way, inputs, leaves)
            return lambda: cpu._without_grad(way, inputs)()

        calls = measure.warm({n: call(way) for n, way in ways.items()})
        seconds = measure.alternate(calls, rounds, 8.0)
        row[f"{kind} ms"] = cpu._ms(seconds["tenfuse"])
        row[f"{kind} x eager"] = measure.ratio(seconds, "eager", "tenfuse")
        if kind == "both":
            row |= {f"grad error {n}": measure.error(calls[n]()[outputs:], oracle[outputs:]) for n in ways}
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description="Recurrent cells on the CPU, eager against tenfuse.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 64
    found = []
    for name in (n for n in KINDS if args.only in n):
        for size in SIZES:
            torch._dynamo.reset()
            found.append(compare(name, size, args.rounds))
            cpu.PROGRESS.log(f"{name} {size}: {found[-1]['forward x eager']}, {found[-1]['both x eager']}")
    Console(width=None if sys.stdout.isatty() else 200).print(cpu.plain_table("Recurrent cells", found))
    if not args.only:
        print(f"written to benchmarks/results/{cpu.write('recurrent', found).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
