"""What a stage is: elementwise, block, low-rank, dense, semiring or nonlinear.

Takes the updates of one stage as sums of terms; leaves a word of ``recurrence.FORMS``.
Everything is read off the axes: which of them a term contracts, which a factor carries.
Whatever fits no narrower form is dense if it is linear and nonlinear if it is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tenfuse.algebra.outer import leaves, varies
from tenfuse.algebra.recurrence import BLOCK, FORMS
from tenfuse.algebra.terms import Part, Sum, carry_of
from tenfuse.step.program import AxisName, Builder, CarrySpec, Input


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One stage before it has a name.

    ``reads`` are the terms by which outputs and other stages read its carries.
    """

    build: Builder
    carries: tuple[int, ...]
    specs: tuple[CarrySpec, ...]
    updates: tuple[Sum, ...]
    reads: tuple[Part, ...] = ()


def linear(build: Builder, updates: Sequence[Sum]) -> bool:
    """Whether every term is linear in a carry rather than in an atom."""
    return all(carry_of(build, p.source) is not None for update in updates for p in update.parts)


def classify(stage: Evidence) -> tuple[str, bool]:
    """The form of a stage in the ring of numbers, and whether it is a complex pair."""
    if not linear(stage.build, stage.updates):
        return "nonlinear", False
    pair = complex_pair(stage)
    local = all(_in_place(stage, p, spec) for p, spec in _terms(stage))
    single = len(stage.carries) == 1 or pair
    erasing = any(p.contracted for p, _ in _terms(stage))
    if (single or erasing) and len(stage.carries) <= BLOCK and low_rank(stage):
        return "low-rank", pair
    if not local or len(stage.carries) > BLOCK:
        return "dense", pair
    return ("elementwise" if len(stage.carries) == 1 else "block"), pair


def whole(forms: Sequence[str], chained: bool) -> str:
    """One word for a cascade; ``chained``: an elementwise scan reads an earlier one."""
    if not forms:
        return "map"
    numbers = [f for f in forms if f != "semiring"]
    if len(numbers) < len(forms) and all(f == "elementwise" for f in numbers):
        return "semiring"
    widest = max(numbers, key=FORMS.index)
    return "block" if widest == "elementwise" and chained else widest


def _terms(stage: Evidence) -> list[tuple[Part, CarrySpec]]:
    return [(p, s) for u, s in zip(stage.updates, stage.specs, strict=True) for p in u.parts]


def _in_place(stage: Evidence, part: Part, spec: CarrySpec) -> bool:
    """Whether each entry of the next value reads the entry of the carry at its own place."""
    source = carry_of(stage.build, part.source)
    return source is not None and not part.contracted and source.axes == spec.next_axes


def complex_pair(stage: Evidence) -> bool:
    """Whether two carries have the block [[p, -q], [q, p]]."""
    if len(stage.carries) != 2 or len({s.next_axes for s in stage.specs}) != 1:
        return False

    def terms(row: int, column: int, sign: float) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for part in stage.updates[row].parts:
            source = carry_of(stage.build, part.source)
            if source is not None and source.index == stage.carries[column]:
                cut = not isinstance(stage.build.nodes[part.source], Input)
                contracted = tuple(sorted(part.contracted))
                found.append((source.axes, cut, part.factors, contracted, sign * part.scale))
        return sorted(found, key=repr)

    return terms(0, 0, 1.0) == terms(1, 1, 1.0) and terms(0, 1, -1.0) == terms(1, 0, 1.0)


def low_rank(stage: Evidence) -> bool:
    """Whether the state is a matrix with a diagonal decay and updates of the form u w^T.

    The contracted axes K are those of the update's own reads, if it has any; otherwise some
    read of an output contracts them, and decay and write leave a free axis V: only then
    does the state never have to be formed.
    """
    terms = _terms(stage)
    decays = [p for p, _ in terms if not p.contracted]
    inner = [(p, s) for p, s in terms if p.contracted]
    if any(not _in_place(stage, p, s) for p, s in terms if not p.contracted):
        return False
    if inner:
        places = {_places(stage, p) for p, _ in inner}
        return len(places) == 1 and all(_splits(stage, p, s) for p, s in inner)
    mine = [p for p in stage.reads if (c := carry_of(stage.build, p.source)) and c.index in stage.carries]
    places = {_places(stage, p) for p in mine}
    if not decays or frozenset() in places:
        return False
    places = places or _sides(stage)
    return any(_attention(stage, decays, mine, k) for k in sorted(places, key=sorted))


def _places(stage: Evidence, part: Part) -> frozenset[int]:
    """Which dimensions of the carry a part contracts."""
    source = carry_of(stage.build, part.source)
    assert source is not None
    return frozenset(i for i, a in enumerate(source.axes) if a in part.contracted)


def _splits(stage: Evidence, part: Part, spec: CarrySpec) -> bool:
    """Whether the coefficient is u w^T: no factor has a contracted and a produced axis.

    The other axes of the carry must be in place, so a state of another rank is not written so.
    """
    source = carry_of(stage.build, part.source)
    assert source is not None
    if len(source.axes) != len(spec.next_axes):
        return False
    pairs = list(zip(source.axes, spec.next_axes, strict=True))
    produced = {b for a, b in pairs if a in part.contracted}
    if any(a != b for a, b in pairs if a not in part.contracted):
        return False
    read = {a for a in source.axes if a in part.contracted}
    return not any(stage.build.axes[f] & read and stage.build.axes[f] & produced for f in part.factors)


def _sides(stage: Evidence) -> set[frozenset[int]]:
    """Dimensions that one side of an outer product has alone, if both sides change with time.

    For a state that is only wanted at the end: nothing reads it on the way.
    """
    build, axes = stage.build, stage.specs[0].next_axes
    own = frozenset(axes)
    factors = {f for u in stage.updates if u.offset is not None for f in leaves(build, u.offset, own)}
    moving = [build.axes[f] & own for f in factors if varies(build, f, own)]
    shared = frozenset.intersection(*moving) if moving else frozenset()
    found = {side - shared for side in moving if side - shared}
    return {frozenset(axes.index(a) for a in side) for side in found} if len(found) > 1 else set()


def _attention(
    stage: Evidence, decays: Sequence[Part], reads: Sequence[Part], places: frozenset[int]
) -> bool:
    """A state that is written by outer products, decays, and is contracted over K when read.

    V is what decay, keys and queries all lack.  If keys and queries never change, the loop
    is a filter with fixed coefficients, which an elementwise scan runs at its own cost.
    """
    build, axes = stage.build, stage.specs[0].next_axes
    k = frozenset(axes[i] for i in places)
    keys = {leaf for u in stage.updates if u.offset is not None for leaf in leaves(build, u.offset, k)}
    queries = [
        (f, p.contracted) for p in reads if _places(stage, p) == places for f in p.factors
        if build.axes[f] & p.contracted
    ]  # fmt: skip
    used: set[AxisName] = set(k)
    for ref in (*keys, *(f for f, _ in queries), *(f for p in decays for f in p.factors)):
        used |= build.axes[ref]
    if not set(axes) - used:
        return False
    return any(varies(build, f, k) for f in keys) or any(varies(build, f, bound) for f, bound in queries)
