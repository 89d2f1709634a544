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
    with_arguments,
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
    over, whole = program.axes_of(), whole_nodes(program)
    mine, theirs = _numbered(program, back.program)
    again = set(theirs)
    flow = sum(_entries(program, axes) for axes in program.inputs("stream").values())
    flow += sum(_entries(program, o.axes) for o in program.outs)
    states = [program.carries[i].axes for i in back.program.inputs("state")]
    room = _SHARE * flow - sum(_entries(program, axes) for axes in states)
    found = []
    for ref, node in enumerate(program.nodes):
        if not isinstance(node, Contract) or ref in whole or mine[ref] not in again:
            continue
        size = _entries(program, over[ref])
        if size <= room and _entries(program, over[node.arg]) >= _BALANCE * size:
            found.append(ref)
            room -= size
    return tuple(found)


def _numbered(*programs: StepProgram) -> list[list[int]]:
    """For every node of every program a number, the same for all that compute the same from the same.

    A carry before the step is what the adjoint calls a state.
    """
    known: dict[Node, int] = {}
    found: list[list[int]] = []
    for program in programs:
        numbers: list[int] = []
        for node in program.nodes:
            if isinstance(node, Input) and node.kind == "carry" and program is programs[0]:
                node = dataclasses.replace(node, kind="state")
            own = with_arguments(node, [numbers[a] for a in arguments(node)])
            numbers.append(known.setdefault(own, len(known)))
        found.append(numbers)
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
    mine, theirs = _numbered(forward, back)
    axes = dict(zip(sums, sum_axes(forward, sums), strict=True))
    read = {mine[r]: Input("stream", n, axes[r]) for r, n in sums.items()}

    def moved(ref: Ref, node: Node) -> Node:
        if isinstance(node, Input) and node.kind == "state":
            return Input("stream", streams[node.index], node.axes)
        return read.get(theirs[ref], node)

    nodes = tuple(moved(ref, node) for ref, node in enumerate(back.nodes))
    return prune(dataclasses.replace(back, nodes=nodes))
