"""The meaning of a ``StepProgram``: run it in torch, one step or a whole loop.

Takes a program and tensors whose dimensions are the axes its inputs name; leaves tensors.
This is the semantics every emitter is tested against, written for clarity, not speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from tenfuse.step.functions import FUNCTIONS
from tenfuse.step.ordered import Named, aligned, expanded, ordered
from tenfuse.step.program import ORDERED, AxisName, Const, Contract, Input, StepProgram, arguments
from tenfuse.step.whole import whole_inputs, whole_nodes

REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {"sum": torch.sum, "max": torch.amax, "min": torch.amin}


def step(
    program: StepProgram,
    inputs: Mapping[tuple[str, int], torch.Tensor],
    dtype: torch.dtype = torch.float64,
    sizes: Mapping[AxisName, int] | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """One step: ``(next carries, outs)``.

    ``inputs[kind, index]`` has the dimensions ``Input.axes``.  ``sizes`` overrides the
    sizes of dynamic axes.
    """
    size = {**program.sizes, **(sizes or {})}
    values: list[Named] = []
    whole = whole_nodes(program)
    for i, node in enumerate(program.nodes):
        kind = torch.int64 if i in whole else dtype
        if isinstance(node, Input):
            values.append((inputs[node.kind, node.index].to(kind), node.axes))
        elif isinstance(node, Const):
            values.append((torch.tensor(node.value, dtype=kind), ()))
        elif isinstance(node, Contract):
            tensor, own = values[node.arg]
            dims = [own.index(a) for a in sorted(node.axes)]
            reduce: Callable[..., torch.Tensor] = REDUCTIONS[node.op]
            values.append((reduce(tensor, dims), tuple(a for a in own if a not in node.axes)))
        elif isinstance(node, ORDERED):
            values.append(ordered(node, [values[a] for a in arguments(node)], size, dtype))
        else:
            axes = tuple(sorted({a for r in node.args for a in values[r][1]}))
            args = [aligned(values[r], axes) for r in node.args]
            made = FUNCTIONS[node.fn].torch(*args).to(kind)
            values.append((made.expand([size[a] for a in axes]), axes))
    return (
        [expanded(values[c.next], c.next_axes, size) for c in program.carries],
        [expanded(values[o.ref], o.axes, size) for o in program.outs],
    )


def scan(
    program: StepProgram,
    inits: Sequence[torch.Tensor],
    xs: Mapping[int, torch.Tensor],
    invariants: Mapping[int, torch.Tensor],
    steps: int,
    reverse: bool = False,
    dtype: torch.dtype = torch.float64,
    states: Mapping[int, torch.Tensor] | None = None,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The whole loop: ``(final carries, ys)``; ``xs`` and ``ys`` have time first.

    ``states`` are the recomputed states of an adjoint program, time first.
    """
    whole = whole_inputs(program)
    carries = [c if ("carry", i) in whole else c.to(dtype) for i, c in enumerate(inits)]
    rows: list[list[torch.Tensor]] = [[] for _ in program.outs]
    for t in reversed(range(steps)) if reverse else range(steps):
        inputs = {("carry", i): c for i, c in enumerate(carries)}
        inputs |= {("stream", i): x[t] for i, x in xs.items()}
        inputs |= {("state", i): s[t] for i, s in (states or {}).items()}
        inputs |= {("invariant", i): v for i, v in invariants.items()}
        carries, outs = step(program, inputs, dtype)
        for row, out in zip(rows, outs, strict=True):
            row.append(out)
    ys = []
    for spec, row in zip(program.outs, rows, strict=True):
        if spec.accumulate:
            shape = [program.sizes[a] for a in spec.axes]
            ys.append(sum(row, torch.zeros(shape, dtype=dtype)))
        else:
            ys.append(
                torch.stack(row[::-1] if reverse else row)
                if row
                else torch.empty(0, *[program.sizes[a] for a in spec.axes])
            )
    return carries, ys


__all__ = ["REDUCTIONS", "aligned", "expanded", "scan", "step"]
