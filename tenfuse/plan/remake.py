"""Programs made anew from others: node by node, or a part by itself.

Takes a step program, and what stands in the place of some of its nodes; leaves another
program.  Nodes that become equal become one.  Refuses nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

from tenfuse.step.program import (
    Builder,
    CarrySpec,
    Input,
    OutSpec,
    Ref,
    Rename,
    StepProgram,
    arguments,
    prune,
    trimmed,
    validate,
    with_arguments,
)

Made = dict[Ref, Ref]
"""Where the nodes made so far are."""


def remade(program: StepProgram, make: Callable[[Builder, Ref, Made], Ref]) -> StepProgram:
    """``program`` with what ``make`` makes of every node; arguments are made before what reads them."""
    build, place = Builder(), Made()
    for i in range(len(program.nodes)):
        place[i] = make(build, i, place)
    return dataclasses.replace(
        program,
        nodes=tuple(build.nodes),
        carries=tuple(dataclasses.replace(c, next=place[c.next]) for c in program.carries),
        outs=tuple(dataclasses.replace(o, ref=place[o.ref]) for o in program.outs),
    )


def copied(program: StepProgram, build: Builder, ref: Ref, place: Made) -> Ref:
    """A node as it is."""
    node = program.nodes[ref]
    return build.add(with_arguments(node, [place[a] for a in arguments(node)]))


def part(
    program: StepProgram,
    read: Mapping[Ref, Input],
    carries: Sequence[CarrySpec],
    outs: Sequence[OutSpec],
    states: Collection[Input] = (),
) -> StepProgram:
    """What of ``program`` makes ``carries`` and ``outs`` from the nodes ``read``, which enter.

    The inputs ``states`` are written as further outputs.
    """
    build, place = Builder(), Made()
    needed = {o.ref for o in outs} | {c.next for c in carries}
    for i in reversed(range(len(program.nodes))):
        if i in needed and i not in read:
            needed |= set(arguments(program.nodes[i]))
    for i in sorted(needed):
        node = program.nodes[i]
        if i in read:
            place[i] = build.add(read[i])
        elif isinstance(node, Rename):
            place[i] = build.rename(place[node.arg], dict(node.names))
        else:
            place[i] = copied(program, build, i, place)
    written = [dataclasses.replace(o, ref=place[o.ref]) for o in outs]
    written += [OutSpec(build.add(node), node.axes) for node in states]
    next_ = tuple(dataclasses.replace(c, next=place[c.next]) for c in carries)
    made = StepProgram(tuple(build.nodes), program.sizes, next_, tuple(written), program.dynamic)
    made = trimmed(prune(made))
    validate(made)
    return made


__all__ = ["Made", "copied", "part", "remade"]
