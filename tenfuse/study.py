"""What is known about a loop's core: its normal form, formula and certificates.

Takes the ``Step`` that a kernel would run; leaves a ``Study``, the algebra's findings in the form that plan
and report want.  A proof is kept in the cache: it is found once per program and machine.
Refuses nothing; what is not proved says so, and is not used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping

import torch.fx as fx

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.formula import formula, letters
from tenfuse.algebra.proof.certify import Certificate, certificate_from_text, certificate_to_text, certify
from tenfuse.algebra.proof.certify_adjoint import certify_adjoint
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tenfuse.algebra.ranges.bounds import bounds
from tenfuse.algebra.ranges.bounds_aten import bounds_aten
from tenfuse.algebra.ranges.interval import Interval
from tenfuse.algebra.recurrence import Recurrence
from tenfuse.plan.canonical import canonical
from tenfuse.runtime import notes
from tenfuse.runtime.cache import key_of
from tenfuse.step.adjoint import adjoint
from tenfuse.step.program import StepProgram
from tenfuse.step.reader import Placed, Step

VERSION = "10"
"""Raised when the algebra changes what it proves: older certificates are then forgotten."""


@dataclasses.dataclass(frozen=True)
class Study:
    """The normal form of ``program``."""

    program: StepProgram
    recurrence: Recurrence
    formula: str
    inputs: Mapping[tuple[str, int], Interval]
    """The ranges of streams and invariants, as far as what computes them says."""

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

    @functools.cached_property
    def adjoint(self) -> Certificate:
        """That the adjoint of the chunk program is that of so many steps."""

        def differentiate(program: StepProgram) -> tuple[StepProgram, dict[int, int]]:
            found = adjoint(program, list(program.inputs("stream")), [])
            return found.program, found.streams

        return self._certificate(
            "adjoint", lambda: certify_adjoint(self.program, self.recurrence, differentiate)
        )

    def certified(self, length: int, gradients: bool) -> bool:
        """Whether running in chunks is proved to be the loop, with its gradients if they matter.

        For chunks of one step it is enough that the normal form is the step.
        """
        if length == 1:
            return self.split.proved
        return self.split.proved and self.chunk.proved and (self.adjoint.proved or not gradients)

    @functools.cached_property
    def bounds(self) -> tuple[Interval, ...]:
        """The range of every node of the recurrence."""
        sizes = {**self.program.sizes, **self.recurrence.sizes}
        nodes = StepProgram(self.recurrence.nodes, sizes, (), (), self.recurrence.dynamic)
        return bounds(nodes, self.inputs)

    @property
    def steady(self) -> bool:
        """Whether no states that are also read back into their updates can grow by their gates."""
        return all(
            sum(
                math.prod(self.bounds[f].size for f in term.factors)
                for term in update.terms
                if not term.contracted
            )
            <= 1.0
            for stage in self.recurrence.stages
            if any(t.contracted for u in stage.updates for t in u.terms)
            for update in stage.updates
        )

    @property
    def ranges(self) -> str:
        """What is known of the signs and ranges of the values with letters."""
        said = {
            name: self.bounds[ref].words()[:1] for name, ref in letters(self.recurrence, self.program).items()
        }
        return ", ".join(f"{name} {words[0]}" for name, words in sorted(said.items()) if words)

    def _certificate(self, kind: str, prove: Callable[[], Certificate]) -> Certificate:
        key = key_of(VERSION, kind, canonical(self.program), canonical(self.recurrence))
        found = certificate_from_text(notes.recall(key) or "")
        if found is None:
            found = prove()
            if found.proved:
                notes.keep(key, certificate_to_text(found))
        return found


def study(step: Step, graph: fx.Graph | None = None) -> Study:
    """The algebra of ``step``; ``graph`` holds the nodes that its streams are the values of."""
    recurrence = analyse(step.program, _pairs(step.carries))
    known = bounds_aten(graph.nodes) if graph is not None else {}
    places = {"stream": step.streams, "invariant": step.invariants}
    inputs = {
        (kind, i): known[p.source]
        for kind, group in places.items() for i, p in enumerate(group) if p.source in known
    }  # fmt: skip
    return Study(step.program, recurrence, formula(recurrence, step.program), inputs)


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
