"""States kept at every step instead of recomputed from chunk borders.

Takes a step program and its adjoint; leaves the two rewritten: the forward step writes the
carries it starts from, the adjoint reads them as streams.  Worth it where recomputing a
state costs more than writing and reading it, and only where all states together are no
larger than what the loop reads and writes anyway.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

from tenfuse.step.adjoint import Adjoint
from tenfuse.step.program import Contract, Input, Node, OutSpec, StepProgram, prune

_BALANCE = 16
"""Multiply-adds that take as long as writing and reading one entry of a state."""

_SHARE = 2
"""Entries of states kept per entry of the loop's own streams and outputs, at most."""


def cheaper_kept(program: StepProgram, back: Adjoint) -> bool:
    """Whether the states that ``back`` reads should be kept at every step."""
    kept = back.program.inputs("state")
    states = sum(_entries(program, program.carries[i].axes) for i in kept)
    flow = sum(_entries(program, axes) for axes in program.inputs("stream").values())
    flow += sum(_entries(program, o.axes) for o in program.outs)
    return 0 < states <= _SHARE * flow and _work(program) >= _BALANCE * states


def _entries(program: StepProgram, axes: Collection[str]) -> int:
    return math.prod(program.sizes[a] for a in axes)


def _work(program: StepProgram) -> int:
    """Multiply-adds of one step's contractions, as far as the next state needs them."""
    core = prune(dataclasses.replace(program, outs=()))
    axes = core.axes_of()
    return sum(_entries(core, axes[n.arg]) for n in core.nodes if isinstance(n, Contract))


def keeping(program: StepProgram, kept: Collection[int]) -> StepProgram:
    """``program`` with the carries ``kept``, as they are before the step, as further outputs."""
    nodes, outs = list(program.nodes), list(program.outs)
    for i in kept:
        axes = program.carries[i].axes
        node = Input("carry", i, axes)
        if node not in nodes:
            nodes.append(node)
        outs.append(OutSpec(nodes.index(node), axes))
    return dataclasses.replace(program, nodes=tuple(nodes), outs=tuple(outs))


def reading_kept(program: StepProgram, streams: Mapping[int, int]) -> StepProgram:
    """The adjoint ``program`` with state ``i`` read as stream ``streams[i]``."""

    def moved(node: Node) -> Node:
        if isinstance(node, Input) and node.kind == "state":
            return Input("stream", streams[node.index], node.axes)
        return node

    return dataclasses.replace(program, nodes=tuple(map(moved, program.nodes)))
