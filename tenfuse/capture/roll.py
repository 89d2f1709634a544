"""Find the loops that Dynamo unrolled, and prove each of them.

Takes the SSA copy of a graph (``functionalize``); leaves ``Loop``s, and ``Kept`` for every
loop of the user's that was seen and could not be rolled.  Never edits the graph.

Stretches of recurring node classes are cut into segments whose operands follow one rule,
segments become loops, loops are proved.  Where stretches overlap, long trip counts come
first and loops whose steps hang together (a carry, and slices of tensors as inputs)
come before loops that only look alike, such as the heads inside a step.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator

import numpy as np
import torch
import torch.fx as fx

from tenfuse import reasons
from tenfuse.capture.associative import tree_loop, trees
from tenfuse.capture.build import Built, FirstDiffers, LastDiffers, build
from tenfuse.capture.complete import complete
from tenfuse.capture.families import family
from tenfuse.capture.loop import Loop, Span, Stacked
from tenfuse.capture.periods import Sequence, Stretch, stretches
from tenfuse.capture.proof import prove
from tenfuse.capture.record import Record, record, written
from tenfuse.capture.scan import scan_loop, scan_nodes, span_of_scan
from tenfuse.capture.segment import Operands, Segment, crossings, grow, with_phase
from tenfuse.capture.source import Place, frames_of, loops_around, span_of, statements
from tenfuse.capture.views import basic_index, key_of, storage_of, value_of
from tenfuse.reasons import Refusal, Refused, where

_TORCH = os.path.dirname(torch.__file__)
LEAST = 3
"""Fewer equal steps than this are left unrolled."""
LOOP, CALL = "loop", "call"
"""Steps come round in a loop statement, or in a function that is handed on or calls itself."""
_NESTED = 6
"""Without a loop statement, fewer steps than this are calls in one another."""
_LONG = 16
"""Trip counts above this do not compete: the smaller body wins."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """A loop that was seen and stays as it is."""

    span: Span
    steps: int
    refusal: Refusal


@dataclasses.dataclass
class _Attempt:
    """One stretch, with what became of it."""

    stretch: Stretch
    period: int = 0
    deferred: list[Built] = dataclasses.field(default_factory=list)


class _Finder:
    def __init__(self, gm: fx.GraphModule, scans: list[Loop | Kept]) -> None:
        self.scans = scans
        self.record: Record = record(gm)
        self.seq = Sequence(gm.graph)
        self.stretches = stretches(self.seq.classes, LEAST)
        longer = complete(gm.graph, self.seq, self.stretches, self._start_phase)
        if longer is not None:
            self.seq = longer
            self.stretches = stretches(self.seq.classes, LEAST)
        self.ops = Operands(self.seq)
        self.by_order = sorted(self.record.order, key=self.record.order.__getitem__)
        self.taken = np.zeros(self.seq.last + 1, dtype=bool)
        self.aside = np.zeros(self.seq.last + 1, dtype=bool)
        """Alike calls on separate tensors: not a loop over time."""
        for scan in scans:
            self.taken[[self.seq.position[n] for n in scan.nodes] if isinstance(scan, Loop) else []] = True
        self.loops: list[Loop] = [s for s in scans if isinstance(s, Loop)]
        self.refusals: list[tuple[int, int, Refusal]] = []
        self.failed: set[tuple[int, int, int]] = set()
        opaque = [self.seq.position[n] for n in self.record.opaque]
        self.opaque = np.array(sorted(opaque), dtype=np.int64)

    def run(self) -> tuple[Loop | Kept, ...]:
        found = [s for s in self.stretches if not self._only_views(s)]
        found.sort(key=lambda s: (-min(s.runs, _LONG), s.period, s.start))
        later: list[Built] = []
        for stretch in found:
            if not self.taken[stretch.start : stretch.stop].all():
                later += self._try(stretch)
        for built in sorted(later, key=lambda b: _alone(b.loop)):  # an iteration inside a step is part of it
            self._claim(built)
        scans = [s for s in self.scans if isinstance(s, Kept)]
        seen: list[Loop | Kept] = [*self.loops, *scans, *self._kept()]
        return tuple(sorted(seen, key=self._order))

    def _order(self, entry: Loop | Kept) -> tuple[int, int]:
        if isinstance(entry, Loop):
            return self.seq.position[entry.nodes[0]], 0
        return self._first_line.get((entry.span.file, entry.span.line), 0), 1

    def _only_views(self, stretch: Stretch) -> bool:
        """Slices taken all at once before a loop are streams, not a loop."""
        return all(
            basic_index(n) is not None for n in self.seq.nodes[stretch.start : stretch.start + stretch.period]
        )

    def _start_phase(self, stretch: Stretch) -> int | None:
        """Where steps begin, judged without their end: by the body's lines, else by the first step."""
        lo = stretch.start + (stretch.runs // 2) * stretch.period
        if self._recurs(stretch) != LOOP:
            return None
        for place in reversed(loops_around(self.seq.nodes[lo : lo + stretch.period])):
            falls = self._falls(place, lo, stretch.period)
            if len(falls) <= 1:
                start = falls[0] if falls else self._extent(place, stretch)[0]
                return start % stretch.period if start >= stretch.start else None
        return None

    # one stretch ----------------------------------------------------------------------------

    def _try(self, stretch: Stretch) -> list[Built]:
        """Claim the loops of a stretch; returns those that should wait for better ones."""
        kind = self._recurs(stretch)
        if not kind or (kind == CALL and (stretch.runs < _NESTED or not self._hands_on(stretch))):
            return []
        best: list[Built] = []
        for segments in self._cuts(stretch):
            free = [s for s in segments if not self.taken[s.start : s.stop].any()]
            found = [b for s in free if (b := self._build(s)) is not None]
            if _covered(found) > _covered(best):
                best = found
            if found and len(found) == len(free):
                break
        whole = [b for b in best if b.clean and b.loop.carries and b.loop.streams]
        if kind == CALL:
            return whole
        later: list[Built] = []
        for built in best:
            if built in whole:
                self._claim(built)
            elif built.loop.carries or (built.clean and self._over_time(built)):
                later.append(built)
            else:
                lo = self.seq.position[built.loop.nodes[0]]
                self.aside[lo : lo + len(built.loop.nodes)] = True
        return later

    def _over_time(self, built: Built) -> bool:
        """Independent steps are a loop over time when they share a tensor, or read another loop's steps."""
        tuples = [s.source for s in built.loop.streams if isinstance(s.source, tuple)]
        nodes = [[n for n in source if isinstance(n, fx.Node)] for source in tuples]
        earlier = any(ns and all(self.taken[self.seq.position[n]] for n in ns) for ns in nodes)
        if all(_view(n) for n in built.loop.body.graph.nodes if n.op in ("call_function", "call_method")):
            return False
        return (
            (built.sliced or earlier)
            and bool(built.loop.span.file)
            and not built.loop.span.file.startswith(_TORCH)
        )

    def _claim(self, built: Built) -> None:
        lo = self.seq.position[built.loop.nodes[0]]
        hi = self.seq.position[built.loop.nodes[-1]] + 1
        if not self.taken[lo:hi].any():
            self.taken[lo:hi] = True
            self.loops.append(built.loop)

    def _recurs(self, stretch: Stretch) -> str:
        """How the same source line comes back; empty for alike calls on several lines."""
        nodes, period = self.seq.nodes, stretch.period
        if not nodes[stretch.start].meta.get("stack_trace"):
            return LOOP
        for at in (stretch.start + period, stretch.stop - period - 1):
            trace = nodes[at].meta.get("stack_trace")
            for gap in [period * m for m in (1, 2, 3, 4, 5, 6, 7, 8, 16)]:
                for other in (at + gap, at - gap):
                    if (
                        stretch.start <= other < stretch.stop
                        and nodes[other].meta.get("stack_trace") == trace
                    ):
                        found = loops_around([nodes[at], nodes[other]]) or not _readable(nodes[at])
                        return LOOP if found else CALL
        middle = stretch.start + (stretch.runs // 2) * period
        alike = all(_deeper(nodes[p - period], nodes[p]) for p in range(middle, middle + period))
        return CALL if alike else ""

    def _hands_on(self, stretch: Stretch) -> bool:
        """Whether every run reads the run before: without a loop statement nothing else is a loop."""
        start, period, runs = stretch.start, stretch.period, stretch.runs
        table = self.ops.table(start, period, runs)
        begins = start + period * np.arange(runs, dtype=np.int64)[:, None]
        return bool(((table >= begins - period) & (table < begins))[1:].any(axis=1).all())

    def _cuts(self, stretch: Stretch) -> Iterator[list[Segment]]:
        """Ways to cut a stretch, the best first: smallest period, natural phase, longest segments."""
        length = stretch.stop - stretch.start
        rated: list[tuple[bool, int, int, int, list[Segment]]] = []
        for multiple in range(1, 9):
            period = stretch.period * multiple
            if period * LEAST > length:
                break
            whole: list[tuple[int, int, list[Segment]]] = []
            for rank, phase in enumerate(self._phases(stretch, period)):
                start, runs = with_phase(stretch, period, phase)
                if runs < LEAST:
                    continue
                found = grow(self.ops, start, period, runs, LEAST)
                cover = sum(s.stop - s.start for s in found)
                if len(found) == 1 and cover > length - 2.5 * period:
                    whole.append((-found[0].runs, rank, found))
                elif found:
                    rated.append((cover * 5 < length * 4, -max(s.runs for s in found), multiple, rank, found))
            yield from (found for *_, found in sorted(whole, key=lambda w: w[:2]))
        yield from (found for *_, found in sorted(rated, key=lambda r: r[:4])[:8])

    def _phases(self, stretch: Stretch, period: int) -> list[int]:
        """Where a step may begin, most natural first."""
        nodes = self.seq.nodes
        lo = stretch.start + (stretch.runs // 2) * stretch.period
        lo = max(stretch.start, min(lo, stretch.stop - 2 * period))
        found: list[int] = []
        places = loops_around(nodes[lo : lo + period])
        for place in reversed(places):
            falls = self._falls(place, lo, period)
            if len(falls) == 1:
                found.append(falls[0] % period)
            if len(falls) <= 1:
                first, last = self._extent(place, stretch)
                if not falls:
                    found += [last % period, first % period]
                break
        count = crossings(self.ops, lo, period, 1) if lo + 2 * period <= stretch.stop else np.zeros(1)
        if len(count) == period:
            found.append(int((lo + int(count.argmin())) % period))
        found += [stretch.stop % period, stretch.start % period]
        return list(dict.fromkeys(found))

    def _falls(self, place: Place, lo: int, period: int) -> list[int]:
        """Positions at which the body's lines start again."""
        nodes = self.seq.nodes
        spots = [p for p in range(lo, min(len(nodes), lo + period + 1)) if nodes[p].target is not written]
        order = [place.position(nodes[p]) for p in spots]
        return [p for p, a, b in zip(spots[1:], order, order[1:], strict=False) if b < a]

    def _extent(self, place: Place, stretch: Stretch) -> tuple[int, int]:
        """The positions around the stretch that belong to the loop statement."""
        nodes = self.seq.nodes
        first, last = stretch.start, stretch.stop

        def holds(at: int) -> bool:
            return place.position(nodes[at]) >= 0

        while first < stretch.stop and not holds(first):
            first += 1
        while first > 0 and holds(first - 1):
            first -= 1
        while last > first and not holds(last - 1):
            last -= 1
        while last < len(nodes) and holds(last):
            last += 1
        return first, last

    def _build(self, segment: Segment) -> Built | None:
        """A proved loop, or None with the refusal remembered."""
        for _ in range(4):
            key = (segment.start, segment.period, segment.runs)
            if segment.runs < LEAST or key in self.failed:
                return None
            self.failed.add(key)
            try:
                self._refuse_opaque(segment)
                self._refuse_wrapped(segment)
                built = build(self.seq, self.ops, self.record, segment)
                self._check_order(built.loop)
                evidence = prove(built.loop)
                span = self._span(segment)
                loop = dataclasses.replace(built.loop, proof=evidence, span=span)
                return dataclasses.replace(built, loop=loop)
            except FirstDiffers:
                segment = Segment(segment.period, segment.start + segment.period, segment.runs - 1)
            except LastDiffers:
                segment = Segment(segment.period, segment.start, segment.runs - 1)
            except Refused as refused:
                self.refusals.append((segment.start, segment.stop, refused.refusal))
                return None
        return None

    def _check_order(self, loop: Loop) -> None:
        """What stands among the steps in the user's order and is no step must be free to move."""
        rec = self.record
        ours = {rec.origin[n] for n in loop.nodes if n in rec.origin}
        places = [rec.order[n] for n in ours]
        for node in self.by_order[int(min(places)) : int(max(places)) + 1]:
            fixed = node in rec.writers or (value_of(node) is None and node.op != "get_attr")
            if fixed and node not in ours and node not in rec.idle:
                raise reasons.refuse(reasons.ALIASED_WRITE, "", where(node))

    def _refuse_opaque(self, segment: Segment) -> None:
        lo, hi = np.searchsorted(self.opaque, [segment.start, segment.stop])
        if hi > lo:
            node = self.seq.nodes[self.opaque[lo]]
            raise reasons.refuse(reasons.ALIASED_WRITE, self.record.opaque[node], where(node))

    def _refuse_wrapped(self, segment: Segment) -> None:
        """The tensors of a transform have no memory of their own, and only some operators."""
        step = self.seq.nodes[segment.start : segment.start + segment.period]
        for value in (n.meta.get("example_value") for n in step):
            if isinstance(value, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
                raise reasons.refuse(reasons.TRANSFORMED)

    def _span(self, segment: Segment) -> Span:
        nodes = self.seq.nodes[segment.start : segment.stop]
        places = loops_around(nodes)
        body = [n for n in nodes[: segment.period] if n.target is not written]
        for place in reversed(places):
            order = [place.position(n) for n in body]
            again = sum(b < a for a, b in itertools.pairwise(order))
            if not again and not self._revisits(body):
                return span_of(place, body)
        return span_of(places[-1] if places else None, body)

    def _revisits(self, body: list[fx.Node]) -> bool:
        seen = {(n.meta.get("stack_trace"), n.target) for n in body}
        return len(seen) * 2 <= len(body)

    # loops that were seen and not rolled ------------------------------------------------------

    def _kept(self) -> list[Kept]:
        """Loop statements that came round at least ``LEAST`` times without any rolled loop."""
        self._first_line: dict[tuple[str, int], int] = {}
        rounds: dict[tuple[str, int], dict[tuple[object, ...], list[int]]] = {}
        rolled: set[tuple[str, int]] = set()
        cache: dict[str, list[tuple[str, int]]] = {}
        for position, node in enumerate(self.seq.nodes):
            trace = node.meta.get("stack_trace") or ""
            if trace not in cache:
                cache[trace] = _enclosing(node)
            for key in cache[trace]:
                self._first_line.setdefault(key, position)
                if self.taken[position]:
                    rolled.add(key)
                else:
                    rounds.setdefault(key, {}).setdefault((trace, node.target), []).append(position)
        found: list[Kept] = []
        for key, marks in rounds.items():
            groups = [m for m in marks.values() if len(m) >= LEAST]
            rounds_seen = sorted(len(m) for m in marks.values() if len(m) > 1)
            count = rounds_seen[len(rounds_seen) // 2] if rounds_seen else 0
            if key not in rolled and groups and count >= LEAST:
                refusal = self._why(groups, count)
                if refusal is not None:
                    found.append(Kept(Span(key[0], key[1]), count, refusal))
        return found

    def _why(self, groups: list[list[int]], count: int) -> Refusal | None:
        """What prevents a loop; None when nothing ties its rounds together over time.

        ``groups`` holds, for each line and operation, where each round has its node.
        """
        lo, hi = min(g[0] for g in groups), max(g[-1] for g in groups)
        if self.aside[lo : hi + 1].any():
            return None
        inside = [r for a, b, r in self.refusals if a <= hi and b > lo]
        if inside:
            return max(inside, key=inside.count)
        computed = [g for g in groups if basic_index(self.seq.nodes[g[0]]) is None]
        if not any(self._feeds_itself(g, lo) for g in computed):
            return None
        place = where(self.seq.nodes[computed[0][-1]])
        if any(len({_shape(self.seq.nodes[p]) for p in g}) > len(g) // 2 for g in groups):
            return reasons.refuse(reasons.GROWING, "", place).refusal
        if any(self._irregular(g) for g in groups):
            return reasons.refuse(reasons.NOT_AFFINE, "", place).refusal
        if any(lo <= p <= hi for p in self.opaque.tolist()):
            return reasons.refuse(reasons.ALIASED_WRITE, "", place).refusal
        few = count <= LEAST + 1
        return reasons.refuse(reasons.TOO_SHORT if few else reasons.ODD_STEP, "", place).refusal

    def _irregular(self, group: list[int]) -> bool:
        """Slices of one tensor at indices that do not move evenly."""
        found = [basic_index(self.seq.nodes[p]) for p in group]
        known = [f for f in found if f is not None]
        if len(known) < len(found) or any(f[0] is not known[0][0] for f in known):
            return False
        return len({f[1] for f in known}) > 1 and family([f[1] for f in known]) is None

    def _feeds_itself(self, group: list[int], lo: int) -> bool:
        """Whether a round's node depends on the same line's node of the round before."""
        for earlier, later in itertools.pairwise(group):
            stack, seen = [later], set()
            while stack:
                at = stack.pop()
                if at == earlier:
                    return True
                for operand in self.ops.flat[self.ops.offsets[at] : self.ops.offsets[at + 1]].tolist():
                    if operand >= earlier and operand not in seen:
                        seen.add(operand)
                        stack.append(operand)
        return False


def _shape(node: fx.Node) -> object:
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        first = next((value_of(a) for a in node.all_input_nodes[::-1]), None)
        value = first if isinstance(first, torch.Tensor) else None
    return tuple(key_of(s) for s in value.shape) if isinstance(value, torch.Tensor) else None


def _alone(loop: Loop) -> bool:
    """Whether the steps read and leave nothing but their state."""
    return not (loop.streams or loop.writes or any(isinstance(u, Stacked) for u in loop.uses.values()))


def _view(node: fx.Node) -> bool:
    """A node that only shows memory of its first argument."""
    store = storage_of(value_of(node))
    first = node.args[0] if node.args else None
    return store is not None and store == storage_of(value_of(first))


def _deeper(caller: fx.Node, called: fx.Node) -> bool:
    """Whether both stand on one line of a function that calls itself (torch abbreviates the calls)."""
    outer, inner = (list(dict.fromkeys(frames_of(n))) for n in (caller, called))
    return bool(outer) and outer == inner


def _readable(node: fx.Node) -> bool:
    own = frames_of(node)
    return bool(own) and bool(statements(own[-1][0]))


def _enclosing(node: fx.Node) -> list[tuple[str, int]]:
    """Every loop statement of the user's around a node, innermost last."""
    found = [
        (file, s.line)
        for file, line, _ in frames_of(node)
        if not file.startswith(_TORCH)
        for s in statements(file)
        if s.holds(line) and s.place(line) >= 0
    ]
    return list(dict.fromkeys(found))  # a comprehension has a frame of its own, at the same line


def _covered(found: list[Built]) -> int:
    return sum(len(b.loop.nodes) for b in found)


def _scans(gm: fx.GraphModule) -> list[Loop | Kept]:
    """Loops written as scan operators, or as trees that Dynamo made of them."""
    found: list[Loop | Kept] = []
    calls = [(n, scan_loop(gm, n)) for n in list(scan_nodes(gm))]
    calls += [(t[0], tree_loop(gm, t)) for t in trees([n for n in gm.graph.nodes if n.op != "placeholder"])]
    for node, result in calls:
        if isinstance(result, Loop):
            found.append(result)
        else:
            found.append(Kept(span_of_scan(node), 0, result.refusal))
    return found


def find_loops(gm: fx.GraphModule) -> tuple[Loop | Kept, ...]:
    """Every loop of the graph, in source order."""
    return _Finder(gm, _scans(gm)).run()


__all__ = ["Kept", "find_loops"]
