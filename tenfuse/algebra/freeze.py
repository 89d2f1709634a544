"""Sums of terms as the frozen ``Recurrence``.

Takes what the analysis found, over a builder full of nodes it tried and left; leaves the
contract type with the nodes that are needed and no others, in the order they stood.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from tenfuse.algebra.names import original
from tenfuse.algebra.recurrence import Affine, Recurrence, Stage, Term
from tenfuse.algebra.rings import SUM_PRODUCT
from tenfuse.algebra.terms import Sum
from tenfuse.step.program import (
    AxisName,
    Builder,
    Contract,
    Input,
    Ref,
    StepProgram,
    arguments,
    with_arguments,
)


@dataclasses.dataclass(frozen=True)
class Draft:
    """A stage whose updates are still sums."""

    carries: tuple[int, ...]
    updates: tuple[Sum, ...]
    form: str
    semiring: str = SUM_PRODUCT.name
    pair: bool = False
    scale: float = 1.0


def frozen(
    program: StepProgram,
    build: Builder,
    drafts: Iterable[Draft],
    outs: Iterable[Sum],
    reads: Mapping[Ref, Sum],
    form: str,
) -> Recurrence:
    """The recurrence of ``program`` from its stages, outputs and what its outputs' atoms read."""
    stages = [
        Stage(d.carries, tuple(_normal(build, u) for u in d.updates), d.form, d.semiring, d.pair, d.scale)
        for d in drafts
    ]
    ends = [_normal(build, o) for o in outs]
    inside = [(ref, _normal(build, value)) for ref, value in sorted(reads.items())]
    live = _live(build, [*(u for s in stages for u in s.updates), *ends], [])
    inside = [(ref, value) for ref, value in inside if ref in live]
    live = _live(
        build,
        [*(u for s in stages for u in s.updates), *ends, *(v for _, v in inside)],
        [ref for ref, _ in inside],
    )
    place = {old: new for new, old in enumerate(sorted(live))}
    nodes = tuple(
        with_arguments(n, [place[a] for a in arguments(n)]) for n in (build.nodes[r] for r in sorted(live))
    )
    atoms = {t.source for s in stages for u in s.updates for t in u.terms}
    atoms |= {t.source for a in (*ends, *(v for _, v in inside)) for t in a.terms}
    sizes, dynamic = _sizes(program, build, live)
    return Recurrence(
        nodes,
        sizes,
        dynamic,
        tuple(dataclasses.replace(s, updates=tuple(_placed(u, place) for u in s.updates)) for s in stages),
        tuple(_placed(o, place) for o in ends),
        tuple(place[a] for a in sorted(atoms) if not isinstance(build.nodes[a], Input)),
        form,
        tuple((place[ref], _placed(value, place)) for ref, value in inside),
    )


def _normal(build: Builder, value: Sum) -> Affine:
    terms = []
    for part in value.parts:
        scale = () if part.scale == 1.0 else (build.const(part.scale),)
        terms.append(Term(part.source, (*scale, *part.factors), part.contracted))
    return Affine(tuple(terms), value.offset)


def _live(build: Builder, sums: Iterable[Affine], more: Iterable[Ref]) -> set[Ref]:
    found: set[Ref] = set()
    pending = list(more)
    for value in sums:
        pending += [r for t in value.terms for r in (t.source, *t.factors)]
        pending += [] if value.offset is None else [value.offset]
    while pending:
        ref = pending.pop()
        if ref not in found:
            found.add(ref)
            pending += arguments(build.nodes[ref])
    return found


def _placed(value: Affine, place: Mapping[Ref, Ref]) -> Affine:
    terms = tuple(
        Term(place[t.source], tuple(place[f] for f in t.factors), t.contracted) for t in value.terms
    )
    return Affine(terms, None if value.offset is None else place[value.offset])


def _sizes(
    program: StepProgram, build: Builder, live: Iterable[Ref]
) -> tuple[dict[AxisName, int], frozenset[AxisName]]:
    """Sizes of the program's axes and of every fresh name."""
    names = set(program.sizes)
    for ref in live:
        node = build.nodes[ref]
        names |= build.axes[ref] | (node.axes if isinstance(node, Contract) else frozenset())
    sizes = {a: program.sizes[original(a, program.sizes)] for a in sorted(names)}
    return sizes, frozenset(a for a in sizes if original(a, program.sizes) in program.dynamic)
