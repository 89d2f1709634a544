"""Which chunk programs are proved, and which of their adjoints: one table for all kinds of chunks."""

import pytest

from tenfuse.algebra.analyse import analyse
from tenfuse.algebra.proof.certify_adjoint import certify_adjoint
from tenfuse.algebra.proof.certify_chunk import certify_chunk
from tests.algebra.cascades import CASCADES
from tests.algebra.loops import program_of
from tests.algebra.test_certify_chunk import _differentiated
from tests.algebra.test_chunk_paths import PATHS
from tests.algebra.test_chunk_ties import EXTREMES

KINDS = {"cascade": CASCADES, "ties": EXTREMES, "paths": PATHS}
COSTLY = {
    ("cascade", "averaged"), ("cascade", "stacked"), ("cascade", "total"), ("ties", "decayed"),
    ("ties", "shared"), ("ties", "stabilised"), ("paths", "crf"), ("paths", "hmm"), ("paths", "grid"),
    ("paths", "gaps_summed"),
}  # fmt: skip
REFUTED = {("ties", "twice"), ("paths", "viterbi"), ("paths", "shortest"), ("paths", "stay"),
           ("paths", "gaps"), ("paths", "either"), ("paths", "two_mixed")}  # fmt: skip
"""The loop compares in another order; of several best paths a tree takes other shares than the steps do."""
UNFINISHED = {("paths", "grid")}
"""More than the work allowed, perhaps: the loop then runs in sequence."""

EVERY = [
    pytest.param(kind, name, marks=pytest.mark.slow if (kind, name) in COSTLY else ())
    for kind, loops in KINDS.items()
    for name in loops
]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_certificates(kind, name):
    program, _ = program_of(name, KINDS[kind])
    recurrence = analyse(program)
    found = certify_chunk(program, recurrence)
    assert found.proved, found.note
    found = certify_adjoint(program, recurrence, _differentiated)
    if (kind, name) not in UNFINISHED or not found.unfinished:
        assert (found.proved, found.unfinished) == ((kind, name) not in REFUTED, False), found.note
