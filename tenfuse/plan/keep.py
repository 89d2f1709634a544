"""States and sums kept at every step instead of recomputed from chunk borders.

Takes a step program and its adjoint; leaves the two rewritten: the forward step writes the
carries it starts from, and sums such as a state's product with a matrix; the adjoint reads them as
streams.  Worth it where recomputing them costs more than writing and reading them, and only where
all together are no larger than what the loop reads and writes anyway.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

from tenfuse.step.adjoint import Adjoint
from tenfuse.step.program import (
    AxisName,
    Contract,
    Input,
    Node,
    OutSpec,
    Ref,
    StepProgram,
    arguments,
    prune,
)
from tenfuse.step.whole import whole_nodes

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


def cheaper_sums(program: StepProgram, back: Adjoint) -> tuple[Ref, ...]:
    """The sums that ``back`` computes again, over many entries each, and that should be kept beside
    its states: nodes of ``program``."""
    axes, whole = program.axes_of(), whole_nodes(program)
    again = set(_signatures(back.program).values())
    flow = sum(_entries(program, a) for a in program.inputs("stream").values())
    flow += sum(_entries(program, o.axes) for o in program.outs)
    room = _SHARE * flow - sum(
        _entries(program, program.carries[i].axes) for i in back.program.inputs("state")
    )
    found = []
    for ref, name in _signatures(program).items():
        node, size = program.nodes[ref], _entries(program, axes[ref])
        if not isinstance(node, Contract) or ref in whole or name not in again or size > room:
            continue
        if _entries(program, axes[node.arg]) >= _BALANCE * size:
            found.append(ref)
            room -= size
    return tuple(found)


def _signatures(program: StepProgram) -> dict[Ref, object]:
    """For every node a name that it shares with the nodes, of this program or its adjoint, that compute
    the same from the same: a carry before the step is what the adjoint calls a state."""
    found: dict[Ref, object] = {}
    for ref, node in enumerate(program.nodes):
        if isinstance(node, Input):
            own: object = ("input", "state" if node.kind == "carry" else node.kind, node.index, node.axes)
        elif isinstance(node, Contract):
            own = ("sum", node.op, frozenset(node.axes), found[node.arg])
        else:
            own = (type(node).__name__, getattr(node, "fn", ""), getattr(node, "value", None))
            own = (*own, *(found[a] for a in arguments(node)))
        found[ref] = own
    return found


def _entries(program: StepProgram, axes: Collection[str]) -> int:
    return math.prod(program.sizes[a] for a in axes)


def _work(program: StepProgram) -> int:
    """Multiply-adds of one step's contractions, as far as the next state needs them."""
    core = prune(dataclasses.replace(program, outs=()))
    axes = core.axes_of()
    return sum(_entries(core, axes[n.arg]) for n in core.nodes if isinstance(n, Contract))


def keeping(program: StepProgram, kept: Collection[int], sums: Collection[Ref] = ()) -> StepProgram:
    """``program`` with the carries ``kept``, as they are before the step, and ``sums`` as further outputs."""
    nodes, outs = list(program.nodes), list(program.outs)
    for i in kept:
        axes = program.carries[i].axes
        node = Input("carry", i, axes)
        if node not in nodes:
            nodes.append(node)
        outs.append(OutSpec(nodes.index(node), axes))
    outs += [OutSpec(ref, axes) for ref, axes in zip(sums, sum_axes(program, sums), strict=True)]
    return dataclasses.replace(program, nodes=tuple(nodes), outs=tuple(outs))


def sum_axes(program: StepProgram, sums: Collection[Ref]) -> list[tuple[AxisName, ...]]:
    """The axes of kept sums, in the order in which they are kept."""
    axes = program.axes_of()
    return [tuple(sorted(axes[ref])) for ref in sums]


def reading_kept(
    back: StepProgram, streams: Mapping[int, int], forward: StepProgram, sums: Mapping[Ref, int]
) -> StepProgram:
    """The adjoint step with state ``i`` read as stream ``streams[i]``, and what the ``forward`` step
    computes in node ``r`` as stream ``sums[r]``."""
    names, known = _signatures(back), _signatures(forward)
    axes = dict(zip(sums, sum_axes(forward, sums), strict=True))
    read = {known[r]: Input("stream", n, axes[r]) for r, n in sums.items()}

    def moved(ref: Ref, node: Node) -> Node:
        if isinstance(node, Input) and node.kind == "state":
            return Input("stream", streams[node.index], node.axes)
        return read.get(names[ref], node)

    nodes = tuple(moved(ref, node) for ref, node in enumerate(back.nodes))
    return prune(dataclasses.replace(back, nodes=nodes))
