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
import os

import numpy as np
import torch
import torch.fx as fx

from tenfuse import reasons
from tenfuse.capture.build import Built, FirstDiffers, build
from tenfuse.capture.loop import Loop, Span
from tenfuse.capture.periods import Sequence, Stretch, stretches
from tenfuse.capture.proof import prove
from tenfuse.capture.record import Record, record
from tenfuse.capture.segment import Operands, Segment, crossings, grow, with_phase
from tenfuse.capture.source import Place, frames_of, loops_around, span_of, statements, where
from tenfuse.capture.views import basic_index, key_of, storage_of, value_of
from tenfuse.reasons import Refusal, Refused

_TORCH = os.path.dirname(torch.__file__)
LEAST = 3
"""Fewer equal steps than this are left unrolled."""
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
    def __init__(self, gm: fx.GraphModule) -> None:
        self.record: Record = record(gm)
        self.seq = Sequence(gm.graph)
        self.ops = Operands(self.seq)
        self.taken = np.zeros(self.seq.last + 1, dtype=bool)
        self.loops: list[Loop] = []
        self.refusals: list[tuple[int, int, Refusal]] = []
        self.failed: set[tuple[int, int, int]] = set()
        opaque = [self.seq.position[n] for n in self.record.opaque]
        self.opaque = np.array(sorted(opaque), dtype=np.int64)

    def run(self) -> tuple[Loop | Kept, ...]:
        found = [s for s in stretches(self.seq.classes, LEAST) if not self._only_views(s)]
        found.sort(key=lambda s: (-min(s.runs, _LONG), s.period, s.start))
        later: list[Built] = []
        for stretch in found:
            if not self.taken[stretch.start : stretch.stop].all():
                later += self._try(stretch)
        for built in later:
            self._claim(built)
        seen: list[Loop | Kept] = [*self.loops, *self._kept()]
        return tuple(sorted(seen, key=self._order))

    def _order(self, entry: Loop | Kept) -> tuple[int, int]:
        if isinstance(entry, Loop):
            return self.seq.position[entry.nodes[0]], 0
        return self._first_line.get((entry.span.file, entry.span.line), 0), 1

    def _only_views(self, stretch: Stretch) -> bool:
        """Slices taken all at once before a loop are streams, not a loop."""
        return all(basic_index(n) is not None for n in self.seq.nodes[stretch.start : stretch.start + stretch.period])

    # one stretch ----------------------------------------------------------------------------

    def _try(self, stretch: Stretch) -> list[Built]:
        """Claim the loops of a stretch; returns those that should wait for better ones."""
        if not self._recurs(stretch):
            return []
        later: list[Built] = []
        for segment in self._segments(stretch):
            if self.taken[segment.start : segment.stop].any():
                continue
            built = self._build(segment)
            if built is None:
                continue
            if built.clean and built.loop.carries and built.loop.streams:
                self._claim(built)
            else:
                later.append(built)
        return later

    def _claim(self, built: Built) -> None:
        lo = self.seq.position[built.loop.nodes[0]]
        hi = lo + len(built.loop.nodes)
        if not self.taken[lo:hi].any():
            self.taken[lo:hi] = True
            self.loops.append(built.loop)

    def _recurs(self, stretch: Stretch) -> bool:
        """Whether the same source line comes back: a loop of the user's, not three alike calls."""
        nodes, period = self.seq.nodes, stretch.period
        first = nodes[stretch.start].meta.get("stack_trace")
        if not first:
            return True
        for multiple in (1, 2, 3, 4, 5, 6, 7, 8, 16):
            gap = multiple * period
            if stretch.start + gap >= stretch.stop:
                return False
            at = min(stretch.start + period, stretch.stop - gap - 1)
            if nodes[at].meta.get("stack_trace") == nodes[at + gap].meta.get("stack_trace"):
                return bool(loops_around(nodes[at : at + 1] + nodes[at + gap : at + gap + 1])) or not _readable(nodes[at])
        return False

    def _segments(self, stretch: Stretch) -> list[Segment]:
        """The best cut of a stretch: smallest period and natural phase that explain most of it."""
        best: tuple[float, list[Segment]] = (0.0, [])
        for multiple in range(1, 9):
            period = stretch.period * multiple
            if period * LEAST > stretch.stop - stretch.start:
                break
            for phase in self._phases(stretch, period):
                start, runs = with_phase(stretch, period, phase)
                if runs < LEAST:
                    continue
                found = grow(self.ops, start, period, runs, LEAST)
                cover = sum(s.stop - s.start for s in found) / (stretch.stop - stretch.start)
                if cover > best[0] + 0.05:
                    best = (cover, found)
                if cover > 1 - 2.5 * period / (stretch.stop - stretch.start):
                    return self._coarser(found)
        return best[1]

    def _coarser(self, found: list[Segment]) -> list[Segment]:
        return found

    def _phases(self, stretch: Stretch, period: int) -> list[int]:
        """Where a step may begin, most natural first."""
        nodes = self.seq.nodes
        lo = stretch.start + (stretch.runs // 2) * stretch.period
        lo = max(stretch.start, min(lo, stretch.stop - 2 * period))
        sample = nodes[lo : lo + period]
        found: list[int] = []
        places = loops_around(sample)
        for place in reversed(places):
            order = [place.position(n) for n in [*sample, nodes[lo + period] if lo + period < len(nodes) else sample[0]]]
            falls = [i for i in range(1, len(order)) if order[i] < order[i - 1]]
            if len(falls) == 1:
                found.append((lo + falls[0]) % period)
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

    def _extent(self, place: Place, stretch: Stretch) -> tuple[int, int]:
        """The positions around the stretch that belong to the loop statement."""
        nodes = self.seq.nodes
        first, last = stretch.start, stretch.stop
        if not place.holds(nodes[first]):
            while first < stretch.stop and not place.holds(nodes[first]):
                first += 1
        while first > 0 and place.holds(nodes[first - 1]):
            first -= 1
        while last > first and not place.holds(nodes[last - 1]):
            last -= 1
        while last < len(nodes) and place.holds(nodes[last]):
            last += 1
        return first, last

    def _build(self, segment: Segment) -> Built | None:
        """A proved loop, or None with the refusal remembered."""
        for _ in range(3):
            key = (segment.start, segment.period, segment.runs)
            if segment.runs < LEAST or key in self.failed:
                return None
            self.failed.add(key)
            try:
                if self._opaque_inside(segment):
                    raise reasons.refuse(reasons.ALIASED_WRITE, "", where(self.seq.nodes[segment.start]))
                built = build(self.seq, self.ops, self.record, segment)
                evidence = prove(built.loop)
                span = self._span(segment)
                return Built(dataclasses.replace(built.loop, proof=evidence, span=span), built.clean)
            except FirstDiffers:
                segment = Segment(segment.period, segment.start + segment.period, segment.runs - 1)
            except Refused as refused:
                self.refusals.append((segment.start, segment.stop, refused.refusal))
                return None
        return None

    def _opaque_inside(self, segment: Segment) -> bool:
        lo, hi = np.searchsorted(self.opaque, [segment.start, segment.stop])
        return bool(hi > lo)

    def _span(self, segment: Segment) -> Span:
        nodes = self.seq.nodes[segment.start : segment.stop]
        places = loops_around(nodes)
        body = nodes[: segment.period]
        for place in reversed(places):
            order = [place.position(n) for n in body]
            again = sum(b < a for a, b in zip(order, order[1:], strict=False))
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
            if key in rolled:
                continue
            positions = max(marks.values(), key=len)
            refusal = self._why(positions) if len(positions) >= LEAST else None
            if refusal is not None:
                found.append(Kept(Span(key[0], key[1]), len(positions), refusal))
        return _outermost(found)

    def _why(self, positions: list[int]) -> Refusal | None:
        lo, hi = positions[0], positions[-1]
        inside = [r for a, b, r in self.refusals if a <= hi and b > lo]
        nodes = [self.seq.nodes[p] for p in positions]
        if inside:
            return max(inside, key=inside.count)
        if all(basic_index(n) is not None for n in nodes):
            return None
        shapes = [_shape(n) for n in nodes]
        place = where(nodes[-1])
        if len(set(shapes)) > len(shapes) // 2:
            return reasons.refuse(reasons.GROWING, "", place).refusal
        if any(self.seq.position[n] in range(lo, hi + 1) for n in self.record.opaque):
            return reasons.refuse(reasons.ALIASED_WRITE, "", place).refusal
        return reasons.refuse(reasons.ODD_STEP, "", place).refusal


def _shape(node: fx.Node) -> object:
    value = value_of(node)
    if not isinstance(value, torch.Tensor):
        first = next((value_of(a) for a in node.all_input_nodes[::-1]), None)
        value = first if isinstance(first, torch.Tensor) else None
    return tuple(key_of(s) for s in value.shape) if isinstance(value, torch.Tensor) else None


def _readable(node: fx.Node) -> bool:
    own = frames_of(node)
    return bool(own) and bool(statements(own[-1][0]))


def _enclosing(node: fx.Node) -> list[tuple[str, int]]:
    """Every loop statement of the user's around a node, innermost last."""
    return [
        (file, s.line)
        for file, line, _ in frames_of(node)
        if not file.startswith(_TORCH)
        for s in statements(file)
        if s.holds(line) and s.place(line) >= 0
    ]


def _outermost(found: list[Kept]) -> list[Kept]:
    return found


def find_loops(gm: fx.GraphModule) -> tuple[Loop | Kept, ...]:
    """Every loop of the graph, in source order."""
    return _Finder(gm).run()


__all__ = ["Kept", "find_loops", "storage_of"]
