"""From a segment to a ``Loop``: what enters its steps, what leaves them, and the body between.

Takes a ``Segment`` of the SSA graph; leaves a ``Loop`` (unproved) or raises ``Refused``
with the user's line, or ``FirstDiffers`` when only the first run does not fit (its state
has another shape) and should stay outside.
"""

from __future__ import annotations

import dataclasses

from tenfuse import reasons
from tenfuse.capture import families
from tenfuse.capture.body import Body, Draft
from tenfuse.capture.entering import FirstDiffers, Inputs, LastDiffers, NeedsHoisting
from tenfuse.capture.families import FLIP
from tenfuse.capture.iteration import worthwhile
from tenfuse.capture.leaving import Results, results
from tenfuse.capture.loop import BufferWrite, Carry, Final, Loop, Span, Stacked, Stream, ViewOp
from tenfuse.capture.periods import Sequence
from tenfuse.capture.record import Record
from tenfuse.capture.segment import Operands, Segment


@dataclasses.dataclass(frozen=True)
class Built:
    loop: Loop
    clean: bool
    """No stream had to be stacked from separately computed tensors."""
    sliced: bool
    """Some stream consists of slices of one tensor."""


def _built(of: Inputs, left: Results) -> Built:
    directions = [d.direction for d in of.streams] + [w[3].direction for w in left.writes]
    reverse = directions.count(-1) > directions.count(1)
    order = -1 if reverse else 1
    first = [of.node(0, j) for j in range(of.period)]
    body, live = Body(first, of.carries, of.streams, of.invariants, of.value, of.calls).graph(left.ys)
    loop = Loop(
        body=body,
        carries=tuple(Carry(f"carry{i}", init) for i, (_, init, _) in enumerate(of.carries)),
        streams=tuple(
            _finished(f"x{i}", d, order) for i, d in enumerate(of.streams) if ("stream", i) in live
        ),
        invariants=tuple(n for i, n in enumerate(of.invariants) if ("invariant", i) in live),
        steps=of.runs,
        reverse=reverse,
        span=Span("", 0),
        nodes=of.nodes,
        uses={n: _turned(u, of.runs) if reverse else u for n, u in left.uses.items()},
        writes=tuple(
            BufferWrite(init, version, y, moved.ops if moved.direction == order else (*moved.ops, FLIP))
            for init, version, y, moved in left.writes
        ),
    )
    return Built(loop, of.clean, any(d.direction for d in of.streams))


def _finished(name: str, draft: Draft, order: int) -> Stream:
    if not draft.direction:
        source = draft.source if order > 0 else tuple(reversed(draft.source))
        return Stream(name, source, draft.ops)
    ops = draft.ops
    if ops[-1].target is families.rolled:
        dim, shifts = ops[-1].args
        turned = ViewOp(families.rolled, (dim, shifts if order > 0 else tuple(reversed(shifts))))
        return Stream(name, draft.source, (*ops[:-1], turned))
    return Stream(name, draft.source, ops if draft.direction == order else (*ops, FLIP))


def _turned(use: Final | Stacked, steps: int) -> Final | Stacked:
    return dataclasses.replace(use, t=steps - 1 - use.t) if isinstance(use, Stacked) else use


def _closure(seq: Sequence, segment: Segment, position: int) -> set[int]:
    """``position`` and the positions of the first run that it is computed from."""
    found: set[int] = set()
    stack = [position]
    while stack:
        j = stack.pop()
        if j not in found:
            found.add(j)
            operands = (seq.position[n] - segment.start for n in seq.shapes[segment.start + j].nodes)
            stack += [k for k in operands if k >= 0]
    return found


def build(seq: Sequence, ops: Operands, record: Record, segment: Segment) -> Built:
    """The loop of ``segment``, before it is proved."""
    hoisted: set[int] = set()
    while True:
        try:
            found = Inputs(seq, ops, record, segment, frozenset(hoisted)).find()
            left = results(found)
        except NeedsHoisting as need:
            hoisted |= _closure(seq, segment, need.position)
            continue
        built = _built(found, left)
        alone = not (found.streams or left.ys) and found.carries
        if alone and not worthwhile(built.loop.body.graph, found.runs):
            said = "an iteration that takes no input: its operators are too few, or too large, to save time"
            raise found.refuse(reasons.FIXED_POINT, said, 0)
        return built


__all__ = ["Built", "FirstDiffers", "LastDiffers", "build"]
