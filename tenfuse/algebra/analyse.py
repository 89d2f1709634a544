"""Find what a recurrence is: cascade, normal form, classification.

Takes the ``StepProgram`` of a loop's core (or its adjoint); leaves a ``Recurrence``.  It
refuses nothing: what has no narrower form is nonlinear, with its linear parts around atoms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction

from tenfuse.algebra.affine import Affine
from tenfuse.algebra.cascade import Cascade, cascade, reached
from tenfuse.algebra.classify import Evidence, classify, linear, whole
from tenfuse.algebra.freeze import Draft, frozen
from tenfuse.algebra.logplus import LogPlus
from tenfuse.algebra.mirror import Mirror
from tenfuse.algebra.multiples import Multiples
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.algebra.rings import RINGS, SUM_PRODUCT
from tenfuse.algebra.scales import scale
from tenfuse.algebra.terms import Part, Stuck
from tenfuse.step.program import Builder, StepProgram


def analyse(program: StepProgram, complex_carries: Collection[tuple[int, int]] = ()) -> Recurrence:
    """The normal form of ``program``.

    Args:
        program: one step, or the adjoint of one.
        complex_carries: carries that are the real and the imaginary part of one complex
            tensor.  Such a pair is one elementwise carry; the same two scans written with
            real tensors are a block.
    """
    build = Builder()
    chain = cascade(program)
    drafts = [_stage(chain, build, k, frozenset(complex_carries)) for k in range(len(chain.stages))]
    everything = chain.given(frozenset(range(len(program.carries))))
    reader = Affine(program, build, range(len(program.carries)), everything, everything)
    outs = [reader.value(o.ref) for o in program.outs]
    form = whole([d.form for d in drafts], _chained(chain, drafts))
    return frozen(program, build, drafts, outs, reader.reads, form)


def _stage(chain: Cascade, build: Builder, k: int, complex_carries: frozenset[tuple[int, int]]) -> Draft:
    program, carries = chain.program, chain.stages[k]
    given = chain.given(chain.earlier(k))
    numbers = Affine(program, build, carries, given)
    updates = tuple(numbers.value(program.carries[i].next) for i in carries)
    if not linear(build, updates):
        return _semiring(chain, build, k) or Draft(carries, updates, "nonlinear")
    specs = tuple(program.carries[i] for i in carries)
    reads = tuple(_reads(chain, build, k)) if not any(p.contracted for u in updates for p in u.parts) else ()
    form, pair = classify(Evidence(build, carries, specs, updates, reads))
    if form == "block" and carries in complex_carries:
        form = "elementwise"
    return Draft(carries, updates, form, pair=pair)


def _semiring(chain: Cascade, build: Builder, k: int) -> Draft | None:
    """The stage in the first other ring in which it is linear."""
    program, carries = chain.program, chain.stages[k]
    given = chain.given(chain.earlier(k))
    for name, ring in RINGS.items():
        if ring is SUM_PRODUCT:
            continue
        by = scale(program, carries) if name == "log-plus" else Fraction(1)
        kind = {"log-plus": LogPlus, "or-and": Multiples}.get(name, Mirror)
        trial = kind(program, build, carries, given, ring=ring, scale=by)
        try:
            updates = tuple(trial.update(program.carries[i].next) for i in carries)
        except Stuck:
            continue
        return Draft(carries, updates, "semiring", name, scale=float(by))
    return None


def _reads(chain: Cascade, build: Builder, k: int) -> Iterator[Part]:
    """Every term by which outputs and later stages read the carries of stage ``k``."""
    program, mine = chain.program, frozenset(chain.stages[k])
    given = chain.given(mine)
    reader = Affine(program, build, mine, given, given)
    later = [i for carries in chain.stages[k + 1 :] for i in carries]
    for ref in [*(program.carries[i].next for i in later), *(o.ref for o in program.outs)]:
        yield from (p for p in reader.value(ref).parts)
    for value in reader.reads.values():
        yield from value.parts


def _chained(chain: Cascade, drafts: Iterable[Draft]) -> bool:
    """Whether a scan reads the carry of an earlier scan; a mere delay line is no scan."""
    reads = reached(chain.program)
    earlier: set[int] = set()
    for draft in drafts:
        scans = any(u.parts for u in draft.updates)
        if scans and any(earlier & reads[chain.program.carries[i].next] for i in draft.carries):
            return True
        earlier |= set(draft.carries) if scans else set()
    return False
