"""The ``Loop``: what capture leaves and every later stage takes.

Takes nothing from other stages; holds plain frozen data that points into an FX graph.
A ``Loop`` is one recurrence over time found in a graph: the body of a single step as
its own graph, and for each value crossing the step's border the role it plays.

Memory order and run order.  Step ``r`` is the r-th execution of the body.  Tensors with
a time axis (streams ``xs`` and stacked outputs ``ys``) carry that axis first and are in
*memory order* ``t``.  When ``reverse`` is false ``t == r``; when it is true the body runs
from the last entry to the first, ``t == steps - 1 - r``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.fx as fx


@dataclasses.dataclass(frozen=True)
class Span:
    """Where the user's ``for``/``while`` stands, and the lines its body covers."""

    file: str
    line: int
    lines: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else "<no source>"


@dataclasses.dataclass(frozen=True)
class ViewOp:
    """One call applied to the value before it: ``target(value, *args, **kwargs)``.

    ``target`` is a callable of torch or ``operator``; args hold no FX nodes except
    symbolic sizes.
    """

    target: Any
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Stream:
    """A per-step input x_t; ``views`` turn ``source`` into a tensor ``[steps, ...]``.

    ``source`` is a node from before the loop (its slices are views), a tuple of nodes
    (stacked on a new leading axis), or a tuple of Python numbers (one per step).
    """

    name: str
    source: fx.Node | tuple[fx.Node, ...] | tuple[float, ...] | tuple[int, ...]
    views: tuple[ViewOp, ...] = ()


@dataclasses.dataclass(frozen=True)
class Carry:
    """A value handed from step to step.  ``init`` enters the first step.

    ``init`` is None for a carry that no step reads (only its final value is used).
    """

    name: str
    init: fx.Node | None


@dataclasses.dataclass(frozen=True)
class Final:
    """The value a node had in the last step: the final value of a carry."""

    carry: int


@dataclasses.dataclass(frozen=True)
class Stacked:
    """The value a node had at memory index ``t``: ``ys[y][t]``."""

    y: int
    t: int


@dataclasses.dataclass(frozen=True)
class Whole:
    """All of ``ys[y]``, behind the first entry of ``first`` if there is one.

    Only loops that were written as a scan are read this way.
    """

    y: int
    first: fx.Node | None = None


@dataclasses.dataclass(frozen=True)
class BufferWrite:
    """A tensor that the loop filled slice by slice.

    After the loop ``version`` (the last node naming the buffer's contents) equals
    ``buffer`` with ``view(buffer)[t] = ys[y][t]`` for every ``t``; ``views`` is the same
    recipe as a stream's and yields a writable view ``[steps, ...]``.
    """

    buffer: fx.Node
    version: fx.Node
    y: int
    views: tuple[ViewOp, ...]


@dataclasses.dataclass(frozen=True)
class Loop:
    """One recurrence over time.

    ``body`` takes, in this order, one placeholder per carry, per stream (a single slice
    ``x_t``) and per invariant, and returns ``(next_carries, ys)``, two tuples.  Every
    placeholder and node holds ``meta["example_value"]``.
    """

    body: fx.GraphModule
    carries: tuple[Carry, ...]
    streams: tuple[Stream, ...]
    invariants: tuple[fx.Node, ...]
    steps: int | torch.SymInt
    reverse: bool
    span: Span
    nodes: tuple[fx.Node, ...]
    """The nodes of the graph that this loop stands for, in order."""
    uses: dict[fx.Node, Final | Stacked | Whole]
    """Nodes of the loop read after it, and what each of them is."""
    writes: tuple[BufferWrite, ...] = ()
    proof: str = ""
    """One sentence: what was compared when the loop was unrolled again."""


def detach_some(x: torch.Tensor, keep: int) -> torch.Tensor:
    """``x``, with its gradient or without: in a body, ``keep`` may be another number at each step."""
    return x if keep else x.detach()
