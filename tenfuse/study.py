"""What is known about a loop's core: its normal form, formula and certificates.

Takes a ``StepProgram``; leaves a ``Study``, the algebra's findings in the form that plan
and report want.  A proof is kept in the cache: it is found once per program and machine.
Refuses nothing; what is not proved says so, and is not used.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.certify import Certificate, certificate_from_text, certificate_to_text, certify
from tenfuse.algebra.certify_chunk import certify_chunk
from tenfuse.algebra.formula import formula
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.plan.loop import canonical
from tenfuse.runtime import notes
from tenfuse.runtime.cache import key_of
from tenfuse.step.program import StepProgram
from tenfuse.step.reader import Placed

VERSION = "1"
"""Raised when the algebra changes what it proves: older certificates are then forgotten."""


@dataclasses.dataclass(frozen=True)
class Study:
    """The normal form of ``program``."""

    program: StepProgram
    recurrence: Recurrence
    formula: str

    @property
    def form(self) -> str:
        return self.recurrence.form

    @functools.cached_property
    def split(self) -> Certificate:
        """That the normal form is the step."""
        return self._certificate("split", lambda: certify(self.program, self.recurrence))

    @functools.cached_property
    def chunk(self) -> Certificate:
        """That the chunk program is so many steps."""
        return self._certificate("chunk", lambda: certify_chunk(self.program, self.recurrence))

    def _certificate(self, kind: str, prove: Callable[[], Certificate]) -> Certificate:
        key = key_of(VERSION, kind, canonical(self.program), canonical(self.recurrence))
        found = certificate_from_text(notes.recall(key) or "")
        if found is None:
            found = prove()
            if found.proved:
                notes.keep(key, certificate_to_text(found))
        return found


def study(program: StepProgram, carries: Collection[Placed]) -> Study:
    """The algebra of ``program``; ``carries`` tell which of them are parts of a complex one."""
    recurrence = analyse(program, _pairs(carries))
    return Study(program, recurrence, formula(recurrence, program))


def _pairs(places: Collection[Placed]) -> list[tuple[int, int]]:
    """Carries that are the real and the imaginary part of one complex tensor."""
    real = {_piece(p): i for i, p in enumerate(places) if p.view.part == 0}
    imaginary = {_piece(p): i for i, p in enumerate(places) if p.view.part == 1}
    return [(i, imaginary[piece]) for piece, i in real.items() if piece in imaginary]


def _piece(place: Placed) -> tuple[object, ...]:
    return (place.source, place.view.dims, place.view.offset)


def told(certificate: Certificate) -> str:
    """One line of evidence."""
    at = ", ".join(sorted({str(n) for _, n in certificate.sizes})) or "1"
    if certificate.proved:
        return f"proved over exact symbols, axes of {at}: {certificate.claim} ({certificate.seconds:.2f} s)"
    return f"not proved: {certificate.claim} ({certificate.note})"


__all__ = ["Study", "study", "told"]
