"""``Recurrence``: the core of a loop in normal form.

Takes nothing from other stages; this is what classification, certificates, chunk programs
and the plan read.  Every carry update, and every output, is a sum of terms that are linear
in one carry each, plus an offset:

    next_i = sum_j  sum_{contracted}  (product of factors) * carry_j   +   offset

over named axes, in a semiring (ordinary + and * unless said otherwise).  Factors and
offset are *state-free*: nodes that no carry of the same stage reaches.  Where the step has
a nonlinear function of the state, that node is an *atom*: terms may be linear in an atom
as they are in a carry, and the atom's own arguments are again in normal form.

Carries that depend on each other one way only lie in different *stages*, in the order in
which they can be computed; in a later stage the carries of an earlier one are state-free:
``Input("carry", j)`` is their value before the step, ``Input("next", j)`` after it.
"""

from __future__ import annotations

import dataclasses

from tenfuse.step.program import AxisName, Node, Ref

FORMS = ("map", "elementwise", "block", "low-rank", "dense", "semiring", "nonlinear")
SEMIRINGS = ("sum-product", "max-plus", "min-plus", "log-plus", "or-and")
BLOCK = 4
"""The largest number of carries that a block scan combines by small matrices."""


@dataclasses.dataclass(frozen=True)
class Term:
    """``sum over contracted of (product of factors) * source``.

    ``source`` is the node of an ``Input("carry" | "next", j, names)``, of ``cut`` of such
    an input (linear, but no gradient passes), or of an atom.  The
    names under which a carry is read are its own, except that a contracted axis has a
    fresh name: in ``u_i * sum_k w_k S_kj`` the carry S[i, j] is read as S[k, j].
    ``factors`` are state-free nodes; no factors is the factor one.
    """

    source: Ref
    factors: tuple[Ref, ...] = ()
    contracted: frozenset[AxisName] = frozenset()


@dataclasses.dataclass(frozen=True)
class Affine:
    """``sum of terms + offset``; no offset is the semiring's zero."""

    terms: tuple[Term, ...]
    offset: Ref | None = None


@dataclasses.dataclass(frozen=True)
class Stage:
    """Carries that depend on each other both ways (most often one), and how."""

    carries: tuple[int, ...]
    updates: tuple[Affine, ...]
    """The next value of each of ``carries``, over the program's ``next_axes``."""
    form: str
    semiring: str = "sum-product"
    complex_pair: bool = False
    """Two carries that are the real and imaginary part of one complex carry: their 2x2
    block is [[p, -q], [q, p]]."""
    scale: float = 1.0
    """The carries are this number times what is linear in the semiring: ``h = scale * g``, and the
    updates' terms, factors and offsets are those of g.  So -1 is a soft minimum."""


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """One step's core in normal form; ``nodes`` is the DAG that all ``Ref`` point into."""

    nodes: tuple[Node, ...]
    sizes: dict[AxisName, int]
    dynamic: frozenset[AxisName]
    stages: tuple[Stage, ...]
    outs: tuple[Affine, ...]
    """Every output; those that read the state after the update are terms in ``next``."""
    atoms: tuple[Ref, ...]
    form: str
    """One word for the whole: the most general of the stages."""
    reads: tuple[tuple[Ref, Affine], ...] = ()
    """What the atoms of the outputs read of the state: the node, in ``nodes``, that an atom
    has as argument, and its normal form."""
