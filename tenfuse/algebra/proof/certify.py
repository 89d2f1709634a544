"""Certificates: the normal form of a step is the step, proved over exact symbols.

Takes a ``StepProgram`` and its ``Recurrence``; leaves a ``Certificate``.  Every axis gets
a tiny size and every input entry a symbol; then each entry of

    body - (sum of terms + offset)

is shown to be zero in the normal form of ``symbols``, and every factor and offset is shown
not to read the state of its own or a later stage.  The proof of the values is for the
sizes that the certificate names: both sides use axes only by name, through entrywise
functions and sums, but no theorem about all sizes is claimed.  Statements hold over the
real numbers, where every quotient and function is defined.

It refuses by ``proved=False`` with a note, also when the work allowed is done or an entry
has grown too large; a rewrite without a certificate is not to be used.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from tenfuse.algebra.proof.cases import by_cases, masked
from tenfuse.algebra.proof.evaluate import SEMIRINGS, Array, Evaluator, Named, array
from tenfuse.algebra.proof.polynomials import ZERO
from tenfuse.algebra.proof.shrink import shrunk
from tenfuse.algebra.proof.symbolic import same_exponentials
from tenfuse.algebra.proof.symbols import Field, GaveUp
from tenfuse.algebra.proof.tiny import least_sizes, sizes_for, unknowns
from tenfuse.algebra.recurrence import BLOCK, FORMS, Affine, Recurrence, Stage
from tenfuse.step.program import AxisName, Input, Pointwise, Ref, StepProgram, arguments

WORK = 1_000_000
"""Operations on terms after which a proof is given up: the same on every machine, however busy."""
_NOTHING = {"max-plus": float("-inf"), "log-plus": float("-inf"), "min-plus": float("inf")}
"""A semiring's zero, where it is not 0."""


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What was proved, at which sizes; where it was not, ``note`` says what stood against it."""

    proved: bool
    claim: str
    sizes: tuple[tuple[AxisName, int], ...]
    seconds: float
    """Processor time."""
    work: int = 0
    """Operations on terms."""
    note: str = ""
    unfinished: bool = False
    """It was neither proved nor disproved in the time and space given."""


def certificate_to_text(certificate: Certificate) -> str:
    return json.dumps(dataclasses.asdict(certificate), sort_keys=True)


def certificate_from_text(text: str) -> Certificate | None:
    """The certificate; None for a text that is not one, which a cache treats as a miss."""
    try:
        found = json.loads(text)
        sizes = tuple((str(axis), int(size)) for axis, size in found["sizes"])
        proved, claim, note = found["proved"], found["claim"], found["note"]
        seconds, work, unfinished = float(found["seconds"]), int(found["work"]), found["unfinished"]
    except (ValueError, KeyError, TypeError):
        return None
    flags, texts = (proved, unfinished), (claim, note)
    if not all(isinstance(x, bool) for x in flags) or not all(isinstance(x, str) for x in texts):
        return None
    return Certificate(proved, claim, sizes, seconds, work, note, unfinished)


class Differs(Exception):
    """The two sides are not the same; says where."""


def certify(program: StepProgram, recurrence: Recurrence, work: int = WORK) -> Certificate:
    """Whether ``recurrence`` is ``program`` in normal form."""
    claim = "each update and output is its terms plus offset, with factors free of the state"
    summed = [a for u in _affines(recurrence) for t in u.terms for a in t.contracted]
    axes = {**program.sizes, **recurrence.sizes}
    sizes = sizes_for([program.nodes, recurrence.nodes], program.carries, axes, summed)

    def prove(at: dict[AxisName, int], field: Field) -> None:
        _structure(program, recurrence)
        _Split(*shrunk(program, recurrence, at), field, at).prove()

    found = attempt(claim, sizes, work, partial(prove, sizes))
    if found.proved or found.unfinished or not masked(recurrence):
        return found
    least = least_sizes(program, recurrence)
    return attempt(claim, least, work, partial(prove, least), masks=True)


Proof = Callable[[Field], None]
"""Raises ``Differs`` or ``GaveUp`` unless what it shows is so."""


def attempt(
    claim: str, sizes: dict[AxisName, int], work: int, prove: Proof, masks: bool = False
) -> Certificate:
    """The certificate for what ``prove`` shows; with ``masks``, mask by mask if not at once."""
    start, field, note, unfinished = time.thread_time(), Field(work), "", False
    try:
        prove(field)
    except (Differs, GaveUp) as why:
        note, unfinished = str(why), isinstance(why, GaveUp)
    spent = time.thread_time() - start
    if masks and note and not unfinished:
        each = attempt(claim, sizes, work - field.spent, partial(by_cases, prove, orders=False))
        return dataclasses.replace(each, seconds=spent + each.seconds, work=field.spent + each.work)
    return Certificate(not note, claim, tuple(sorted(sizes.items())), spent, field.spent, note, unfinished)


def _affines(recurrence: Recurrence) -> Iterable[Affine]:
    yield from (u for stage in recurrence.stages for u in stage.updates)
    yield from recurrence.outs


# -- what reads what ------------------------------------------------------------------------


def _structure(program: StepProgram, recurrence: Recurrence) -> None:
    """Every carry is updated once, and no factor reads the state it is linear in."""
    updated = sorted(c for stage in recurrence.stages for c in stage.carries)
    if updated != list(range(len(program.carries))) or len(recurrence.outs) != len(program.outs):
        raise Differs("a carry or an output is missing, or is there twice")
    reads = _reads(recurrence)
    done: set[int] = set()
    for stage in recurrence.stages:
        if (
            stage.form not in FORMS
            or stage.semiring not in SEMIRINGS
            or len(stage.carries) != len(stage.updates)
        ):
            raise Differs("a stage is malformed")
        for carry, update in zip(stage.carries, stage.updates, strict=True):
            _free(recurrence, reads, update, done, stage, f"the update of carry {carry}")
        _form(program, recurrence, stage)
        done |= set(stage.carries)
    stage_of = {c: set(s.carries) for s in recurrence.stages for c in s.carries}
    for i, out in enumerate(recurrence.outs):
        for term in out.terms:
            node = recurrence.nodes[term.source]
            own = stage_of.get(node.index, set()) if isinstance(node, Input) else set[int]()
            if any(index in own for f in term.factors for _, index in reads[f]):
                raise Differs(f"a factor in output {i} reads the state it multiplies")


def _reads(recurrence: Recurrence) -> list[frozenset[tuple[str, int]]]:
    """The carries, before ("carry") or after ("next") the step, that reach every node."""
    found: list[frozenset[tuple[str, int]]] = []
    for i, node in enumerate(recurrence.nodes):
        if any(a >= i for a in arguments(node)):
            raise Differs("a node reads one that does not stand before it")
        reached = frozenset[tuple[str, int]]().union(*(found[a] for a in arguments(node)))
        if isinstance(node, Input) and node.kind in ("carry", "next"):
            reached |= {(node.kind, node.index)}
        found.append(reached)
    return found


def _free(
    recurrence: Recurrence,
    reads: Sequence[frozenset[tuple[str, int]]],
    update: Affine,
    done: set[int],
    stage: Stage,
    what: str,
) -> None:
    """Factors and offset read only earlier stages; sources are this stage's, linear ones directly."""
    offset = () if update.offset is None else (update.offset,)
    for ref in (*(f for term in update.terms for f in term.factors), *offset):
        if any(index not in done for _, index in reads[ref]):
            raise Differs(f"{what} has a factor or an offset that reads the state")
    for term in update.terms:
        node = recurrence.nodes[term.source]
        if isinstance(node, Pointwise) and node.fn == "cut":
            node = recurrence.nodes[node.args[0]]  # its value is the state's, only the gradient is not
        direct = isinstance(node, Input) and node.kind == "carry"
        if not direct and (stage.form != "nonlinear" and any(i not in done for _, i in reads[term.source])):
            raise Differs(f"{what} is called {stage.form} and is linear in a function of the state")
        for kind, index in reads[term.source]:
            if index not in done and (kind == "next" or index not in stage.carries):
                raise Differs(f"{what} reads a state that is not known yet")


def _form(program: StepProgram, recurrence: Recurrence, stage: Stage) -> None:
    """What "elementwise" and "block" promise of the terms."""
    if stage.form not in ("elementwise", "block"):
        return
    most = BLOCK if stage.form == "block" else 2 if stage.complex_pair else 1
    if len(stage.carries) > most:
        raise Differs(f"{len(stage.carries)} carries are called {stage.form}")
    for carry, update in zip(stage.carries, stage.updates, strict=True):
        own = program.carries[carry]
        for term in update.terms:
            node = recurrence.nodes[term.source]
            if term.contracted or (isinstance(node, Input) and len(node.axes) != len(set(node.axes))):
                raise Differs(f"an update called {stage.form} sums over an axis")
            if isinstance(node, Input) and node.index == carry and node.axes != own.next_axes:
                raise Differs(f"an update called {stage.form} moves entries")


# -- values ---------------------------------------------------------------------------------


class _Split:
    """Both sides on the same symbols."""

    def __init__(
        self, program: StepProgram, recurrence: Recurrence, field: Field, sizes: dict[AxisName, int]
    ) -> None:
        self.program, self.recurrence, self.field = program, recurrence, field
        self.run = Evaluator(field, sizes)
        inputs = unknowns(field, [program.nodes, recurrence.nodes], sizes)
        body = self.run.run(program.nodes, inputs)
        self.nexts = [self.run.expanded(body[c.next], c.next_axes) for c in program.carries]
        self.outs = [self.run.expanded(body[o.ref], o.axes) for o in program.outs]
        inputs |= {("next", i): value for i, value in enumerate(self.nexts)}
        self.values = self.run.run(recurrence.nodes, inputs)

    def prove(self) -> None:
        for stage in self.recurrence.stages:
            for carry, update in zip(stage.carries, stage.updates, strict=True):
                want, axes = self.nexts[carry], self.program.carries[carry].next_axes
                self._same(
                    self.affine(update, stage.semiring, stage.scale),
                    want,
                    axes,
                    f"the update of carry {carry}",
                )
            if stage.complex_pair:
                self._complex(stage)
        for i, (spec, out) in enumerate(zip(self.program.outs, self.recurrence.outs, strict=True)):
            self._same(self.affine(out, "sum-product"), self.outs[i], spec.axes, f"output {i}")

    def affine(self, update: Affine, semiring: str, scale: float = 1.0) -> Named:
        """The sum of terms and offset in a semiring, of states that are ``scale`` times its values."""
        plus, times = SEMIRINGS[semiring]
        parts = [] if update.offset is None else [self.values[update.offset]]
        for term in update.terms:
            value = self.product(times, (term.source, *term.factors), 1 / scale)
            absent = tuple(sorted(term.contracted - set(value[1])))
            axes = (*value[1], *absent)
            parts.append(self.run.reduce(plus, (self.run.expanded(value, axes), axes), term.contracted))
        total = parts[0] if parts else self.run.number(_NOTHING.get(semiring, 0.0))
        for part in parts[1:]:
            total = self.run.call(plus, total, part)
        return self._scaled(total, scale)

    def _scaled(self, value: Named, scale: float) -> Named:
        return value if scale == 1.0 else self.run.call("mul", value, self.run.number(scale))

    def product(self, times: str, refs: Sequence[Ref], scale: float = 1.0) -> Named:
        """That of the values of ``refs``, the first of them scaled."""
        found = self._scaled(self.values[refs[0]], scale)
        for ref in refs[1:]:
            found = self.run.call(times, self.values[ref], found)
        return found

    def _same(self, got: Named, want: Array, axes: tuple[AxisName, ...], what: str) -> None:
        if not set(got[1]) <= set(axes):
            raise Differs(f"{what} has other axes than the step's")
        same(self.field, self.run.expanded(got, axes), want, what)

    def _complex(self, stage: Stage) -> None:
        """The two updates multiply by [[p, -q], [q, p]]."""
        if len(stage.carries) != 2 or stage.semiring != "sum-product":
            raise Differs("a complex pair is not two carries")
        found = [[self._coefficient(update, carry) for carry in stage.carries] for update in stage.updates]
        self._opposite(found[0][0], found[1][1], -1.0, "real")
        self._opposite(found[0][1], found[1][0], 1.0, "imaginary")

    def _opposite(self, a: Named, b: Named, sign: float, part: str) -> None:
        gap = self.run.call("add", a, self.run.call("mul", b, self.run.number(sign)))
        zero = array(gap[0].shape, lambda _: ZERO)
        same(self.field, gap[0], zero, f"the {part} part of a complex pair's coefficient")

    def _coefficient(self, update: Affine, carry: int) -> Named:
        """What multiplies the carry; an axis that is summed over is called by its place."""
        total = self.run.number(0.0)
        for term in update.terms:
            node = self.recurrence.nodes[term.source]
            if not (isinstance(node, Input) and node.kind == "carry" and node.index == carry):
                continue
            entries, own = self.product("mul", term.factors) if term.factors else self.run.number(1.0)
            place = {a: f"#{i}" for i, a in enumerate(node.axes) if a in term.contracted}
            total = self.run.call("add", total, (entries, tuple(place.get(a, a) for a in own)))
        return total


def same(field: Field, got: Array, want: Array, what: str) -> None:
    """Entry by entry, or ``Differs``."""
    if got.shape != want.shape:
        raise Differs(f"{what} has another shape")
    for a, b in zip(got.flat, want.flat, strict=True):
        field.spend(1)
        if not field.equal(a, b) and not same_exponentials(field, a, b):
            raise Differs(f"{what} differs in at least one entry")


__all__ = ["WORK", "ZERO", "Certificate", "Differs", "attempt", "certificate_from_text",
           "certificate_to_text", "certify", "same"]  # fmt: skip
